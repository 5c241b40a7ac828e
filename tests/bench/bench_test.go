package main

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files")

var nan = math.NaN()

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		of   []float64
		want float64
	}{
		{[]float64{3}, 3},
		{[]float64{5, 1, 3}, 3},
		{[]float64{4, 1, 3, 2}, 2.5},
		{[]float64{nan, 7, nan, 9, 8}, 8},
		{[]float64{nan}, nan},
		{nil, nan},
	} {
		if got := median(c.of); got != c.want && !(math.IsNaN(got) && math.IsNaN(c.want)) {
			t.Errorf("median(%v) = %v, want %v", c.of, got, c.want)
		}
	}
	v := []float64{2, 1}
	median(v)
	if v[0] != 2 {
		t.Error("median has sorted the rounds")
	}
}

// A machine that is slow in one round is slow for all: the ratio must not move.
func TestRatioIsWithinRounds(t *testing.T) {
	base := []float64{1, 10, 2, nan, 1}
	twice := []float64{2, 20, 4, 1, nan}
	if got := ratio(base, twice); got != 0.5 {
		t.Errorf("ratio = %v, want 0.5", got)
	}
	if got := ratio(base, []float64{nan, nan}); !math.IsNaN(got) {
		t.Errorf("the ratio of nothing is %v", got)
	}
}

// sampleReport has what a real one can have: data and tree cells, a column that was refused, a
// measurement that is missing, damage.
func sampleReport() *report {
	cols := []*column{
		{Name: bare, About: "the directory itself"}, {Name: "loopback"}, {Name: "bindfs"}, {Name: "mendfs", About: "the default"},
		{Name: "rw", About: "--protect=rw", Refused: "not in this version"},
		{Name: floorName, About: "the least", dataOnly: true},
	}
	some := []cell{{Name: "seq read 1M cold", data: true}, {Name: "rand read 4k cold", data: true}, {Name: "find -size cold"}}
	tab := newTable("tmpfs", some, cols)
	seq, rnd := done{Bytes: 1 << 30, Ops: 1024}, done{Bytes: 32 << 20, Ops: 8192}
	for round := range 3 {
		for i, col := range cols[:4] {
			for k, work := range []done{seq, rnd, {Ops: 1}} {
				work.Seconds, work.CPU = 0.25*float64(i+1)*float64(k+1), 0.5
				tab.add(some[k].Name, col.Name, round, &work)
			}
		}
	}
	for _, c := range some[:2] {
		tab.add(c.Name, floorName, 0, &done{Seconds: 0.8, CPU: 0.25, Bytes: 1 << 30, Ops: 1024})
	}
	tab.add("find -size cold", "bindfs", 1, nil)
	r := &report{
		Version: 1, Time: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC), Seconds: 61.5, Kernel: "6.18.0", CPUs: 2,
		Rounds: 3, Size: 128 << 20, Trees: trees{15000, 5000, 10000}, Tables: []*table{tab}, Damaged: &damageTable{},
	}
	for i, bad := range []int{0, 100} {
		r.Damaged.add("re-read", bad, 0, &done{Seconds: 0.1 * float64(i+1), CPU: 0.3, Bytes: damagedSize, Ops: 512})
	}
	for round := range 3 {
		r.Damaged.cost("512 B into bad pages", "pages/s", "into clean pages", round, &done{Seconds: 2, Bytes: 512 << 10, Ops: 1024}, &done{Seconds: 0.5})
		r.Damaged.cost("overwrite", "MiB/s", "a clean file", round, &done{Seconds: 0.5, Bytes: 64 << 20, Ops: 64}, &done{Seconds: 0.25})
		r.Damaged.cost("mount with records", "s", "with none", round, &done{Seconds: 1.5, Ops: 1}, &done{Seconds: 0.03})
		r.Damaged.cost("intents", "intents/s", "", round, &done{Seconds: 2, Ops: 5000}, nil)
	}
	return r
}

func TestReportGolden(t *testing.T) {
	dir := t.TempDir()
	var text strings.Builder
	if err := sampleReport().write(&text, dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bench.txt", "bench.json", "bench-tmpfs.svg"} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(golden, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(want) {
			t.Errorf("%s is not as in testdata (go test -update, and look at it):\n%s", name, got)
		}
		if name == "bench.txt" && text.String() != string(got) {
			t.Error("what is printed is not what is kept")
		}
	}
}

// The numbers of the golden file, worked out by hand.
func TestJSONSays(t *testing.T) {
	r := sampleReport()
	r.Tables[0].sum()
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Tables []struct {
			Columns []struct{ Name, Refused string }
			Rows    []struct {
				Cell    string
				Results []struct {
					Column, Unit       string
					Seconds, Rate, CPU *float64
					Ratio              *float64
					PerGiB             bool `json:"cpu_per_gib"`
				}
			}
		}
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	tab := got.Tables[0]
	if tab.Columns[4].Refused == "" {
		t.Error("it does not say that a column was refused")
	}
	m := tab.Rows[0].Results[3]
	if m.Column != "mendfs" || *m.Seconds != 1 || *m.Rate != 1024 || m.Unit != "MiB/s" || *m.Ratio != 0.25 || *m.CPU != 0.5 || !m.PerGiB {
		t.Errorf("sequential read: %+v", m)
	}
	if m = tab.Rows[1].Results[3]; *m.Rate != 4.096 || m.Unit != "k/s" || *m.CPU != 16 {
		t.Errorf("random read: %+v", m)
	}
	if m = tab.Rows[2].Results[3]; m.Rate != nil || m.PerGiB || *m.CPU != 0.5 {
		t.Errorf("find: %+v", m)
	}
	if m = tab.Rows[0].Results[4]; m.Seconds != nil || m.Ratio != nil {
		t.Errorf("a column that was refused has numbers: %+v", m)
	}
}

func TestPlotIsXML(t *testing.T) {
	r := sampleReport()
	r.Tables[0].Rows[0].Cell = "a < b & c"
	r.Tables[0].sum()
	d := xml.NewDecoder(strings.NewReader(r.Tables[0].plot()))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if x := axis(1e9); x != labels+field {
		t.Errorf("what is too fast is shown at %v", x)
	}
	if x := axis(1e-9); x != labels {
		t.Errorf("what is too slow is shown at %v", x)
	}
}

func TestCells(t *testing.T) {
	seen := map[string]bool{}
	mount := &content{dir: "/m", shelf: "/s", cold: true, size: 16 << 20}
	for _, c := range cells() {
		if seen[c.Name] {
			t.Errorf("two cells are called %q", c.Name)
		}
		seen[c.Name] = true
		l := c.load(mount)
		if l.Op == "run" {
			continue
		}
		for i := range l.Jobs {
			offsets := l.offsetsOf(i, l.Size/int64(l.Jobs))
			if len(offsets) == 0 || len(offsets)*l.Jobs != l.Count {
				t.Errorf("%s: job %d does %d of %d", c.Name, i, len(offsets), l.Count)
			}
		}
	}
	for _, must := range []string{"seq read 1M cold", "rand write 4k direct x4", "seq write 128B", "untar", "rm -rf"} {
		if !seen[must] {
			t.Errorf("there is no cell %q", must)
		}
	}
	// The bare directory has no cache of its own: dropping the device's would measure the device.
	raw := *mount
	raw.cold = false
	if l := cells()[0].load(&raw); l.Cache != warm {
		t.Errorf("the bare directory is read %q", l.Cache)
	}
}

func TestLoads(t *testing.T) {
	dir := t.TempDir()
	const size = 1 << 20
	for i := range 4 {
		if err := fillFile(dataFile(dir, 4, i), size); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range []load{
		{Op: "read", Block: 128 << 10, Count: 32, Cache: cold},
		{Op: "read", Block: 4096, Count: 64, Random: true, Cache: warm},
		{Op: "write", Block: 4096, Count: 64, Random: true},
		{Op: "map", Block: 4096, Count: 64, Random: true},
	} {
		l.Dir, l.Jobs, l.Size, l.Pids = dir, 4, 4*size, []int{os.Getpid()}
		d, err := l.do()
		if err != nil {
			t.Errorf("%+v: %v", l, err)
			continue
		}
		if d.Seconds <= 0 || d.CPU <= 0 || d.Bytes != int64(l.Count*l.Block) || d.Ops != l.Count {
			t.Errorf("%+v took %+v", l, d)
		}
	}
	if _, err := (load{Op: "run", Dir: dir, Args: []string{"false"}}).do(); err == nil {
		t.Error("a program that failed was measured")
	}
	if err := os.Truncate(dataFile(dir, 4, 3), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := (load{Op: "read", Dir: dir, Jobs: 4, Size: 4 * size, Block: 4096, Count: 64}).do(); err == nil {
		t.Error("a read of less than was asked for was measured")
	}
}

func TestBadPagesAreSpread(t *testing.T) {
	for _, n := range damages[1:] {
		if last := badPage(n-1, n); last%page != 0 || last >= damagedSize {
			t.Errorf("of %d bad pages the last is at %d", n, last)
		}
	}
	whole, part := targets(100)
	clean, _ := targets(0)
	if len(whole) != overwrites || len(part) != overwrites || whole[1] != clean[1] || part[0]/page == whole[0]/page {
		t.Errorf("overwritten are %v and %v", whole, part)
	}
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"-quick", "-rounds", "9", "-only", "^rm"})
	if err != nil {
		t.Fatal(err)
	}
	if o.rounds != 9 || o.size != 16<<20 || !o.only.MatchString("rm -rf") || o.only.MatchString("untar") || len(o.backings) != 2 {
		t.Errorf("%+v", o)
	}
	for _, wrong := range [][]string{{"-size", "5"}, {"-only", "("}, {"more"}} {
		if _, err := parse(wrong); err == nil {
			t.Errorf("%v is taken", wrong)
		}
	}
	if o.out != "" {
		t.Errorf("without -out results go to %q", o.out)
	}
}
