//go:build quota

package security

import (
	"fmt"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/tests/harness"
)

// limit gives a user hard limits, of KiB and inodes, on the filesystem of a
// block device (quotactl(2)).
func limit(t *testing.T, device string, uid int, kib, inodes uint64) {
	t.Helper()
	const setUserQuota, blockLimits, inodeLimits = 0x800008 << 8, 1, 4 // QCMD(Q_SETQUOTA, USRQUOTA), QIF_*
	q := struct {
		hardKiB, softKiB, space, hardInodes, softInodes, inodes, blockTime, inodeTime uint64
		valid                                                                         uint32
	}{hardKiB: kib, hardInodes: inodes, valid: blockLimits | inodeLimits}
	path, err := unix.BytePtrFromString(device)
	if err != nil {
		t.Fatal(err)
	}
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL, setUserQuota, uintptr(unsafe.Pointer(path)), uintptr(uid), uintptr(unsafe.Pointer(&q)), 0, 0)
	if errno != 0 {
		t.Fatalf("quotactl: %v", errno)
	}
}

// TestHardQuotas needs a kernel with CONFIG_QFMT_V2, and is not among the tests
// that must run everywhere: go test -tags quota, which the lab does in its guest. It
// runs the same scripts bare and mounted, each on a new
// filesystem: a user gets as much as there, and the same error.
func TestHardQuotas(t *testing.T) {
	harness.Need(t, harness.Root, harness.Program("setpriv", "mkfs.ext4", "mkfs.xfs"))
	t.Run("ext4", func(t *testing.T) { hardQuotas(t, "ext4", 64, "-O", "quota", "-E", "quotatype=usrquota") })
	t.Run("xfs", func(t *testing.T) { hardQuotas(t, "xfs", 300) })
}

func hardQuotas(t *testing.T, filesystem string, mib int64, mkfs ...string) {
	const uid = stranger
	run := func(mounted bool) (said []string) {
		disk := harness.NewDisk(t, filesystem, mib, mkfs...)
		disk.Unmount()
		if r := harness.Run(t, "mount", "-o", "loop,usrquota", disk.Image, disk.At); r.Exit != 0 {
			t.Fatal(r.Stderr)
		}
		t.Cleanup(func() {
			if r := harness.Run(t, "umount", disk.At); r.Exit != 0 {
				t.Error(r.Stderr)
			}
		})
		device := strings.TrimSpace(harness.Run(t, "findmnt", "-no", "SOURCE", disk.At).Stdout)
		limit(t, device, uid, 2048, 20)
		at := disk.At
		if mounted {
			m := harness.New(t, harness.Config{Backing: disk.At, Flags: []string{"--allow-other"}})
			defer m.Stop()
			at = m.At
		}
		if r := as(t, 0, at, fmt.Sprintf("chmod 777 .; mkdir his; chown %d his; : >roots; chmod 666 roots", uid)); r.Exit != 0 {
			t.Fatal(r.Stderr)
		}
		for _, script := range []string{
			"dd if=/dev/zero of=f bs=64k count=100 status=none conv=fsync; stat -c %s f",
			"dd if=/dev/zero of=f bs=4k count=1 seek=300 conv=notrunc status=none; stat -c %s f",
			"fallocate -l 1M g; rm -f g; truncate -s 100M g; stat -c %s g",
			"dd if=/dev/zero of=g bs=4k count=1 seek=900 conv=notrunc,fsync status=none; dd if=/dev/zero of=roots bs=64k count=60 status=none; stat -c %s roots",
			"rm f g; sleep 1; for i in $(seq 30); do mkdir d$i || break; done; ls -d d* | wc -l",
			"rm -r d*; sleep 1; for i in $(seq 30); do ln -s x l$i || break; done; ls -d l* | wc -l; rm l*; sleep 1; mkfifo p; mknod q p; ls", // XFS drops inodes in the background
		} {
			r := as(t, uid, at+"/his", script)
			said = append(said, fmt.Sprintf("%s: exit %d: %s%s", script, r.Exit, r.Stdout, r.Stderr))
		}
		return said
	}
	bare, mounted := run(false), run(true)
	if !strings.Contains(strings.Join(bare, ""), "quota exceeded") {
		t.Fatalf("the quota is not enforced: %s", bare)
	}
	for i := range bare {
		if bare[i] != mounted[i] {
			t.Errorf("bare:    %s\nmounted: %s", bare[i], mounted[i])
		}
	}
}
