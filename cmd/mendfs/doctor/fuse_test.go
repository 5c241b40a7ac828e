package doctor

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// initRequest is a FUSE_INIT as kernels send it.
func initRequest(minor, flags, flags2 uint32) []byte {
	b := make([]byte, 40+64)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint32(b[4:], 26)
	for i, v := range []uint32{7, minor, 128 << 10, flags, flags2} {
		binary.NativeEndian.PutUint32(b[40+4*i:], v)
	}
	return b
}

func TestParseInit(t *testing.T) {
	const ext, passthrough2 = fuse.CAP_INIT_EXT, fuse.CAP_PASSTHROUGH >> 32
	p := parseInit(initRequest(41, ext|fuse.CAP_ASYNC_READ, passthrough2))
	if !p.works() || p.major != 7 || p.minor != 41 || !p.offers(fuse.CAP_PASSTHROUGH) || !p.offers(fuse.CAP_ASYNC_READ) {
		t.Errorf("%+v", p)
	}
	if p = parseInit(initRequest(35, fuse.CAP_ASYNC_READ, passthrough2)); p.offers(fuse.CAP_PASSTHROUGH) {
		t.Error("flags2 counts without CAP_INIT_EXT")
	}
	if p = parseInit(initRequest(31, fuse.CAP_ASYNC_READ, 0)[:56]); !p.works() || p.minor != 31 {
		t.Errorf("the short form of before 7.36: %+v", p)
	}
	other := initRequest(41, 0, 0)
	other[4] = 15
	for _, b := range [][]byte{nil, make([]byte, 55), other} {
		if p := parseInit(b); p.works() || !errors.Is(p.err, errNotInit) {
			t.Errorf("%d bytes gave %+v", len(b), p)
		}
	}
}

func TestAskProtocol(t *testing.T) {
	if p := askProtocol(unix.ENODEV, true); p.done {
		t.Errorf("without a device: %+v", p)
	}
	if p := askProtocol(nil, false); p.done {
		t.Errorf("without the right: %+v", p)
	}
	if tryFuse() != nil || !hasCapability(unix.CAP_SYS_ADMIN) {
		t.Skip("needs /dev/fuse and CAP_SYS_ADMIN")
	}
	before, err := mountTable("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if p := askProtocol(nil, true); !p.works() || p.major != 7 || p.minor < 15 || p.flags == 0 {
		t.Errorf("this kernel: %+v", p)
	}
	for _, m := range before {
		if m.fstype == "fuse" && m.source == "none" {
			t.Errorf("something is mounted at %s", m.at)
		}
	}
}
