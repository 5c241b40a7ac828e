package doctor

import (
	"errors"

	"golang.org/x/sys/unix"
)

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

func (a answer) String() string {
	switch a {
	case yes:
		return "yes"
	case no:
		return "no"
	}
	return "unknown"
}

// trial is something that was tried and works, was tried and does not, or was
// not tried. The zero value was not tried.
type trial struct {
	done bool
	err  error // done: nil if it works
	why  string
}

func tried(err error) trial { return trial{done: true, err: err} }

func untried(why string) trial { return trial{why: why} }

func (t trial) works() bool { return t.done && t.err == nil }

// reason says why it does not work, or was not tried.
func (t trial) reason() string {
	switch {
	case t.err != nil:
		return cause(t.err)
	case !t.done && t.why == "":
		return "not tried"
	}
	return t.why
}

// verdict is OK if it works, otherwise if it does not.
func (t trial) verdict(otherwise Verdict) Verdict {
	switch {
	case !t.done:
		return Unknown
	case t.err != nil:
		return otherwise
	}
	return OK
}

// cause is the errno's own text, without the names of system calls before it.
func cause(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}
