package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// canned answers with what it was made with, and remembers what it was asked.
type canned struct {
	rows   int   // how often EachLost hands over its row; 0: once
	late   error // of EachLost, at its end
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
	scanned = Scan{Device: "/dev/pmem0", Places: []Place{{Use: "file", PathB64: []byte("b\xff"), Range: ranges.Range{Off: 512, Len: 512}, Found: []string{"badblocks"}}}}
	injured = Injection{ID: "3", Path: "c", Range: ranges.Range{Off: 1, Len: 2}, Remaining: []ranges.Range{{Off: 0, Len: 64}}}
)

func (c *canned) Status(context.Context) (Status, error) {
	return Status{Running: true, Lost: Count{1, 64}}, c.ask("status")
}
func (c *canned) EachLost(_ context.Context, q LostQuery, each func(ledger.Row) error) error {
	if err := c.ask(q); err != nil {
		return err
	}
	for range max(1, c.rows) {
		if err := each(row); err != nil {
			return err
		}
	}
	return c.late
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
func (c *canned) Scan(_ context.Context, path string) (Scan, error) {
	return scanned, c.ask(path)
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
		"scan":    {func() (any, error) { return c.Scan(ctx, "h i") }, []any{"h i"}, scanned},
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
