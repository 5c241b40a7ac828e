package mount

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

func TestReadAhead(t *testing.T) {
	needRoot(t)
	b := newBench(t)
	m := b.mount(b.options())
	text, err := os.ReadFile(readAheadPath(m.entry.Dev))
	if err != nil {
		t.Fatal(err)
	}
	if kib, err := strconv.Atoi(strings.TrimSpace(string(text))); err != nil || kib != readAheadKiB {
		t.Errorf("the kernel reads %q KiB ahead (%v), not %d", text, err, readAheadKiB)
	}
	b.end(m)
}
