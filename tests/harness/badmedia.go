package harness

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/mounttest"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// BadMedia is a filesystem with bad ranges that is not mendfs's own
// simulator: see tests/badmedia.
type BadMedia struct {
	Dir string // the files themselves, without anything bad
	At  string // where it is mounted: a backing directory for mendfs

	t       testing.TB
	daemon  *daemon
	in      io.WriteCloser
	answers *bufio.Scanner
}

// NewBadMedia mounts an empty one; flags as in tests/badmedia.
func NewBadMedia(t testing.TB, flags ...string) *BadMedia {
	t.Helper()
	Need(t, FUSE, Root)
	b := &BadMedia{Dir: subdir(t, "f"), At: subdir(t, "bad"), t: t}
	stdin, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	b.in = in
	out, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	b.answers = bufio.NewScanner(out)
	t.Cleanup(func() { out.Close() })
	cmd := childCommand(os.Getenv(badmediaBin), nil, append(flags, b.Dir, b.At)...)
	cmd.Stdin, cmd.Stdout = stdin, stdout
	b.daemon = newDaemon(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go b.daemon.reap()
	t.Cleanup(b.end)
	if answer := b.answer(); answer != "ready" {
		t.Fatalf("badmedia says %q: %s", answer, b.daemon.stderr.String())
	}
	return b
}

// end is after the mendfs mount over it has ended.
func (b *BadMedia) end() {
	if err := b.in.Close(); err != nil {
		b.t.Error(err)
	}
	if code := b.daemon.wait(b.t); code != 0 {
		b.t.Errorf("badmedia ended with %d: %s", code, b.daemon.stderr.String())
	}
	if MountedAs(b.t, b.At) != "" {
		b.t.Errorf("%s has to be detached by force", b.At)
		if err := unix.Unmount(b.At, unix.MNT_DETACH); err != nil {
			b.t.Error(err)
		}
	}
}

func (b *BadMedia) answer() string {
	b.t.Helper()
	if !b.answers.Scan() {
		b.t.Fatalf("badmedia has ended: %v: %s", b.answers.Err(), b.daemon.stderr.String())
	}
	return b.answers.Text()
}

func (b *BadMedia) tell(format string, args ...any) string {
	b.t.Helper()
	if _, err := fmt.Fprintf(b.in, format+"\n", args...); err != nil {
		b.t.Fatal(err)
	}
	answer := b.answer()
	if strings.HasPrefix(answer, "error: ") {
		b.t.Fatalf("badmedia, "+format+": %s", append(args, answer)...)
	}
	return answer
}

// File puts a file with a pattern onto the medium, without going through it.
func (b *BadMedia) File(rel string, seed uint64, n int) []byte {
	b.t.Helper()
	data := Pattern(seed, n)
	WriteFile(b.t, filepath.Join(b.Dir, rel), data)
	return data
}

// Bad poisons ranges of a file.
func (b *BadMedia) Bad(rel string, rs ...Range) {
	b.t.Helper()
	for _, r := range rs {
		b.tell("bad %d %d %s", r.Off, r.Len, rel)
	}
	dropPages(b.t, filepath.Join(b.At, rel), os.O_RDONLY)
}

// Left is what is still bad in a file.
func (b *BadMedia) Left(rel string) *ranges.Set {
	b.t.Helper()
	left := ranges.Of()
	for _, text := range strings.Fields(b.tell("left %s", rel)) {
		off, length, _ := strings.Cut(text, "+")
		left.Add(Range{Off: b.number(off), Len: b.number(length)})
	}
	return left
}

// Outage makes everything fail, or ends that.
func (b *BadMedia) Outage(on bool) {
	b.t.Helper()
	b.tell("outage %s", map[bool]string{true: "on", false: "off"}[on])
}

// Hang makes everything that is asked of a file's data wait until GoOn.
func (b *BadMedia) Hang(rel string) {
	b.t.Helper()
	b.tell("hang %s", rel)
	b.t.Cleanup(b.GoOn)
}

// GoOn ends all Hangs.
func (b *BadMedia) GoOn() { b.t.Helper(); b.tell("go on") }

// Cut is a power cut, of a medium that is -volatile. The mount over it has to be killed
// before.
func (b *BadMedia) Cut() { b.t.Helper(); b.tell("cut") }

// Freeze stops the process that serves the filesystem: everything that is asked
// of it waits until Thaw.
func (b *BadMedia) Freeze() {
	b.t.Helper()
	b.t.Cleanup(b.Thaw) // before anything that waits for it
	mounttest.Stop(b.t, b.daemon.cmd.Process.Pid)
}

// Thaw ends Freeze.
func (b *BadMedia) Thaw() { b.t.Helper(); b.signal(unix.SIGCONT) }

func (b *BadMedia) signal(s os.Signal) {
	b.t.Helper()
	if err := b.daemon.cmd.Process.Signal(s); err != nil {
		b.t.Error(err)
	}
}

// Reads is the number of READs that have reached the medium.
func (b *BadMedia) Reads() int64 {
	b.t.Helper()
	return b.number(b.tell("reads"))
}

func (b *BadMedia) number(text string) int64 {
	b.t.Helper()
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		b.t.Fatal(err)
	}
	return n
}
