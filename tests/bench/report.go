package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// report is a run, as JSON has it. Schema version 1.
type report struct {
	Version int          `json:"version"`
	Time    time.Time    `json:"time"`
	Seconds float64      `json:"seconds"`
	Kernel  string       `json:"kernel"`
	CPUs    int          `json:"cpus"`
	Rounds  int          `json:"rounds"`
	Size    int64        `json:"size"`
	Trees   trees        `json:"trees"`
	Tables  []*table     `json:"tables"`
	Damaged *damageTable `json:"damaged"`
}

func newReport(o *options) *report {
	var u unix.Utsname
	_ = unix.Uname(&u) // can't fail
	return &report{
		Version: 1, Time: time.Now().UTC().Truncate(time.Second), Kernel: unix.ByteSliceToString(u.Release[:]),
		CPUs: runtime.NumCPU(), Rounds: o.rounds, Size: o.size, Trees: o.trees, Damaged: &damageTable{},
	}
}

// table is the clean cells on one backing.
type table struct {
	Backing string    `json:"backing"`
	Columns []*column `json:"columns"`
	Rows    []*row    `json:"rows"`
}

type row struct {
	Cell    string    `json:"cell"`
	Results []*result `json:"results"` // as the columns
}

// result is one field of the table. What was not measured is null.
type result struct {
	Column  string    `json:"column"`
	Seconds number    `json:"seconds"`     // median
	Rate    number    `json:"rate"`        // MiB/s, thousands of operations a second, or none
	Unit    string    `json:"unit"`        // of Rate
	Ratio   number    `json:"ratio"`       // speed, the bare directory's being 1
	CPU     number    `json:"cpu"`         // seconds, of load and daemon: per GiB, or for the cell
	PerGiB  bool      `json:"cpu_per_gib"` // which of them
	all     []float64 // seconds by round
	cpu     []float64
	work    done
}

// number is a float64 that may be NaN.
type number float64

func (n number) MarshalJSON() ([]byte, error) {
	if math.IsNaN(float64(n)) || math.IsInf(float64(n), 0) {
		return []byte("null"), nil
	}
	return strconv.AppendFloat(nil, float64(n), 'g', 6, 64), nil
}

func newTable(backing string, some []cell, cols []*column) *table {
	t := &table{Backing: backing, Columns: cols}
	for _, c := range some {
		r := &row{Cell: c.Name}
		for _, col := range cols {
			r.Results = append(r.Results, &result{Column: col.Name})
		}
		t.Rows = append(t.Rows, r)
	}
	return t
}

// add notes a measurement; d is nil if it did not work.
func (t *table) add(cell, column string, round int, d *done) {
	for _, r := range t.Rows {
		if r.Cell == cell {
			r.result(column).add(round, d)
		}
	}
}

func (r *row) result(column string) *result {
	for _, res := range r.Results {
		if res.Column == column {
			return res
		}
	}
	return nil
}

func (r *result) add(round int, d *done) {
	for len(r.all) <= round {
		r.all, r.cpu = append(r.all, math.NaN()), append(r.cpu, math.NaN())
	}
	if d != nil {
		r.all[round], r.cpu[round], r.work = d.Seconds, d.CPU, *d
	}
}

// sum works out what is shown. base is the bare directory's.
func (r *result) sum(base *result) {
	seconds := median(r.all)
	r.Seconds, r.Ratio = number(seconds), number(ratio(base.all, r.all))
	r.CPU, r.Rate = number(median(r.cpu)), number(math.NaN())
	switch {
	case r.work.Bytes > 0 && r.work.Bytes/int64(r.work.Ops) >= 64<<10:
		r.Rate, r.Unit = number(float64(r.work.Bytes)/(1<<20)/seconds), "MiB/s"
	case r.work.Bytes > 0:
		r.Rate, r.Unit = number(float64(r.work.Ops)/1000/seconds), "k/s"
	}
	if r.work.Bytes > 0 {
		r.CPU, r.PerGiB = r.CPU*number(1<<30)/number(r.work.Bytes), true
	}
}

func (t *table) sum() {
	for _, r := range t.Rows {
		for _, res := range r.Results {
			res.sum(r.result(bare))
		}
	}
}

// write prints the report, and leaves it and its plots in dir unless that is "".
func (r *report) write(w io.Writer, dir string) error {
	for _, t := range r.Tables {
		t.sum()
	}
	r.Damaged.sum()
	text := r.text()
	if _, err := io.WriteString(w, text); err != nil || dir == "" {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	js, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	files := map[string]string{"bench.txt": text, "bench.json": string(js) + "\n"}
	for _, t := range r.Tables {
		if len(t.Rows) > 0 {
			files["bench-"+t.Backing+".svg"] = t.plot()
		}
	}
	var errs []error
	for name, content := range files {
		errs = append(errs, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
	}
	return errors.Join(errs...)
}

func (r *report) text() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s, Linux %s, %d CPUs, %d rounds, files of %d MiB, %.0f s\n",
		r.Time.Format(time.RFC3339), r.Kernel, r.CPUs, r.Rounds, r.Size>>20, r.Seconds)
	for _, t := range r.Tables {
		if len(t.Rows) > 0 {
			t.text(&s)
		}
	}
	r.Damaged.text(&s)
	return s.String()
}

// peers are what the last columns of the text compare mendfs with.
var peers = []string{"loopback", "bindfs", floorName}

func (t *table) text(s *strings.Builder) {
	fmt.Fprintf(s, "\n%s: speed, the bare directory's being 1; at the right mendfs's against the peers'\n", t.Backing)
	t.lines(s, func(r *row) string {
		b := r.result(bare)
		if b.Unit == "" {
			return fmt.Sprintf("%.3f s", b.Seconds)
		}
		return fmt.Sprintf("%.0f %s", b.Rate, b.Unit)
	}, func(res *result) number { return res.Ratio }, true)
	fmt.Fprintf(s, "\n%s: CPU seconds of load and daemon, per GiB or for the whole cell\n", t.Backing)
	t.lines(s, func(r *row) string {
		if r.result(bare).PerGiB {
			return "per GiB"
		}
		return "in all"
	}, func(res *result) number { return res.CPU }, false)
	for _, c := range t.Columns {
		if c.Refused != "" {
			fmt.Fprintf(s, "%s could not be mounted: %s\n", c.Name, c.Refused)
		}
	}
}

// lines is a table: the cell's name, what first says of it, and a number of each column.
func (t *table) lines(s *strings.Builder, first func(*row) string, of func(*result) number, versus bool) {
	fmt.Fprintf(s, "%-27s%13s", "", bare)
	var shown []*column
	for _, c := range t.Columns {
		if c.Refused == "" && (c.Name != bare || !versus) {
			shown = append(shown, c)
		}
	}
	for _, c := range shown {
		fmt.Fprintf(s, "%12s", c.Name)
	}
	if versus {
		for _, p := range peers {
			fmt.Fprintf(s, "%12s", ":"+p)
		}
	}
	s.WriteString("\n")
	for _, r := range t.Rows {
		fmt.Fprintf(s, "%-27s%13s", r.Cell, first(r))
		for _, c := range shown {
			fmt.Fprintf(s, "%12s", figure(float64(of(r.result(c.Name)))))
		}
		for _, p := range peers {
			if versus {
				fmt.Fprintf(s, "%12s", figure(r.against("mendfs", p)))
			}
		}
		s.WriteString("\n")
	}
}

// against is how much faster a column is than another.
func (r *row) against(column, other string) float64 {
	a, b := r.result(column), r.result(other)
	if a == nil || b == nil {
		return math.NaN()
	}
	return ratio(b.all, a.all)
}

// figure has three digits that count, or a dash.
func figure(v float64) string {
	switch {
	case math.IsNaN(v) || math.IsInf(v, 0):
		return "-"
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 0.1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}
