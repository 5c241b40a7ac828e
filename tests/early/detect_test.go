package early

import (
	"os"
	"slices"
	"testing"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/tests/harness"
)

// Known poison is told of, and known to the engine, before anybody reads.
func TestDetectedBeforeAnybodyReads(t *testing.T) {
	m := harness.Simulated(t, "dax")
	data := m.File("f", 1, 16*page)
	m.File("other", 2, page)
	if got := m.Poison("f"); !got.Empty() {
		t.Fatal(got)
	}
	m.Inject("f", sectorAt(3*page), rng{Off: 8 * page, Len: 2 * page})
	wants(t, "detected", told(m, event.Detected), "f [12288 +512)", "f [32768 +8192)")
	wants(t, "lost", told(m, event.Lost))
	m.Check("f", data, sectorAt(3*page), rng{Off: 8 * page, Len: 2 * page})
	wants(t, "detected, after reading", told(m, event.Detected), "f [12288 +512)", "f [32768 +8192)")
	wants(t, "lost, after reading", told(m, event.Lost), "f [12288 +512)", "f [32768 +8192)")
}

// Latent poison is told of by who meets it.
func TestLatentIsNotDetected(t *testing.T) {
	m := harness.Simulated(t, "dax")
	m.File("f", 1, 4*page)
	m.InjectLatent("f", sectorAt(page))
	wants(t, "detected", told(m, event.Detected))
	places, exit := scan(t, m.At)
	wants(t, "scan", places)
	if exit != 0 {
		t.Errorf("exit %d", exit)
	}
}

// What is known at mount is told of at mount, unless it is in the ledger.
func TestDetectedAtMount(t *testing.T) {
	m := harness.Simulated(t, "dax")
	m.File("met", 1, 4*page)
	m.File("not met", 2, 4*page)
	m.Inject("met", sectorAt(page))
	m.Inject("not met", sectorAt(2*page))
	if _, err := os.ReadFile(m.Path("met")); err != nil {
		t.Fatal(err)
	}
	m.Restart()
	want := []string{"met [4096 +512)", "not met [8192 +512)", "not met [8192 +512)"} // the last by the second mount
	eventually(t, "told of after the second mount", func() bool {
		got := told(m, event.Detected)
		slices.Sort(got)
		return slices.Equal(got, want)
	})
}

// Writes of all shapes over poison that is known and was never read.
func TestWritesOverDetected(t *testing.T) {
	m := harness.Simulated(t, "dax")
	data := m.File("f", 1, 16*page)
	var lost []rng
	for i := range int64(5) {
		lost = append(lost, sectorAt((2+3*i)*page+sector))
	}
	m.Inject("f", lost...)
	for _, w := range []struct{ off, n int64 }{
		{2 * page, page},              // the whole page: nothing is lost first
		{5*page + 100, 200},           // beside the sector
		{8*page + sector + 1, 10},     // in it
		{10*page + 4000, page + 4000}, // two pages, and a part of a third
	} {
		data = m.Overwrite("f", data, harness.Pattern(uint64(w.off), int(w.n)), w.off)
	}
	in := lost[2].Off // of which 10 bytes were written
	m.Check("f", data, lost[1], rng{Off: in, Len: 1}, rng{Off: in + 11, Len: sector - 11}, lost[4])
	if got := m.Poison("f"); !got.Contains(lost[4]) || got.Bytes() != lost[4].Len {
		t.Errorf("poison left: %v, want %v", got, lost[4])
	}
	for _, row := range m.History("f") {
		if row.Range.Overlaps(lost[0]) {
			t.Errorf("the bytes of a page that was overwritten whole are recorded: %+v", row)
		}
	}
}
