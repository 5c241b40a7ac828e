package mount

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/fs"
	"github.com/mendfs/mendfs/mount/control"
)

// checkPassthrough refuses --protect where the kernel can't serve files of the
// backing filesystem by itself.
func (m *Mount) checkPassthrough() error {
	if m.config.protect == fs.ProtectFull {
		return nil
	}
	err := m.fs.CheckPassthrough()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNoPassthrough):
		return failed(nil, "leave it out", "--protect %v can't be had: %v", m.config.protect, err)
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EOPNOTSUPP):
		return failed(err, "leave it out, or mount what lies below "+m.backing,
			"--protect %v can't be had: the filesystem of %s stands on another one, or can't be passed on", m.config.protect, m.backing)
	case errors.Is(err, unix.EPERM):
		return failed(err, "leave it out; in a container: give it CAP_SYS_ADMIN of the host",
			"--protect %v can't be had: the kernel does not let this process have files passed on", m.config.protect)
	}
	return failed(err, "see dmesg, or leave it out", "--protect %v can't be had", m.config.protect)
}

// unprotected says what --protect leaves open.
func (m *Mount) unprotected() {
	switch m.config.protect {
	case fs.ProtectRW:
		m.config.warn("protect rw: programs that map files get SIGBUS over poison; a write of part of a damaged page is refused (EIO): write whole pages")
	case fs.ProtectKnown:
		m.config.warn("protect known: the first touch of poison that nobody knows yet is an error (EIO, SIGBUS), and mendfs is not told of it; a file is protected from the first open on after its poison is known")
	default:
		return
	}
	if m.config.VerifyWrites {
		m.config.warn("verify-writes: what --protect %v leaves to the kernel is not read back", m.config.protect)
	}
	if m.config.Simulate != "" {
		m.config.warn("the kernel does not see simulated poison: what --protect %v leaves to it reads as if there were none", m.config.protect)
	}
}

// protection is the part of status.
func (m *Mount) protection() *control.Protection {
	now := m.fs.Protection()
	p := &control.Protection{Mode: m.config.protect.String(), Passthrough: now.Passthrough, Refused: now.Refused}
	for _, u := range now.Unprotected {
		line := control.Unprotected{Opens: u.Opens, Next: "close and open it again in the programs that have it open (lsof, fuser)"}
		if u.Opens == 0 {
			line.Next = "restart the programs that have it mapped"
		}
		line.Path, line.PathB64 = control.Wire(u.Path)
		p.Unprotected = append(p.Unprotected, line)
	}
	return p
}
