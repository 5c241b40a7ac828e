package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listen makes the socket in the state directory, in place of one that a crash
// left there. The caller holds the directory's lock.
func Listen(state string) (net.Listener, error) {
	dir, err := openDir(state)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := ours(dir); err != nil {
		return nil, err
	}
	if err := unix.Unlinkat(int(dir.Fd()), Socket, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, err
	}
	l, err := (&net.ListenConfig{Control: closed}).Listen(context.Background(), "unix", socketAt(dir))
	if err != nil {
		return nil, err
	}
	own, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%s is no Unix socket", dir.Name()), l.Close())
	}
	own.SetUnlinkOnClose(false) // by then the name below /proc means another directory
	return &listener{own, state}, nil
}

// closed gives the socket the mode 0600 before it has a name: the file is made
// with the mode of the socket (Linux ≥ 2.6.39, unix_bind; TestSocketIsClosed).
func closed(_, _ string, socket syscall.RawConn) error {
	var failed error
	err := socket.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), 0o600) })
	return errors.Join(err, failed)
}

// ours fails if another user could put a socket of his in place of this one.
func ours(dir *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: dir.Name(), Err: err}
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("%s can be written by others (uid %d, mode %04o)", dir.Name(), st.Uid, st.Mode&0o7777)
	}
	return nil
}

// listener removes its socket when it is closed.
type listener struct {
	*net.UnixListener
	state string
}

func (l *listener) Close() error {
	err := l.UnixListener.Close()
	dir, missing := openDir(l.state)
	if missing != nil {
		return err // the directory is gone, and the socket with it
	}
	defer dir.Close()
	_ = unix.Unlinkat(int(dir.Fd()), Socket, 0) // one left behind refuses connections, and the next Listen removes it
	return err
}

func dial(ctx context.Context, state string) (net.Conn, error) {
	dir, err := openDir(state)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return (&net.Dialer{}).DialContext(ctx, "unix", socketAt(dir))
}

func openDir(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// socketAt names the socket through the open directory: the name of a Unix
// socket has at most 107 bytes, a path may have 4095.
func socketAt(dir *os.File) string {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + Socket
}
