package control

import "github.com/mendfs/mendfs/recovery/ranges"

// Scan is poison that is known, and what it is in.
type Scan struct {
	List     string  `json:"list"`             // whose: badblocks, simulated; "": nobody keeps one
	Device   string  `json:"device,omitempty"` // /dev path of the memory; "" if it is none, or simulated
	Complete bool    `json:"complete"`         // false: the list may lack some
	Places   []Place `json:"places"`
	Skipped  int     `json:"skipped,omitempty"` // files that could not be asked where they lie
	Why      string  `json:"why,omitempty"`     // why the first of them could not be
}

// Place is a piece of memory that is known to be bad, or can't be read.
type Place struct {
	Use          string   `json:"use"` // file, free, metadata, unknown
	Path         string   `json:"path,omitempty"`
	PathB64      []byte   `json:"path_b64,omitempty"` // see Wire
	Ino          uint64   `json:"ino,omitempty"`      // of a file whose path is not known
	ranges.Range          // of the file; for other uses, of the device
	Device       string   `json:"device,omitempty"`
	Sector       *int64   `json:"sector,omitempty"` // 512 bytes each, of the whole disk
	Found        []string `json:"found"`            // how: badblocks, simulated, read, recovered
	Error        string   `json:"error,omitempty"`  // of a read
	Next         string   `json:"next,omitempty"`   // what to do about it
}

// Name is the path, UTF-8 or not.
func (p Place) Name() string { return name(p.Path, p.PathB64) }
