package recovery

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// hurt is a file of four pages with one bad sector in page 1; the bytes of the
// sector are lost, all others can be salvaged.
func hurt(t *testing.T, profile string) (*rig, ranges.Range) {
	t.Helper()
	r := newRig(t, profile, 4*pg-100).start()
	bad := rng(pg+1024, 512)
	r.poison(bad, false)
	return r, bad
}

// TestKillAtEachStep kills the process at each instant of a part-page repair.
// P4: every salvageable byte is there afterwards, and the write is there whole
// or not at all.
func TestKillAtEachStep(t *testing.T) {
	steps := []failpoint.Step{failpoint.IntentDurable, failpoint.PagePunching, failpoint.PagePunched, failpoint.PageCleared,
		failpoint.PagesWritten, failpoint.PagesCutBack, failpoint.PagesDurable, failpoint.IntentClosed}
	for _, profile := range []string{"dax", "dax-5.18", "line"} {
		for _, s := range steps {
			for _, tail := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/tail=%v", profile, s, tail), func(t *testing.T) {
					if (s == failpoint.PagePunched || s == failpoint.PagePunching) && profile != "dax-5.18" {
						return // the rung is not used there
					}
					r, bad := hurt(t, profile)
					before := pattern(4*pg - 100)
					zeros := []ranges.Range{bad}
					if tail {
						bad = rng(3*pg+512, 512)
						r.poison(bad, false)
						zeros = append(zeros, bad)
					}
					at := bad.Off - 10
					fresh := []byte("fresh bytes of the application")
					if !r.crashAt(s, 1, func() { r.write(int64(at), fresh) }) {
						t.Fatalf("the repair never came to %s", s)
					}
					r.start()
					after := without(before, zeros...)
					copy(after[at:], fresh)
					got := r.read(0, int64(len(before)))
					if st, err := r.file.below.Stat(); err != nil || st.Size != int64(len(before)) {
						t.Errorf("size %d, want %d (%v)", st.Size, len(before), err)
					}
					wantBytes(t, "after the crash", got, after)
					lost, reinit := r.live()
					wantSet(t, "reinitialized", reinit, ranges.Between(at+int64(len(fresh)), bad.End()))
					if lost.Overlaps(bad) {
						t.Errorf("still lost: %v", lost)
					}
					if n := len(r.journal.Intents()); n != 0 {
						t.Errorf("%d intents open after replay", n)
					}
				})
			}
		}
	}
}

// TestCrashWithinReplay crashes replay itself between its two calls.
func TestCrashWithinReplay(t *testing.T) {
	r, bad := hurt(t, "dax-5.18")
	want := pattern(4*pg - 100)
	copy(want[pg+10:], "new")
	r.crashAt(failpoint.IntentDurable, 1, func() { r.write(pg+10, []byte("new")) })
	r.startEngine()
	if !r.crashAt(failpoint.PagePunched, 1, func() { r.check(r.engine.Replay()) }) {
		t.Fatal("replay did not punch")
	}
	r.start()
	wantBytes(t, "after all crashes", r.read(0, int64(len(want))), without(want, bad))
}

// openIntent leaves a repair of page 1 open after its page was written: the
// ledger never heard of it.
func openIntent(t *testing.T, at failpoint.Step) (r *rig, before []byte, bad ranges.Range) {
	t.Helper()
	r, bad = hurt(t, "dax")
	if !r.crashAt(at, 1, func() { r.write(pg+100, []byte("fresh")) }) {
		t.Fatal("no crash")
	}
	return r, pattern(4*pg - 100), bad
}

// replayed is the action of the one replayed or conflict event.
func replayed(t *testing.T, r *rig) string {
	t.Helper()
	r.check(r.engine.Close())
	var actions []string
	for line := range strings.Lines(r.told()) {
		if !strings.Contains(line, `"replayed"`) && !strings.Contains(line, `"conflict"`) {
			continue
		}
		_, rest, _ := strings.Cut(line, `"action":"`)
		action, _, _ := strings.Cut(rest, `"`)
		actions = append(actions, action)
	}
	return strings.Join(actions, ",")
}

// TestReplayNeverRollsBack is about what may happen to the file between a crash
// and the next mount. In no case may replay write over newer data.
func TestReplayNeverRollsBack(t *testing.T) {
	newer := bytes.Repeat([]byte("newer"), 4000)
	tests := []struct {
		name   string
		crash  failpoint.Step
		change func(t *testing.T, r *rig)
		action string
		want   func(r *rig, before []byte) []byte // nil: the file is gone
	}{
		{"the application overwrote before the crash", failpoint.PagesWritten, func(t *testing.T, r *rig) {
			overwrite(t, r.path(), newer[:pg], pg)
		}, "newer-data-kept", func(r *rig, before []byte) []byte {
			copy(before[pg:], newer[:pg])
			return before
		}},
		{"rewritten by cp without mendfs", failpoint.IntentDurable, func(t *testing.T, r *rig) {
			other := filepath.Join(t.TempDir(), "other")
			r.check(os.WriteFile(other, newer, 0o644))
			if out, err := exec.Command("cp", other, r.path()).CombinedOutput(); err != nil {
				t.Fatalf("cp: %v %s", err, out)
			}
		}, "newer-data-kept", func(r *rig, _ []byte) []byte { return newer }},
		{"rewritten by cp after the page was written", failpoint.PagesWritten, func(t *testing.T, r *rig) {
			r.check(os.WriteFile(r.path(), newer, 0o644))
		}, "newer-data-kept", func(r *rig, _ []byte) []byte { return newer }},
		{"removed", failpoint.IntentDurable, func(t *testing.T, r *rig) {
			r.check(os.Remove(r.path()))
			r.check(os.WriteFile(filepath.Join(r.backing, "another"), newer, 0o644))
			r.name = "another"
		}, "file-gone", func(r *rig, _ []byte) []byte { return newer }},
		{"truncated", failpoint.IntentDurable, func(t *testing.T, r *rig) {
			r.check(os.Truncate(r.path(), 50))
		}, "beyond-the-end", func(r *rig, before []byte) []byte { return before[:50] }},
		{"replaced under the same name", failpoint.PagesWritten, func(t *testing.T, r *rig) {
			tmp := r.path() + ".tmp"
			r.check(os.WriteFile(tmp, newer, 0o644))
			r.check(os.Rename(tmp, r.path()))
		}, "file-gone", func(r *rig, _ []byte) []byte { return newer }},
		{"inode reused", failpoint.IntentDurable, reuseInode, "file-gone", func(r *rig, _ []byte) []byte { return r.below() }},
		{"punched by another program", failpoint.IntentDurable, func(t *testing.T, r *rig) {
			if out, err := exec.Command("fallocate", "-p", "-o", "4096", "-l", "4096", r.path()).CombinedOutput(); err != nil {
				t.Fatalf("fallocate: %v %s", err, out)
			}
		}, "freed-since", func(r *rig, before []byte) []byte { return without(before, rng(pg, pg)) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, before, _ := openIntent(t, tt.crash)
			tt.change(t, r)
			r.start()
			want := tt.want(r, before)
			wantBytes(t, "the backing file", r.below(), want)
			wantBytes(t, "through mendfs", r.read(0, int64(len(want))), want)
			if got := replayed(t, r); got != tt.action {
				t.Errorf("replay said %q, want %q", got, tt.action)
			}
		})
	}
}

func overwrite(t *testing.T, path string, b []byte, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// reuseInode removes the file and makes new ones until one has its inode number.
func reuseInode(t *testing.T, r *rig) {
	var old, st unix.Stat_t
	r.check(unix.Stat(r.path(), &old))
	r.check(os.Remove(r.path()))
	for n := range 1000 {
		path := filepath.Join(r.backing, fmt.Sprint("new", n))
		r.check(os.WriteFile(path, bytes.Repeat([]byte{byte(n)}, 3*pg), 0o644))
		r.check(unix.Stat(path, &st))
		if st.Ino == old.Ino {
			r.check(os.Rename(path, r.path()))
			return
		}
	}
	t.Fatal("the filesystem under the test's directory never used the inode number again: run the tests with TMPDIR on ext4")
}

// TestReplayThroughTheOtherHardLink removes the name under which the file was
// repaired; the other one must get the repair.
func TestReplayThroughTheOtherHardLink(t *testing.T) {
	r, before, bad := openIntent(t, failpoint.IntentDurable)
	other := filepath.Join(r.backing, "other")
	r.check(os.Link(r.path(), other))
	r.check(os.Remove(r.path()))
	r.name = "other"
	r.start()
	copy(before[pg+100:], "fresh")
	wantBytes(t, "through the other name", r.read(0, int64(len(before))), without(before, bad))
}

// TestReplayKeepsTheImageOfAFileItCantFind: without file handles a renamed file is
// not found, and may still be there.
func TestReplayKeepsTheImageOfAFileItCantFind(t *testing.T) {
	r, _, _ := openIntent(t, failpoint.IntentDurable)
	changeIntent(r, func(in *journal.Intent) { in.File.Handle = "" })
	other := filepath.Join(r.backing, "other")
	r.check(os.Rename(r.path(), other))
	r.name = "other"
	r.start()
	if kept := r.journal.Kept(); len(kept) != 1 || kept[0].Image == nil {
		t.Errorf("%d images kept", len(kept))
	}
	if got := replayed(t, r); got != "conflict" {
		t.Errorf("replay said %q", got)
	}
}

// TestReplayAfterAPowerCut makes the intent look as if it came from an earlier
// boot: what reads well and differs is torn if nothing happened since, and a
// conflict otherwise.
func TestReplayAfterAPowerCut(t *testing.T) {
	for _, tt := range []struct {
		name   string
		made   time.Duration // of the intent, from now
		action string
		torn   bool
	}{
		{"torn", 0, "page-written", true},
		{"conflict", -2 * time.Minute, "conflict", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, before, bad := openIntent(t, failpoint.PagesWritten)
			garbage := bytes.Repeat([]byte{0xde}, pg)
			overwrite(t, r.path(), garbage, pg)
			otherBoot(r, tt.made)
			r.start()
			want := bytes.Clone(before)
			copy(want[pg+100:], "fresh")
			want = without(want, bad)
			if !tt.torn {
				copy(want[pg:], garbage)
			}
			wantBytes(t, "after replay", r.below(), want)
			if kept := r.journal.Kept(); (len(kept) == 1) == tt.torn {
				t.Errorf("%d images kept", len(kept))
			}
			if got := replayed(t, r); got != tt.action {
				t.Errorf("replay said %q, want %q", got, tt.action)
			}
		})
	}
}

// otherBoot puts the one open intent into a journal of its own, changed.
func otherBoot(r *rig, made time.Duration) {
	r.t.Helper()
	changeIntent(r, func(in *journal.Intent) { in.Boot, in.Time = "another boot", time.Now().Add(made).UnixNano() })
}

func changeIntent(r *rig, change func(*journal.Intent)) {
	r.t.Helper()
	path := filepath.Join(r.state, "journal")
	j, err := journal.View(path)
	r.check(err)
	in := j.Intents()[0]
	fs := in.FS
	r.check(j.Shutdown())
	r.check(os.Remove(path))
	again, err := journal.Open(path, fs)
	r.check(err)
	change(&in)
	r.check(again.Begin(&in))
	r.check(again.Shutdown())
}

// TestReadOnlyMountServesTheImage: nothing is written, the intent stays open,
// and the next writable mount finishes it.
func TestReadOnlyMountServesTheImage(t *testing.T) {
	r, before, bad := openIntent(t, failpoint.IntentDurable)
	raw := r.below()
	r.readOnly = true
	r.start()
	want := bytes.Clone(before)
	copy(want[pg+100:], "fresh")
	want = without(want, bad)
	wantBytes(t, "read-only", r.read(0, int64(len(want))), want)
	wantBytes(t, "the backing file", r.below(), raw)
	r.stop()
	r.readOnly = false
	r.start()
	wantBytes(t, "writable again", r.read(0, int64(len(want))), want)
	if n := len(r.journal.Intents()); n != 0 {
		t.Errorf("%d intents open", n)
	}
}

// TestReplayRefusesInAnOutage: an unreadable page may be an outage; the intent
// stays open and the mount does not go on.
func TestReplayRefusesInAnOutage(t *testing.T) {
	r, _, _ := openIntent(t, failpoint.IntentDurable)
	r.startEngine()
	r.engine.Medium = failing{r.medium}
	err := r.engine.Replay()
	var outage *OutageError
	if !errors.As(err, &outage) {
		t.Errorf("replay: %v, want an outage", err)
	}
	if n := len(r.journal.Intents()); n != 1 {
		t.Errorf("%d intents open, want the one kept", n)
	}
}
