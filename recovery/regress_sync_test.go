package recovery

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/media"
)

// stored is the ledger's store as it is on disk.
func (r *rig) stored() []byte {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.state, "ledger.db"))
	r.check(err)
	return b
}

// TestSyncOfACleanFile makes no transaction of the ledger, whatever waits there
// for other files; nor does one of a file of which everything is on disk.
func TestSyncOfACleanFile(t *testing.T) {
	r := newRig(t, "dax", 4*pg).start()
	clean := r.another("clean", pattern(pg))
	r.poison(rng(pg+512, 512), false)
	before := r.stored()
	r.read(0, 4*pg) // a row waits
	for _, full := range []bool{false, true} {
		r.check(clean.Sync(full))
	}
	if !bytes.Equal(r.stored(), before) {
		t.Error("fsync of a clean file made a transaction")
	}
	r.check(r.file.Sync(true))
	before = r.stored()
	r.check(r.file.Sync(true))
	if !bytes.Equal(r.stored(), before) {
		t.Error("fsync of a file whose records are on disk made a transaction")
	}
}

// TestSyncPutsTheDataFirst: a record that zeros were replaced must not be on disk
// before the data that replaced them, whoever asks for it.
func TestSyncPutsTheDataFirst(t *testing.T) {
	for _, fails := range []bool{false, true} {
		r := newRig(t, "dax", 4*pg)
		s := script(r)
		r.start()
		bad := rng(pg+1024, 512)
		r.poison(bad, false)
		r.write(pg+100, []byte("part"))
		synced := false
		s.sync = func(f media.File, full bool) error {
			if fails {
				return unix.EIO
			}
			synced = true
			return f.Sync(full)
		}
		r.write(bad.Off, filled(0xab, int(bad.Len)))
		r.check(r.ledger.Flush()) // as it does by itself
		_, reinit := r.live()
		if gone := reinit.Empty(); gone != synced {
			t.Errorf("fails=%v: the row is gone: %v, the data is durable: %v", fails, gone, synced)
		}
		s.asBelow()
		r.write(bad.Off, []byte("again"))
		r.check(r.file.Sync(false))
		var states []ledger.State
		for row, err := range r.ledger.All(true) {
			r.check(err)
			if row.Range.Contains(rng(bad.Off, 5)) {
				states = append(states, row.State)
			}
		}
		if len(states) != 1 || states[0] != ledger.Overwritten {
			t.Errorf("fails=%v: in the end the row is %v", fails, states)
		}
	}
}
