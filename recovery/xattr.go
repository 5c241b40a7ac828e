package recovery

import (
	"encoding/json"
	"slices"

	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// lostXattr is the value of user.mendfs.lost, schema version 1.
type lostXattr struct {
	Version   int          `json:"version"`
	Lost      []xattrRange `json:"lost"`
	Truncated bool         `json:"truncated,omitempty"`
}

type xattrRange struct {
	ranges.Range
	State ledger.State `json:"state"`
}

// maxXattr bounds the value of user.mendfs.lost.
const maxXattr = 32 << 10

// LostXattr is the value of the extended attribute user.mendfs.lost: JSON, at
// most 32 KiB, then "truncated" is set. ok is false where nothing is lost.
func (i *Inode) LostXattr() (value []byte, ok bool) {
	d := i.damage.Load()
	if d == nil {
		return nil, false
	}
	var rows []xattrRange
	for _, r := range d.lostWithin(everything()) {
		rows = append(rows, xattrRange{r, ledger.Lost})
	}
	for _, r := range d.reinitWithin(everything()) {
		rows = append(rows, xattrRange{r, ledger.Reinitialized})
	}
	if len(rows) == 0 {
		return nil, false
	}
	slices.SortFunc(rows, func(a, b xattrRange) int { return int(a.Off - b.Off) })
	out := lostXattr{Version: 1, Lost: rows}
	const row = 100 // bytes of JSON that a row takes at most
	if len(rows) > maxXattr/row {
		out.Lost, out.Truncated = rows[:maxXattr/row], true
	}
	value, err := json.Marshal(out)
	return value, err == nil
}
