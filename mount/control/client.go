package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotRunning says that no mount answers on the state directory.
var ErrNotRunning = errors.New("no mount is running on the state directory")

// Client asks the mount that runs on a state directory.
type Client struct {
	state string
	http  http.Client
}

var _ Backend = (*Client)(nil)

// Dial is a client for the mount that runs on the state directory. Nothing is
// sent before the first question; if no mount runs there, that fails with
// ErrNotRunning.
func Dial(state string) *Client {
	return client(state, func(net.Conn) error { return nil })
}

// DialUser is Dial for a mount by the user uid: nothing is sent to anybody else,
// whom a user could have put in the way of root.
func DialUser(state string, uid int) *Client {
	return client(state, func(conn net.Conn) error {
		switch peer, err := peerOf(conn); {
		case err != nil:
			return err
		case int(peer.Uid) != uid:
			return fmt.Errorf("the socket in %s is that of user %d, not %d", state, peer.Uid, uid)
		}
		return nil
	})
}

func client(state string, check func(net.Conn) error) *Client {
	return &Client{state: state, http: http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // a verb asks once; an idle connection would only delay the mount's end
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := dial(ctx, state)
			if err != nil {
				return nil, err
			}
			if err := check(conn); err != nil {
				_ = conn.Close() // nothing was written
				return nil, err
			}
			return conn, nil
		},
	}}}
}

// Answers returns when the mount has answered anything at all; the error is that
// of ctx, or of what keeps the question from being asked.
func (c *Client) Answers(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, "GET", "http://mendfs/v1/", nil) // nothing is there, and no work to say so
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Status is the mount's account of itself.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var body struct{ Status []Status }
	if err := c.ask(ctx, "GET", "/v1/status", nil, &body); err != nil {
		return Status{}, err
	}
	if len(body.Status) != 1 {
		return Status{}, &Error{Exit: ExitOperational, Msg: fmt.Sprintf("the mount answered with %d statuses", len(body.Status)), Next: "use the mount's own version of mendfs"}
	}
	return body.Status[0], nil
}

// Pending is the repairs that are not finished, in files at and below path.
func (c *Client) Pending(ctx context.Context, path string) ([]Pending, error) {
	var body struct{ Pending []Pending }
	err := c.ask(ctx, "GET", "/v1/pending?"+query("path", path), nil, &body)
	return body.Pending, err
}

// Drop forgets the image that a conflict has left.
func (c *Client) Drop(ctx context.Context, id uint64) error {
	return c.ask(ctx, "DELETE", "/v1/pending/"+strconv.FormatUint(id, 10), nil, nil)
}

// Scan is what is listed at and below path.
func (c *Client) Scan(ctx context.Context, path string) (Scan, error) {
	var body struct{ Scan []Scan }
	if err := c.ask(ctx, "GET", "/v1/scan?"+query("path", path), nil, &body); err != nil {
		return Scan{}, err
	}
	if len(body.Scan) != 1 {
		return Scan{}, &Error{Exit: ExitOperational, Msg: fmt.Sprintf("the mount answered with %d scans", len(body.Scan)), Next: "use the mount's own version of mendfs"}
	}
	return body.Scan[0], nil
}

// Inject poisons files of a simulated mount.
func (c *Client) Inject(ctx context.Context, r InjectRequest) ([]Injection, error) {
	var body struct{ Injections []Injection }
	r.Path, r.PathB64 = Wire(r.Path)
	err := c.ask(ctx, "POST", "/v1/inject", r, &body)
	return body.Injections, err
}

// Injections is the injected poison that no write has cleared.
func (c *Client) Injections(ctx context.Context) ([]Injection, error) {
	var body struct{ Injections []Injection }
	err := c.ask(ctx, "GET", "/v1/inject", nil, &body)
	return body.Injections, err
}

// RemoveInjection takes one injection back: the bytes below are there again.
func (c *Client) RemoveInjection(ctx context.Context, id string) error {
	return c.ask(ctx, "DELETE", "/v1/inject/"+url.PathEscape(id), nil, nil)
}

// ClearInjections takes all injections back.
func (c *Client) ClearInjections(ctx context.Context) error {
	return c.ask(ctx, "DELETE", "/v1/inject", nil, nil)
}

// Events hands over events as they come; see Backend.
func (c *Client) Events(ctx context.Context, q EventQuery, line func([]byte) error) error {
	from := ""
	if !q.Since.IsZero() {
		from = q.Since.Format(time.RFC3339Nano)
	}
	resp, err := c.send(ctx, "GET", "/v1/events?"+query("since", from, "follow", boolean(q.Follow)), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for r := bufio.NewReader(resp.Body); ; {
		text, err := r.ReadBytes('\n')
		switch {
		case ctx.Err() != nil, errors.Is(err, io.EOF):
			return nil // cancelled, or the mount ended
		case err != nil:
			return c.broken(err)
		}
		if err := line(bytes.TrimSuffix(text, []byte{'\n'})); err != nil {
			return err
		}
	}
}

// ask sends a question and decodes the answer into out, if there is to be one.
func (c *Client) ask(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return c.broken(err)
	}
	return nil
}

// send returns an answer that is not a refusal; its body is the caller's to close.
func (c *Client) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://mendfs"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(err)
	}
	if resp.StatusCode >= 400 {
		defer resp.Body.Close()
		return nil, refusal(resp)
	}
	return resp, nil
}

func refusal(resp *http.Response) error {
	var body struct{ Error *Error }
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil || body.Error == nil {
		return &Error{Exit: ExitOperational, Msg: "the mount answered " + resp.Status, Next: "use the mount's own version of mendfs"}
	}
	return body.Error
}

func (c *Client) unreachable(err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return &Error{Exit: ExitOperational, Msg: c.state, Err: ErrNotRunning, Next: "mount it, or read the records with --state " + c.state}
	case errors.Is(err, fs.ErrPermission):
		return &Error{Exit: ExitOperational, Msg: "the mount with the state directory " + c.state + " belongs to another user", Err: unix.EACCES, Next: "use sudo"}
	}
	return &Error{Exit: ExitOperational, Msg: "the mount with the state directory " + c.state + " does not answer", Err: err, Next: "see STATE/mendfs.log or the terminal of mendfs mount"}
}

func (c *Client) broken(err error) error {
	return &Error{Exit: ExitOperational, Msg: "the mount with the state directory " + c.state + " broke off its answer", Err: err, Next: "see whether it still runs with mendfs status"}
}

// query encodes the pairs of name and value whose value is not empty.
func query(pairs ...string) string {
	q := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	return q.Encode()
}

func boolean(b bool) string {
	if b {
		return "1"
	}
	return ""
}
