package mount

import (
	"context"
	"os"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/ledger"
)

// backend answers the questions that come through the control socket.
type backend struct{ m *Mount }

var _ control.Backend = backend{}

func (b backend) Status(context.Context) (control.Status, error) {
	m := b.m
	swept := m.engine.Sweep() // files that are gone are not damaged any more
	sandbox, held, owner := m.sandbox(), control.Held(m.fs.Stats()), os.Geteuid()
	s := control.Status{
		Running: true, Owner: &owner, Pid: os.Getpid(), Started: m.started,
		Mountpoint: m.path, Backing: m.backing, OverMounted: m.path == m.backing,
		State: m.state.path, FS: m.state.meta.FS, Repair: m.config.repair(),
		Semantics: m.config.semantics.Name, Simulate: m.config.Simulate, ReadOnly: m.config.ReadOnly,
		ReadOnlyNow:     !m.config.ReadOnly && m.isReadOnlyNow(),
		BackingReadOnly: m.fs.BackingReadOnly(),
		AllowOther:      m.config.AllowOther, EventLog: m.config.EventLog,
		Engine: m.engine.Status(), Held: &held, Sandbox: &sandbox, Protection: m.protection(),
	}
	for _, err := range []error{swept, m.ledger.Health(), m.journal.Stats().Err, m.events.Health(), m.state.room()} {
		if err != nil {
			s.Trouble = append(s.Trouble, err.Error())
		}
	}
	return s, m.records.count(&s)
}

func (b backend) EachLost(ctx context.Context, q control.LostQuery, each func(ledger.Row) error) error {
	if err := b.m.engine.Sweep(); err != nil { // files that are gone are not damaged any more
		return err
	}
	return b.m.records.EachLost(ctx, q, each)
}

func (b backend) Pending(ctx context.Context, path string) ([]control.Pending, error) {
	return b.m.records.Pending(ctx, path)
}

func (b backend) Drop(_ context.Context, id uint64) error { return dropKept(b.m.journal, id) }

func (b backend) Events(ctx context.Context, q control.EventQuery, line func([]byte) error) error {
	return b.m.records.Events(ctx, q, line)
}
