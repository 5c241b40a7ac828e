package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// self is this program, whatever became of its file meanwhile.
const self = "/proc/self/exe"

// demoMount is a `mendfs mount` that runs as a child: a process that serves a
// mount and also uses it may wait for itself.
type demoMount struct {
	cmd    *exec.Cmd
	stderr *bytes.Buffer
	told   sync.Once // to end: a second signal would not let it unmount
}

// end asks the mount to unmount and end.
func (m *demoMount) end() (err error) {
	m.told.Do(func() { err = m.cmd.Process.Signal(syscall.SIGTERM) })
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// mount starts a mount with the semantics on the demo's directories, and
// returns when it is ready.
func (d *demo) mount(ctx context.Context, semantics string) error {
	m := &demoMount{stderr: &bytes.Buffer{}}
	m.cmd = exec.Command(self, "mount", "--simulate", demoProfile, "--semantics", semantics, "--state", "state", "files", "mnt")
	m.cmd.Dir, m.cmd.Stderr = d.dir, m.stderr
	// Its own process group: a Ctrl-C is for the demo, which ends the mount when
	// nothing uses it any more. If the demo is killed, the mount goes too.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	stdout, err := m.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := m.cmd.Start(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = m.end() }) // stop or the lines below tell what came of it
	defer stop()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		_ = m.cmd.Wait() // what it has to say is on its standard error
		return fmt.Errorf("mounting: %s", strings.TrimPrefix(strings.TrimSpace(m.stderr.String()), "mendfs mount: "))
	}
	if !strings.HasPrefix(line, "mendfs: ") {
		return errors.Join(fmt.Errorf("mounting: unexpected %q", line), m.stop())
	}
	d.mounted = m
	return nil
}

// unmount ends the mount, if there is one.
func (d *demo) unmount() error {
	m := d.mounted
	if m == nil {
		return nil
	}
	d.mounted = nil
	return m.stop()
}

func (m *demoMount) stop() error {
	if err := m.end(); err != nil {
		return err
	}
	stuck := time.AfterFunc(20*time.Second, func() { _ = m.cmd.Process.Kill() }) // Wait tells
	defer stuck.Stop()
	if err := m.cmd.Wait(); err != nil {
		return fmt.Errorf("unmounting: %w: %s", err, strings.TrimSpace(m.stderr.String()))
	}
	return nil
}

// mendfs runs a verb as a user would and returns its standard output. Another
// exit code than the wanted one is an error.
func (d *demo) mendfs(ctx context.Context, want int, args ...string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = d.dir, &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return nil, err
	}
	if got := cmd.ProcessState.ExitCode(); got != want {
		return nil, &failure{fmt.Errorf("%w: mendfs %s ended with %d instead of %d: %s",
			errClaim, strings.Join(args, " "), got, want, strings.TrimSpace(stderr.String())), demoNext}
	}
	return stdout.Bytes(), nil
}

// ask runs a verb with --json and decodes the list in it.
func (d *demo) ask(ctx context.Context, want int, list any, noun string, args ...string) error {
	text, err := d.mendfs(ctx, want, args...)
	if err != nil {
		return err
	}
	answer := map[string]json.RawMessage{}
	if err := json.Unmarshal(text, &answer); err != nil {
		return fmt.Errorf("mendfs %s: %w", strings.Join(args, " "), err)
	}
	return json.Unmarshal(answer[noun], list)
}

// touch runs the program that maps the file and loads a poisoned byte, and
// returns the signal that killed it, 0 if none did.
func (d *demo) touch(ctx context.Context) (syscall.Signal, error) {
	cmd := exec.CommandContext(ctx, self, "demo-touch", d.file(), strconv.FormatInt(d.poison.Off, 10))
	err := cmd.Run()
	if err == nil {
		return 0, nil
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return status.Signal(), nil
		}
	}
	return 0, fmt.Errorf("the program that maps the file: %w", err)
}

func (d *demo) file() string { return filepath.Join(d.dir, "mnt/data") }

// failingPages reads the file page by page and returns what fails with EIO.
func (d *demo) failingPages() (*ranges.Set, error) {
	f, err := os.Open(d.file())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var failing ranges.Set
	page := make([]byte, ranges.PageSize)
	for off := int64(0); off < demoSize; off += ranges.PageSize {
		if _, err := f.ReadAt(page, off); errors.Is(err, unix.EIO) {
			failing.Add(ranges.Page(off))
		} else if err != nil {
			return nil, err
		}
	}
	return &failing, nil
}

// writeFile writes what the file shall hold in r, and makes it durable.
func (d *demo) writeFile(r ranges.Range) error {
	f, err := os.OpenFile(d.file(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(d.want[r.Off:r.End()], r.Off)
	return errors.Join(err, f.Sync(), f.Close())
}

// kindsOf is the different kinds of the events, in the order of appearance.
func kindsOf(lines []byte) ([]string, error) {
	var kinds []string
	for line := range bytes.Lines(lines) {
		var e event.Event
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("reading the event log: %w", err)
		}
		if !slices.Contains(kinds, string(e.Event)) {
			kinds = append(kinds, string(e.Event))
		}
	}
	return kinds, nil
}

func errnoText(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno) + ": " + errno.Error()
	}
	return fmt.Sprint(err)
}

func signalText(s syscall.Signal) string {
	if s == 0 {
		return "no, it lives"
	}
	return unix.SignalName(s)
}
