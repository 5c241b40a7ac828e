//go:build lab

package guest

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// What doctor finds by trying is what these filesystems and this bus are known
// to do.
func TestDoctor(t *testing.T) {
	want := map[string]map[string]string{ // verdicts that are not the same for all
		"ext4":        {"owners": "limited", "reflink": "can't share"},
		"xfs":         {"owners": "ok", "reflink": "can't share"},
		"xfs+reflink": {"owners": "limited", "reflink": "on the raw device"},
	}
	onEach(t, func(t *testing.T, d *disk) {
		before, err := os.ReadDir(d.at)
		if err != nil {
			t.Fatal(err)
		}
		findings := diagnose(t, d.at)
		for check, verdict := range map[string]string{
			"device": "ok", "dax": "ok", "dax per file": "ok", "MAP_SYNC": "no", "badblocks": "ok", "list changes": "limited",
			"owners": want[d.name]["owners"], "salvage": "ok", "clearing": "ok", "raw device": "ok", "fallocate": "ok", "device users": "ok",
		} {
			if got := findings[check]; got.Verdict != verdict {
				t.Errorf("%+v, want %s", got, verdict)
			}
		}
		if got := findings["reflink"].Found; !strings.Contains(got, want[d.name]["reflink"]) {
			t.Errorf("reflink: %s", got)
		}
		if after, err := os.ReadDir(d.at); err != nil || len(after) != len(before) {
			t.Errorf("there was %v, and is %v, %v", before, after, err)
		}

		d.poisonDevice(t, 300000)
		if got := diagnose(t, d.at)["badblocks"].Found; !strings.Contains(got, "1 (512 bytes)") {
			t.Errorf("badblocks: %s", got)
		}
		if listed := d.listed(t); len(listed) != 1 {
			t.Errorf("looking has changed the list: %v", listed)
		}
		f, err := os.Open(d.path())
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if got := diagnose(t, d.at)["device users"]; got.Verdict != "limited" || !strings.Contains(got.Found, "lab.test") {
			t.Errorf("%+v", got)
		}
	})
}

type finding struct{ Check, Verdict, Found string }

func diagnose(t *testing.T, dir string) map[string]finding {
	t.Helper()
	out, err := exec.Command(os.Getenv("MENDFS_BIN"), "doctor", "--json", dir).Output()
	var report struct{ Doctor []finding }
	if err == nil {
		err = json.Unmarshal(out, &report)
	}
	if err != nil {
		t.Fatalf("mendfs doctor: %v: %s", err, out)
	}
	by := map[string]finding{}
	for _, f := range report.Doctor {
		by[f.Check] = f
	}
	return by
}
