package media

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// flawed is a FUSE filesystem with one file, "file", some bytes of which can't
// be read: a read is short before the first one, or EIO, or, if sullen, EIO
// wherever it meets one.
type flawed struct {
	gofs.Inode
	data   []byte
	bad    *ranges.Set
	sullen bool
	away   bool // from now on all is ENODEV

	direct   bool          // nothing of it is cached
	sizeKept time.Duration // how long the kernel need not ask for the size
}

var (
	_ = (gofs.NodeOpener)((*flawed)(nil))
	_ = (gofs.NodeReader)((*flawed)(nil))
	_ = (gofs.NodeGetattrer)((*flawed)(nil))
)

func (f *flawed) Open(context.Context, uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	if f.direct {
		return nil, fuse.FOPEN_DIRECT_IO, 0
	}
	return nil, 0, 0
}

func (f *flawed) Getattr(_ context.Context, _ gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Size, out.Mode, out.Blocks = uint64(len(f.data)), 0o644, uint64(len(f.data)+511)/512
	out.Nlink = 1
	out.SetTimeout(f.sizeKept)
	return 0
}

func (f *flawed) Read(_ context.Context, _ gofs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if f.away {
		return nil, syscall.ENODEV
	}
	r := ranges.Between(off, min(off+int64(len(dest)), int64(len(f.data))))
	for bad := range f.bad.Within(r) {
		if f.sullen || bad.Off == r.Off {
			return nil, syscall.EIO
		}
		r = ranges.Between(r.Off, bad.Off)
		break
	}
	return fuse.ReadResultData(f.data[r.Off:r.End()]), 0
}

func mountFlawed(t *testing.T, f *flawed) File {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("there is no /dev/fuse")
	}
	dir := t.TempDir()
	root := &gofs.Inode{}
	server, err := gofs.Mount(dir, root, &gofs.Options{
		MountOptions: fuse.MountOptions{DirectMount: true},
		OnAdd: func(ctx context.Context) {
			root.AddChild("file", root.NewPersistentInode(ctx, f, gofs.StableAttr{Mode: unix.S_IFREG}), false)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		file.Close()
		if err := server.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return New(-1).Open(int(file.Fd()))
}

func TestSalvageThroughFUSE(t *testing.T) {
	const size = 3*page - 100
	line := ranges.Range{Off: page + 640, Len: 64}
	sector := ranges.Range{Off: page + 512, Len: 512}
	byteRange := ranges.Range{Off: page + 1001, Len: 1}
	lineOfByte := byteRange.Widen(64)
	for _, c := range []struct {
		name    string
		bad     []ranges.Range
		sullen  bool
		away    bool
		page    int64
		missing []ranges.Range
		finest  int64
	}{
		{name: "nothing bad", page: page, missing: []ranges.Range{}, finest: page},
		{name: "a line", bad: []ranges.Range{line}, page: page, missing: []ranges.Range{line}, finest: 64},
		{name: "a line, without short counts", bad: []ranges.Range{line}, sullen: true, page: page, missing: []ranges.Range{line}, finest: 64},
		{name: "a sector", bad: []ranges.Range{sector}, page: page, missing: []ranges.Range{sector}, finest: 64},
		{name: "two lines", bad: []ranges.Range{line, line.Shift(1024)}, page: page, missing: []ranges.Range{line, line.Shift(1024)}, finest: 64},
		{name: "a byte, named by short counts", bad: []ranges.Range{byteRange}, page: page,
			missing: []ranges.Range{ranges.Between(byteRange.Off, lineOfByte.End())}, finest: 64},
		{name: "a byte, without short counts", bad: []ranges.Range{byteRange}, sullen: true, page: page, missing: []ranges.Range{lineOfByte}, finest: 64},
		{name: "the whole page", bad: []ranges.Range{ranges.Page(page)}, page: page, missing: []ranges.Range{ranges.Page(page)}, finest: 64},
		{name: "the last page", bad: []ranges.Range{{Off: size - 10, Len: 1}}, sullen: true, page: 2 * page,
			missing: []ranges.Range{ranges.Between((size-10)&^63, size)}, finest: 64},
		{name: "an outage", away: true, page: page, missing: []ranges.Range{ranges.Page(page)}, finest: page},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := &flawed{bad: ranges.Of(c.bad...), sullen: c.sullen, away: c.away}
			for i := range size {
				server.data = append(server.data, byte(1+i%255))
			}
			f := mountFlawed(t, server)
			buf := bytes.Repeat([]byte{'?'}, page)
			missing, finest := f.Salvage(buf, c.page)
			if !slices.Equal(missing, c.missing) || finest != c.finest {
				t.Fatalf("missing %v by %d; want %v by %d", missing, finest, c.missing, c.finest)
			}
			for good := range ranges.Of(missing...).Gaps(ranges.Between(c.page, min(c.page+page, size))) {
				if !bytes.Equal(buf[good.Off-c.page:good.End()-c.page], server.data[good.Off:good.End()]) {
					t.Fatalf("wrong bytes in %v", good)
				}
			}
			if past := c.page + page - size; past > 0 && !bytes.Equal(buf[page-past:], make([]byte, past)) {
				t.Fatal("past the end is not zero")
			}
		})
	}
}

// A kernel that need not ask for the size believes a short answer to be the end.
func TestSalvageBehindAShortAnswer(t *testing.T) {
	line := ranges.Range{Off: page + 640, Len: 64}
	server := &flawed{bad: ranges.Of(line), data: bytes.Repeat([]byte{'x'}, 3*page), sizeKept: time.Hour}
	f := mountFlawed(t, server)
	buf := make([]byte, page)
	missing, finest := f.Salvage(buf, page)
	if !slices.Equal(missing, []ranges.Range{line}) || finest != ranges.LineSize {
		t.Fatalf("missing %v by %d; want %v by the line", missing, finest, line)
	}
}
