package sim

import (
	"slices"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Salvage is what raw reads of the device bring: a listed unit fails whole,
// a latent line alone.
func (f *file) Salvage(buf []byte, off int64) ([]ranges.Range, int64) {
	m := f.medium
	m.mu.Lock()
	defer m.mu.Unlock()
	r := ranges.Range{Off: off, Len: int64(len(buf))}
	granularity := int64(ranges.LineSize)
	var missing ranges.Set
	if p := f.poison(); p != nil {
		m.verify(p, f)
		for bad := range p.bad.Within(r) {
			missing.Add(bad)
		}
		for listed := range p.listed.Within(r) {
			missing.Add(listed)
			granularity = m.rules.listUnit
		}
		m.touch(p, r)
	}
	for _, good := range slices.Collect(missing.Gaps(r)) {
		piece := buf[good.Off-off : good.End()-off]
		n, err := f.below.Pread(piece, good.Off)
		if err != nil {
			missing.Add(good)
			continue
		}
		clear(piece[n:]) // the file ends here
	}
	return missing.Slice(), granularity
}

// touch marks the latent lines in r as met: reading them fails for the
// salvager too. The caller holds m.mu.
func (m *Medium) touch(p *poison, r ranges.Range) {
	var met []ranges.Range
	for bad := range p.bad.Within(r.Widen(ranges.LineSize)) {
		for latent := range p.listed.Gaps(bad) {
			if !p.touched.Contains(latent) {
				met = append(met, latent)
			}
		}
	}
	if len(met) > 0 {
		m.commit(record{Op: opChange, File: p.id, Touch: met})
	}
}

func (f *file) Corroborate(r ranges.Range) media.Verdict {
	if f.clean() {
		return media.Clear
	}
	f.medium.mu.RLock()
	defer f.medium.mu.RUnlock()
	if p := f.poison(); p != nil && (p.listed.Overlaps(r) || p.touched.Overlaps(r)) {
		return media.Listed
	}
	return media.Clear
}

// Device is nil: simulated poison lies on no device.
func (f *file) Device() media.Device { return nil }
