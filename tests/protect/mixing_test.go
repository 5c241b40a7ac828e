package protect

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/tests/harness"
)

// history is a random sequence of what programs do to a few files whose poison
// becomes known in between.
type history struct {
	t    *testing.T
	m    *harness.Mount
	rnd  *rand.Rand
	open []*file
	maps [][]byte
	log  []string
}

var openFlags = []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_RDWR | unix.O_CREAT, unix.O_RDWR | unix.O_APPEND, unix.O_RDONLY | unix.O_DIRECT}

func (h *history) step() {
	h.t.Helper()
	name := fmt.Sprintf("f%d", h.rnd.IntN(3))
	switch h.rnd.IntN(10) {
	case 0, 1, 2:
		flags := openFlags[h.rnd.IntN(len(openFlags))]
		h.log = append(h.log, fmt.Sprintf("open(%s, %#x)", name, flags))
		fd, err := unix.Open(h.m.Path(name), flags, 0o600)
		if err != nil {
			h.t.Fatalf("%v after %s", err, strings.Join(h.log, ", "))
		}
		h.open = append(h.open, &file{h.t, fd, 8 * page})
	case 3, 4:
		if i := len(h.open); i > 0 {
			i = h.rnd.IntN(i)
			h.open[i].close()
			h.open = slices.Delete(h.open, i, i+1)
			h.log = append(h.log, "close")
		}
	case 5:
		if i := len(h.open); i > 0 {
			b, err := unix.Mmap(h.open[h.rnd.IntN(i)].fd, 0, page, unix.PROT_READ, unix.MAP_SHARED)
			if err == nil { // EACCES: not open for reading
				h.maps = append(h.maps, b)
			} else if !errors.Is(err, unix.EACCES) {
				h.t.Fatalf("mmap: %v after %s", err, strings.Join(h.log, ", "))
			}
			h.log = append(h.log, "mmap")
		}
	case 6:
		if i := len(h.maps); i > 0 {
			i = h.rnd.IntN(i)
			unmap(h.t, h.maps[i])
			h.maps = slices.Delete(h.maps, i, i+1)
			h.log = append(h.log, "munmap")
		}
	case 7:
		h.m.Inject(name, pageAt(h.rnd.Int64N(8)))
		h.log = append(h.log, "poison in "+name)
	case 8: // whole pages: repairs, whoever has it open
		f, err := os.OpenFile(h.m.Path(name), os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt(harness.Pattern(7, 8*page), 0)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			h.t.Fatalf("overwriting %s: %v after %s", name, err, strings.Join(h.log, ", "))
		}
		h.log = append(h.log, "overwrite "+name)
	case 9:
		if err := os.Rename(h.m.Path(name), h.m.Path("was-"+name)); err != nil {
			h.t.Fatal(err)
		}
		harness.WriteFile(h.t, h.m.Path(name), harness.Pattern(7, 8*page))
		h.log = append(h.log, "a new "+name)
	}
}

// No open ever fails because of the modes of others, whatever came before.
func TestNoOpenFails(t *testing.T) {
	for _, protect := range []string{"rw", "known"} {
		t.Run(protect, func(t *testing.T) {
			m := simulated(t, protect)
			for i := range 3 {
				m.File(fmt.Sprintf("f%d", i), 7, 8*page)
			}
			h := &history{t: t, m: m, rnd: rand.New(rand.NewPCG(5, 6))}
			for range 250 {
				h.step()
			}
			for _, f := range h.open {
				f.close()
			}
			for _, b := range h.maps {
				unmap(t, b)
			}
		})
	}
}
