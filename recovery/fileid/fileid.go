// Package fileid names a backing file in a way that survives renames, remounts
// and reboots, and names the filesystem that it lives on.
package fileid

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ID is the identity of a backing file within its filesystem. Two live files
// never have equal IDs; an inode number that was freed and used again gives a
// new ID wherever the filesystem has file handles or birth times.
type ID struct {
	Ino   uint64 `json:"ino"`
	Btime int64  `json:"btime,omitempty"` // birth time, ns since 1970; 0 if the filesystem keeps none
	// Handle is name_to_handle_at's answer, "type:hex"; empty if the
	// filesystem has no file handles that last (FUSE).
	Handle string `json:"handle,omitempty"`
}

// Key is a short string that is equal exactly for equal IDs; it is what
// ledger and journal are keyed by.
func (id ID) Key() string {
	return strconv.FormatUint(id.Ino, 16) + "." + strconv.FormatInt(id.Btime, 16) + "." + id.Handle
}

func (id ID) String() string { return fmt.Sprintf("inode %d", id.Ino) }

// same reports whether found agrees with id in all that id knows: it may be
// from a kernel or server that told less.
func (id ID) same(found ID) bool {
	return found.Ino == id.Ino &&
		(id.Btime == 0 || found.Btime == id.Btime) &&
		(id.Handle == "" || found.Handle == id.Handle)
}

// Of asks the kernel for the identity of the file open at fd (O_PATH will do).
func Of(fd int) (ID, error) {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &st)
	if err != nil {
		return ID{}, fmt.Errorf("statx: %w", err)
	}
	id := ID{Ino: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.Btime = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	h, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH)
	switch {
	case err == nil && unstable(fd, h.Type()):
	case err == nil:
		id.Handle = nameOf(h)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EOVERFLOW), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
		// No handles here: inode and birth time have to do.
	default:
		return ID{}, fmt.Errorf("name_to_handle_at: %w", err)
	}
	return id, nil
}

func nameOf(h unix.FileHandle) string {
	return strconv.Itoa(int(h.Type())) + ":" + hex.EncodeToString(h.Bytes())
}

// HasHandle reports whether h is the handle of the file. Without handles it is not.
func (id ID) HasHandle(h unix.FileHandle) bool { return id.Handle == nameOf(h) }

// unstable reports whether handles of this type don't outlive the kernel's cache:
// those of FUSE hold the node ID that its server made up for now, and a live
// file may be ESTALE through them. XFS uses one of the two types as well.
func unstable(fd int, handleType int32) bool {
	const ino64Gen, ino64GenParent = 0x81, 0x82 // include/linux/exportfs.h
	if handleType != ino64Gen && handleType != ino64GenParent {
		return false
	}
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && uint32(st.Type) == unix.FUSE_SUPER_MAGIC
}

// ErrGone says that no file with the wanted identity exists any more.
var ErrGone = errors.New("the file is gone")

// Open opens the file with the identity id on the filesystem of root, by its
// last known path below root, so that the kernel knows its name afterwards (see
// Path), or, where another file or none has that, by its handle, if handles can be
// used (one is kept, and CAP_DAC_READ_SEARCH). The identity is checked after
// opening. The error is ErrGone if the file was removed or another one is found in
// its place.
//
// Before its erratum 3 was mended (Linux 6.19, later 6.18) Landlock denies to
// open a file by its handle while the kernel knows no name of it: then, too, the
// path has to do (TestRestricted in package mount). A file that lives and is not
// found by it is not gone: the error is EACCES.
func Open(root int, id ID, path string, flags int) (int, error) {
	fd, byPath := openPath(root, id, path, flags)
	if byPath == nil {
		return fd, nil
	}
	fd, err := openHandle(root, id, flags)
	denied := errors.Is(err, unix.EACCES)
	if errors.Is(err, unix.EPERM) || denied || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		fd, err = openPath(root, id, path, flags)
	}
	if err != nil && denied && lives(root, id) {
		return -1, fmt.Errorf("%s %s: it was renamed, and may be opened by its name only: %w", id, path, unix.EACCES)
	}
	if errors.Is(err, unix.ESTALE) && mayHide(byPath) {
		err = byPath
	}
	if errors.Is(err, ErrGone) || errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return -1, fmt.Errorf("%s %s: %w", id, path, ErrGone)
	}
	if err != nil {
		return -1, fmt.Errorf("opening %s %s: %w", id, path, err)
	}
	if err := check(fd, id); err != nil {
		_ = unix.Close(fd) // nothing was written through it
		return -1, fmt.Errorf("%s %s: %w", id, path, err)
	}
	return fd, nil
}

// mayHide reports whether an error says nothing of whether the file is there. The kernel
// has ESTALE for all that goes wrong with a handle, be it that the inode lies in a bad
// sector (fs/exportfs/expfs.c, exportfs_decode_fh, Linux 6.1 to 6.18; TestUnreadableInode in
// tests/lab); what the matter is, it only says of a path.
func mayHide(err error) bool {
	for _, failure := range []unix.Errno{unix.EIO, unix.EUCLEAN, unix.EBADMSG, unix.ENXIO, unix.ENODEV, unix.ENOTCONN, unix.ETIMEDOUT} {
		if errors.Is(err, failure) {
			return true
		}
	}
	return false
}

// lives reports whether the file with the identity id is known to exist.
func lives(root int, id ID) bool {
	fd, err := openHandle(root, id, unix.O_PATH)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return check(fd, id) == nil
}

// check tells whether the file open at fd is the one with the identity id.
func check(fd int, id ID) error {
	found, err := Of(fd)
	if err != nil {
		return err
	}
	if !id.same(found) {
		return fmt.Errorf("another file is in its place: %w", ErrGone)
	}
	return nil
}

// openPath finds the file first and opens it then: opening whatever has its
// name now (a FIFO, a device) could hang or have effects. The identity alone does not
// rule those out: a freed inode, used again within a clock tick, has the same
// birth time.
func openPath(root int, id ID, path string, flags int) (int, error) {
	found, err := unix.Openat2(root, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return -1, err
	}
	defer unix.Close(found)
	if err := check(found, id); err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(found, &st); err != nil {
		return -1, err
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return -1, fmt.Errorf("no file or directory is in its place: %w", ErrGone)
	}
	if flags&unix.O_PATH != 0 {
		return unix.FcntlInt(uintptr(found), unix.F_DUPFD_CLOEXEC, 0)
	}
	return unix.Open("/proc/self/fd/"+strconv.Itoa(found), flags|unix.O_CLOEXEC, 0)
}

// Gone reports whether the file with the identity id on the filesystem of root, last seen
// as path, is known to exist no more. Where handles can't be used it is never known, nor
// while the filesystem can't say.
func Gone(root int, id ID, path string) bool {
	fd, err := openHandle(root, id, unix.O_PATH)
	if err == nil {
		defer unix.Close(fd)
		return errors.Is(check(fd, id), ErrGone)
	}
	if !errors.Is(err, unix.ESTALE) {
		return false
	}
	fd, err = openPath(root, id, path, unix.O_PATH)
	if err == nil {
		_ = unix.Close(fd) // O_PATH: nothing to lose
	}
	return err != nil && !mayHide(err)
}

func openHandle(root int, id ID, flags int) (int, error) {
	kind, data, ok := strings.Cut(id.Handle, ":")
	if !ok {
		return -1, unix.EOPNOTSUPP
	}
	t, err := strconv.ParseInt(kind, 10, 32)
	if err != nil {
		return -1, fmt.Errorf("file handle %q: %w", id.Handle, err)
	}
	raw, err := hex.DecodeString(data)
	if err != nil {
		return -1, fmt.Errorf("file handle %q: %w", id.Handle, err)
	}
	// open_by_handle_at refuses O_PATH descriptors as the mount.
	mount, err := unix.Openat(root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(mount)
	return unix.OpenByHandleAt(mount, unix.NewFileHandle(int32(t), raw), flags|unix.O_CLOEXEC)
}

// Path is the path, relative to the directory root, by which the kernel knows
// the file open at fd now; for a file without a name the last one it had.
// It is for people and events, and helps Open; empty if there is none, as
// for a file that was opened by its handle and that nobody has looked up since the
// filesystem was mounted.
func Path(root, fd int) string {
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return ""
	}
	if was, ok := strings.CutSuffix(path, " (deleted)"); ok && !isNamed(root, fd, path) {
		path = was
	}
	base, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(root))
	if err != nil {
		return path
	}
	if (path == base || path == "/") && !isDirectory(fd) {
		return "" // opened by its handle, and no name of it was looked up: "/", as an unattached root has (d_path, Linux 2.6 to 6.18; TestPathOfUnnamed)
	}
	if path == base {
		return "."
	}
	if below, ok := strings.CutPrefix(path, strings.TrimSuffix(base, "/")+"/"); ok {
		return below
	}
	return path // it was moved out of root: the whole path says so
}

func isDirectory(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// isNamed reports whether the file open at fd really has the path, as the kernel
// writes it: it adds " (deleted)" where that name is gone, even if the file has
// others.
func isNamed(root, fd int, path string) bool {
	base, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(root))
	if err != nil {
		return false
	}
	rel, below := strings.CutPrefix(path, strings.TrimSuffix(base, "/")+"/")
	var want, got unix.Stat_t
	return below && unix.Fstat(fd, &want) == nil && unix.Fstatat(root, rel, &got, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		got.Ino == want.Ino && got.Dev == want.Dev
}

// Filesystem is the name, the same after a reboot, of the filesystem that fd
// lies on: its UUID, or where the kernel tells none (before 6.9: FS_IOC_GETFSUUID)
// "fsid-" and statfs's f_fsid.
func Filesystem(fd int) (string, error) {
	if uuid, ok := uuidOf(fd); ok {
		return uuid, nil
	}
	// A directory open with O_PATH can be opened again for the ioctl.
	if dir, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
		defer unix.Close(dir)
		if uuid, ok := uuidOf(dir); ok {
			return uuid, nil
		}
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return "", fmt.Errorf("fstatfs: %w", err)
	}
	if st.Fsid.Val != [2]int32{} {
		return fmt.Sprintf("fsid-%08x%08x", uint32(st.Fsid.Val[0]), uint32(st.Fsid.Val[1])), nil
	}
	// Nothing that lasts: the device number is right until the next mount.
	var sx unix.Stat_t
	if err := unix.Fstat(fd, &sx); err != nil {
		return "", fmt.Errorf("fstat: %w", err)
	}
	return fmt.Sprintf("%s%x", forNow, sx.Dev), nil
}

// forNow begins names that last until the filesystem is mounted anew.
const forNow = "dev-"

// Lasting reports whether the name that Filesystem gave is the same after the
// filesystem was mounted anew.
func Lasting(name string) bool { return !strings.HasPrefix(name, forNow) }

func uuidOf(fd int) (string, bool) {
	var uuid struct {
		len  uint8
		uuid [16]uint8
	}
	const fsIocGetFSUUID = 0x80111500 // _IOR(0x15, 0, struct fsuuid2), Linux 6.9
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fsIocGetFSUUID, uintptr(unsafe.Pointer(&uuid)))
	u := uuid.uuid
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16]), errno == 0 && uuid.len == 16 && u != [16]uint8{} // some images have none
}

// Short is a name of eight hexadecimal digits for text, for use in file names.
func Short(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:4])
}
