package main

import (
	"fmt"
	"math"
	"strings"
)

// damageTable compares files with poison with a clean one.
type damageTable struct {
	Refused string       `json:"refused,omitempty"`
	NoDisk  bool         `json:"no_disk,omitempty"` // $TMPDIR is in memory
	Rows    []*damageRow `json:"rows"`
	Costs   []*cost      `json:"costs"`
}

type damageRow struct {
	What    string `json:"what"`
	Bad     int    `json:"bad_pages"`
	Seconds number `json:"seconds"` // median
	Ratio   number `json:"ratio"`   // speed, the clean file's being 1
	CPU     number `json:"cpu"`     // seconds of load and daemon; steadier than time on a busy machine
	result  result
}

func (t *damageTable) row(what string, bad int) *damageRow {
	for _, r := range t.Rows {
		if r.What == what && r.Bad == bad {
			return r
		}
	}
	r := &damageRow{What: what, Bad: bad}
	t.Rows = append(t.Rows, r)
	return r
}

func (t *damageTable) add(what string, bad, round int, d *done) {
	t.row(what, bad).result.add(round, d)
}

func (t *damageTable) sum() {
	for _, r := range t.Rows {
		r.result.sum(&t.row(r.What, damages[0]).result)
		r.Seconds, r.Ratio, r.CPU = r.result.Seconds, r.result.Ratio, number(median(r.result.cpu))
	}
	for _, c := range t.Costs {
		c.sum()
	}
}

func (t *damageTable) text(s *strings.Builder) {
	if t.Refused != "" {
		fmt.Fprintf(s, "\na mount with --simulate dax could not be made: %s\n", t.Refused)
	}
	if t.NoDisk {
		s.WriteString("\n$TMPDIR is in memory: nothing was measured with state on a disk\n")
	}
	costText(s, t.Costs)
	if len(t.Rows) == 0 {
		return
	}
	fmt.Fprintf(s, "\na file of %d MiB with bad pages on simulated poison (dax); speed, the clean file's being 1\n", damagedSize>>20)
	fmt.Fprintf(s, "%-27s%10s%13s%12s%13s\n", "", "bad pages", "seconds", "ratio", "CPU seconds")
	for _, what := range []string{"first read", "re-read", "overwrite whole pages", "overwrite parts of pages"} {
		for _, bad := range damages {
			for _, r := range t.Rows {
				if r.What == what && r.Bad == bad {
					fmt.Fprintf(s, "%-27s%10d%13s%12s%13s\n", what, bad, figure(float64(r.Seconds)), figure(float64(r.Ratio)), figure(float64(r.CPU)))
				}
			}
		}
	}
}

// cost is one thing that damage makes slow, or its records.
type cost struct {
	What    string `json:"what"`
	Unit    string `json:"unit"`              // of Rate
	Rate    number `json:"rate"`              // a second, but for unit s: the seconds it takes
	Against string `json:"against,omitempty"` // the same work without damage
	Ratio   number `json:"ratio"`             // speed, that of Against being 1

	took, base result
}

// cost notes what took d, and what the same work without damage took; base may be nil.
func (t *damageTable) cost(what, unit, against string, round int, d, base *done) {
	var c *cost
	for _, have := range t.Costs {
		if have.What == what {
			c = have
		}
	}
	if c == nil {
		c = &cost{What: what, Unit: unit, Against: against}
		t.Costs = append(t.Costs, c)
	}
	c.took.add(round, d)
	c.base.add(round, base)
}

func (c *cost) sum() {
	seconds := median(c.took.all)
	c.Ratio = number(ratio(c.base.all, c.took.all))
	switch c.Unit {
	case "s":
		c.Rate = number(seconds)
	case "MiB/s":
		c.Rate = number(float64(c.took.work.Bytes) / (1 << 20) / seconds)
	default:
		c.Rate = number(float64(c.took.work.Ops) / seconds)
	}
}

func costText(s *strings.Builder, costs []*cost) {
	if len(costs) == 0 {
		return
	}
	s.WriteString("\nwhat damage and its records cost; the ratio is speed, that of what is named being 1\n")
	for _, c := range costs {
		fmt.Fprintf(s, "%-66s%8s %-10s", c.What, figure(float64(c.Rate)), c.Unit)
		if !math.IsNaN(float64(c.Ratio)) {
			fmt.Fprintf(s, "%6s  %s", figure(float64(c.Ratio)), c.Against)
		}
		s.WriteString("\n")
	}
}
