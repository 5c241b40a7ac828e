package outage

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/tests/harness"
)

// TestOutageMetByNames has programs ask for nothing but names when the filesystem shuts
// down, of which the recovery engine hears nothing: it is told of all the same, once.
func TestOutageMetByNames(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			d := harness.NewDisk(t, kind, 320)
			m := harness.New(t, harness.Config{Backing: d.At})
			d.ShutDown()
			for _, name := range []string{"a", "b"} {
				if err := os.Mkdir(m.Path(name), 0o755); !errors.Is(err, unix.EIO) {
					t.Errorf("mkdir: %v, want EIO", err)
				}
			}
			check(t, m)
			if engine, _ := m.Status().Engine.(map[string]any); engine["outage"] != true {
				t.Errorf("the status does not say so: %v", engine)
			}
		})
	}
}

// TestReadOnlyBelow has the filesystem remounted: programs get EROFS, and the mount says
// why, once each time.
func TestReadOnlyBelow(t *testing.T) {
	d := harness.NewDisk(t, "ext4", 64)
	m := harness.New(t, harness.Config{Backing: d.At})
	for times := 1; times <= 2; times++ {
		remount(t, d, "ro")
		for range 2 {
			if err := os.Mkdir(m.Path("a"), 0o755); !errors.Is(err, unix.EROFS) {
				t.Errorf("mkdir: %v, want EROFS", err)
			}
		}
		m.Says("the backing filesystem is read-only now", times)
		if !m.Status().BackingReadOnly {
			t.Error("the status does not say so")
		}
		remount(t, d, "rw")
		if m.Status().BackingReadOnly {
			t.Error("the status says so still")
		}
	}
	for _, e := range m.Events() {
		if e.Event == event.Outage || e.Event == event.MetadataError {
			t.Errorf("that is none: %+v", e)
		}
	}
}

func remount(t *testing.T, d *harness.Disk, how string) {
	t.Helper()
	if r := harness.Run(t, "mount", "-o", "remount,"+how, d.At); r.Exit != 0 {
		t.Fatalf("remounting: %s", r.Stderr)
	}
}
