// Package doctor says, before anything is mounted, what this kernel, this
// filesystem and this user can and cannot do for a backing directory.
//
// It first gathers facts and then judges them (judge*.go). What can be tried is
// tried, and leaves nothing behind: on files of the backing that never have a
// name (scratch.go), on a FUSE filesystem that is mounted nowhere (fuse.go),
// and by opening pmem devices, which are read at most. What is there stays
// untouched: files are looked at with statx, and the directory is listed with
// O_NOATIME or not at all.
package doctor

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Verdict is the first word of a finding.
type Verdict string

const (
	OK      Verdict = "ok"
	Limited Verdict = "limited" // works, but less is protected or possible
	No      Verdict = "no"      // does not work
	Unknown Verdict = "unknown" // could not be found out; Found says why
)

// Finding is one line of the report.
type Finding struct {
	Check   string  `json:"check"`
	Verdict Verdict `json:"verdict"`
	Found   string  `json:"found"`
	Next    string  `json:"next,omitempty"` // what to do about it
	Stops   bool    `json:"stops"`          // mendfs can't mount the backing until this is settled
}

// StateOf answers what is known of the mendfs mounts of a backing directory.
type StateOf func(backing string) State

// State is what earlier and running mounts left of a backing directory.
type State struct {
	Dir         string // its state directory; "" if there is none
	Home        string // where one is made unless --state names another place
	Running     string // mountpoint of the mount that runs on it; "" if none does
	OpenIntents int
	Err         error // the state directory is there and can't be read
}

// Examine looks at the directory backing. The error says that there is no such
// directory, or that it can't be looked at, and nothing could be found out.
func Examine(backing string, stateOf StateOf) ([]Finding, error) {
	path, err := filepath.Abs(backing)
	if err != nil {
		return nil, err
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return nil, err
	}
	dir, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	defer unix.Close(dir)
	f := facts{from: sources{sys: "/sys", proc: "/proc"}, path: path}
	f.askHost(dir)
	if err := f.askMedium(dir); err != nil {
		return nil, err
	}
	defer f.medium.device.close()
	f.askScratch(dir)
	f.askUsers()
	f.state = stateOf(path)
	f.askStore()
	return f.judge(), nil
}

// Stops reports whether any finding keeps mendfs from mounting.
func Stops(findings []Finding) bool {
	for _, f := range findings {
		if f.Stops {
			return true
		}
	}
	return false
}

// facts is all that was found out.
type facts struct {
	from    sources
	path    string // of the backing, absolute, without symlinks
	host    host
	medium  medium
	scratch scratch
	users   users
	state   State
	store   store
}

// sources is where the kernel's own files are; tests have theirs elsewhere.
type sources struct{ sys, proc string }
