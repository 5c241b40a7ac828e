package main

import (
	"strconv"
	"sync"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const maxRequest = 1 << 20 // as fs.MountOptions has it

// The requests that data cells make.
const (
	opLookup      = 1
	opForget      = 2
	opGetattr     = 3
	opSetattr     = 4
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatfs      = 17
	opRelease     = 18
	opFsync       = 20
	opInterrupt   = 36
	opBatchForget = 42
)

// worker answers one request after the other on a thread of its own. Its two
// buffers hold the headers just in front of a page's beginning, so that a
// request or reply is one piece and its data are aligned: the kernel copies
// page by page.
type worker struct {
	device  uintptr
	nodes   *nodes
	in, out []byte
}

const (
	sizeOut   = int(unsafe.Sizeof(fuse.OutHeader{}))
	sizeWrite = int(unsafe.Sizeof(fuse.WriteIn{}))
	startIn   = page - sizeWrite
	startOut  = page - sizeOut
)

func newWorker(device int, nodes *nodes) (*worker, error) {
	in, err := aligned(page + maxRequest)
	if err != nil {
		return nil, err
	}
	out, err := aligned(page + maxRequest)
	return &worker{device: uintptr(device), nodes: nodes, in: in, out: out}, err
}

// argument is the request, header included.
func argument[T any](w *worker) *T { return (*T)(unsafe.Pointer(&w.in[startIn])) }

// answer is where what follows the header of the reply goes.
func answer[T any](w *worker) *T { return (*T)(unsafe.Pointer(&w.out[page])) }

// receive gets the next request.
func (w *worker) receive() unix.Errno {
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_READ, w.device, uintptr(unsafe.Pointer(&w.in[startIn])), uintptr(len(w.in)-startIn))
		// ENOENT: the request was interrupted before it could be given to us.
		if errno != unix.EINTR && errno != unix.EAGAIN && errno != unix.ENOENT {
			return errno
		}
	}
}

// reply sends the status and n bytes of answer.
func (w *worker) reply(errno unix.Errno, n int) error {
	if errno != 0 {
		n = 0
	}
	*(*fuse.OutHeader)(unsafe.Pointer(&w.out[startOut])) = fuse.OutHeader{
		Length: uint32(sizeOut + n), Status: -int32(errno), Unique: argument[fuse.InHeader](w).Unique,
	}
	_, _, failed := unix.RawSyscall(unix.SYS_WRITE, w.device, uintptr(unsafe.Pointer(&w.out[startOut])), uintptr(sizeOut+n))
	if failed != 0 && failed != unix.ENOENT { // it was interrupted
		return failed
	}
	return nil
}

// run ends when the mount is gone.
func (w *worker) run() error {
	for {
		switch errno := w.receive(); errno {
		case 0:
		case unix.ENODEV:
			return nil
		default:
			return errno
		}
		var n int
		var errno unix.Errno
		switch argument[fuse.InHeader](w).Opcode {
		case opRead:
			n, errno = w.read()
		case opWrite:
			n, errno = w.write()
		case opForget, opBatchForget, opInterrupt:
			continue // these are not answered; nodes are few
		default:
			n, errno = w.seldom()
		}
		if err := w.reply(errno, n); err != nil {
			return err
		}
	}
}

func (w *worker) read() (int, unix.Errno) {
	in := argument[fuse.ReadIn](w)
	n, _, errno := unix.RawSyscall6(unix.SYS_PREAD64, uintptr(in.Fh), uintptr(unsafe.Pointer(&w.out[page])), uintptr(in.Size), uintptr(in.Offset), 0, 0)
	return int(n), errno
}

func (w *worker) write() (int, unix.Errno) {
	in := argument[fuse.WriteIn](w)
	n, _, errno := unix.RawSyscall6(unix.SYS_PWRITE64, uintptr(in.Fh), uintptr(unsafe.Pointer(&w.in[page])), uintptr(in.Size), uintptr(in.Offset), 0, 0)
	*answer[fuse.WriteOut](w) = fuse.WriteOut{Size: uint32(n)}
	return int(unsafe.Sizeof(fuse.WriteOut{})), errno
}

// seldom answers what comes once per file, more or less.
func (w *worker) seldom() (n int, errno unix.Errno) {
	node := argument[fuse.InHeader](w).NodeId
	var err error
	switch argument[fuse.InHeader](w).Opcode {
	case opLookup:
		*answer[fuse.EntryOut](w) = fuse.EntryOut{EntryValid: 1, AttrValid: 1}
		n, err = int(unsafe.Sizeof(fuse.EntryOut{})), w.nodes.lookup(node, w.name(), answer[fuse.EntryOut](w))
	case opGetattr:
		n, err = w.attr(node)
	case opSetattr:
		if in := argument[fuse.SetAttrInCommon](w); in.Valid&fuse.FATTR_SIZE != 0 {
			err = unix.Truncate(procFd(w.nodes.fd(node)), int64(in.Size))
		}
		if err == nil {
			n, err = w.attr(node)
		}
	case opOpen:
		var fd int
		fd, err = unix.Open(procFd(w.nodes.fd(node)), int(argument[fuse.OpenIn](w).Flags)&unix.O_ACCMODE|unix.O_CLOEXEC, 0)
		*answer[fuse.OpenOut](w) = fuse.OpenOut{Fh: uint64(fd), OpenFlags: fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH}
		n = int(unsafe.Sizeof(fuse.OpenOut{}))
	case opRelease:
		err = unix.Close(int(argument[fuse.ReleaseIn](w).Fh))
	case opFsync:
		err = unix.Fsync(int(argument[fuse.FsyncIn](w).Fh))
	case opStatfs:
		*answer[fuse.StatfsOut](w) = fuse.StatfsOut{Bsize: page, Frsize: page, NameLen: 255}
		n = int(unsafe.Sizeof(fuse.StatfsOut{}))
	default:
		err = unix.ENOSYS
	}
	return n, asErrno(err)
}

func (w *worker) attr(node uint64) (int, error) {
	out := answer[fuse.AttrOut](w)
	*out = fuse.AttrOut{AttrValid: 1}
	return int(unsafe.Sizeof(*out)), attrOf(w.nodes.fd(node), &out.Attr)
}

// name is a request's name, behind its header.
func (w *worker) name() string {
	in := argument[fuse.InHeader](w)
	start := startIn + int(unsafe.Sizeof(*in))
	return unix.ByteSliceToString(w.in[start : startIn+int(in.Length)])
}

func attrOf(fd int, out *fuse.Attr) error {
	var st syscall.Stat_t
	err := syscall.Fstat(fd, &st)
	out.FromStat(&st)
	return err
}

func asErrno(err error) unix.Errno {
	if err == nil {
		return 0
	}
	if errno, ok := err.(unix.Errno); ok {
		return errno
	}
	return unix.EIO
}

// nodes are the files that the kernel has asked for, all of which stay open.
type nodes struct {
	mu  sync.Mutex // guards what follows
	fds []int      // O_PATH, by node id less one; the first is the root
	ids map[uint64]uint64
}

func (t *nodes) open(root string) error {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	t.fds, t.ids = []int{fd}, map[uint64]uint64{}
	return err
}

func (t *nodes) fd(id uint64) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.fds[id-1]
}

// lookup finds a name. An inode is known by its number: all are on one device.
func (t *nodes) lookup(dir uint64, name string, out *fuse.EntryOut) error {
	fd, err := unix.Openat(t.fd(dir), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := attrOf(fd, &out.Attr); err != nil {
		_ = unix.Close(fd) // nothing was done with it
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	id, known := t.ids[out.Ino]
	if known {
		_ = unix.Close(fd) // the same is open already
	} else {
		t.fds = append(t.fds, fd)
		id = uint64(len(t.fds))
		t.ids[out.Ino] = id
	}
	out.NodeId = id
	return nil
}

func procFd(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
