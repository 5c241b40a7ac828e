package soak

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// child is another process of the soak. It obeys one order at a time.
type child struct {
	place  place
	in     io.WriteCloser
	out    *bufio.Reader
	stderr bytes.Buffer // read after the process has ended
	cmd    *exec.Cmd
	last   account
}

// startChild starts this program again, in the part that p says. It ends with the test.
func startChild(t *testing.T, p place) (*child, error) {
	t.Helper()
	text, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	c := &child{place: p, cmd: exec.Command(os.Args[0])}
	c.cmd.Env = append(os.Environ(), roleMark+"="+string(text))
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	c.cmd.Stderr = &c.stderr
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		_ = c.in.Close() // then it ends
		if err := c.cmd.Wait(); err != nil && !t.Failed() {
			t.Errorf("%s: %v: %s", p.Rel, err, c.stderr.String())
		}
	})
	return c, nil
}

// obey has the child do something to its end.
func (c *child) obey(order string) error {
	if _, err := fmt.Fprintln(c.in, order); err != nil {
		return c.ended(err)
	}
	text, err := c.out.ReadBytes('\n')
	if err != nil {
		return c.ended(err)
	}
	return json.Unmarshal(text, &c.last)
}

func (c *child) ended(err error) error {
	if waitErr := c.cmd.Wait(); waitErr == nil {
		return fmt.Errorf("%s ended: %w", c.place.Rel, err)
	}
	return errors.New(c.stderr.String())
}
