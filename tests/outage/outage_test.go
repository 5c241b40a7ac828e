// Package outage shows that trouble is not poison (promise P9): when the filesystem
// or the device below goes away under load, applications get its errno,
// nothing reads as zero, nothing is recorded as lost, and there is one event.
package outage

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/tests/harness"
)

const (
	page  = harness.Page
	pages = 1024 // of the file under load
)

func TestMain(m *testing.M) { harness.Main(m) }

func TestOutageUnderLoad(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		for name, strike := range map[string]func(*harness.Disk){
			"the filesystem is shut down": (*harness.Disk).ShutDown,
			"the device fails":            (*harness.Disk).Fail,
		} {
			for _, semantics := range []string{"recover", "strict"} {
				t.Run(kind+"/"+name+"/"+semantics, func(t *testing.T) {
					d := harness.NewFailingDisk(t, kind, 320)
					m := harness.New(t, harness.Config{Backing: d.At, Flags: []string{"--semantics", semantics}})
					l := newLoad(t, m, m.Below("f"))
					l.run(func() { strike(d) })
					if !slices.Contains(l.errnos(), error(unix.EIO)) {
						t.Errorf("the readers got %v, want EIO", l.errnos())
					}
					check(t, m)
				})
			}
		}
	}
}

// The same over media that are nobody's simulator, and it passes: afterwards
// all is as before.
func TestOutageThatPasses(t *testing.T) {
	b := harness.NewBadMedia(t)
	m := harness.New(t, harness.Config{Backing: b.At})
	l := newLoad(t, m, filepath.Join(b.Dir, "f"))
	l.run(func() { b.Outage(true) })
	if !slices.Contains(l.errnos(), error(unix.EIO)) {
		t.Errorf("the readers got %v, want EIO", l.errnos())
	}
	check(t, m)
	b.Outage(false)
	m.Drop("f")
	m.Check("f", l.data)
}

// check is what has to hold after an outage.
func check(t *testing.T, m *harness.Mount) {
	t.Helper()
	if lost := m.Lost("."); len(lost) > 0 {
		t.Errorf("the ledger has %v", lost)
	}
	var outages []event.Event
	for _, e := range m.Events() {
		switch e.Event {
		case event.Outage:
			outages = append(outages, e)
		case event.Lost, event.Reinitialized, event.Recovered:
			t.Errorf("event %+v in an outage", e)
		}
	}
	if len(outages) != 1 {
		t.Errorf("%d outage events, want 1: %+v, of all: %+v", len(outages), outages, m.Events())
	}
}

// load is readers and writers of one file, which hold every byte they get
// against what it must be. They go past the page cache of the mount, and the
// one below is dropped all the time.
type load struct {
	t     *testing.T
	m     *harness.Mount
	below string // the file as it is seen without mendfs
	data  []byte
	stop  chan struct{} // closed: end

	mu     sync.Mutex // guards failed
	failed []error    // the different errnos
}

// newLoad puts the file there; below is where it can be seen without mendfs.
func newLoad(t *testing.T, m *harness.Mount, below string) *load {
	t.Helper()
	return &load{t: t, m: m, below: below, data: m.File("f", 1, pages*page), stop: make(chan struct{})}
}

// run loads, strikes in the middle, and returns when all have ended.
func (l *load) run(strike func()) {
	l.t.Helper()
	below, err := os.Open(l.below)
	if err != nil {
		l.t.Fatal(err)
	}
	defer below.Close()
	var all sync.WaitGroup
	for seed := range uint64(3) {
		all.Go(func() { l.worker(seed, l.read) })
	}
	all.Go(func() { l.worker(9, l.write) })
	for i := range 50 {
		if i == 15 {
			strike()
		}
		if err := unix.Fadvise(int(below.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			l.t.Error(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	close(l.stop)
	all.Wait()
}

func (l *load) errnos() []error { return l.failed }

func (l *load) worker(seed uint64, work func(fd int, off int64, buf []byte) error) {
	fd, err := unix.Open(l.m.Path("f"), unix.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		l.t.Error(err)
		return
	}
	defer unix.Close(fd)
	random := rand.New(rand.NewPCG(seed, 4))
	buf := aligned(8 * page)
	for {
		select {
		case <-l.stop:
			return
		default:
		}
		n := 1 + random.Int64N(8)
		off := random.Int64N(pages-n) * page
		if err := work(fd, off, buf[:n*page]); err != nil {
			l.mu.Lock()
			if !slices.ContainsFunc(l.failed, func(known error) bool { return errors.Is(err, known) }) {
				l.failed = append(l.failed, err)
			}
			l.mu.Unlock()
		}
	}
}

func (l *load) read(fd int, off int64, buf []byte) error {
	n, err := unix.Pread(fd, buf, off)
	if err == nil {
		harness.Compare(l.t, fmt.Sprintf("%d bytes at %d", len(buf), off), buf[:n], l.data[off:off+int64(n)])
	}
	return err
}

// write writes what is there already, so that a reader knows what to expect. What a
// write gets is the device's business (EIO, EROFS, or nothing, if it can).
func (l *load) write(fd int, off int64, buf []byte) error {
	copy(buf, l.data[off:])
	if _, err := unix.Pwrite(fd, buf, off); err != nil && !errors.Is(err, unix.EIO) && !errors.Is(err, unix.EROFS) {
		l.t.Errorf("writing at %d: %v", off, err)
	}
	return nil
}

// aligned is memory as O_DIRECT wants it.
func aligned(n int) []byte {
	buf := make([]byte, n+page)
	skip := page - int(uintptr(unsafe.Pointer(&buf[0]))%page)
	return buf[skip : skip+n]
}
