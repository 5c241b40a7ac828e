package recovery

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/media/mediatest"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// onReserve puts the backing directory on an ext4 with 64 MiB, a fifth of which
// is reserved for root.
func (r *rig) onReserve() {
	r.t.Helper()
	if os.Geteuid() != 0 {
		r.t.Skip("only root may mount a loop device")
	}
	image := filepath.Join(r.t.TempDir(), "image")
	for _, args := range [][]string{
		{"mkfs.ext4", "-q", "-m", "20", image, "64M"},
		{"mount", "-o", "loop", image, r.backing},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			r.t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	r.t.Cleanup(func() {
		r.stop()
		if err := unix.Unmount(r.backing, 0); err != nil {
			r.t.Error(err)
		}
	})
	r.check(os.WriteFile(r.path(), pattern(4*pg), 0o644))
}

// free is what root and others may take.
func (r *rig) free() (root, others uint64) {
	r.t.Helper()
	var st unix.Statfs_t
	r.check(errors.Join(unix.Syncfs(r.fd), unix.Fstatfs(r.fd, &st)))
	return st.Bfree * uint64(st.Bsize), st.Bavail * uint64(st.Bsize)
}

// fill writes through the engine from off until it is refused.
func (r *rig) fill(off int64, writeback bool, who Caller) {
	r.t.Helper()
	for size := 1 << 20; size >= pg; size /= 16 {
		b := bytes.Repeat([]byte{0xab}, size)
		for {
			n, err := r.file.Write(b, off, writeback, who)
			off += int64(n)
			if err == nil {
				continue
			}
			if Errno(err) != unix.ENOSPC {
				r.t.Fatalf("filling at %d: %v", off, err)
			}
			break
		}
	}
}

// TestReserveIsForRoot: P6. What the backing keeps for root no user gets by
// write, writeback, fallocate or copy, over poison or not; root does.
func TestReserveIsForRoot(t *testing.T) {
	user := Caller{Pid: 1, UID: 12345, Known: true}
	root := Caller{Pid: 1, Known: true}
	const far = 1 << 30
	for name, poisoned := range map[string]bool{"clean": false, "over poison": true} {
		for by, who := range map[string]Caller{"write": user, "writeback": {}} {
			t.Run(by+"/"+name, func(t *testing.T) {
				r := newRig(t, "", pg)
				r.onReserve()
				var m *mediatest.Medium
				if poisoned {
					r.wrap = func(media.Medium) media.Medium { m = mediatest.New(ranges.LineSize); return m }
				}
				r.start()
				if poisoned {
					r.check(m.Bad(r.fd, rng(pg, 64)))
					r.read(0, 4*pg)
				}
				r.fill(pg, by == "writeback", who)
				reserve, others := r.free()
				if others > 1<<20 || reserve < 10<<20 {
					t.Fatalf("full: %d bytes left for others, %d for root", others, reserve)
				}
				if err := r.file.Allocate(0, far, 5<<20, who); Errno(err) != unix.ENOSPC {
					t.Errorf("fallocate: %v, want ENOSPC", err)
				}
				if n, err := Copy(r.file, far, r.file, 0, 5<<20, who); n > 1<<20 || n == 0 && Errno(err) != unix.ENOSPC {
					t.Errorf("copy: %d, %v, want ENOSPC", n, err)
				}
				if after, _ := r.free(); after+1<<20 < reserve {
					t.Errorf("%d bytes left for root, there were %d", after, reserve)
				}
				if n, err := Copy(r.file, far, r.file, 0, 1<<20, root); n != 1<<20 || err != nil {
					t.Errorf("copy for root: %d, %v", n, err)
				}
				if err := r.file.Allocate(0, 2*far, 2<<20, root); err != nil {
					t.Errorf("fallocate for root: %v", err)
				}
				if n, err := r.file.Write(pattern(pg), 3*far, false, root); n != pg || err != nil {
					t.Errorf("write for root: %d, %v", n, err)
				}
				if n, err := r.file.Write(pattern(pg), 2*far, false, user); n != pg || err != nil {
					t.Errorf("write of what root allocated: %d, %v", n, err)
				}
			})
		}
	}
}
