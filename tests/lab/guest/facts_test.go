//go:build lab

package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/tests/lab/truth"
)

// What the facts are about: the fourth sector of the eleventh page is bad.
const (
	factsSize = 64 * page
	badPage   = 10
	badSector = badPage*8 + 3
)

// facts are what the kernel does beside the calls of the truth table, without mendfs.
// Each begins with a fresh file, and says in a few words what happened.
var facts = []struct {
	name string
	ask  func(b broken) string
}{
	{"statx has the attribute DAX", func(b broken) string {
		var st unix.Statx_t
		err := unix.Statx(b.fd, "", unix.AT_EMPTY_PATH, 0, &st)
		return fmt.Sprint(errno(err), " ", st.Attributes&unix.STATX_ATTR_DAX != 0)
	}},
	{"read of the bad page, O_DIRECT", func(b broken) string {
		return count(unix.Pread(b.open(b.path, unix.O_RDONLY|unix.O_DIRECT), aligned(page), badPage*page))
	}},
	{"read of each sector of the bad page from the device, O_DIRECT", func(b broken) string {
		fd := b.open(b.d.path(), unix.O_RDONLY|unix.O_DIRECT)
		var said []string
		for s := int64(0); s < 8; s++ {
			buf := aligned(sector)
			n, err := unix.Pread(fd, buf, b.device+s*sector)
			if err == nil && buf[0] != truth.Old(badPage*page+s*sector) {
				n = -1 // not the file's bytes
			}
			said = append(said, count(n, err))
		}
		return strings.Join(said, " ")
	}},
	{"read of the bad page from the device, O_DIRECT", func(b broken) string {
		return count(unix.Pread(b.open(b.d.path(), unix.O_RDONLY|unix.O_DIRECT), aligned(page), b.device))
	}},
	{"read of a good sector of the bad page from the device, buffered", func(b broken) string {
		return count(unix.Pread(b.open(b.d.path(), unix.O_RDONLY), make([]byte, sector), b.device))
	}},
	{"write of zeros to the bad sector of the device, O_DIRECT", func(b broken) string {
		said := count(unix.Pwrite(b.open(b.d.path(), unix.O_RDWR|unix.O_DIRECT), aligned(sector), b.device+3*sector))
		return said + b.after()
	}},
	{"BLKZEROOUT of the bad sector", func(b broken) string {
		return errno(blkZeroOut(b.open(b.d.path(), unix.O_RDWR), b.device+3*sector, sector)) + b.after()
	}},
	{"BLKZEROOUT of the bad page", func(b broken) string {
		return errno(blkZeroOut(b.open(b.d.path(), unix.O_RDWR), b.device, page)) + b.after()
	}},
	{"BLKDISCARD of the bad page", func(b broken) string {
		const request = 0x1277 // BLKDISCARD, linux/fs.h
		args := [2]int64{b.device, page}
		_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(b.open(b.d.path(), unix.O_RDWR)), request, uintptr(unsafe.Pointer(&args)))
		return errno(e) + b.after()
	}},
	{"load from a mapping of the bad page", func(b broken) string { return b.touch(false) }},
	{"store to a mapping of the bad page", func(b broken) string { return b.touch(true) }},
	{"madvise(MADV_POPULATE_READ) of the bad page", func(b broken) string {
		memory := b.mmap()
		defer unix.Munmap(memory)
		return errno(unix.Madvise(memory[badPage*page:(badPage+1)*page], unix.MADV_POPULATE_READ))
	}},
	{"copy_file_range of the bad page", func(b broken) string { return b.copy(badPage*page, page) }},
	{"copy_file_range of all", func(b broken) string { return b.copy(0, factsSize) }},
	{"sendfile of the bad page", func(b broken) string {
		var ends [2]int
		if err := unix.Pipe(ends[:]); err != nil {
			b.t.Fatal(err)
		}
		defer unix.Close(ends[0])
		defer unix.Close(ends[1])
		off := int64(badPage * page)
		return count(unix.Sendfile(ends[1], b.fd, &off, page))
	}},
	{"clone", func(b broken) string {
		to := b.path + ".clone"
		defer os.Remove(to)
		said := errno(unix.IoctlFileClone(b.open(to, unix.O_RDWR|unix.O_CREAT), b.fd))
		return fmt.Sprintf("%s, bad sectors of the clone %v", said, b.d.bad(b.t, to))
	}},
	{"clone, then write the bad page", func(b broken) string {
		to := b.path + ".clone"
		defer os.Remove(to)
		said := errno(unix.IoctlFileClone(b.open(to, unix.O_RDWR|unix.O_CREAT), b.fd))
		unix.Sync()
		return said + ", " + count(unix.Pwrite(b.fd, make([]byte, page), badPage*page)) + b.after()
	}},
}

// broken is a file with a bad sector.
type broken struct {
	t      *testing.T
	d      *disk
	path   string
	fd     int
	device int64 // where the bad page is on the device
}

// TestFacts tells what the kernel does.
func TestFacts(t *testing.T) {
	onEach(t, func(t *testing.T, d *disk) {
		for _, fact := range facts {
			path := d.fill(t, "file", truth.Content(factsSize))
			t.Run(fact.name, func(t *testing.T) {
				b := broken{t: t, d: d, path: path, device: extentsOf(t, path)[0].device + badPage*page}
				b.fd = b.open(path, unix.O_RDWR)
				d.poison(t, path, badSector)
				fmt.Printf("fact %s | %s | %s\n", d.name, fact.name, fact.ask(b))
			})
			d.clearDevice(t)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			unix.Sync() // XFS drops what clones share in the background
		}
	})
}

// open opens a file until the end of the fact.
func (b broken) open(path string, flags int) int {
	b.t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
	if err != nil {
		b.t.Fatalf("opening %s: %v", path, err)
	}
	b.t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// after is how many sectors are listed, and what the bad page holds.
func (b broken) after() string {
	said := fmt.Sprintf(", %d listed, holds ", len(b.d.listed(b.t)))
	buf := make([]byte, page)
	if _, err := unix.Pread(b.fd, buf, badPage*page); err != nil {
		return said + errno(err)
	}
	for s := range 8 {
		switch buf[s*sector] {
		case 0:
			said += "z"
		case truth.Old(int64(badPage*8+s) * sector):
			said += "o"
		default:
			said += "?"
		}
	}
	return said
}

func (b broken) mmap() []byte {
	memory, err := unix.Mmap(b.fd, 0, factsSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		b.t.Fatal(err)
	}
	return memory
}

// touch loads or stores a byte of the bad page by a mapping.
func (b broken) touch(store bool) (said string) {
	memory := b.mmap()
	defer unix.Munmap(memory)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil {
			said = "SIGBUS"
		}
	}()
	if at := &memory[badPage*page]; store {
		*at = 1
	} else {
		said = fmt.Sprint(*at)
	}
	return "no signal " + said
}

// copy is one copy_file_range of a part of the file.
func (b broken) copy(off, n int64) string {
	to := filepath.Join(b.d.at, "to")
	defer os.Remove(to)
	fd := b.open(to, unix.O_RDWR|unix.O_CREAT)
	said := count(unix.CopyFileRange(b.fd, &off, fd, nil, int(n), 0))
	return fmt.Sprintf("%s, bad sectors of the copy %v", said, b.d.bad(b.t, to))
}

// aligned is memory that O_DIRECT takes.
func aligned(n int) []byte {
	memory := make([]byte, n+page)
	skip := -uintptr(unsafe.Pointer(&memory[0])) & (page - 1)
	return memory[skip : int(skip)+n]
}

func count(n int, err error) string {
	if err != nil {
		return errno(err)
	}
	return fmt.Sprint(n)
}

// errno is the name of an errno, or 0.
func errno(err error) string {
	var e unix.Errno
	if !errors.As(err, &e) || e == 0 {
		return "0"
	}
	return unix.ErrnoName(e)
}
