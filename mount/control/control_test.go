package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// askEnv makes the test program ask the socket that it names, and print the
// answer: to be somebody else a process of its own is needed.
const askEnv = "MENDFS_TEST_ASK"

func TestMain(m *testing.M) {
	if socket := os.Getenv(askEnv); socket != "" {
		os.Exit(askAsSomebody(socket))
	}
	os.Exit(m.Run())
}

func askAsSomebody(socket string) int {
	client := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", socket)
	}}}
	resp, err := client.Get("http://mendfs/v1/status")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	fmt.Println(resp.StatusCode, string(body), err)
	return 0
}

// canned answers with what it was made with, and remembers what it was asked.
type canned struct {
	asked  []any
	refuse error
	events chan string
}

func (c *canned) ask(q ...any) error {
	c.asked = q
	return c.refuse
}

var (
	row     = ledger.Row{ID: 7, File: fileid.ID{Ino: 5}, Path: "a\xff", Range: ranges.Range{Off: 4096, Len: 64}, State: ledger.Lost}
	owed    = Pending{ID: 9, PathB64: []byte("b\xff"), Range: ranges.Page(0), Kept: true, Image: []byte{1, 2, 3}, Missing: []ranges.Range{{Off: 64, Len: 64}}}
	injured = Injection{ID: "3", Path: "c", Range: ranges.Range{Off: 1, Len: 2}, Remaining: []ranges.Range{{Off: 0, Len: 64}}}
)

func (c *canned) Status(context.Context) (Status, error) {
	return Status{Running: true, Lost: Count{1, 64}}, c.ask("status")
}
func (c *canned) Lost(_ context.Context, q LostQuery) ([]ledger.Row, error) {
	return []ledger.Row{row}, c.ask(q)
}
func (c *canned) Pending(_ context.Context, path string) ([]Pending, error) {
	return []Pending{owed}, c.ask(path)
}
func (c *canned) Events(ctx context.Context, q EventQuery, line func([]byte) error) error {
	if err := c.ask(q); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case text, ok := <-c.events:
			if !ok {
				return nil
			}
			if err := line([]byte(text)); err != nil {
				return err
			}
		}
	}
}
func (c *canned) Inject(_ context.Context, r InjectRequest) ([]Injection, error) {
	return []Injection{injured}, c.ask(r)
}
func (c *canned) Injections(context.Context) ([]Injection, error) {
	return []Injection{injured}, c.ask("list")
}
func (c *canned) RemoveInjection(_ context.Context, id string) error { return c.ask("remove", id) }
func (c *canned) ClearInjections(context.Context) error              { return c.ask("clear") }

func serve(t *testing.T, b Backend) (state string, s *Server) {
	t.Helper()
	state = t.TempDir()
	l, err := Listen(state)
	if err != nil {
		t.Fatal(err)
	}
	s = Serve(l, b, os.Geteuid())
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return state, s
}

func TestQuestionsAndAnswersSurviveTheSocket(t *testing.T) {
	b := &canned{}
	state, _ := serve(t, b)
	c := Dial(state)
	ctx := context.Background()
	inject := InjectRequest{Path: "d/e f", Ranges: []ranges.Range{{Off: 1, Len: 2}}, Latent: true, OnRealFiles: true}
	for name, q := range map[string]struct {
		ask   func() (any, error)
		asked []any
		want  any
	}{
		"status":  {func() (any, error) { return c.Status(ctx) }, []any{"status"}, Status{Running: true, Lost: Count{1, 64}}},
		"lost":    {func() (any, error) { return c.Lost(ctx, LostQuery{"d/e&f=?", true}) }, []any{LostQuery{"d/e&f=?", true}}, []ledger.Row{row}},
		"pending": {func() (any, error) { return c.Pending(ctx, "g\xff") }, []any{"g\xff"}, []Pending{owed}},
		"inject":  {func() (any, error) { return c.Inject(ctx, inject) }, []any{inject}, []Injection{injured}},
		"inject, not UTF-8": {
			func() (any, error) { return c.Inject(ctx, InjectRequest{Path: "\xff bad", Random: 1}) },
			[]any{InjectRequest{Path: "\xff bad", Random: 1}}, []Injection{injured},
		},
		"injections": {func() (any, error) { return c.Injections(ctx) }, []any{"list"}, []Injection{injured}},
		"remove":     {func() (any, error) { return nil, c.RemoveInjection(ctx, "a/b") }, []any{"remove", "a/b"}, nil},
		"clear":      {func() (any, error) { return nil, c.ClearInjections(ctx) }, []any{"clear"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := q.ask()
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, q.want) {
				t.Errorf("answer %+v, want %+v", got, q.want)
			}
			if !reflect.DeepEqual(b.asked, q.asked) {
				t.Errorf("asked %+v, want %+v", b.asked, q.asked)
			}
		})
	}
}

func TestRefusalsSurviveTheSocket(t *testing.T) {
	b := &canned{}
	state, _ := serve(t, b)
	for name, c := range map[string]struct {
		refuse error
		want   Error
	}{
		"usage":       {&Error{Exit: ExitUsage, Msg: "no", Next: "do"}, Error{Exit: ExitUsage, Msg: "no", Next: "do"}},
		"with cause":  {fmt.Errorf("x: %w", &Error{Exit: ExitOperational, Msg: "no", Err: syscall.EIO, Next: "do"}), Error{Exit: ExitOperational, Msg: "no: input/output error", Next: "do"}},
		"plain error": {errors.New("boom"), Error{Exit: ExitOperational, Msg: "boom"}},
	} {
		t.Run(name, func(t *testing.T) {
			b.refuse = c.refuse
			_, err := Dial(state).Lost(context.Background(), LostQuery{})
			var e *Error
			if !errors.As(err, &e) || *e != c.want {
				t.Errorf("got %#v, want %#v", err, c.want)
			}
		})
	}
}

func TestMalformedRequestsAreUsageErrors(t *testing.T) {
	b := &canned{}
	state, _ := serve(t, b)
	c := Dial(state)
	for name, r := range map[string]struct {
		method, path string
		body         any
	}{
		"all is no flag":       {"GET", "/v1/lost?all=maybe", nil},
		"since is no time":     {"GET", "/v1/events?since=yesterday", nil},
		"follow is no flag":    {"GET", "/v1/events?follow=x", nil},
		"unknown field":        {"POST", "/v1/inject", map[string]any{"range": 1}},
		"no object":            {"POST", "/v1/inject", 7},
		"number too large":     {"POST", "/v1/inject", map[string]any{"ranges": []any{map[string]any{"offset": 1e30}}}},
		"more than a megabyte": {"POST", "/v1/inject", map[string]any{"path": strings.Repeat("x", maxRequest)}},
	} {
		t.Run(name, func(t *testing.T) {
			b.asked = nil
			err := c.ask(context.Background(), r.method, r.path, r.body, nil)
			var e *Error
			if !errors.As(err, &e) || e.Exit != ExitUsage || b.asked != nil {
				t.Errorf("answer %v, backend was asked %v", err, b.asked)
			}
		})
	}
}

func TestOthersAreForbidden(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: being another user needs root")
	}
	// Outside of the state directory, which nobody else can enter.
	dir, err := os.MkdirTemp("/tmp", "mendfs-control")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, Socket)
	b := &canned{}
	for name, c := range map[string]struct {
		owner int    // who mounted
		uid   uint32 // who asks
		want  string
	}{
		"somebody else":        {1000, 65534, "403 "},
		"somebody, of root's":  {0, 65534, "403 "},
		"the user who mounted": {65534, 65534, "200 "},
		"root":                 {65534, 0, "200 "},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(socket, 0o666)); err != nil {
				t.Fatal(err)
			}
			s := Serve(l, b, c.owner)
			defer s.Close()
			got := askAs(t, c.uid, dir, socket)
			if !strings.HasPrefix(got, c.want) {
				t.Errorf("uid %d was answered %q, want %q", c.uid, got, c.want)
			}
			if strings.HasPrefix(got, "403") == (b.asked != nil) {
				t.Errorf("answered %q, and the backend was asked %v", got, b.asked)
			}
			b.asked = nil
		})
	}
}

// askAs runs a copy of the test program, which lies where only root can go, as uid.
func askAs(t *testing.T, uid uint32, dir, socket string) string {
	t.Helper()
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(dir, "ask")
	if err := os.WriteFile(copied, program, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(copied)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), askEnv+"="+socket)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func TestEventsComeAtOnceAndEndWithTheServer(t *testing.T) {
	b := &canned{events: make(chan string)}
	state, s := serve(t, b)
	since := time.Date(2026, 11, 21, 3, 4, 5, 6, time.UTC)
	lines, done := make(chan string), make(chan error, 1)
	go func() { // ends with the server
		done <- Dial(state).Events(context.Background(), EventQuery{Since: since, Follow: true}, func(line []byte) error {
			lines <- string(line)
			return nil
		})
	}()
	for _, text := range []string{`{"event":"lost"}`, `{"event":"reinitialized"}`} {
		b.events <- text
		select {
		case got := <-lines:
			if got != text {
				t.Errorf("got %q, want %q", got, text)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("the line was not flushed")
		}
	}
	if want := []any{EventQuery{Since: since, Follow: true}}; !reflect.DeepEqual(b.asked, want) {
		t.Errorf("asked %v, want %v", b.asked, want)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the stream outlived the server")
	}
}

func TestBrokenStreamIsNoEnd(t *testing.T) {
	b := &canned{events: make(chan string, 1)}
	state, _ := serve(t, breaking{b})
	b.events <- "{}"
	n := 0
	err := Dial(state).Events(context.Background(), EventQuery{}, func([]byte) error { n++; return nil })
	if err == nil || n > 1 {
		t.Errorf("%d lines, then %v", n, err)
	}
}

// breaking fails after the first event.
type breaking struct{ *canned }

func (b breaking) Events(_ context.Context, _ EventQuery, line func([]byte) error) error {
	return errors.Join(line([]byte(<-b.events)), errors.New("the disk is gone"))
}

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

func TestNothingIsSentToAnotherUser(t *testing.T) {
	b := &canned{}
	state, _ := serve(t, b)
	if err := DialUser(state, os.Geteuid()).Answers(context.Background()); err != nil {
		t.Error(err)
	}
	stranger := DialUser(state, os.Geteuid()+1)
	if _, err := stranger.Status(context.Background()); err == nil || !strings.Contains(err.Error(), "is that of user") || b.asked != nil {
		t.Errorf("%v; asked %v", err, b.asked)
	}
	if err := stranger.Answers(context.Background()); err == nil {
		t.Error("a stranger's answer was taken")
	}
}
