package control

import (
	"context"
	"errors"
	"net"
	"os"
	"strconv"

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
	if err := unix.Unlinkat(int(dir.Fd()), Socket, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socketAt(dir), Net: "unix"})
	if err != nil {
		return nil, err
	}
	// The directory's mode keeps others out until the socket's own does.
	if err := os.Chmod(socketAt(dir), 0o600); err != nil {
		_ = l.Close() // nobody has connected
		return nil, err
	}
	l.SetUnlinkOnClose(false) // by then the name below /proc means another directory
	return &listener{l, state}, nil
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
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
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
