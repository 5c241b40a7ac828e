package fs

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestNoSetuidAfterWrite: a program that somebody else has written to is not
// run with its owner's rights, whatever the kernel keeps of its mode.
func TestNoSetuidAfterWrite(t *testing.T) {
	eachProtect(t, func(t *testing.T, m *mounted) {
		sh(t, m.mnt, root, `chmod 777 .; cp /usr/bin/id x; chmod 6777 x; ./x -u >/dev/null`)
		if got := sh(t, m.mnt, bob, `./x -u`); got != "0\n" {
			t.Fatalf("before the write: %q", got)
		}
		if got := sh(t, m.mnt, bob, `printf x >>x; ./x -u; ./x -g`); got != "1000\n1000\n" {
			t.Errorf("after a write: %q", got)
		}
	})
}

// TestReservedBlocks: what the backing keeps for root, a user does not get.
func TestReservedBlocks(t *testing.T) {
	for _, protect := range []Protect{ProtectFull, ProtectRW, ProtectKnown} {
		t.Run(protect.String(), func(t *testing.T) {
			m := mountNew(t, serveConfig{Timeout: time.Second, Protect: protect, FS: "ext4"})
			sh(t, m.mnt, root, `chmod 777 .; umask 0; truncate -s 0 by-root`)
			held := open(t, m.path("by-root"), unix.O_RDWR) // root came first, and stays
			defer closeFd(t, held)
			var st unix.Statfs_t
			if err := unix.Statfs(m.mnt, &st); err != nil {
				t.Fatal(err)
			}
			if st.Bfree-st.Bavail < 1000 {
				t.Fatalf("only %d blocks are reserved", st.Bfree-st.Bavail)
			}
			most := int64(st.Bavail-500) * st.Bsize
			full := open(t, m.below("full"), unix.O_CREAT|unix.O_RDWR)
			if err := unix.Fallocate(full, 0, 0, most); err != nil {
				t.Fatal(err)
			}
			closeFd(t, full)
			fill := `dd if=/dev/zero of=mine bs=64k count=100 conv=fsync status=none`
			for _, file := range []string{"mine", "by-root"} {
				if got := sh(t, m.mnt, bob, strings.ReplaceAll(fill, "mine", file)+" || rm -f mine"); !strings.Contains(got, "No space left") {
					t.Errorf("a user gets what is reserved, for %s: %q", file, got)
				}
			}
			if got := sh(t, m.mnt, root, strings.ReplaceAll(fill, "mine", "roots")); got != "" {
				t.Errorf("root does not get what is reserved: %q", got)
			}
		})
	}
}
