package fileid

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUnreadableInodeIsNotGone damages the inode of a file on the disk. Its handle is stale
// then, as if the file were gone.
func TestUnreadableInodeIsNotGone(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may mount a loop device")
	}
	dir := t.TempDir()
	image, at := filepath.Join(dir, "image"), filepath.Join(dir, "mount")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 32<<20), os.Mkdir(at, 0o700)); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.ext4", "-q", "-F", image)
	run(t, "mount", "-o", "loop", image, at)
	mounted := true
	t.Cleanup(func() {
		if mounted {
			_ = unix.Unmount(at, unix.MNT_DETACH) // the test has failed
		}
	})
	fd, err := unix.Open(filepath.Join(at, "file"), unix.O_CREAT|unix.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	id := of(t, fd)
	unix.Close(fd)
	run(t, "umount", at)
	mounted = false
	damageInode(t, image, id.Ino)
	run(t, "mount", "-o", "loop", image, at)
	mounted = true
	root, err := unix.Open(at, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openHandle(root, id, unix.O_PATH); !errors.Is(err, unix.ESTALE) {
		t.Fatalf("the handle: %v, want ESTALE", err)
	}
	if Gone(root, id, "file") {
		t.Error("it is taken for gone")
	}
	if fd, err := Open(root, id, "file", unix.O_RDONLY); !errors.Is(err, unix.EBADMSG) || errors.Is(err, ErrGone) {
		t.Errorf("opening it: %d, %v, want EBADMSG", fd, err)
	}
	unix.Close(root)
	run(t, "umount", at)
	mounted = false
}

// damageInode makes the checksum of an inode wrong.
func damageInode(t *testing.T, image string, ino uint64) {
	t.Helper()
	said := run(t, "debugfs", "-R", fmt.Sprintf("imap <%d>", ino), image)
	place := regexp.MustCompile(`located at block (\d+), offset 0x([0-9a-f]+)`).FindStringSubmatch(said)
	size := regexp.MustCompile(`Block size:\s+(\d+)`).FindStringSubmatch(run(t, "dumpe2fs", "-h", image))
	if place == nil || size == nil {
		t.Fatalf("debugfs says %q", said)
	}
	number := func(text string, base int) int64 {
		n, err := strconv.ParseInt(text, base, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const mtime = 0x10
	if _, err := f.WriteAt(bytes.Repeat([]byte{0x5a}, 4), number(place[1], 10)*number(size[1], 10)+number(place[2], 16)+mtime); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		program = filepath.Join("/usr/sbin", program)
	}
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}
