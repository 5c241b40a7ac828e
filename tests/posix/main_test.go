// Package posix shows that a mount behaves as the directory that it serves:
// to several users, in go-fuse's conformance tests, and where other FUSE
// filesystems are known to fail.
//
// The failures of others (measured on go-fuse's loopback, libfuse's
// passthrough_ll and passthrough_hp, and bindfs), and what would find each of them here:
//
//	ioctls run with the daemon's rights           of_the_filesystem, file_flags; fs.TestIoctl
//	new files belong to root                      owners
//	setgid directories are ignored                owners, setgid_is_inherited
//	the daemon's umask applies                    owners
//	special bits are lost at creation             special_bits
//	paths instead of files                        unlinked_files, removed_directories, long_paths,
//	                                              descriptor_of_a_moved_file
//	ACLs are stored and not enforced              access_acls, default_acls, setting_acls
//	setgid stays after fallocate, punch, zero     dropped_by_changes
//	mapped writes to O_DIRECT files are lost      mappings
//	mapped writes move no times; noatime          of_files; TestAccessTimes
//	trusted.* is listed to users                  hidden
//	file handles are stale                        handles
//	what changes below is not seen                fs.TestBackingChanges, fs/cache_test.go
//	link counts, UTIME_OMIT, seekdir, tar         hard_links, utimensat, DirSeek, TestTar
//	io_uring with O_DIRECT is slow                no passthrough here; a matter of benchmarks
//	forwarded locks break fcntl and OFD locks     conflicts, ranges
//	nothing is checked without default_permissions  mode_bits, directory_bits, access
//
// Names in lower case are checks in script/.
package posix

import (
	"testing"

	"github.com/mendfs/mendfs/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
