package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The names of the columns that others are compared with.
const (
	bare      = "bare" // without a mount
	floorName = "floor"
)

// column is one way to the files, with a backing directory of its own.
type column struct {
	Name    string `json:"name"`
	About   string `json:"about"`
	Refused string `json:"refused,omitempty"` // why it could not be mounted

	dataOnly bool // it has files and their data, and no cell but those of data is measured

	command func(backing, at, state string) []string // nil: no mount

	backing, at string
	daemon      *exec.Cmd
	said        bytes.Buffer
	ended       chan struct{} // closed when the daemon has
	pids        []int
}

// columns are all there are, in the order of the tables.
func columns(self, mendfs string) []*column {
	mend := func(name, about string, flags ...string) *column {
		return &column{Name: name, About: about, command: func(backing, at, state string) []string {
			args := append([]string{mendfs, "mount", "--state", state}, flags...)
			return append(args, backing, at)
		}}
	}
	return []*column{
		{Name: bare, About: "the directory itself"},
		{Name: floorName, About: "the least that a server of FUSE can do (floor.go)", dataOnly: true, command: func(backing, at, _ string) []string {
			return floorArgs(self, backing, at)
		}},
		{Name: "loopback", About: "go-fuse's loopback, each read and write served", command: func(backing, at, _ string) []string {
			return []string{self, "loopback", "-served", backing, at}
		}},
		{Name: "loopback-pt", About: "go-fuse's loopback, files passed through by the kernel", command: func(backing, at, _ string) []string {
			return []string{self, "loopback", backing, at}
		}},
		{Name: "bindfs", About: "bindfs as Debian has it: one thread", command: func(backing, at, _ string) []string {
			return []string{"bindfs", "-f", backing, at}
		}},
		{Name: "bindfs-mt", About: "bindfs --multithreaded", command: func(backing, at, _ string) []string {
			return []string{"bindfs", "-f", "--multithreaded", backing, at}
		}},
		mend("mendfs", "the default"),
		mend("verify", "--verify-writes", "--verify-writes"),
		mend("rw", "--protect=rw", "--protect=rw"),
		mend("known", "--protect=known", "--protect=known"),
	}
}

// mount starts the column in dir; what keeps it from being mounted is noted, no error.
func (c *column) mount(ctx context.Context, dir string) error {
	c.at = c.backing
	if c.command == nil {
		return nil
	}
	c.at = filepath.Join(dir, "at."+c.Name)
	if err := os.Mkdir(c.at, 0o755); err != nil {
		return err
	}
	args := c.command(c.backing, c.at, filepath.Join(dir, "state."+c.Name))
	c.daemon = exec.Command(args[0], args[1:]...)
	c.daemon.Stdout, c.daemon.Stderr = &c.said, &c.said
	if err := c.daemon.Start(); err != nil {
		c.Refused = err.Error()
		return nil
	}
	c.ended = make(chan struct{})
	go func() { // ends with the daemon, which unmount sees to
		_ = c.daemon.Wait() // what it said tells more
		close(c.ended)
	}()
	return c.await(ctx)
}

func (c *column) await(ctx context.Context) error {
	deadline := time.After(30 * time.Second)
	for !isFUSE(c.at) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.ended:
			c.Refused = firstLine(c.said.String())
			return nil
		case <-deadline:
			return fmt.Errorf("%s was not mounted within 30 s", c.Name)
		case <-time.After(5 * time.Millisecond):
		}
	}
	c.pids = family(c.daemon.Process.Pid)
	return nil
}

func isFUSE(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.FUSE_SUPER_MAGIC
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	if line == "" {
		return "it ended without a word"
	}
	return line
}

// family is a process and what it has started.
func family(pid int) []int {
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", all[i]))
		for _, t := range tasks {
			list, _ := os.ReadFile(t) // a process that has ended has no children
			for child := range strings.FieldsSeq(string(list)) {
				if n, err := strconv.Atoi(child); err == nil {
					all = append(all, n)
				}
			}
		}
	}
	return all
}

// unmount ends the column.
func (c *column) unmount() error {
	if c.daemon == nil || c.ended == nil {
		return nil
	}
	var err error
	if isFUSE(c.at) {
		err = takeAway(c.at)
	} else {
		_ = c.daemon.Process.Signal(syscall.SIGTERM) // it may be about to mount, or have ended
	}
	select {
	case <-c.ended:
	case <-time.After(10 * time.Second):
		err = errors.Join(err, fmt.Errorf("%s did not end after it was unmounted", c.Name), c.daemon.Process.Kill())
		<-c.ended
	}
	return err
}
