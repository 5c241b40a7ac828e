// Package doctor says, before anything is mounted, what this kernel, this
// filesystem and this user can and cannot do for a backing directory.
//
// It first gathers facts (host.go, medium.go, users.go) and then judges them
// (judge.go). Gathering changes nothing: files are looked at with statx, not
// opened; the directory is listed with O_NOATIME or not at all; devices are
// asked for permission with faccessat, never opened.
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
	f := facts{path: path}
	f.askHost(dir)
	if err := f.askMedium(dir); err != nil {
		return nil, err
	}
	f.askUsers()
	f.state = stateOf(path)
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
	path   string // of the backing, absolute, without symlinks
	host   host
	medium medium
	users  users
	state  State
}

// answer is yes, no, or not known.
type answer int

const (
	unknown answer = iota
	yes
	no
)

func answerOf(b bool) answer {
	if b {
		return yes
	}
	return no
}
