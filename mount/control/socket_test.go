package control

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestSocketInADirectoryWithALongPath(t *testing.T) {
	state := t.TempDir()
	for range 3 {
		state = filepath.Join(state, strings.Repeat("d", 100))
	}
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(state)
	if err != nil {
		t.Fatal(err)
	}
	s := Serve(l, &canned{}, os.Geteuid())
	if st, err := Dial(state).Status(context.Background()); err != nil || !st.Running {
		t.Errorf("status %+v, %v", st, err)
	}
	info, err := os.Stat(filepath.Join(state, Socket))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(state, Socket)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket after the end: %v", err)
	}
}

// TestSocketIsClosed looks at the mode, which must not depend on the umask.
func TestSocketIsClosed(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if l, err := Listen(dir); err == nil {
		t.Errorf("made in a directory that all may write: %v", l.Close())
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Lstat(filepath.Join(dir, Socket))
	if err := errors.Join(err, l.Close()); err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() != 0o600 {
		t.Errorf("the socket has mode %v", st.Mode())
	}
	if err := os.Symlink(dir, dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if l, err := Listen(dir + "/link"); err == nil {
		t.Errorf("made through a symbolic link: %v", l.Close())
	}
}

func TestNobodyAnswers(t *testing.T) {
	state := t.TempDir()
	if _, err := Dial(state).Status(context.Background()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("no socket: %v", err)
	}
	l, err := net.Listen("unix", filepath.Join(state, Socket))
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as a killed daemon leaves it
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(state).Status(context.Background()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("dead socket: %v", err)
	}
	again, err := Listen(state)
	if err != nil {
		t.Fatalf("in place of a dead socket: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}
