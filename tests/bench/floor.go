package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse" // for the kernel's structures alone
	"golang.org/x/sys/unix"
)

// The floor is the least that any server of reads and writes over /dev/fuse does:
// receive the request, one pread or pwrite, send the reply. It is what the kernel's
// side of FUSE and two changes of threads cost on this machine, and so what a mount
// that serves each request can't beat but by noise; a target above it can't be had.
//
// It greets the kernel as mendfs does (requests of 1 MiB, read-ahead of 1 MiB, no
// writeback cache), with a thread and a clone of the device for each worker. The
// threads are the kernel's alone: raw system calls, which Go's scheduler does not
// see, no collection of garbage, no allocation. Nothing is checked, locked or
// recovered: it is of no use but to be measured.
type floor struct {
	fds   []int // clones of /dev/fuse, the first being the one that was mounted
	at    string
	nodes nodes
}

// floorArgs start it. Threads in raw system calls can't be preempted: asking them
// would be signals for nothing.
func floorArgs(self, backing, at string) []string {
	return []string{"env", "GODEBUG=asyncpreemptoff=1", self, "floor", backing, at}
}

// floorMain serves a directory until it is unmounted.
func floorMain(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("floor", flag.ContinueOnError)
	threads := f.Int("threads", 2*runtime.NumCPU(), "how many `THREADS` serve")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 2 || *threads < 1 {
		return fmt.Errorf("floor [-threads N] BACKING MOUNTPOINT, not %q", args)
	}
	s := &floor{at: f.Arg(1)}
	if err := s.mount(f.Arg(0)); err != nil {
		return fmt.Errorf("mounting the floor: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = unix.Unmount(s.at, unix.MNT_DETACH) }) // bench unmounts what is left
	defer stop()
	if err := errors.Join(s.greet(), s.readAhead(), s.clone(*threads)); err != nil {
		return errors.Join(fmt.Errorf("starting the floor: %w", err), unix.Unmount(s.at, unix.MNT_DETACH))
	}
	return s.serve()
}

func (s *floor) mount(backing string) error {
	if err := s.nodes.open(backing); err != nil {
		return err
	}
	device, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("/dev/fuse: %w", err)
	}
	s.fds = []int{device}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,max_read=%d,default_permissions,allow_other", device, maxRequest)
	return unix.Mount(backing, s.at, "fuse.floor", unix.MS_NOSUID|unix.MS_NODEV, options)
}

// greet answers INIT, the first request.
func (s *floor) greet() error {
	w, err := newWorker(s.fds[0], &s.nodes)
	if err != nil {
		return err
	}
	if errno := w.receive(); errno != 0 {
		return fmt.Errorf("the greeting: %w", errno)
	}
	in := argument[fuse.InitIn](w)
	const wanted = fuse.CAP_ASYNC_READ | fuse.CAP_BIG_WRITES | fuse.CAP_MAX_PAGES | fuse.CAP_PARALLEL_DIROPS |
		fuse.CAP_AUTO_INVAL_DATA | fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_FILE_OPS
	*answer[fuse.InitOut](w) = fuse.InitOut{
		Major: in.Major, Minor: in.Minor, MaxReadAhead: in.MaxReadAhead, Flags: in.Flags & wanted,
		MaxBackground: 64, CongestionThreshold: 48, MaxWrite: maxRequest, MaxPages: maxRequest / page, TimeGran: 1,
	}
	return w.reply(0, int(unsafe.Sizeof(fuse.InitOut{})))
}

// readAhead is mendfs's (mount/readahead.go). The device number is known without
// a request, which nobody would answer yet.
func (s *floor) readAhead() error {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, s.at, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, 0, &st); err != nil {
		return err
	}
	bdi := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", st.Dev_major, st.Dev_minor)
	return os.WriteFile(bdi, []byte(strconv.Itoa(maxRequest>>10)), 0)
}

// clone opens the device once more for all threads but the first.
func (s *floor) clone(threads int) error {
	for len(s.fds) < threads {
		fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		const clone = 0x8004e500 // FUSE_DEV_IOC_CLONE
		of := uint32(s.fds[0])
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), clone, uintptr(unsafe.Pointer(&of))); errno != 0 {
			return fmt.Errorf("cloning /dev/fuse: %w", errno)
		}
		s.fds = append(s.fds, fd)
	}
	return nil
}

// serve ends when the mount is gone.
func (s *floor) serve() error {
	debug.SetGCPercent(-1) // it would wait for the threads
	runtime.GOMAXPROCS(len(s.fds) + 2)
	errs := make([]error, len(s.fds))
	var all sync.WaitGroup
	for i, fd := range s.fds {
		w, err := newWorker(fd, &s.nodes)
		if err != nil {
			return err
		}
		all.Go(func() { // ends with the mount
			runtime.LockOSThread()
			errs[i] = w.run()
		})
	}
	all.Wait()
	return errors.Join(errs...)
}
