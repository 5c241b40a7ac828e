package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// load is one piece of work, done by a process of its own.
type load struct {
	Op     string   `json:"op"` // read, write, map, run
	Dir    string   `json:"dir"`
	Jobs   int      `json:"jobs,omitempty"`
	Size   int64    `json:"size,omitempty"`  // of all files together
	Block  int      `json:"block,omitempty"` // bytes at a time
	Count  int      `json:"count,omitempty"` // how often, all jobs together
	Random bool     `json:"random,omitempty"`
	Direct bool     `json:"direct,omitempty"`
	Cache  cache    `json:"cache,omitempty"`
	At     []int64  `json:"at,omitempty"`   // these offsets rather than all of them
	Loop   bool     `json:"loop,omitempty"` // again and again, until it is killed
	Args   []string `json:"args,omitempty"` // op run: the program
	Pids   []int    `json:"pids,omitempty"` // the daemon's, whose time counts too
}

// cache is what the mount's page cache holds when the clock starts.
type cache string

const (
	asIs cache = ""
	cold cache = "cold"
	warm cache = "warm"
)

// done is what a load took.
type done struct {
	Seconds float64 `json:"seconds"`
	CPU     float64 `json:"cpu"` // seconds, of the load's process and the daemon
	Bytes   int64   `json:"bytes"`
	Ops     int     `json:"ops"`
}

// loadMain does the load given as JSON and prints what it took as JSON.
func loadMain(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("load takes one JSON object, not %q", args)
	}
	var l load
	if err := json.Unmarshal([]byte(args[0]), &l); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	d, err := l.do()
	if err != nil {
		return fmt.Errorf("load %s: %w", args[0], err)
	}
	return json.NewEncoder(os.Stdout).Encode(d)
}

func (l load) do() (*done, error) {
	if l.Op == "run" {
		return l.clocked(done{Ops: 1}, func() error { return run(l.Dir, l.Args...) })
	}
	// A job keeps its processor while it waits for the kernel.
	runtime.GOMAXPROCS(2*l.Jobs + 2)
	jobs := make([]*job, l.Jobs)
	for i := range jobs {
		j, err := l.prepare(i)
		if err != nil {
			return nil, err
		}
		jobs[i] = j
	}
	work := done{Bytes: int64(l.Count) * int64(l.Block), Ops: l.Count}
	return l.clocked(work, func() error { return together(jobs) })
}

// clocked is d with the time that fn took.
func (l load) clocked(d done, fn func() error) (*done, error) {
	cpu, start := l.cpu(), time.Now()
	if err := fn(); err != nil {
		return nil, err
	}
	d.Seconds = time.Since(start).Seconds()
	d.CPU = (l.cpu() - cpu).Seconds()
	return &d, nil
}

// cpu is the time that this process, its children that ended and the daemon have used.
func (l load) cpu() time.Duration {
	var sum time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if unix.Getrusage(who, &u) == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	for _, pid := range l.Pids {
		// clock_getcpuclockid(3). A process's clock has nanoseconds where
		// /proc/PID/stat has hundredths.
		const sched = 2
		var ts unix.Timespec
		if unix.ClockGettime(int32(^uint32(pid)<<3|sched), &ts) == nil {
			sum += time.Duration(ts.Nano())
		}
	}
	return sum
}

func together(jobs []*job) error {
	errs := make(chan error, len(jobs))
	var start sync.WaitGroup
	start.Add(1)
	for _, j := range jobs {
		go func() { // ends with its work, which is waited for
			runtime.LockOSThread()
			start.Wait()
			err := j.work()
			for j.Loop && err == nil {
				err = errors.Join(j.setCache(), j.work())
			}
			errs <- err
		}()
	}
	start.Done()
	var first error
	for range jobs {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// dataFile is the file of a job: each has its own.
func dataFile(dir string, jobs, i int) string {
	return filepath.Join(dir, fmt.Sprintf("data.%d.%d", jobs, i))
}

// job is the part of a load that one thread does.
type job struct {
	load
	file    *os.File
	fd      int
	size    int64
	offsets []int64
	buf     []byte
	mapped  []byte
}

func (l load) prepare(i int) (*job, error) {
	flags := os.O_RDWR
	if l.Direct {
		flags |= unix.O_DIRECT
	}
	file, err := os.OpenFile(dataFile(l.Dir, l.Jobs, i), flags, 0)
	if err != nil {
		return nil, err
	}
	j := &job{load: l, file: file, fd: int(file.Fd()), size: l.Size / int64(l.Jobs)}
	if j.buf, err = aligned(max(l.Block, 1<<20)); err != nil {
		return nil, err
	}
	if err := j.setCache(); err != nil {
		return nil, err
	}
	if l.Op == "map" {
		if j.mapped, err = unix.Mmap(j.fd, 0, int(j.size), unix.PROT_READ, unix.MAP_SHARED); err != nil {
			return nil, fmt.Errorf("mmap: %w", err)
		}
	}
	j.buf = j.buf[:l.Block]
	j.offsets = l.offsetsOf(i, j.size)
	return j, nil
}

// setCache fills or drops the page cache of the file.
func (j *job) setCache() error {
	switch j.Cache {
	case cold:
		return unix.Fadvise(j.fd, 0, 0, unix.FADV_DONTNEED)
	case warm:
		_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.NewSectionReader(j.file, 0, j.size), j.buf)
		return err
	}
	return nil
}

// offsetsOf is where job i reads or writes, none twice.
func (l load) offsetsOf(i int, size int64) []int64 {
	if l.At != nil {
		return l.At
	}
	blocks := int(size) / l.Block
	count := min(l.Count/l.Jobs, blocks)
	offsets := make([]int64, blocks)
	for b := range offsets {
		offsets[b] = int64(b) * int64(l.Block)
	}
	if l.Random {
		r := rand.New(rand.NewPCG(uint64(i), 1))
		r.Shuffle(blocks, func(a, b int) { offsets[a], offsets[b] = offsets[b], offsets[a] })
	}
	return offsets[:count]
}

func (j *job) work() error {
	switch j.Op {
	case "read":
		return j.each(unix.Pread)
	case "write":
		return j.each(unix.Pwrite)
	case "map":
		sum := byte(0)
		for _, off := range j.offsets {
			sum += j.mapped[off]
		}
		j.buf[0] = sum // so that it is used
		return nil
	}
	return fmt.Errorf("no load is called %q", j.Op)
}

func (j *job) each(call func(fd int, p []byte, off int64) (int, error)) error {
	for _, off := range j.offsets {
		n, err := call(j.fd, j.buf, off)
		if err != nil {
			return fmt.Errorf("%s at %d: %w", j.Op, off, err)
		}
		if n != len(j.buf) {
			return fmt.Errorf("%s at %d: %d bytes instead of %d", j.Op, off, n, len(j.buf))
		}
	}
	return nil
}

// aligned is a buffer fit for O_DIRECT, with something in it.
func aligned(size int) ([]byte, error) {
	buf, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("a buffer: %w", err)
	}
	words := unsafe.Slice((*uint64)(unsafe.Pointer(&buf[0])), size/8)
	for i := range words {
		words[i] = uint64(i) + 1
	}
	return buf, nil
}
