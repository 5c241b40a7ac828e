package control

import (
	"context"
	"errors"
	"reflect"
	"testing"
)

func (c *canned) Drop(_ context.Context, id uint64) error { return c.ask("drop", id) }

func TestDropSurvivesTheSocket(t *testing.T) {
	b := &canned{}
	state, _ := serve(t, b)
	c := Dial(state)
	const id = 1<<64 - 1
	if err := c.Drop(context.Background(), id); err != nil || !reflect.DeepEqual(b.asked, []any{"drop", uint64(id)}) {
		t.Errorf("asked %v, %v", b.asked, err)
	}
	var refused *Error
	err := c.ask(context.Background(), "DELETE", "/v1/pending/all", nil, nil)
	if !errors.As(err, &refused) || refused.Exit != ExitUsage || len(b.asked) != 2 {
		t.Errorf("no id: %v, asked %v", err, b.asked)
	}
	b.refuse = &Error{Exit: ExitUsage, Msg: "no", Next: "do"}
	if err := c.Drop(context.Background(), 1); !errors.As(err, &refused) || refused.Msg != "no" {
		t.Errorf("refused: %v", err)
	}
}
