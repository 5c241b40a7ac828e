package fs

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// newKillable is one without a filesystem, and what it says to the device.
func newKillable(t testing.TB) (k *killable, device *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	f := &FS{}
	if _, err := f.Answer(int(w.Fd())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.killable.close(); err != nil {
			t.Error(err)
		}
		r.Close()
	})
	return f.killable, r
}

// hang serves a request whose handler waits for go on; entered tells that it has begun.
type hanging struct {
	entered, goOn chan struct{}
	undone        bool
	reply         chan fuse.Status
}

func hang(k *killable, unique uint64, c changes) *hanging {
	h := &hanging{entered: make(chan struct{}), goOn: make(chan struct{}), reply: make(chan fuse.Status, 1)}
	go func() { // ends with the test
		h.reply <- k.serve(&fuse.InHeader{Unique: unique}, c, func() fuse.Status {
			close(h.entered)
			<-h.goOn
			return fuse.OK
		}, func() { h.undone = true })
	}()
	return h
}

// A request that was answered is undone when it ends, and later changes to the
// same file wait for that, but no others.
func TestAnswered(t *testing.T) {
	k, device := newKillable(t)
	first := hang(k, 2, content(7))
	<-first.entered
	k.answer(2)
	var reply struct {
		Length uint32
		Error  int32
		Unique uint64
	}
	if err := binary.Read(device, binary.NativeEndian, &reply); err != nil {
		t.Fatal(err)
	}
	if reply.Length != 16 || reply.Error != -int32(unix.EINTR) || reply.Unique != 2 {
		t.Errorf("the device was told %+v, want EINTR for 2, in 16 bytes", reply)
	}

	for unique, c := range map[uint64]changes{4: {}, 6: content(8), 8: name(8, "7")} {
		other := hang(k, unique, c)
		close(other.goOn)
		if st := <-other.reply; st != fuse.OK || other.undone {
			t.Errorf("a request on other files: %v, undone %v", st, other.undone)
		}
	}

	killed, second := hang(k, 10, changes{{8, "x"}, {7, "y"}}), hang(k, 12, content(7))
	for served(k) < 3 { // both are waiting
		unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil)
	}
	k.answer(10)
	if st := <-killed.reply; st != fuse.EINTR || killed.undone {
		t.Errorf("a request that was answered while it waited: %v, undone %v", st, killed.undone)
	}
	select {
	case <-killed.entered:
		t.Error("a request that was answered while it waited was begun")
	case <-second.entered:
		t.Error("a change was begun before the one that was answered had ended")
	default:
	}

	close(first.goOn)
	if st := <-first.reply; st != fuse.EINTR || !first.undone {
		t.Errorf("the answered request: %v, undone %v", st, first.undone)
	}
	close(second.goOn)
	if st := <-second.reply; st != fuse.OK || second.undone {
		t.Errorf("the request after it: %v, undone %v", st, second.undone)
	}
	if n := served(k); n != 0 || k.answered != 0 {
		t.Errorf("%d requests are still on the account, %d answered", n, k.answered)
	}
}

func served(k *killable) (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for r := k.served.next; r != &k.served; r = r.next {
		n++
	}
	return n
}

// Nobody is answered beyond the bound, or when all is closed.
func TestAnsweredIsBounded(t *testing.T) {
	k, _ := newKillable(t)
	r, _ := k.begin(&fuse.InHeader{Unique: 2}, changes{})
	k.answered = mostAnswered
	k.answer(2)
	if r.answered {
		t.Error("answered beyond the bound")
	}
	k.answered = 0
	k.answer(4) // not there
	if k.answered != 0 {
		t.Error("a request that is not there was answered")
	}
	k.end(r)
}

// No more handlers run at the same time than the program may have threads: the
// others begin as these end, or are answered.
func TestServingIsBounded(t *testing.T) {
	k, _ := newKillable(t)
	first := hang(k, 2, changes{})
	<-first.entered
	k.mu.Lock()
	k.running = mostServing
	k.mu.Unlock()
	waiting := []*hanging{hang(k, 4, changes{}), hang(k, 6, changes{})}
	for served(k) < 3 {
		unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil)
	}
	k.answer(6)
	if st := <-waiting[1].reply; st != fuse.EINTR {
		t.Errorf("answered while it waited for its turn: %v", st)
	}
	select {
	case <-waiting[0].entered:
		t.Error("begun beyond the bound")
	case <-waiting[1].entered:
		t.Error("begun after it was answered")
	default:
	}
	close(first.goOn)
	close(waiting[0].goOn)
	if st := <-waiting[0].reply; st != fuse.OK {
		t.Errorf("when it was its turn: %v", st)
	}
	<-first.reply
	if n := served(k); n != 0 || k.running != mostServing-1 {
		t.Errorf("%d requests are still on the account, %d of them running", n, k.running-(mostServing-1))
	}
}

func TestAccountCostsNoAllocation(t *testing.T) {
	k, _ := newKillable(t)
	in := &fuse.InHeader{Unique: 2, NodeId: 3}
	done := 0
	n := testing.AllocsPerRun(1000, func() {
		k.serve(in, content(in.NodeId), func() fuse.Status {
			done++
			return fuse.OK
		}, nil)
	})
	if n > 0 {
		t.Errorf("%v allocations for a request, want none", n)
	}
}

// TestDying looks at processes of which a thread, or all, have ended.
func TestDying(t *testing.T) {
	own := uint32(os.Getpid())
	if got := processOf(uint32(unix.Gettid())); got != own {
		t.Errorf("this thread belongs to %d, want %d", got, own)
	}
	if dying(own) {
		t.Error("this process is taken for dying")
	}
	if got := processOf(1<<31 - 1); got != 0 {
		t.Errorf("a thread that is not there belongs to %d", got)
	}
	if got := processOf(2); got != 0 { // kthreadd, or in a container somebody's process
		if name, err := os.ReadFile("/proc/2/comm"); err != nil || string(name) == "kthreadd\n" {
			t.Errorf("a thread of the kernel belongs to %d", got)
		}
	}
	// Its first thread ends, and with it the one that may have asked for something;
	// the other one lives on.
	half := exec.Command("python3", "-c", `
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
print("ready", flush=True)
ctypes.CDLL(None).syscall(60, 0)`) // exit, of one thread
	out, err := half.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := half.Start(); err != nil {
		t.Fatal(err)
	}
	pid := uint32(half.Process.Pid)
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	for {
		first, ok := threadAt(procDir(pid) + "/task/" + fmt.Sprint(pid))
		if !ok || first.dying() {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if dying(pid) {
		t.Error("a process with a living thread is taken for dying")
	}
	if err := half.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = half.Wait() // says that it was killed
	if !dying(pid) {
		t.Error("a process that is gone is not taken for dying")
	}
}

func TestQuiet(t *testing.T) {
	var said bytes.Buffer
	l := log.New(Quiet(&said), "mendfs: ", 0)
	l.Printf("writer: Write/Writev failed, err: %v. opcode: %v", fuse.ENOENT, "READ")
	l.Printf("writer: Write/Writev failed, err: %v. opcode: %v", fuse.EIO, "READ")
	text, err := io.ReadAll(&said)
	if want := "mendfs: writer: Write/Writev failed, err: 5=input/output error. opcode: READ\n"; err != nil || string(text) != want {
		t.Errorf("%v: %q, want %q", err, text, want)
	}
}

func BenchmarkAccount(b *testing.B) {
	k, _ := newKillable(b)
	b.RunParallel(func(p *testing.PB) {
		in := &fuse.InHeader{Unique: 2, NodeId: 3}
		for p.Next() {
			k.serve(in, content(in.NodeId), func() fuse.Status { return fuse.OK }, nil)
		}
	})
}
