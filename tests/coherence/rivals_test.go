package coherence

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/ranges"
	"github.com/mendfs/mendfs/tests/harness"
)

// rival is a process that writes its own lines of a file, which alternate with those
// of its rival.
type rival struct {
	Path   string
	Seed   uint64
	Number int64
	Ops    int
	Zeros  bool // a line may turn zero: it is poisoned

	fd         int
	m          []byte
	random     *rand.Rand
	generation []uint64 // of each line, as acknowledged
}

const (
	rivals     = 2
	rivalPages = 4
	rivalLines = rivalPages * page / line
)

// Two processes write lines of the same pages, each with write(2) and through a
// mapping, while the attributes are asked for all the time: no byte that was
// acknowledged is ever older again. The daemon is slow: the backing is a FUSE
// filesystem itself, or pages have to be repaired, which also drops them from
// the page cache.
func TestRivals(t *testing.T) {
	harness.Need(t, harness.FUSE, harness.Root)
	for _, seed := range []uint64{1, uint64(rand.Uint32())} {
		t.Run(fmt.Sprint("slow backing, seed ", seed), func(t *testing.T) {
			b := harness.NewBadMedia(t)
			compete(t, harness.New(t, harness.Config{Backing: b.At}), rival{Seed: seed, Ops: 1000}, nil)
		})
		for _, over := range []bool{false, true} {
			t.Run(fmt.Sprint("repairs, over ", over, ", seed ", seed), func(t *testing.T) {
				m := harness.New(t, harness.Config{Over: over, Flags: []string{"--simulate", "dax"}})
				compete(t, m, rival{Seed: seed, Ops: 1000, Zeros: true}, poison(t, m, seed))
			})
		}
	}
}

// poison is what hurts the file, each page once: one that is hit again while it is
// repaired fails a write, and the kernel takes stores beside that back.
func poison(t *testing.T, m *harness.Mount, seed uint64) func() {
	random := rand.New(rand.NewPCG(seed, 3))
	pages := random.Perm(rivalPages)
	return func() {
		at := int64(pages[0])*page + random.Int64N(page)
		pages = pages[1:]
		_, err := control.Dial(m.State).Inject(context.Background(), control.InjectRequest{
			Path: "f", Ranges: []ranges.Range{{Off: at, Len: 1}},
			OnRealFiles: true, Latent: random.IntN(2) == 0, KeepCache: random.IntN(2) == 0,
		})
		if err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	}
}

// compete runs the rivals to their end, and meanwhile disturb again and again.
func compete(t *testing.T, m *harness.Mount, r rival, disturb func()) {
	t.Helper()
	r.Path = m.Path("f")
	harness.WriteFile(t, r.Path, make([]byte, rivalPages*page))
	for n := range int64(rivals) {
		r.Number = n
		cmd, stderr := r.start(t)
		defer func() {
			if err := cmd.Wait(); err != nil {
				t.Errorf("seed %d, process %d: %v: %s", r.Seed, n, err, stderr)
			}
		}()
	}
	for n := 0; disturb != nil && n < rivalPages; n++ {
		disturb()
		time.Sleep(20 * time.Millisecond)
	}
}

func (r *rival) start(t *testing.T) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), rivalMark+"="+string(text))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, &stderr
}

func playRival(text string) (err error) {
	r := rival{generation: make([]uint64, rivalLines)}
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return err
	}
	r.random = rand.New(rand.NewPCG(r.Seed, uint64(r.Number)))
	if r.fd, err = unix.Open(r.Path, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	if r.m, err = unix.Mmap(r.fd, 0, rivalPages*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return err
	}
	done := make(chan struct{})
	asked := make(chan error, 1)
	go func() { asked <- r.ask(done) }() // ends with done
	err = r.run()
	close(done)
	return errors.Join(err, <-asked)
}

// ask asks for attributes until done.
func (r *rival) ask(done <-chan struct{}) error {
	for {
		select {
		case <-done:
			return nil
		default:
		}
		var st unix.Stat_t
		if err := unix.Fstat(r.fd, &st); err != nil {
			return err
		}
		if st.Size != rivalPages*page {
			return fmt.Errorf("the file has %d bytes, want %d", st.Size, rivalPages*page)
		}
	}
}

func (r *rival) run() error {
	for n := range uint64(r.Ops) {
		if err := r.put(n + 1); err != nil {
			return err
		}
		if err := r.check(unix.Pread); err != nil {
			return fmt.Errorf("after %d operations: %w", n+1, err)
		}
	}
	if err := unix.Msync(r.m, unix.MS_SYNC); err != nil {
		return err
	}
	if err := r.check(unix.Pread); err != nil {
		return fmt.Errorf("at the end: %w", err)
	}
	if err := unix.Fadvise(r.fd, 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	fd, err := unix.Open(r.Path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return r.check(func(_ int, p []byte, off int64) (int, error) { return unix.Pread(fd, p, off) })
}

// put gives one of its own lines a generation.
func (r *rival) put(generation uint64) error {
	at := r.random.Int64N(rivalLines/rivals)*rivals + r.Number
	b := content(at, generation)
	if r.random.IntN(2) == 0 {
		copy(r.m[at*line:], b)
		if r.random.IntN(4) == 0 {
			if err := unix.Msync(r.m, unix.MS_SYNC); err != nil {
				return err
			}
		}
	} else if n, err := unix.Pwrite(r.fd, b, at*line); err != nil || n != line {
		return fmt.Errorf("pwrite of line %d: %d bytes, %w", at, n, err)
	}
	r.generation[at] = generation
	return nil
}

// content is a line without zeros.
func content(at int64, generation uint64) []byte {
	b := bytes.Repeat([]byte{0xA5}, line)
	if generation == 0 {
		return make([]byte, line)
	}
	binary.LittleEndian.PutUint64(b, generation|1<<62)
	b[8] = byte(at) | 1
	return b
}

// check reads everything, and wants each of its own lines to be what it was given last.
func (r *rival) check(pread func(int, []byte, int64) (int, error)) error {
	got := make([]byte, rivalPages*page)
	if n, err := pread(r.fd, got, 0); err != nil || n != len(got) {
		return fmt.Errorf("reading: %d bytes, %w", n, err)
	}
	for at := r.Number; at < rivalLines; at += rivals {
		b := got[at*line : (at+1)*line]
		switch {
		case bytes.Equal(b, content(at, r.generation[at])):
		case r.Zeros && bytes.Equal(b, make([]byte, line)):
			r.generation[at] = 0
		default:
			return fmt.Errorf("line %d (byte %d) is of generation %d, was given %d: %x", at, at*line,
				binary.LittleEndian.Uint64(b)&^(1<<62), r.generation[at], b)
		}
	}
	return nil
}
