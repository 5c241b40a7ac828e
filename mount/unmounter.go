package mount

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Landlock takes the right to unmount away for good, and fusermount3 is of no
// use under no_new_privs. So a confined process starts another one first, with
// the same rights as itself, which does nothing but take away the one mount
// that it is told of. It ends when the serving process does, however that
// ends, and never unmounts by itself: a dead mount stays and keeps programs
// away from the unprotected files. One thing it does unasked: it aborts the
// connection of a server that was killed and hangs (abort.go).

// unmounterEnv marks a process started by startUnmounter. Its socket is then
// descriptor 3, and /proc/PID/stat of the serving process 4.
const (
	unmounterEnv    = "MENDFS_UNMOUNTER"
	unmounterSocket = 3
	unmounterServer = 4
)

// watchInterval is how often the serving process is looked at.
const watchInterval = time.Second

// errand is the first message: the one mount that may be unmounted. The answer
// says whether its connection could be aborted.
type errand struct {
	Path string `json:"path"`
	Dev  string `json:"dev"` // of the FUSE filesystem
}

// order is each further message; answer is the answer to it.
type order struct {
	Lazy bool `json:"lazy"`
}

type answer struct {
	Errno unix.Errno `json:"errno,omitempty"`
	Text  string     `json:"text,omitempty"`
}

// unmounter is the serving process's end.
type unmounter struct {
	cmd *exec.Cmd

	mu   sync.Mutex // guards conn: one order at a time
	conn net.Conn
	out  *json.Encoder
	in   *json.Decoder

	noAbort error // why the connection can't be aborted, after assign; nil: it can
}

func startUnmounter() (*unmounter, error) {
	if err := keepDescriptors(); err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	own, theirs := os.NewFile(uintptr(pair[0]), "unmounter"), os.NewFile(uintptr(pair[1]), "unmounter")
	defer own.Close()
	defer theirs.Close()
	conn, err := net.FileConn(own)
	if err != nil {
		return nil, err
	}
	server, err := openProcess("self")
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	defer server.close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = os.Args[0] + " (unmounts)"
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), unmounterEnv+"=1")
	cmd.ExtraFiles = []*os.File{theirs, server.stat}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // out of reach of the terminal's signals
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &unmounter{cmd: cmd, conn: conn, out: json.NewEncoder(conn), in: json.NewDecoder(conn)}, nil
}

// close ends the process, after the answer to an order that is under way: the
// mount is gone a moment before unmounting it is done.
func (u *unmounter) close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return errors.Join(u.conn.Close(), u.cmd.Wait())
}

// assign tells which mount it is. It can't be changed afterwards.
func (u *unmounter) assign(path, dev string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	var err error
	u.noAbort, err = u.ask(errand{path, dev})
	return err
}

// detach is the function detach for the mount of assign; EINVAL says that it
// is not there.
func (u *unmounter) detach(lazy bool) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	said, err := u.ask(order{lazy})
	return cmp.Or(err, said)
}

// ask is what the process said to a message. The caller holds mu.
func (u *unmounter) ask(message any) (said, err error) {
	if err := u.out.Encode(message); err != nil {
		return nil, fmt.Errorf("the process that unmounts is gone: %w", err)
	}
	var a answer
	if err := u.in.Decode(&a); err != nil {
		return nil, fmt.Errorf("the process that unmounts is gone: %w", err)
	}
	switch {
	case a.Text != "":
		return fmt.Errorf("%s: %w", a.Text, a.Errno), nil
	case a.Errno != 0:
		return a.Errno, nil
	}
	return nil, nil
}

// Unmounter is the started program's side: a process that unmounts for the
// one that started it.
type Unmounter struct {
	conn   *os.File
	server process // the serving one
}

// UnmountsFor is the unmounting side if this process was started to be that,
// else nil. Programs that mount with Options.Confine must ask it before all
// else, and have it Serve.
func UnmountsFor() *Unmounter {
	var st unix.Stat_t
	if os.Getenv(unmounterEnv) == "" || unix.Fstat(unmounterSocket, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil
	}
	_ = os.Unsetenv(unmounterEnv) // can't fail for a name without '='
	unix.CloseOnExec(unmounterSocket)
	unix.CloseOnExec(unmounterServer)
	return &Unmounter{os.NewFile(unmounterSocket, "serving process"), process{os.NewFile(unmounterServer, "stat")}}
}

// Serve unmounts when it is told to, and returns when the process that
// started it is gone, or killed: the connection is then aborted, in case that it
// hangs. Signals that end a group of processes don't end it: the
// serving process has its use for it then.
func (u *Unmounter) Serve() error {
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	if err := keepCapabilities(unmountCapabilities); err != nil {
		return err
	}
	in, out := json.NewDecoder(u.conn), json.NewEncoder(u.conn)
	var e errand
	if in.Decode(&e) != nil {
		return nil // it came to nothing
	}
	abort, err := aborter(e.Path, e.Dev)
	if err := out.Encode(answerOf(err)); err != nil {
		return err
	}
	if err != nil {
		abort = e.abort
	}
	obeyed := make(chan error, 1)
	go func() { obeyed <- e.obey(in, out) }() // ends with the process, if not before
	return u.watch(obeyed, abort)
}

// obey unmounts as often as it is told to.
func (e errand) obey(in *json.Decoder, out *json.Encoder) error {
	for {
		var o order
		if in.Decode(&o) != nil {
			return nil // the serving process has closed its end
		}
		if err := out.Encode(answerOf(e.unmount(o.Lazy))); err != nil {
			return err
		}
	}
}

// watch returns when there is nothing more to obey, or the serving process is
// dead and its connection aborted.
func (u *Unmounter) watch(obeyed <-chan error, abort func() error) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case err := <-obeyed:
			if u.server.hasDied() { // and may hang in closing what it had open besides this
				err = errors.Join(err, abort())
			}
			return err
		case <-tick.C:
			if u.server.hasDied() && abort() == nil {
				return nil
			}
		}
	}
}

// unmountCapabilities: the way to the mountpoint may lead through directories
// that are closed to others.
var unmountCapabilities = map[int]string{
	unix.CAP_SYS_ADMIN:       "sys_admin",
	unix.CAP_DAC_READ_SEARCH: "dac_read_search",
}

// find is the mount's root if it is the one on top at its path, else EINVAL.
func (e errand) find() (*place, error) {
	p, err := lookup(e.Path)
	if err != nil {
		return nil, err
	}
	if p.mount.Dev != e.Dev || p.mount.Type != FSType || !p.isMountRoot() {
		p.close()
		return nil, unix.EINVAL
	}
	return p, nil
}

// unmount takes the mount away if it is the one on top at its path.
func (e errand) unmount(lazy bool) error {
	p, err := e.find()
	if err != nil {
		return err
	}
	p.close() // an open descriptor would keep the mount busy
	return detach(p.path, lazy)
}

// abort is what is left where no abort could be made ready: somebody may have
// mounted fusectl since.
func (e errand) abort() error {
	p, err := e.find()
	if err != nil {
		return err
	}
	defer p.close()
	return p.abort()
}

func answerOf(err error) answer {
	var errno unix.Errno
	switch {
	case err == nil:
		return answer{}
	case !errors.As(err, &errno):
		return answer{unix.EIO, err.Error()}
	}
	return answer{errno, strings.TrimSuffix(strings.TrimSuffix(err.Error(), errno.Error()), ": ")}
}
