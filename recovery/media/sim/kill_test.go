package sim

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

const killPages = 8

// TestKilled kills a process that poisons pages and writes over them. What
// it had said before must hold afterwards: a page poisoned fails, a page
// written reads as written.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("MENDFS_SIM_VICTIM"); dir != "" {
		t.Fatal(victim(dir)) // returns only if something went wrong
	}
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	b := newBench(t, DAX, killPages*page)
	if err := b.m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(b.store, filepath.Join(b.dir, "poison.jsonl")); err != nil {
		t.Fatal(err)
	}
	b.store = filepath.Join(b.dir, "poison.jsonl")
	for round := range 10 {
		said := runAndKill(t, b.dir, time.Duration(20+random.IntN(80))*time.Millisecond)
		b.restart(DAX)
		for p, word := range said {
			buf := make([]byte, page)
			n, err := b.f.Pread(buf, int64(p)*page)
			switch {
			case word == "poisoned" && !errors.Is(err, unix.EIO):
				t.Errorf("seed %d, round %d: page %d was poisoned and reads %d, %v", seed, round, p, n, err)
			case word == "written" && (err != nil || bytes.Count(buf, buf[:1]) != page):
				t.Errorf("seed %d, round %d: page %d was written and reads %d, %v", seed, round, p, n, err)
			}
		}
		if err := b.m.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// runAndKill is the last word of a victim about each page: what it finished
// ("poisoned", "written"), or had begun ("poisoning", "writing").
func runAndKill(t *testing.T, dir string, after time.Duration) map[int]string {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), "MENDFS_SIM_VICTIM="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := map[int]string{}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if len(said) == 0 { // it is at work
			time.AfterFunc(after, func() { _ = cmd.Process.Kill() }) // Wait below says how it ended
		}
		var p int
		var word string
		if _, err := fmt.Sscan(lines.Text(), &p, &word); err != nil {
			t.Fatalf("victim: %s", lines.Text())
		}
		said[p] = word
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != -1 {
		t.Fatalf("victim: %v; it should have been killed", err)
	}
	return said
}

func victim(dir string) error {
	m, err := New(Options{Profile: DAX, Store: filepath.Join(dir, "poison.jsonl"), Root: -1, Below: media.New(-1)})
	if err != nil {
		return err
	}
	file, err := os.OpenFile(filepath.Join(dir, "file"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	id, err := fileid.Of(int(file.Fd()))
	if err != nil {
		return err
	}
	f := m.Open(int(file.Fd()))
	for i := 0; ; i++ {
		p := i % killPages
		at := ranges.Page(int64(p) * page)
		fmt.Println(p, "poisoning")
		if _, err := m.Inject(id, "file", int(file.Fd()), ranges.Range{Off: at.Off + 512, Len: 64}, false); err != nil {
			return err
		}
		fmt.Println(p, "poisoned")
		if i%3 == 0 {
			continue
		}
		fmt.Println(p, "writing")
		if n, err := f.Pwrite(bytes.Repeat([]byte{byte(i)}, page), at.Off, 0); n != page || err != nil {
			return fmt.Errorf("write: %d, %w", n, err)
		}
		fmt.Println(p, "written")
	}
}
