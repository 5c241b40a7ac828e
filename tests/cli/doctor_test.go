package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mendfs/mendfs/tests/harness"
)

type finding struct {
	Check, Verdict, Found, Next string
	Stops                       bool
}

// diagnose is what doctor says of dir, by check.
func diagnose(t *testing.T, dir string) map[string]finding {
	t.Helper()
	r := harness.Mendfs(t, "doctor", "--json", dir)
	var report struct {
		Version int
		Doctor  []finding
	}
	if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil || report.Version != 1 {
		t.Fatalf("exit %d, %v: %s%s", r.Exit, err, r.Stdout, r.Stderr)
	}
	by := map[string]finding{}
	stops := false
	for _, f := range report.Doctor {
		by[f.Check], stops = f, stops || f.Stops
		if f.Verdict != "ok" && f.Next == "" {
			t.Errorf("%+v has no next step", f)
		}
	}
	if want := map[bool]int{false: exitOK, true: exitOperational}[stops]; r.Exit != want {
		t.Errorf("exit %d, want %d: %s", r.Exit, want, r.Stdout)
	}
	return by
}

func TestDoctor(t *testing.T) {
	_, b, _, _ := place(t)
	before := tree(t, b)
	r := harness.Mendfs(t, "doctor", b)
	if r.Exit != exitOK || !strings.Contains(r.Stdout, "/dev/fuse") {
		t.Errorf("exit %d: %s%s", r.Exit, r.Stdout, r.Stderr)
	}
	diagnose(t, b)
	if after := tree(t, b); after != before {
		t.Error("the backing directory has changed")
	}
}

// What a filesystem can do is tried, and it is not the same for all.
func TestDoctorTellsFilesystemsApart(t *testing.T) {
	for _, c := range []struct {
		kind string
		mkfs []string
		want map[string]string // of checks
		says map[string]string
	}{
		{"ext4", nil,
			map[string]string{"filesystem": "ok", "owners": "limited", "fallocate": "ok", "reflink": "ok", "device": "limited"},
			map[string]string{"reflink": "can't share", "owners": "does not say whose"}},
		{"xfs", []string{"-m", "rmapbt=1,reflink=1"},
			map[string]string{"filesystem": "ok", "owners": "ok", "fallocate": "ok", "reflink": "ok", "device": "limited"},
			map[string]string{"reflink": "files can share", "owners": "GETFSMAP"}},
		{"xfs", []string{"-m", "rmapbt=0,reflink=0"},
			map[string]string{"filesystem": "ok", "owners": "limited", "fallocate": "ok", "reflink": "ok"},
			map[string]string{"reflink": "can't share", "owners": "rmapbt=1"}},
		{"btrfs", nil,
			map[string]string{"filesystem": "limited", "owners": "limited", "reflink": "ok", "device": "limited"},
			map[string]string{"device": "map of its own", "reflink": "files can share"}},
	} {
		t.Run(c.kind+strings.Join(c.mkfs, ""), func(t *testing.T) {
			disk := harness.NewDisk(t, c.kind, 400, c.mkfs...)
			if err := os.WriteFile(filepath.Join(disk.At, "file"), []byte("content"), 0o600); err != nil {
				t.Fatal(err)
			}
			got := diagnose(t, disk.At)
			for check, verdict := range c.want {
				if got[check].Verdict != verdict || !strings.Contains(got[check].Found+got[check].Next, c.says[check]) {
					t.Errorf("%+v, want %s, saying %q", got[check], verdict, c.says[check])
				}
			}
		})
	}
}

func TestDoctorRefusesFilesThatTheKernelMakesUp(t *testing.T) {
	if f := diagnose(t, "/proc")["filesystem"]; f.Verdict != "no" || !f.Stops {
		t.Errorf("%+v", f)
	}
}

// A running mount is named, and nothing is tried in it.
func TestDoctorOfAMount(t *testing.T) {
	m := harness.Simulated(t, "dax")
	got := diagnose(t, m.At)
	if f := got["filesystem"]; f.Verdict != "no" || !f.Stops {
		t.Errorf("%+v", f)
	}
	if f := got["fallocate"]; f.Verdict != "unknown" || !strings.Contains(f.Found, "mendfs mount") {
		t.Errorf("%+v", f)
	}
}
