package soak

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// place is where a worker works; a child gets it as JSON in its environment.
type place struct {
	At, State, Backing string // of the mount
	Rel                string // the worker's directory in it
	Bare               string // a directory on the same filesystem, not mounted
	Logs               string
	Profile            string
	Seed, Worker       uint64
	Killing            string // exists while the mount is being killed: errors are no wonder then
}

// worker does operations on files of its own, and knows what they have to hold.
type worker struct {
	place
	rel         string
	mount, bare *world
	oracle      *oracle
	generator   *generator
	log         *bufio.Writer
	logFile     *os.File
	doubt       *doubt // what was under way when the mount was killed
	poisoned    int
	done        int
}

func newWorker(p place) (*worker, error) {
	unit := int64(ranges.SectorSize)
	if p.Profile == "line" {
		unit = ranges.LineSize
	}
	w := &worker{place: p, rel: p.Rel, oracle: newOracle(unit)}
	w.generator = newGenerator(p.Seed, p.Worker, w.oracle)
	var err error
	if w.mount, err = newWorld(filepath.Join(p.At, p.Rel)); err != nil {
		return nil, err
	}
	if w.bare, err = newWorld(filepath.Join(p.Bare, p.Rel)); err != nil {
		return nil, err
	}
	if w.logFile, err = os.Create(w.logPath()); err != nil {
		return nil, err
	}
	w.log = bufio.NewWriter(w.logFile)
	_, err = fmt.Fprintf(w.log, "# profile %s seed %d worker %d\n", p.Profile, p.Seed, p.Worker)
	return w, err
}

func (w *worker) logPath() string { return filepath.Join(w.Logs, w.Rel+".log") }

func (w *worker) control() *control.Client { return control.Dial(w.State) }

// errDied is the end of the mount, which was killed.
var errDied = errors.New("the mount was killed")

// run does n operations of the generator; fewer if the mount is killed (errDied).
func (w *worker) run(n int) error {
	for range n {
		if err := w.do(w.generator.next()); err != nil {
			return err
		}
	}
	return nil
}

// do does one operation in the mount and on the bare filesystem, and compares.
func (w *worker) do(o op) error {
	fmt.Fprintf(w.log, "%v # %s\n", o, w.tags(o)) // an error of the log comes with the flush
	w.done++
	err := w.step(o)
	switch {
	case err == nil, errors.Is(err, errDied):
		return err
	}
	return fmt.Errorf("%v (%s): %w", o, w.tags(o), err)
}

func (w *worker) step(o op) error {
	switch {
	case o.Verb == check:
		if w.oracle.files[o.Name] == nil {
			return nil
		}
		return w.orKilled(w.checkFile(o.Name))
	case o.isPoison():
		return w.poison(o)
	case w.oracle.files[o.Name] == nil && o.Name[0] == '!', o.To != "" && o.To[0] == '!' && w.oracle.files[o.To] == nil:
		return nil // in a shortened log
	case (o.isMapped() || o.Verb == copyRange && w.oracle.files[o.Name] == w.oracle.files[o.To]) && !w.isInside(o):
		return nil // SIGBUS also on the bare filesystem; a copy that runs behind its own tail
	}
	got := w.mount.perform(o)
	if isShort := got.err == nil && got.n < o.Range.Len; w.isKilled(got.err) || isShort && w.isKilling() {
		w.doubt = &doubt{op: o, file: w.oracle.files[o.Name], to: w.oracle.files[o.To]}
		return errDied
	}
	want := w.bare.perform(o)
	if !errors.Is(got.err, want.err) || got.n != want.n {
		return fmt.Errorf("%d, %v; on the bare filesystem %d, %v", got.n, got.err, want.n, want.err)
	}
	if got.err != nil {
		return nil
	}
	if got.data != nil {
		if err := w.compare(o, got, want); err != nil {
			return err
		}
	}
	w.oracle.apply(o, got.n)
	return nil
}

// isInside reports whether the range lies in the file.
func (w *worker) isInside(o op) bool {
	f := w.oracle.files[o.Name]
	return f != nil && o.Range.End() <= f.size()
}

func (w *worker) compare(o op, got, want result) error {
	f := w.oracle.files[o.Name]
	if string(want.data) != string(f.data[min(o.Range.Off, f.size()):min(o.Range.Off+want.n, f.size())]) {
		return errors.New("the oracle is wrong: the bare file holds something else")
	}
	return f.readBytes(o.Range.Off, got.data)
}

// poison injects. What may be lost is noted before.
func (w *worker) poison(o op) error {
	f := w.oracle.files[o.Name]
	if f == nil || o.Range.End() > f.size() {
		return nil // in a shortened log
	}
	w.oracle.apply(o, 0)
	_, err := w.control().Inject(context.Background(), control.InjectRequest{
		Path: w.rel + "/" + o.Name, Ranges: []ranges.Range{o.Range}, OnRealFiles: true,
		Latent: o.Verb == latent || o.Verb == latentKept, KeepCache: o.Verb == knownKept || o.Verb == latentKept,
	})
	w.poisoned++
	return w.orKilled(err)
}

// isKilled reports whether the error is what the end of the mount gives.
func (p place) isKilled(err error) bool {
	if err == nil || !p.isKilling() {
		return false
	}
	for _, sign := range []error{unix.ENOTCONN, unix.ECONNABORTED, unix.EIO, unix.EINTR, errFault, errShort, control.ErrNotRunning, io.EOF, io.ErrUnexpectedEOF, unix.ECONNRESET, unix.EPIPE} {
		if errors.Is(err, sign) {
			return true
		}
	}
	return false
}

// isKilling reports whether the mount is being killed: then a count may be short.
func (p place) isKilling() bool {
	_, err := os.Stat(p.Killing)
	return p.Killing != "" && err == nil
}

func (w *worker) orKilled(err error) error {
	if w.isKilled(err) {
		return errDied
	}
	return err
}

// pause lets go of the mount.
func (w *worker) pause() error {
	w.mount.closeAll()
	w.bare.closeAll()
	w.oracle.closeAll()
	return w.log.Flush()
}

// restarted goes on after the mount is there again.
func (w *worker) restarted(killed bool) error {
	fmt.Fprintln(w.log, map[bool]string{true: kill, false: restart}[killed], "- - 0 +0 at 0 seed 0 #")
	open := w.doubt
	w.doubt = nil
	for _, f := range w.oracle.files {
		if killed {
			f.crashed()
		}
		f.freed, f.copied = ranges.Of(), ranges.Of()
	}
	if open == nil {
		return nil
	}
	if err := w.resolve(*open); err != nil {
		return fmt.Errorf("%v was under way in the kill: %w", open.op, err)
	}
	return nil
}

// checkAll checks every file.
func (w *worker) checkAll() error {
	for _, name := range w.oracle.names() {
		if err := w.do(op{Verb: check, Name: name}); err != nil {
			return err
		}
	}
	return nil
}

func (o *oracle) names() []string {
	var names []string
	for name := range o.files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// tags are the files of an operation, by number: names change.
func (w *worker) tags(o op) string {
	var tags []string
	for _, name := range []string{o.Name, o.To} {
		if f := w.oracle.files[name]; f != nil {
			tags = append(tags, fmt.Sprintf("file%d.", f.id))
		} else if o.Verb == create && name != "" {
			tags = append(tags, fmt.Sprintf("file%d.", w.oracle.made+1))
		}
	}
	return strings.Join(tags, " ")
}

// report writes the log of the file that failed and returns its last lines.
func (w *worker) report(err error) string {
	_ = w.log.Flush() // the report is of another error
	text, _ := os.ReadFile(w.logPath())
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	tags := strings.Fields(lines[len(lines)-1][strings.IndexByte(lines[len(lines)-1], '#')+1:])
	if len(tags) == 0 {
		tags = []string{"#"}
	}
	ofFile := slices.DeleteFunc(slices.Clone(lines), func(line string) bool {
		return !strings.Contains(line, tags[0]) && !strings.HasPrefix(line, restart) && !strings.HasPrefix(line, kill) && !strings.HasPrefix(line, "#")
	})
	path := filepath.Join(w.Logs, w.Rel+"-file.log")
	if err := os.WriteFile(path, []byte(strings.Join(ofFile, "\n")+"\n"), 0o600); err != nil {
		path = err.Error()
	}
	last := ofFile[max(0, len(ofFile)-25):]
	return fmt.Sprintf("%s, worker %d: %v\nall its operations: %s\nthose of the file: %s\nthe last of them:\n  %s",
		w.Profile, w.Worker, err, w.logPath(), path, strings.Join(last, "\n  "))
}
