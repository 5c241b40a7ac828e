package media

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
	"weak"
)

// TestTurnsAreForgotten: of files that nobody has open no turn is kept, whatever else
// of a few bytes lives on.
func TestTurnsAreForgotten(t *testing.T) {
	const files = 200
	a := &alone{turns: map[uint64]weak.Pointer[turn]{}}
	var others []*uint64
	dir := t.TempDir()
	for i := range files {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		if a.turnOf(int(f.Fd())) == nil {
			t.Fatal("no turn")
		}
		others = append(others, new(uint64))
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	left := files
	for end := time.Now().Add(10 * time.Second); left > 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		runtime.GC()
		a.mu.Lock()
		left = len(a.turns)
		a.mu.Unlock()
	}
	if left > 0 {
		t.Errorf("%d of %d turns are left", left, files)
	}
	runtime.KeepAlive(others)
}
