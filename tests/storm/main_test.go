// Package storm has very much memory go bad at once: every page of a file, or a
// part of each of very many files, met by several readers at the same time.
//
// It shows that every lost byte is in the ledger and no other is lost, that
// events are told or counted, and how much memory the mount takes for it.
package storm

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mendfs/mendfs/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// lines is how many lines go bad, scaled to the time that CI has.
// MENDFS_FULL=1 makes it what is promised for.
func lines() int {
	if os.Getenv("MENDFS_FULL") == "1" {
		return 1_000_000
	}
	return 100_000
}

// plain is the binary without the race detector, whose memory is not the
// product's.
func plain(t *testing.T) {
	t.Helper()
	bin := harness.Dir(t) + "/mendfs"
	build := exec.Command("go", "build", "-o", bin, "github.com/mendfs/mendfs/cmd/mendfs")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Setenv("MENDFS_BIN", bin)
}

// memory is a process's RssAnon, in bytes.
func memory(t *testing.T, pid int) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			n, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatalf("no RssAnon in %s", text)
	return 0
}

// watch gives the most memory that the process has had until stop.
func watch(t *testing.T, pid int) (stop func() int64) {
	quit, most := make(chan struct{}), make(chan int64)
	go func() { // until stop
		peak := int64(0)
		for {
			peak = max(peak, memory(t, pid))
			select {
			case <-quit:
				most <- peak
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() int64 { close(quit); return <-most }
}

// resting is a process's memory when it does not fall any more: what is free is
// given back in the background.
func resting(t *testing.T, pid int) int64 {
	t.Helper()
	for last, same := memory(t, pid), 0; ; {
		time.Sleep(500 * time.Millisecond)
		now := memory(t, pid)
		if same++; now < last-last/50 {
			same = 0
		}
		if last = now; same == 4 {
			return now
		}
	}
}
