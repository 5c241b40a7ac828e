package soak

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/mendfs/mendfs/tests/harness"
)

const roleMark = "MENDFS_TEST_SOAK_ROLE"

// TestMain is a child of the soak where the environment says so.
func TestMain(m *testing.M) {
	text := os.Getenv(roleMark)
	if text == "" {
		harness.Main(m)
		return
	}
	if err := playPart(text); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func playPart(text string) error {
	var p place
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return err
	}
	part, err := newPart(p)
	if err != nil {
		return err
	}
	return obey(part)
}

// part is what a child does: it owns files, or shares them.
type part interface {
	run(n int) error              // n operations; errDied if the mount was killed
	pause() error                 // let go of the mount
	restarted(killed bool) error  // the mount is there again
	checkAll() error              // through the mount
	checkBelow(rows string) error // against the backing, nothing being mounted; rows is the file of what mendfs lost says
	account() account
	report(err error) string
}

// account is what a child tells of itself.
type account struct{ Ops, Poisoned int }

func newPart(p place) (part, error) {
	if strings.HasPrefix(p.Rel, "shared") {
		return newSharer(p)
	}
	return newWorker(p)
}

// obey does what it is told on standard input, a line each, and answers each
// with its account, or ends with the failure.
func obey(p part) error {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		if err := order(p, in.Text()); err != nil {
			return errors.New(p.report(err))
		}
		text, err := json.Marshal(p.account())
		if err != nil {
			return err
		}
		fmt.Printf("%s\n", text)
	}
	return in.Err()
}

func order(p part, line string) error {
	verb, argument, _ := strings.Cut(line, " ")
	switch verb {
	case "run":
		n := 0
		if _, err := fmt.Sscan(argument, &n); err != nil {
			return err
		}
		if err := p.run(n); err != nil && !errors.Is(err, errDied) {
			return err
		}
		return nil
	case "pause":
		return p.pause()
	case "restarted":
		return p.restarted(argument == kill)
	case "check":
		return p.checkAll()
	case "below":
		return p.checkBelow(argument)
	}
	return fmt.Errorf("no order %q", line)
}
