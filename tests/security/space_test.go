package security

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/tests/harness"
)

// TestReservedBlocks fills a filesystem, bare and mounted: what is kept for
// root is not for others.
func TestReservedBlocks(t *testing.T) {
	harness.Need(t, harness.Root, harness.Program("setpriv"))
	free := func(mounted bool) uint64 {
		disk := harness.NewDisk(t, "ext4", 32, "-m", "30")
		at := disk.At
		if mounted {
			m := harness.New(t, harness.Config{Backing: disk.At, Flags: []string{"--allow-other"}})
			defer m.Stop()
			at = m.At
		}
		if r := as(t, 0, at, fmt.Sprintf("mkdir his; chown %d his; chmod 755 .; : >roots; chmod 666 roots", stranger)); r.Exit != 0 {
			t.Fatal(r.Stderr)
		}
		for _, script := range []string{
			"dd if=/dev/zero of=f bs=64k count=1000 status=none conv=fsync", "dd if=/dev/zero of=../roots bs=4k count=1000 status=none conv=fsync",
			"fallocate -l 1M g",
		} {
			if r := as(t, stranger, at+"/his", script); r.Exit == 0 {
				t.Errorf("mounted %v: %s: there is room for ever", mounted, script)
			}
		}
		var st unix.Statfs_t
		if err := unix.Statfs(disk.At, &st); err != nil {
			t.Fatal(err)
		}
		return st.Bfree
	}
	bare, mounted := free(false), free(true)
	if mounted+bare/10 < bare {
		t.Errorf("%d blocks are left for root, on the bare filesystem %d", mounted, bare)
	}
}
