package doctor

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// protocol is what the kernel offers to FUSE servers in its first request.
type protocol struct {
	trial
	major, minor uint32
	flags        uint64
}

func (p protocol) offers(flag uint64) bool { return p.flags&flag != 0 }

// askProtocol has the kernel make a FUSE filesystem that is mounted nowhere,
// and reads the first request for it. Closing the device ends it.
func askProtocol(noDevice error, admin bool) protocol {
	switch {
	case noDevice != nil:
		return protocol{trial: untried("/dev/fuse can't be opened")}
	case !admin:
		return protocol{trial: untried("the kernel tells it to who may mount (CAP_SYS_ADMIN); through fusermount3 it would take a real mount")}
	}
	init, err := firstRequest()
	if err != nil {
		return protocol{trial: tried(err)}
	}
	return parseInit(init)
}

// firstRequest is the FUSE_INIT of a new filesystem. fsopen(2) is of Linux 5.2.
func firstRequest() ([]byte, error) {
	device, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/fuse: %w", err)
	}
	defer unix.Close(device)
	context, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(context)
	for _, option := range [][2]string{{"fd", fmt.Sprint(device)}, {"rootmode", "40000"}, {"user_id", "0"}, {"group_id", "0"}} {
		if err := unix.FsconfigSetString(context, option[0], option[1]); err != nil {
			return nil, fmt.Errorf("fsconfig %s: %w", option[0], err)
		}
	}
	if err := unix.FsconfigCreate(context); err != nil {
		return nil, fmt.Errorf("fsconfig: %w", err)
	}
	const patience = 5000 // ms; the request is there at once
	ready := []unix.PollFd{{Fd: int32(device), Events: unix.POLLIN}}
	if _, err := unix.Poll(ready, patience); err != nil {
		return nil, fmt.Errorf("poll: %w", err)
	}
	request := make([]byte, 64<<10) // fewer than 8 KiB the kernel refuses
	n, err := unix.Read(device, request)
	if err != nil {
		return nil, fmt.Errorf("reading /dev/fuse: %w", err)
	}
	return request[:n], nil
}

var errNotInit = errors.New("the kernel's first request is not FUSE_INIT")

// parseInit takes struct fuse_in_header and fuse_init_in of linux/fuse.h apart.
func parseInit(request []byte) protocol {
	const header, opcode, opInit = 40, 4, 26
	native := binary.NativeEndian
	if len(request) < header+16 || native.Uint32(request[opcode:]) != opInit {
		return protocol{trial: tried(errNotInit)}
	}
	init := request[header:]
	p := protocol{trial: tried(nil), major: native.Uint32(init), minor: native.Uint32(init[4:]), flags: uint64(native.Uint32(init[12:]))}
	if p.offers(fuse.CAP_INIT_EXT) && len(init) >= 20 {
		p.flags |= uint64(native.Uint32(init[16:])) << 32
	}
	return p
}
