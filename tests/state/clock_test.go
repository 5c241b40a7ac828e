package state

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/tests/harness"
)

// A clock that was set back since the last mount: the newest event and an intent are of
// the future. Repairs are finished, and what happens now is recorded and found.
func TestClockWasSetBack(t *testing.T) {
	m := harness.Simulated(t, "dax")
	data := m.File("f", 1, 3*page)
	m.Inject("f", rng{Off: page, Len: 64})
	m.Check("f", data, rng{Off: page, Len: sector})
	m.Stop()
	future := time.Now().AddDate(10, 0, 0)
	inJournal(t, m, func(j *journal.Journal) error {
		return j.Begin(&journal.Intent{
			File: identity(t, m.Below("f")), Path: "f", Range: rng{Off: page, Len: page}, Size: 3 * page, End: 3 * page,
			Image: data[page : 2*page], Overwritten: []rng{{Off: page, Len: sector}},
			Boot: "another", Ctime: future.UnixNano(), Mtime: future.UnixNano(), Time: future.UnixNano(),
		})
	})
	log := filepath.Join(m.State, "events.jsonl")
	line, err := json.Marshal(event.Event{Version: 1, ID: "09ZZZZZZZZZZZZZZZZZZZZZZZZ", Time: future, Event: event.Lost, Path: "of the future", Count: 1})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(log, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(append(line, '\n'))
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	m.Start()
	m.Check("f", data)
	m.Inject("f", rng{Off: 0, Len: 64})
	m.Check("f", data, rng{Off: 0, Len: sector})
	for _, target := range [][]string{{m.At}, {"--state", m.State}} {
		r := harness.Mendfs(t, append([]string{"events", "--json", "--since", "1h"}, target...)...)
		for _, words := range []string{`"replayed"`, `"lost"`, "of the future"} {
			if r.Exit != exitOK || !strings.Contains(r.Stdout, words) {
				t.Errorf("events of %q lack %s: %+v", target, words, r)
			}
		}
	}
	if r := harness.Mendfs(t, "status", m.At); r.Exit != exitOK || strings.Contains(r.Stdout, "TROUBLE") {
		t.Errorf("status: %+v", r)
	}
	m.Restart()
	m.Check("f", data, rng{Off: 0, Len: sector})
}
