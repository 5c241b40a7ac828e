package mount

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/event"
)

// daemonEnv marks a process started by Daemonize. The pipe to its caller is
// then descriptor 3.
const (
	daemonEnv  = "MENDFS_DAEMON"
	daemonPipe = 3
)

// outcome is what a daemon tells its caller, as JSON.
type outcome struct {
	Ready string `json:"ready,omitempty"`
	Error *Error `json:"error,omitempty"`
}

// Daemonize starts this program again with the arguments args, as a daemon in
// a session of its own, and waits until its mount serves. It returns the ready
// line, or the error that the daemon ended with. The started program must ask
// Background, and tell it the outcome.
func Daemonize(args []string, stderr io.Writer) (ready string, err error) {
	if err := keepDescriptors(); err != nil {
		return "", failed(err, "see whether /proc is mounted", "the daemon can't be kept from inheriting open files")
	}
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), daemonEnv+"=1")
	cmd.ExtraFiles = []*os.File{w}
	cmd.Stderr = stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = w.Close() // the daemon has its own; ours would keep the pipe open
	if err != nil {
		return "", failed(err, "mount without --daemon", "the daemon can't be started")
	}
	return awaitOutcome(r, cmd)
}

// keepDescriptors keeps from the daemon what this process has inherited beyond
// its standard streams: a shell's lock or pipe would be held until the umount.
func keepDescriptors() error {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range list {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd) // the directory's own is gone already
		}
	}
	return nil
}

// awaitOutcome reads what the daemon says. If it says nothing it has died.
func awaitOutcome(r io.Reader, cmd *exec.Cmd) (string, error) {
	var said outcome
	err := json.NewDecoder(r).Decode(&said)
	switch {
	case err == nil && said.Error == nil:
		return said.Ready, cmd.Process.Release()
	case err == nil:
		_ = cmd.Wait() // its exit code is in said
		return "", said.Error
	}
	return "", failed(errors.Join(cmd.Wait()), "mount without --daemon to see more", "the daemon died before it was ready")
}

// Daemon is the started program's side of Daemonize. As a writer it is the
// daemon's standard error: the terminal of the caller until the mount is
// ready, mendfs.log in the state directory afterwards. Give it to New as
// Options.Stderr: New then leaves the caller's working directory, too.
type Daemon struct {
	pipe *os.File

	mu  sync.Mutex // guards out
	out io.Writer
}

// Background is the daemon's side if this process was started by Daemonize,
// else nil. It must be asked once, before other programs are started.
func Background() *Daemon {
	var st unix.Stat_t
	if os.Getenv(daemonEnv) == "" || unix.Fstat(daemonPipe, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return nil
	}
	_ = os.Unsetenv(daemonEnv) // can't fail for a name without '='
	unix.CloseOnExec(daemonPipe)
	return &Daemon{pipe: os.NewFile(daemonPipe, "ready"), out: os.Stderr}
}

func (d *Daemon) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.out.Write(p)
}

// leaveDirectory keeps no directory busy. It comes before threads are made that
// have a working directory of their own (package fs).
func (d *Daemon) leaveDirectory() error {
	if err := os.Chdir("/"); err != nil {
		return failed(err, "mount without --daemon", "the working directory can't be left")
	}
	return nil
}

// Ready moves the daemon away from its terminal and tells the waiting caller
// that m serves.
func (d *Daemon) Ready(m *Mount) error {
	path := m.state.file(logFile)
	if err := leaveTerminal(path); err != nil {
		return failed(err, "make room for it, or mount without --daemon", "the log %s can't be written", path)
	}
	d.mu.Lock()
	d.out = event.NewRotated(path, 16<<20, 4)
	d.mu.Unlock()
	return d.tell(outcome{Ready: m.Ready()})
}

// Failed tells the waiting caller why there is no mount. The caller says it;
// what this process writes to its standard error from now on is not shown.
func (d *Daemon) Failed(err error) error {
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Exit: control.ExitOperational, Msg: err.Error()}
	}
	return errors.Join(d.tell(outcome{Error: e.Flat()}), silence())
}

func (d *Daemon) tell(o outcome) error {
	if err := json.NewEncoder(d.pipe).Encode(o); err != nil {
		return fmt.Errorf("telling the caller: %w", err)
	}
	return d.pipe.Close()
}

func silence() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	return unix.Dup3(int(null.Fd()), 2, 0)
}

// leaveTerminal keeps no terminal busy. What the Go runtime has to say goes to
// the log at path.
func leaveTerminal(path string) error {
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	return errors.Join(
		unix.Dup3(int(null.Fd()), 0, 0),
		unix.Dup3(int(null.Fd()), 1, 0),
		unix.Dup3(int(log.Fd()), 2, 0),
	)
}
