package journal

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// countingDisk counts what is made and written.
type countingDisk struct {
	disk
	created int
	written int64
}

func (d *countingDisk) Create(path string) (file, error) {
	d.created++
	f, err := d.disk.Create(path)
	return countingFile{f, d}, err
}

func (d *countingDisk) Open(path string, write bool) (file, error) {
	f, err := d.disk.Open(path, write)
	return countingFile{f, d}, err
}

type countingFile struct {
	file
	d *countingDisk
}

func (f countingFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.file.WriteAt(p, off)
	f.d.written += int64(n)
	return n, err
}

// TestRefusedRepairsCostLittle: on a full disk a fresh journal is not begun for each
// repair that is refused where there is no room for it, and not at all where it would
// be no shorter: closes that no checkpoint has taken yet are copied.
func TestRefusedRepairsCostLittle(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP full disk: mounting a tmpfs needs root")
	}
	for _, tt := range []struct {
		name   string
		images int64 // live, of 4 KiB each; there is room for 200
		closed int   // intents, of some 100 bytes each
	}{{"no room for a fresh file", 500, 1000}, {"a fresh file is no shorter", 100, 2000}} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"))
			t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
			d := &countingDisk{disk: osDisk{}}
			j, err := open(d, filepath.Join(dir, "journal"), testFS)
			must(t, err)
			defer func() { must(t, j.Shutdown()) }()
			for page := range tt.images {
				must(t, j.SaveImage(fileid.ID{Ino: 1}, "f", Image{Page: page * ranges.PageSize, Data: make([]byte, ranges.PageSize)}))
			}
			for range tt.closed {
				in := &Intent{FS: testFS, Range: ranges.Page(0)}
				must(t, j.Begin(in))
				must(t, j.Close(in.ID))
			}
			if tt.images < 200 {
				j.mu.Lock()
				must(t, j.rewrite())
				j.mu.Unlock()
			}
			fill(t, filepath.Join(dir, "other"), 800<<10)
			refuse := func() {
				for err = nil; err == nil; err = j.Begin(full()) {
				}
				if !errors.Is(err, ErrFull) {
					t.Fatal(err)
				}
			}
			refuse()
			start, refused := time.Now(), 100
			d.created, d.written = 0, 0
			for range refused {
				refuse()
			}
			most := 1 + int(time.Since(start)/retryDelay)
			if tt.images < 200 {
				most = 0
			}
			if d.created > most || d.written > 0 {
				t.Errorf("%d repairs were refused: %d files begun, %d bytes written; live %d, garbage %d", refused, d.created, d.written, j.state.live, j.garbage())
			}
		})
	}
}

// fill has a file take what is free, but for so many bytes.
func fill(t *testing.T, path string, left int64) {
	t.Helper()
	var fs unix.Statfs_t
	must(t, unix.Statfs(filepath.Dir(path), &fs))
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	must(t, unix.Fallocate(int(f.Fd()), 0, 0, int64(fs.Bavail)*fs.Bsize-left))
}
