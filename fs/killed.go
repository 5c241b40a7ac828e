package fs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Callers that are to die.
//
// A request that has reached us is waited for, whatever signal its caller gets,
// SIGKILL included. A handler hangs as long as the backing filesystem does (a
// device that does not answer, a server that has stopped), in a system call
// that can't be interrupted, and so would the caller, and whoever waits for the
// pages that it reads.
//
// So somebody else answers for it, EINTR, once the caller is bound to die or
// dead. One that has a handler for its signal goes on waiting, as it would on
// the backing filesystem, where file I/O knows no EINTR.
//
// When the handler of an answered request ends at last, what the kernel was
// never told of is given back (open files, lookups), and what it may remember
// of the files that changed is invalidated. Until then later changes to
// these files wait: a write that has returned is not undone by an older one.
// The late reply gets ENOENT (see Quiet).

// lookInterval is how often requests are looked at while there are any. One is
// answered the second time at the earliest.
const lookInterval = 200 * time.Millisecond

// mostAnswered bounds the threads that hang for nobody (a Go program may have
// 10,000). Further callers wait for the backing filesystem.
const mostAnswered = 1000

// mostServing bounds the handlers that run at the same time: each takes a thread
// while it waits for the backing filesystem, and a Go program that has 10,000 is
// ended. Further requests wait for their turn.
const mostServing = 2000

// place is an inode that a request changes, or a name in a directory.
type place struct {
	id   uint64 // 0: none
	name string
}

// changes are what a request may change.
type changes [2]place

func (c *changes) touch(d *changes) bool {
	for _, p := range c {
		if p.id != 0 && (p.id == d[0].id || p.id == d[1].id) {
			return true
		}
	}
	return false
}

// request is one that is being served.
type request struct {
	unique     uint64
	pid        uint32
	changes    changes
	answered   bool
	running    bool // its handler
	prev, next *request
}

// killable is the filesystem for callers that can be killed. It keeps account
// of what is being served.
type killable struct {
	*FS
	timer     *time.Timer       // calls look, one at a time; stopped by close
	processes map[uint64]uint32 // look's: the requests of the last time, and the callers' processes, 0 if not known
	late      sync.WaitGroup    // goroutines of invalidate

	mu       sync.Mutex // guards all below
	device   int        // -1: closed
	armed    bool       // the timer runs, or look does
	served   request    // head of the ring
	free     *request   // for reuse, by next
	answered int        // how many of served are
	running  int        // how many of served are
	ended    sync.Cond  // an answered one has ended, one more is answered, or there is room for one to run
}

// Answer is the filesystem as it is to be served on the FUSE device open at
// device, which stays the caller's: so that callers can be killed while the
// backing filesystem hangs. They have to be visible in /proc; those of another
// pid namespace, or hidden (hidepid), wait. Call it once, before serving.
func (f *FS) Answer(device int) (fuse.RawFileSystem, error) {
	own, err := unix.FcntlInt(uintptr(device), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("keeping the FUSE device: %w", err)
	}
	k := &killable{FS: f, device: own}
	k.ended.L = &k.mu
	k.served.prev, k.served.next = &k.served, &k.served
	k.mu.Lock() // look may run before this returns
	defer k.mu.Unlock()
	k.timer = time.AfterFunc(lookInterval, k.look)
	k.armed = true
	f.killable = k
	return k, nil
}

func (k *killable) close() error {
	if k == nil {
		return nil
	}
	k.timer.Stop()
	k.mu.Lock()
	device := k.device
	k.device = -1
	k.mu.Unlock()
	k.late.Wait()
	return unix.Close(device)
}

// abandoned is the number of answered requests whose handlers have not ended.
func (k *killable) abandoned() int {
	if k == nil {
		return 0
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.answered
}

// serve runs handler, which calls nothing that serve is under. If the caller
// was killed meanwhile, undo (nil: nothing to do) gives back what a handler that
// came to its end has given to the kernel.
func (k *killable) serve(in *fuse.InHeader, c changes, handler func() fuse.Status, undo func()) (st fuse.Status) {
	r, killed := k.begin(in, c)
	st = fuse.EINTR // stays if handler panics, or is not called
	defer func() {
		done := st
		if !k.end(r) {
			return
		}
		st = fuse.EINTR
		if done.Ok() && undo != nil {
			undo()
		}
		k.invalidate(c)
	}()
	if killed {
		return st
	}
	if st = k.withRoom(handler); !st.Ok() {
		k.lookInto(in, st)
	}
	return st
}

// begin enters a request, and waits for its turn, and for changes to the same
// places that nobody else waits for; killed: it was answered meanwhile.
func (k *killable) begin(in *fuse.InHeader, c changes) (r *request, killed bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if r = k.free; r != nil {
		k.free = r.next
	} else {
		r = new(request)
	}
	*r = request{unique: in.Unique, pid: in.Pid, changes: c, prev: &k.served, next: k.served.next}
	r.prev.next, r.next.prev = r, r
	if !k.armed && k.device >= 0 {
		k.armed = true
		k.timer.Reset(lookInterval)
	}
	for !r.answered && (k.running >= mostServing || k.answered > 0 && k.changing(r)) {
		k.ended.Wait()
	}
	if !r.answered {
		r.running = true
		k.running++
	}
	return r, r.answered
}

// changing reports whether an answered request still changes what r changes.
// The caller holds mu.
func (k *killable) changing(r *request) bool {
	for other := k.served.next; other != &k.served; other = other.next {
		if other != r && other.answered && other.changes.touch(&r.changes) {
			return true
		}
	}
	return false
}

// end takes r, which is not used any more, off the account, and reports
// whether it was answered.
func (k *killable) end(r *request) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	r.prev.next, r.next.prev = r.next, r.prev
	answered := r.answered
	full := k.running >= mostServing
	if r.running {
		k.running--
	}
	if answered {
		k.answered--
	}
	if answered || full {
		k.ended.Broadcast()
	}
	r.next, k.free = k.free, r
	return answered
}

// look answers for the callers that are bound to die.
func (k *killable) look() {
	processes, ends := map[uint64]uint32{}, map[uint32]bool{}
	for _, r := range k.waiting() {
		process, again := k.processes[r.unique]
		if process == 0 {
			process = processOf(r.pid)
		}
		processes[r.unique] = process
		if !again || process == 0 {
			continue
		}
		if _, asked := ends[process]; !asked {
			ends[process] = dying(process)
		}
		if ends[process] {
			k.answer(r.unique)
		}
	}
	k.processes = processes
	k.mu.Lock()
	defer k.mu.Unlock()
	k.armed = k.served.next != &k.served && k.device >= 0
	if k.armed {
		k.timer.Reset(lookInterval)
	}
}

// waiting are the requests that are waited for by somebody who can be found.
func (k *killable) waiting() (list []request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for r := k.served.next; r != &k.served; r = r.next {
		if !r.answered && r.pid != 0 {
			list = append(list, request{unique: r.unique, pid: r.pid})
		}
	}
	return list
}

// processOf is the process that a thread belongs to; 0 if the thread can't be seen, or
// is the kernel's own (a loop device's, nfsd's), which work for others.
func processOf(tid uint32) uint32 {
	status, err := os.ReadFile(procDir(tid) + "/status")
	if err != nil {
		return 0
	}
	var process uint64
	for line := range strings.Lines(string(status)) {
		if word, ok := strings.CutPrefix(line, "Tgid:"); ok {
			process, err = strconv.ParseUint(strings.TrimSpace(word), 10, 32)
		}
	}
	t, ok := threadAt(procDir(tid))
	const kernelThread = 1 << 21 // PF_KTHREAD
	if err != nil || !ok || t.flags&kernelThread != 0 {
		return 0
	}
	return uint32(process)
}

// dying reports whether a process has ended, or all of its threads are about to. It is
// not enough that the thread has which made a request: others wait for asynchronous
// I/O. The kernel makes SIGKILL of every fatal signal that dumps no core, for
// each thread of the process (complete_signal, Linux 6.18; TestKilledCallers).
func dying(process uint32) bool {
	dir := procDir(process) + "/task/"
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	for _, task := range tasks {
		if t, ok := threadAt(dir + task.Name()); ok && !t.dying() {
			return false
		}
	}
	return true
}

func procDir(id uint32) string { return "/proc/" + strconv.FormatUint(uint64(id), 10) }

// threadState is what /proc says of a thread.
type threadState struct{ flags, pending uint64 }

// dying holds for one that ends, or will when it wakes up.
func (t threadState) dying() bool {
	const exiting = 4 // PF_EXITING
	return t.flags&exiting != 0 || t.pending&(1<<(unix.SIGKILL-1)) != 0
}

// threadAt is the thread whose directory in /proc is dir, if it is still there.
func threadAt(dir string) (t threadState, ok bool) {
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return t, false
	}
	// The command, in parentheses, is field 2; flags are 9, pending signals 31.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 31-2 {
		return t, true
	}
	flags, err1 := strconv.ParseUint(fields[9-3], 10, 64)
	pending, err2 := strconv.ParseUint(fields[31-3], 10, 64)
	if err1 != nil || err2 != nil {
		return t, true
	}
	return threadState{flags, pending}, true
}

// answer sends EINTR for a request, if it is still being served.
func (k *killable) answer(unique uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.device < 0 || k.answered >= mostAnswered {
		return
	}
	for r := k.served.next; r != &k.served; r = r.next {
		if r.unique != unique {
			continue
		}
		r.answered = true
		k.answered++
		k.ended.Broadcast()
		reply := fuse.OutHeader{Length: uint32(unsafe.Sizeof(fuse.OutHeader{})), Status: -int32(unix.EINTR), Unique: unique}
		// ENOENT: nobody waits for it any more; ENODEV: nor for the mount.
		_, _ = unix.Write(k.device, unsafe.Slice((*byte)(unsafe.Pointer(&reply)), unsafe.Sizeof(reply)))
		return
	}
}

// invalidate makes the kernel forget what it may have learned of places before
// a change that it does not know of. It is not called from where the kernel
// waits: notifications wait for locks of the kernel that callers hold.
func (k *killable) invalidate(c changes) {
	server := k.server.Load()
	if c == (changes{}) || server == nil {
		return
	}
	k.late.Go(func() {
		for _, p := range c {
			if p.id == 0 {
				continue
			}
			if p.name != "" {
				_ = server.EntryNotify(p.id, p.name) // ENOENT: it knows nothing; ENODEV: nobody asks any more
			}
			_ = server.InodeNotify(p.id, 0, 0) // the same
		}
	})
}

// Quiet is w, without go-fuse's complaints that the kernel waits for a reply no
// more (ENOENT): that is what is to be expected where callers are killed. Use it
// for MountOptions.Logger.
func Quiet(w io.Writer) io.Writer { return quiet{w} }

type quiet struct{ w io.Writer }

// Write gets one message at a time, as package log does it.
func (q quiet) Write(text []byte) (int, error) {
	if bytes.Contains(text, []byte(fmt.Sprintf("writer: Write/Writev failed, err: %v.", fuse.ENOENT))) {
		return len(text), nil
	}
	return q.w.Write(text)
}
