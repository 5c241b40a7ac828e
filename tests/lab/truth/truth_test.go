package truth

import (
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The files of facts that the lab has written down, and the list of differences.
const (
	factsFiles  = "../testdata/*.txt"
	listOfThose = "../../../docs/simulation.md"
)

// TestSimulatedAsReal compares the profile "dax" with what the lab saw real
// kernels do, cell by cell. What differs must be listed, with the reason, and
// what is listed must differ.
func TestSimulatedAsReal(t *testing.T) {
	real := readFacts(t)
	listed := readListed(t)
	used := map[difference]bool{}
	for _, o := range Ops() {
		simulated := o.Run(newSimulated(t, o))
		if len(real[o.Name]) == 0 {
			t.Errorf("no kernel was asked about %q: make lab ACCEPT=1, for each kernel", o.Name)
		}
		for c, really := range real[o.Name] {
			at := slices.IndexFunc(listed, func(d difference) bool { return d.covers(o.Name, c.fs) })
			switch differs := really != simulated; {
			case differs && at < 0:
				t.Errorf("%q on %s, Linux %s:\n  simulated %s\n  really    %s", o.Name, c.fs, c.kernel, simulated, really)
			case !differs && at >= 0:
				t.Errorf("%q on %s, Linux %s is a difference by %s, and is none", o.Name, c.fs, c.kernel, listOfThose)
			case differs:
				used[listed[at]] = true
			}
		}
	}
	for _, d := range listed {
		if !used[d] {
			t.Errorf("%s lists %q on %q, which covers no cell", listOfThose, d.op, d.fs)
		}
	}
}

// readFacts is what the lab has written down, by operation.
func readFacts(t *testing.T) map[string]map[cell]string {
	t.Helper()
	files, err := filepath.Glob(factsFiles)
	if err != nil || len(files) == 0 {
		t.Fatalf("no facts in %s: %v", factsFiles, err)
	}
	facts := map[string]map[cell]string{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			fields := strings.Split(line, " | ")
			if len(fields) != 6 { // a fact of another kind
				continue
			}
			op := fields[1]
			if facts[op] == nil {
				facts[op] = map[cell]string{}
			}
			facts[op][cell{strings.TrimSuffix(filepath.Base(file), ".txt"), fields[0]}] = strings.Join(fields[2:5], " | ")
		}
	}
	return facts
}

// cell is one filesystem of one kernel.
type cell struct{ kernel, fs string }

// difference is a row of the table in listOfThose: operations, by a pattern,
// and filesystems.
type difference struct{ op, fs string }

func (d difference) covers(op, fs string) bool {
	ok, err := path.Match(d.op, op)
	return err == nil && ok && slices.Contains(strings.Split(d.fs, ", "), fs)
}

// readListed reads the table that has "Operation" in its head.
func readListed(t *testing.T) []difference {
	t.Helper()
	text, err := os.ReadFile(listOfThose)
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(text), "| Operation |")
	if !ok {
		t.Fatalf("%s has no table of operations", listOfThose)
	}
	var all []difference
	for _, line := range strings.Split(table, "\n")[2:] { // behind the head and its line
		fields := strings.Split(line, "|")
		if len(fields) < 4 {
			break
		}
		all = append(all, difference{strings.TrimSpace(fields[1]), strings.TrimSpace(fields[2])})
	}
	return all
}
