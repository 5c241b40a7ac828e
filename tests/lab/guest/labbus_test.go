//go:build lab

package guest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
	"github.com/mendfs/mendfs/tests/harness"
	"github.com/mendfs/mendfs/tests/lab/truth"
)

// onFirmware runs the test on ext4, and on XFS as mkfs makes it, on the disk of the
// module labbus (tests/lab/labbus). Its firmware reports errors, clears them, or refuses
// to, on order.
func onFirmware(t *testing.T, test func(t *testing.T, d *disk)) {
	for _, fs := range []filesystem{filesystems[0], filesystems[2]} {
		fs.device = "pmem5"
		t.Run(fs.name, func(t *testing.T) {
			d := newDisk(t, fs)
			t.Cleanup(func() { refuse(t, false) })
			test(t, d)
		})
	}
}

func tellFirmware(t *testing.T, parameter, value string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join("/sys/module/labbus/parameters", parameter), []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// inject has the firmware report errors in sectors of a file.
func inject(t *testing.T, path string, sectors ...int64) {
	t.Helper()
	for _, s := range onDevice(t, path, sectors) {
		tellFirmware(t, "inject", fmt.Sprintf("%d %d", s*sector, sector))
	}
}

// refuse is whether the firmware is to refuse to clear from now on.
func refuse(t *testing.T, yes bool) {
	t.Helper()
	tellFirmware(t, "refuse_clear", strconv.FormatBool(yes)[:1])
}

// cleared is how many bytes the firmware has cleared.
func cleared(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile("/sys/module/labbus/parameters/cleared_bytes")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// firmwareFacts are what the kernel does with firmware of a bus, without mendfs, where
// it clears and where it refuses.
var firmwareFacts = []struct {
	name string
	ask  func(b broken) string
}{
	{"write of the bad page", func(b broken) string {
		return count(unix.Pwrite(b.fd, make([]byte, page), badPage*page)) + b.after()
	}},
	{"write of three pages, the middle one bad", func(b broken) string {
		return count(unix.Pwrite(b.fd, make([]byte, 3*page), (badPage-1)*page)) + b.after()
	}},
	{"write of 512 bytes, the bad sector", func(b broken) string {
		return count(unix.Pwrite(b.fd, make([]byte, sector), badSector*sector)) + b.after()
	}},
	{"write of zeros to the bad sector of the device, O_DIRECT", func(b broken) string {
		said := count(unix.Pwrite(b.open(b.d.path(), unix.O_RDWR|unix.O_DIRECT), aligned(sector), b.device+3*sector))
		return said + b.after()
	}},
	{"BLKZEROOUT of the bad page", func(b broken) string {
		return errno(blkZeroOut(b.open(b.d.path(), unix.O_RDWR), b.device, page)) + b.after()
	}},
}

// TestFirmwareFacts tells what the kernel does, and how much the firmware clears for it.
func TestFirmwareFacts(t *testing.T) {
	onFirmware(t, func(t *testing.T, d *disk) {
		for _, refused := range []bool{false, true} {
			for _, fact := range firmwareFacts {
				path := d.fill(t, "file", truth.Content(factsSize))
				was := cleared(t)
				t.Run(fact.name, func(t *testing.T) {
					b := broken{t: t, d: d, path: path, device: extentsOf(t, path)[0].device + badPage*page}
					b.fd = b.open(path, unix.O_RDWR)
					inject(t, path, badSector)
					refuse(t, refused)
					fmt.Printf("fact labbus on %s | %s, refused %t | %s, cleared %d\n", d.name, fact.name, refused, fact.ask(b), cleared(t)-was)
				})
				refuse(t, false)
				d.clearDevice(t)
			}
		}
	})
}

// TestReportedErrorsAreKnownAtOnce has firmware report errors, each when the one before
// was told of. The kernel announces them. If mendfs had to look for itself, there would
// be 30 seconds between one and the next.
func TestReportedErrorsAreKnownAtOnce(t *testing.T) {
	onFirmware(t, func(t *testing.T, d *disk) {
		path := d.fill(t, "file", truth.Content(8*page))
		m := harness.New(t, harness.Config{Backing: d.at})
		began := time.Now()
		sectors := []int64{3, 11, 19, 27}
		for i, s := range sectors {
			inject(t, path, s)
			told := awaitDetected(t, m, i+1)
			if !slices.ContainsFunc(told, func(e event.Event) bool {
				return e.Path == "file" && e.Offset == s*sector && e.Length == sector && e.Detected == "badblocks"
			}) {
				t.Errorf("no event of sector %d: %+v", s, told)
			}
		}
		if took := time.Since(began); took >= time.Duration(len(sectors)-1)*30*time.Second {
			t.Errorf("nothing woke mendfs: it took %v to tell of %d errors", took, len(sectors))
		}
		checkEvents(t, m)
	})
}

// TestFirmwareClears writes over errors through mendfs: the firmware is asked to clear
// the bad pages and no other, and the bytes around them stay.
func TestFirmwareClears(t *testing.T) {
	writes := []struct {
		name     string
		off, len int64
		bad      []int64
	}{
		{"a part of the bad sector", 11*sector + 100, 3, []int64{11}},
		{"a part of the page beside it", page + 10, 3, []int64{11}},
		{"the page", page, page, []int64{11}},
		{"three pages, the middle one bad", 0, 3 * page, []int64{11}},
		{"the end of one bad page and the begin of the next", 2*page - 10, 20, []int64{11, 20}},
		{"two bad pages", page, 2 * page, []int64{11, 20}},
	}
	onFirmware(t, func(t *testing.T, d *disk) {
		m := harness.New(t, harness.Config{Backing: d.at})
		for i, w := range writes {
			t.Run(w.name, func(t *testing.T) {
				name := fmt.Sprint("file", i)
				want := truth.Content(4 * page)
				path := d.fill(t, name, want)
				inject(t, path, w.bad...)
				for _, s := range w.bad {
					clear(want[s*sector : (s+1)*sector])
				}
				wantFile(t, m.Path(name), want) // what is bad is known from here on
				was := cleared(t)
				data := bytes.Repeat([]byte("new"), int(w.len))[:w.len]
				copy(want[w.off:], data)
				if _, err := writeAt(t, m.Path(name), data, w.off); err != nil {
					t.Error(err)
				}
				if got := cleared(t) - was; got != int64(len(w.bad))*page {
					t.Errorf("the firmware has cleared %d bytes, for %d bad pages", got, len(w.bad))
				}
				wantClean(t, d, m, name, want)
			})
		}
		wantNothingPending(t, m)
		checkEvents(t, m)
	})
}

// writeAt opens the file, writes once, and closes it.
func writeAt(t *testing.T, path string, data []byte, off int64) (int, error) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	n, err := unix.Pwrite(int(f.Fd()), data, off) // os.File would go on after a short write
	return n, errors.Join(err, f.Close())
}

// wantClean checks that no error is listed any more, and that the file is as wanted,
// through the mount and below it.
func wantClean(t *testing.T, d *disk, m *harness.Mount, name string, want []byte) {
	t.Helper()
	if left := d.listed(t); len(left) > 0 {
		t.Errorf("still listed: %v", left)
	}
	dropCaches(t)
	wantFile(t, m.Path(name), want)
	wantFile(t, filepath.Join(d.at, name), want)
}

// wantNothingPending checks that the journal holds nothing that waits for a medium.
func wantNothingPending(t *testing.T, m *harness.Mount) {
	t.Helper()
	if s := m.Status(); s.OpenIntents > 0 || s.KeptImages > 0 {
		t.Errorf("repairs are pending: %d intents, %d images", s.OpenIntents, s.KeptImages)
	}
}

// TestFirmwareRefusesForATime has firmware that clears, then refuses, then clears again.
// While it refuses, writes of the bad page get EIO, nothing of the file changes, and on XFS
// nothing frees the page. Then the same write succeeds.
func TestFirmwareRefusesForATime(t *testing.T) {
	onFirmware(t, func(t *testing.T, d *disk) {
		const at = 11*sector + 100
		content := truth.Content(4 * page)
		path := d.fill(t, "file", content)
		m := harness.New(t, harness.Config{Backing: d.at})
		inject(t, path, 11)
		before, err := os.ReadFile(m.Path("file"))
		if err != nil {
			t.Fatal(err)
		}
		lost := ranges.Range{Off: 11 * sector, Len: sector}
		if got := checkLoss(t, m, content, before); got != lost {
			t.Errorf("lost is %v: no machine check has taken the page away", got)
		}
		refuse(t, true)
		was := cleared(t)
		wantRefused(t, m, []byte("new"), at)
		wantRefused(t, m, make([]byte, page), page)
		if n, err := writeAt(t, m.Path("file"), content[:2*page], 0); n != page || err != nil {
			t.Errorf("write from the page before on: %d, %v, want what is in front of the bad page, %d", n, err, page)
		}
		wantKept := func(when string) {
			t.Helper()
			dropCaches(t)
			if got, err := os.ReadFile(m.Path("file")); err != nil || !bytes.Equal(got, before) {
				t.Errorf("%s: %v, first difference at %d", when, err, firstDifference(got, before))
			}
			if bad := d.bad(t, path); !slices.Equal(bad, []int64{11}) {
				t.Errorf("%s: bad sectors are %v", when, bad)
			}
		}
		wantKept("refused")
		wantFailed(t, m)
		if d.name != "ext4" { // there it is freed all the same (TestNothingClears)
			freeing(t, d, m, m.Path("file"), before)
			wantKept("not freed")
		}
		m.Restart()
		wantKept("mounted again")
		m.Kill()
		m.Start()
		wantKept("killed, mounted again")
		if got := cleared(t) - was; got != 0 {
			t.Errorf("the firmware has cleared %d bytes, and refuses", got)
		}

		refuse(t, false)
		if _, err := writeAt(t, m.Path("file"), []byte("new"), at); err != nil {
			t.Errorf("the firmware clears again, and the write has %v", err)
		}
		copy(before[at:], "new")
		wantClean(t, d, m, "file", before)
		wantNothingPending(t, m)
		if got := cleared(t) - was; got != page {
			t.Errorf("the firmware has cleared %d bytes", got)
		}
		wantHistory(t, m, lost, ranges.Range{Off: at, Len: 3})
		if err := os.Remove(m.Path("file")); err != nil {
			t.Errorf("unlink: %v", err)
		}
	})
}

func wantRefused(t *testing.T, m *harness.Mount, data []byte, off int64) {
	t.Helper()
	if n, err := writeAt(t, m.Path("file"), data, off); !errors.Is(err, unix.EIO) {
		t.Errorf("write of %d bytes at %d: %d, %v, want EIO", len(data), off, n, err)
	}
}

// wantFailed checks that an event tells of the repair of the second page that failed.
func wantFailed(t *testing.T, m *harness.Mount) {
	t.Helper()
	if !slices.ContainsFunc(m.Events(), func(e event.Event) bool {
		return e.Event == event.RepairFailed && e.Path == "file" && e.Offset == page && e.Next != "" && e.Error != ""
	}) {
		t.Errorf("no event tells of the repair that failed: %+v", m.Events())
	}
}

// wantHistory checks that of what was lost a part is overwritten, and the rest zero.
func wantHistory(t *testing.T, m *harness.Mount, lost, overwritten ranges.Range) {
	t.Helper()
	got := map[ledger.State][]ranges.Range{}
	for _, row := range m.History("file") {
		got[row.State] = append(got[row.State], row.Range)
	}
	rest := ranges.Of(lost)
	rest.Remove(overwritten)
	want := map[ledger.State][]ranges.Range{ledger.Overwritten: {overwritten}, ledger.Reinitialized: rest.Slice()}
	for _, rs := range got {
		slices.SortFunc(rs, func(a, b ranges.Range) int { return cmp.Compare(a.Off, b.Off) })
	}
	if !maps.EqualFunc(got, want, slices.Equal[[]ranges.Range]) {
		t.Errorf("the ledger has %v, want %v", got, want)
	}
}

// TestCrashBetweenRefusalAndClearing kills the server at a step of a repair that firmware
// refuses. The next mount serves the page from the journal if it is refused still, and
// finishes the repair if not. Of the write that never returned there is all or nothing.
func TestCrashBetweenRefusalAndClearing(t *testing.T) {
	onFirmware(t, func(t *testing.T, d *disk) {
		t.Run("then it clears", func(t *testing.T) { crashWhileRefused(t, d, failpoint.IntentDurable, false) })
		t.Run("then it refuses still", func(t *testing.T) { crashWhileRefused(t, d, failpoint.PagesWritten, true) })
	})
}

func crashWhileRefused(t *testing.T, d *disk, step failpoint.Step, still bool) {
	const at = 11*sector + 100
	before := truth.Content(4 * page)
	path := d.fill(t, "file", before)
	defer os.Remove(path)
	m := harness.New(t, harness.Config{Backing: d.at, Env: []string{"MENDFS_FAILPOINT=" + string(step) + ":1"}})
	inject(t, path, 11)
	clear(before[11*sector : 12*sector])
	wantFile(t, m.Path("file"), before)
	refuse(t, true)
	if _, err := writeAt(t, m.Path("file"), []byte("new"), at); err == nil {
		t.Errorf("the server did not die at %s", step)
	}
	m.Kill()
	refuse(t, still)
	m = harness.New(t, harness.Config{Backing: d.at, At: m.At, State: m.State})
	got, err := os.ReadFile(m.Path("file"))
	written := bytes.Clone(before)
	copy(written[at:], "new")
	if err != nil || !bytes.Equal(got, before) && !bytes.Equal(got, written) {
		t.Errorf("after replay: %v, wrong bytes at %d", err, firstDifference(got, before))
	}
	if bad := d.bad(t, path); still != slices.Equal(bad, []int64{11}) || !still && len(bad) > 0 {
		t.Errorf("after replay, refused %t: bad sectors are %v", still, bad)
	}
	if still {
		wantFailed(t, m)
		wantRefused(t, m, []byte("newer"), at)
		dropCaches(t)
		wantFile(t, m.Path("file"), got)
		refuse(t, false)
	}
	if _, err := writeAt(t, m.Path("file"), []byte("newest"), at-1); err != nil {
		t.Errorf("the firmware clears again, and the write has %v", err)
	}
	copy(got[at-1:], "newest")
	wantClean(t, d, m, "file", got)
	wantNothingPending(t, m)
	m.Stop()
	wantFile(t, path, got)
}
