package ledger

import (
	"encoding/json"
	"time"
	"unicode/utf8"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// State is what became of a lost range.
type State string

const (
	Lost          State = "lost"
	Reinitialized State = "reinitialized"
	Overwritten   State = "overwritten"
	Healed        State = "healed"
)

// CauseCopied is the cause of zeros that stand for lost bytes of another place, from
// where they were copied. They are no loss of their own: what was lost is in the row of
// that place. So they have a row as long as they are there, and leave no history.
const CauseCopied = "copied"

// Live reports whether bytes in this state have no content: they are lost, or
// zero since a repair.
func (s State) Live() bool { return s == Lost || s == Reinitialized }

// Row is one lost range. As JSON it has the field path or, if the path is not
// UTF-8, path_b64.
type Row struct {
	ID           uint64    `json:"id"`
	File         fileid.ID `json:"file"`
	Path         string    `json:"path"` // when last seen
	ranges.Range           // offset, length
	State        State     `json:"state"`
	Cause        string    `json:"cause"`       // eio, efault, short-read, badblocks, CauseCopied
	Source       string    `json:"source"`      // kernel, badblocks, simulated
	Granularity  int64     `json:"granularity"` // smallest unit that could be asked for
	First        time.Time `json:"first"`       // when it was lost
	Changed      time.Time `json:"changed"`     // when it got its state
}

type plainRow Row // without the methods

// rowPath stands before the path of plainRow, which has the same JSON name.
type rowPath struct {
	plainRow
	Path    *string `json:"path,omitempty"`
	PathB64 []byte  `json:"path_b64,omitempty"`
}

func (r Row) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(r.Path) {
		return json.Marshal(plainRow(r))
	}
	return json.Marshal(rowPath{plainRow: plainRow(r), PathB64: []byte(r.Path)})
}

func (r *Row) UnmarshalJSON(data []byte) error {
	var in rowPath
	if err := json.Unmarshal(data, &in); err != nil {
		return err
	}
	*r = Row(in.plainRow)
	switch {
	case in.PathB64 != nil:
		r.Path = string(in.PathB64)
	case in.Path != nil:
		r.Path = *in.Path
	}
	return nil
}
