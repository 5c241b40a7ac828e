package control

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// maxRequest bounds the body of a request.
const maxRequest = 1 << 20

// Server is a control socket that is being served.
type Server struct {
	http   http.Server
	cancel context.CancelFunc // ends event streams
	done   chan struct{}      // closed when http.Serve has returned, with err
	err    error
}

// Serve answers on l from b, for root and for the user uid, until Close.
func Serve(l net.Listener, b Backend, uid int) *Server {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{cancel: cancel, done: make(chan struct{})}
	s.http = http.Server{
		Handler:           guard(uid, routes(b)),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       withPeer,
		ReadHeaderTimeout: 10 * time.Second,
	}
	go func() { // stopped by Close
		defer close(s.done)
		s.err = s.http.Serve(l)
	}()
	return s
}

// Close ends event streams, lets other questions be answered for up to five
// seconds, and closes the listener. The backend is not called any more when it
// returns.
func (s *Server) Close() error {
	s.cancel()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = s.http.Close()
	}
	if <-s.done; errors.Is(s.err, http.ErrServerClosed) {
		return err
	}
	return errors.Join(err, s.err)
}

func routes(b Backend) http.Handler {
	mux := http.NewServeMux()
	answer(mux, "GET /v1/status", "status", func(r *http.Request) (any, error) {
		status, err := b.Status(r.Context())
		return []Status{status}, err
	})
	mux.HandleFunc("GET /v1/lost", func(w http.ResponseWriter, r *http.Request) { sendLost(w, r, b) })
	answer(mux, "GET /v1/pending", "pending", func(r *http.Request) (any, error) {
		return b.Pending(r.Context(), r.FormValue("path"))
	})
	answer(mux, "DELETE /v1/pending/{id}", "", func(r *http.Request) (any, error) {
		id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
		if err != nil {
			return nil, &Error{Exit: ExitUsage, Msg: "no repair has the id " + strconv.Quote(r.PathValue("id")), Err: err, Next: "send an id of /v1/pending"}
		}
		return nil, b.Drop(r.Context(), id)
	})
	answer(mux, "GET /v1/scan", "scan", func(r *http.Request) (any, error) {
		scan, err := b.Scan(r.Context(), r.FormValue("path"))
		return []Scan{scan}, err
	})
	answer(mux, "POST /v1/inject", "injections", func(r *http.Request) (any, error) {
		var request InjectRequest
		d := json.NewDecoder(r.Body)
		d.DisallowUnknownFields()
		if err := d.Decode(&request); err != nil {
			return nil, &Error{Exit: ExitUsage, Msg: "malformed injection", Err: err, Next: "send {\"path\":...,\"ranges\":[...]}"}
		}
		request.Path, request.PathB64 = name(request.Path, request.PathB64), nil
		return b.Inject(r.Context(), request)
	})
	answer(mux, "GET /v1/inject", "injections", func(r *http.Request) (any, error) { return b.Injections(r.Context()) })
	answer(mux, "DELETE /v1/inject/{id}", "", func(r *http.Request) (any, error) {
		return nil, b.RemoveInjection(r.Context(), r.PathValue("id"))
	})
	answer(mux, "DELETE /v1/inject", "", func(r *http.Request) (any, error) { return nil, b.ClearInjections(r.Context()) })
	mux.HandleFunc("GET /v1/events", func(w http.ResponseWriter, r *http.Request) { stream(w, r, b) })
	return mux
}

// answer serves pattern with what ask returns, under the given noun; without
// one the answer has no content.
func answer(mux *http.ServeMux, pattern, noun string, ask func(*http.Request) (any, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
		list, err := ask(r)
		switch {
		case err != nil:
			refuse(w, err)
		case noun == "":
			w.WriteHeader(http.StatusNoContent)
		default:
			reply(w, http.StatusOK, map[string]any{"version": Version, noun: list})
		}
	})
}

func flag(r *http.Request, name string) (bool, error) {
	text := r.FormValue(name)
	if text == "" {
		return false, nil
	}
	set, err := strconv.ParseBool(text)
	if err != nil {
		return false, &Error{Exit: ExitUsage, Msg: name + " is neither 0 nor 1", Err: err, Next: "send 0 or 1"}
	}
	return set, nil
}

// stream sends events line by line, each at once.
func stream(w http.ResponseWriter, r *http.Request, b Backend) {
	q := EventQuery{}
	var err error
	if q.Follow, err = flag(r, "follow"); err == nil {
		q.Since, err = since(r)
	}
	if err != nil {
		refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/jsonl")
	out := http.NewResponseController(w)
	if q.Follow {
		_ = out.Flush() // tells the client that it is listened to; a broken connection shows at the next line
	}
	started := q.Follow
	err = b.Events(r.Context(), q, func(line []byte) error {
		started = true
		if _, err := w.Write(append(line, '\n')); err != nil {
			return err
		}
		if q.Follow {
			return out.Flush()
		}
		return nil
	})
	switch {
	case err != nil && !started:
		refuse(w, err)
	case err != nil:
		breakOff(out)
	}
}

// breakOff cuts the connection, so that the client does not take the end of
// what was sent for the end of the stream.
func breakOff(out *http.ResponseController) {
	if conn, _, err := out.Hijack(); err == nil {
		_ = conn.Close() // it is to be broken
	}
}

func since(r *http.Request) (time.Time, error) {
	text := r.FormValue("since")
	if text == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return t, &Error{Exit: ExitUsage, Msg: "since is not a time", Err: err, Next: "send it as in 2026-11-21T03:04:05Z"}
	}
	return t, nil
}

func reply(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // the peer went away: nobody is left to tell
}

// refuse answers with err as an Error.
func refuse(w http.ResponseWriter, err error) {
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Exit: ExitOperational, Msg: err.Error()}
	}
	code := http.StatusInternalServerError
	if e.Exit == ExitUsage {
		code = http.StatusBadRequest
	}
	reply(w, code, map[string]any{"version": Version, "error": e.Flat()})
}

type peerKey struct{}

// withPeer asks the kernel once per connection who is at the other end; the
// answer can't be forged or change later.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	peer, err := peerOf(c)
	if err != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, peer)
}

// peerOf is who is at the other end of a Unix socket.
func peerOf(c net.Conn) (*unix.Ucred, error) {
	unixConn, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.New("no Unix socket")
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var peer *unix.Ucred
	var asked error
	err = raw.Control(func(fd uintptr) { peer, asked = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return peer, errors.Join(err, asked)
}

// guard lets root and the user uid through to h. A peer that the kernel said
// nothing about is nobody.
func guard(uid int, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, ok := r.Context().Value(peerKey{}).(*unix.Ucred)
		if !ok || peer.Uid != 0 && int(peer.Uid) != uid {
			reply(w, http.StatusForbidden, map[string]any{"version": Version, "error": Error{
				Exit: ExitOperational, Msg: "only root and the user who mounted may ask", Next: "use sudo",
			}})
			return
		}
		h.ServeHTTP(w, r)
	})
}
