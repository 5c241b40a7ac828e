// Package mounttest is what the tests of mounts share: an ordinary user, and a server
// that does not answer.
package mounttest

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Stop stops a process with SIGSTOP, and returns when each of its threads has: until then
// one that serves a mount may answer, or take a request that then waits for good, with
// its caller, who can't be killed any more.
func Stop(t testing.TB, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); !stopped(t, pid); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("process %d goes on after SIGSTOP", pid)
		}
	}
}

func stopped(t testing.TB, pid int) bool {
	t.Helper()
	threads, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/stat")
	if err != nil || len(threads) == 0 {
		t.Fatalf("no process %d: %v", pid, err)
	}
	for _, thread := range threads {
		stat, err := os.ReadFile(thread)
		if err == nil && !bytes.Contains(stat, []byte(") T ")) { // it may have ended
			return false
		}
	}
	return true
}
