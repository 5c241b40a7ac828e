package control

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/mendfs/mendfs/recovery/ledger"
)

// AllLost is a list of what EachLost hands over, for who knows that it is short.
func AllLost(ctx context.Context, b interface {
	EachLost(ctx context.Context, q LostQuery, each func(ledger.Row) error) error
}, q LostQuery) ([]ledger.Row, error) {
	rows := []ledger.Row{}
	err := b.EachLost(ctx, q, func(r ledger.Row) error {
		rows = append(rows, r)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return rows, nil
}

// sendLost answers with a list that is never in memory as a whole.
func sendLost(w http.ResponseWriter, r *http.Request, b Backend) {
	all, err := flag(r, "all")
	if err != nil {
		refuse(w, err)
		return
	}
	out, between := bufio.NewWriterSize(w, 1<<16), fmt.Sprintf(`{"version":%d,"lost":[`, Version)
	started := func() bool { return between == "," }
	next := func() {
		if !started() {
			w.Header().Set("Content-Type", "application/json")
		}
		_, _ = out.WriteString(between) // its error is the next call's, too
		between = ","
	}
	err = b.EachLost(r.Context(), LostQuery{Path: r.FormValue("path"), All: all}, func(row ledger.Row) error {
		text, err := json.Marshal(row)
		if err != nil {
			return err
		}
		next()
		_, err = out.Write(text)
		return err
	})
	switch {
	case err != nil && !started():
		refuse(w, err)
		return
	case err != nil:
		breakOff(http.NewResponseController(w))
		return
	case !started():
		next()
	}
	_, _ = out.WriteString("]}\n")
	_ = out.Flush() // the peer went away: nobody is left to tell
}

// EachLost hands over the lost ranges that q asks for, as they come.
func (c *Client) EachLost(ctx context.Context, q LostQuery, each func(ledger.Row) error) error {
	resp, err := c.send(ctx, "GET", "/v1/lost?"+query("path", q.Path, "all", boolean(q.All)), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	in := json.NewDecoder(resp.Body)
	if err := enterList(in, "lost"); err != nil {
		return c.broken(err)
	}
	for in.More() {
		var row ledger.Row
		if err := in.Decode(&row); err != nil {
			return c.broken(err)
		}
		if err := each(row); err != nil {
			return err
		}
	}
	for range "]}" {
		if _, err := in.Token(); err != nil {
			return c.broken(err)
		}
	}
	return nil
}

// enterList reads an object up to the first element of its list noun, the last of
// its fields.
func enterList(in *json.Decoder, noun string) error {
	if _, err := in.Token(); err != nil { // {
		return err
	}
	for {
		field, err := in.Token()
		if err != nil {
			return err
		}
		if field == noun {
			_, err := in.Token() // [
			return err
		}
		var other json.RawMessage
		if err := in.Decode(&other); err != nil {
			return err
		}
	}
}

// Lost is what EachLost hands over.
func (c *Client) Lost(ctx context.Context, q LostQuery) ([]ledger.Row, error) {
	return AllLost(ctx, c, q)
}
