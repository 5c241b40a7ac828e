package mount

import (
	"bytes"
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// simulated mounts a scratch directory with simulated poison.
func (b *bench) simulated(profile string) *Mount {
	b.t.Helper()
	o := b.options()
	o.Simulate = profile
	return b.mount(o)
}

func (b *bench) inject(r control.InjectRequest) []control.Injection {
	b.t.Helper()
	done, err := control.Dial(b.state).Inject(context.Background(), r)
	if err != nil {
		b.t.Fatal(err)
	}
	return done
}

func TestInjectIsSeenAndTakenBack(t *testing.T) {
	b := newBench(t)
	m := b.simulated("line")
	content := strings.Repeat("x", 3*ranges.PageSize)
	b.write(b.point+"/f", content)
	if got := b.read(b.point + "/f"); got != content { // now it is in the page cache
		t.Fatal("the file is not what was written")
	}
	lost := ranges.Range{Off: ranges.PageSize + 64, Len: 64}
	done := b.inject(control.InjectRequest{Path: "f", Ranges: []ranges.Range{lost}})
	if len(done) != 1 || done[0].Path != "f" || done[0].Range != lost || done[0].Latent {
		t.Errorf("injected %+v", done)
	}
	withHole := content[:lost.Off] + strings.Repeat("\x00", int(lost.Len)) + content[lost.End():]
	if got := b.read(b.point + "/f"); got != withHole {
		t.Errorf("the lost line does not read as zero, or more was lost")
	}

	ctx, c := context.Background(), control.Dial(b.state)
	rows, err := c.Lost(ctx, control.LostQuery{Path: "f"})
	if err != nil || len(rows) != 1 || rows[0].Range != lost || rows[0].State != ledger.Lost || rows[0].Path != "f" {
		t.Errorf("ledger: %+v, %v", rows, err)
	}
	status, err := c.Status(ctx)
	if err != nil || status.Lost != (control.Count{Ranges: 1, Bytes: 64}) || len(status.Trouble) > 0 || status.Simulate != "line" {
		t.Errorf("status: %+v, %v", status, err)
	}

	if err := c.RemoveInjection(ctx, done[0].ID); err != nil {
		t.Fatal(err)
	}
	if list, err := c.Injections(ctx); err != nil || len(list) != 0 {
		t.Errorf("injections: %v, %v", list, err)
	}
	if got := b.read(b.point + "/f"); got != content {
		t.Errorf("the content is not back")
	}
	b.end(m)
}

func TestInjectedPoisonSurvivesARemount(t *testing.T) {
	b := newBench(t)
	m := b.simulated("dax")
	page := strings.Repeat("y", ranges.PageSize)
	b.write(b.point+"/f", page)
	b.inject(control.InjectRequest{Path: "f", Ranges: []ranges.Range{{Off: 512, Len: 512}}})
	if err := os.Rename(b.point+"/f", b.point+"/g"); err != nil {
		t.Fatal(err)
	}
	b.end(m)

	b.simulated("dax")
	if got := b.read(b.point + "/g"); got != page[:512]+strings.Repeat("\x00", 512)+page[1024:] {
		t.Error("the renamed file does not have the poison")
	}
	b.write(b.point+"/g", page)
	if got := b.read(b.point + "/g"); got != page {
		t.Error("overwriting did not bring the file back")
	}
}

func TestInjectKeepCacheLeavesThePage(t *testing.T) {
	b := newBench(t)
	b.simulated("dax")
	b.write(b.point+"/f", strings.Repeat("z", ranges.PageSize))
	text := b.read(b.point + "/f")
	f, err := os.Open(b.point + "/f") // opening anew may drop the page
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b.inject(control.InjectRequest{Path: "f", Ranges: []ranges.Range{{Off: 0, Len: 64}}, KeepCache: true})
	got := make([]byte, len(text))
	if _, err := f.ReadAt(got, 0); err != nil || string(got) != text {
		t.Errorf("the cached page is gone: %v", err)
	}
}

func TestInjectUnderAMappedDirtyPage(t *testing.T) {
	b := newBench(t)
	o := b.options()
	o.Simulate = "line"
	startHelper(t, o) // a program must not map files that it serves itself
	defer func() {
		if err := Unmount(b.point); err != nil {
			t.Error(err)
		}
	}()
	b.write(b.point+"/f", strings.Repeat("a", ranges.PageSize))
	f, err := os.OpenFile(b.point+"/f", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	page, err := unix.Mmap(int(f.Fd()), 0, ranges.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	copy(page, "dirty")
	b.inject(control.InjectRequest{Path: "f", Ranges: []ranges.Range{{Off: 1024, Len: 64}}})
	if string(page[:5]) != "dirty" || !bytes.Equal(page[1024:1088], make([]byte, 64)) || page[1088] != 'a' {
		t.Errorf("mapped: %q, %q", page[:5], page[1020:1092])
	}
	if err := errors.Join(unix.Munmap(page), f.Close()); err != nil {
		t.Error(err)
	}
}

func TestInjectRandomIsTheSameForASeed(t *testing.T) {
	var runs [2][]control.Injection
	for i := range runs {
		b := newBench(t)
		b.simulated("dax")
		b.mkdir(b.point + "/d/e")
		for _, name := range []string{"/d/one", "/d/e/two", "/three", "/d/empty"} {
			b.write(b.point+name, strings.Repeat(name, 1000*len(name)))
		}
		b.write(b.point+"/d/empty", "")
		if err := os.Symlink("../three", b.point+"/d/link"); err != nil {
			t.Fatal(err)
		}
		runs[i] = b.inject(control.InjectRequest{Path: "d", Random: 20, Seed: 7})
	}
	for i := range runs[0] {
		if a, b := runs[0][i], runs[1][i]; a.Path != b.Path || a.Range != b.Range || !strings.HasPrefix(a.Path, "d/") {
			t.Errorf("%v and %v", a, b)
		}
	}
	if len(runs[0]) != 20 || len(runs[1]) != 20 {
		t.Errorf("%d and %d injections", len(runs[0]), len(runs[1]))
	}
}

func TestBadInjectionsChangeNothing(t *testing.T) {
	b := newBench(t)
	b.simulated("dax")
	b.write(b.point+"/f", strings.Repeat("a", 8192))
	if err := os.Symlink("f", b.point+"/link"); err != nil {
		t.Fatal(err)
	}
	ctx, c := context.Background(), control.Dial(b.state)
	one := func(off, length int64) []ranges.Range { return []ranges.Range{{Off: off, Len: length}} }
	for name, r := range map[string]control.InjectRequest{
		"negative offset":   {Path: "f", Ranges: one(-1, 64)},
		"negative length":   {Path: "f", Ranges: one(0, -1)},
		"empty":             {Path: "f", Ranges: one(0, 0)},
		"overflow":          {Path: "f", Ranges: one(math.MaxInt64, math.MaxInt64)},
		"past the end":      {Path: "f", Ranges: one(8191, 2)},
		"second is bad":     {Path: "f", Ranges: []ranges.Range{{Off: 0, Len: 64}, {Off: 8192, Len: 64}}},
		"no such file":      {Path: "none", Ranges: one(0, 64)},
		"directory":         {Path: ".", Ranges: one(0, 64)},
		"symbolic link":     {Path: "link", Ranges: one(0, 64)},
		"outside":           {Path: "../state/meta.json", Ranges: one(0, 64)},
		"absolute":          {Path: "/etc/passwd", Ranges: one(0, 64)},
		"nothing asked":     {Path: "f"},
		"both asked":        {Path: ".", Ranges: one(0, 64), Random: 1},
		"random, negative":  {Path: ".", Random: -1},
		"random, too many":  {Path: ".", Random: 1 << 30},
		"random, outside":   {Path: "..", Random: 1},
		"random, no such":   {Path: "none", Random: 1},
		"random, symbolic":  {Path: "link", Random: 1},
		"random, with none": {Path: "f/g", Random: 1},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.Inject(ctx, r)
			var e *Error
			if !errors.As(err, &e) || e.Exit != control.ExitUsage || strings.Contains(e.Error(), "\n") {
				t.Errorf("got %#v", err)
			}
		})
	}
	if list, err := c.Injections(ctx); err != nil || len(list) != 0 {
		t.Errorf("injected was %v, %v", list, err)
	}
	for _, id := range []string{"7", "x", "-1"} {
		var e *Error
		if err := c.RemoveInjection(ctx, id); !errors.As(err, &e) || e.Exit != control.ExitUsage {
			t.Errorf("removing %q: %v", id, err)
		}
	}
}

func TestInjectNeedsASimulatedScratchMount(t *testing.T) {
	ctx := context.Background()
	r := control.InjectRequest{Path: "f", Ranges: []ranges.Range{{Off: 0, Len: 64}}}
	t.Run("real medium", func(t *testing.T) {
		b := newBench(t)
		b.mount(b.options())
		b.write(b.point+"/f", "text")
		c := control.Dial(b.state)
		_, inject := c.Inject(ctx, r)
		_, list := c.Injections(ctx)
		for _, err := range []error{inject, list, c.RemoveInjection(ctx, "1"), c.ClearInjections(ctx)} {
			if err == nil || !strings.Contains(err.Error(), "is a real medium") {
				t.Errorf("got %v", err)
			}
		}
	})
	t.Run("real files", func(t *testing.T) {
		b := newBench(t)
		b.write(b.backing+"/f", strings.Repeat("a", 4096))
		m := b.simulated("dax")
		if _, err := control.Dial(b.state).Inject(ctx, r); err == nil || !strings.Contains(err.Error(), "--on-real-files") {
			t.Errorf("got %v", err)
		}
		b.end(m)
		if err := os.Remove(b.backing + "/f"); err != nil {
			t.Fatal(err)
		}
		b.simulated("dax") // empty by now, but it was not when the state directory was made
		b.write(b.point+"/f", strings.Repeat("a", 4096))
		if _, err := control.Dial(b.state).Inject(ctx, r); err == nil || !strings.Contains(err.Error(), "--on-real-files") {
			t.Errorf("after a remount: %v", err)
		}
		r.OnRealFiles = true
		b.inject(r)
	})
}

// TestRecordsAfterTheMount asks a state directory what a mount left in it.
func TestRecordsAfterTheMount(t *testing.T) {
	b := newBench(t)
	m := b.simulated("dax")
	for _, name := range []string{"/d/f", "/d/g", "/h"} {
		b.mkdir(filepath.Dir(b.point + name))
		b.write(b.point+name, strings.Repeat("a", 8192))
		b.inject(control.InjectRequest{Path: name[1:], Ranges: []ranges.Range{{Off: 0, Len: 512}}})
		b.read(b.point + name)
	}
	if err := os.Link(b.point+"/h", b.point+"/d/hardlink"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(b.point + "/d/g"); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	followed, err := follow(ctx, t, b.state)
	if err != nil {
		t.Fatal(err)
	}
	b.end(m)

	s, err := OpenState(b.state)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for path, want := range map[string][]string{
		"":           {"d/f", "d/g", "h"},
		".":          {"d/f", "d/g", "h"},
		"d":          {"d/f", "d/g", "d/hardlink"}, // what was removed by the name it had
		"d/f":        {"d/f"},
		"d/g":        {"d/g"},
		"d/hardlink": {"d/hardlink"},
	} {
		rows, err := s.Lost(ctx, control.LostQuery{Path: path, All: true})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range rows {
			got = append(got, r.Path)
		}
		if !sameNames(got, want) {
			t.Errorf("lost in %q: %v, want %v", path, got, want)
		}
	}
	var wrong *Error
	if _, err := s.Lost(ctx, control.LostQuery{Path: "none"}); !errors.As(err, &wrong) || wrong.Exit != control.ExitUsage {
		t.Errorf("of a name that nothing ever had: %v", err)
	}
	if owed, err := s.Pending(ctx, ""); err != nil || len(owed) != 0 {
		t.Errorf("pending: %v, %v", owed, err)
	}
	kept := 0
	err = s.Events(ctx, control.EventQuery{}, func([]byte) error { kept++; return nil })
	if err != nil || kept == 0 || kept < followed {
		t.Errorf("%d events are kept, %d were followed, %v", kept, followed, err)
	}
}

// follow counts the events that a follower of the running mount gets within a
// second or two.
func follow(ctx context.Context, t *testing.T, state string) (n int, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	err = control.Dial(state).Events(ctx, control.EventQuery{Follow: true}, func(line []byte) error {
		if n++; n == 3 {
			cancel()
		}
		return nil
	})
	if n == 0 {
		t.Error("no events came")
	}
	return n, err
}

func sameNames(a, b []string) bool {
	set := map[string]bool{}
	for _, s := range b {
		set[s] = true
	}
	for _, s := range a {
		if !set[s] {
			return false
		}
		delete(set, s)
	}
	return len(set) == 0
}
