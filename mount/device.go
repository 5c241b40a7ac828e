package mount

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// attach mounts. From now on the kernel queues requests at m.device. Who may
// call mount(2) does so on the descriptor that was checked; fusermount3 has to
// find the path again.
func (m *Mount) attach(t *target) error {
	if err := m.openFS(t); err != nil {
		return err
	}
	opts := m.fs.MountOptions()
	mount, next := m.mountDirectly, "see dmesg"
	if !privileged() {
		mount, next = m.mountByFusermount, "see what fusermount3 said above; the mountpoint must be yours"
	}
	device, err := mount(t, opts)
	if err != nil {
		return failed(err, next, "%s can't be mounted", m.path)
	}
	m.device = device
	m.onClose(m.removeMount)
	return m.identify()
}

// mountDirectly gives the kernel the options that fusermount3 would.
func (m *Mount) mountDirectly(t *target, opts *fuse.MountOptions) (device int, err error) {
	device, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("/dev/fuse: %w", err)
	}
	words := append([]string{
		fmt.Sprintf("fd=%d", device), "rootmode=40000",
		fmt.Sprintf("user_id=%d", os.Geteuid()), fmt.Sprintf("group_id=%d", os.Getegid()),
	}, m.fuseWords(opts)...)
	err = unix.Mount(m.source(), fdPath(t.mountpoint.fd), FSType, m.flags(t), strings.Join(words, ","))
	if err != nil {
		_ = unix.Close(device) // nothing is mounted
		return -1, err
	}
	return device, nil
}

// fuseWords are the options of mount(2) for type fuse, which fusermount3
// passes on.
func (m *Mount) fuseWords(opts *fuse.MountOptions) []string {
	words := append([]string{fmt.Sprintf("max_read=%d", opts.MaxWrite)}, opts.Options...)
	if m.config.AllowOther {
		words = append(words, "allow_other")
	}
	return words
}

func (m *Mount) source() string { return cmp.Or(m.config.flags.source, m.backing) }

// mountByFusermount has fusermount3 open the device and mount; it hands the
// device over through a socket.
func (m *Mount) mountByFusermount(_ *target, opts *fuse.MountOptions) (device int, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "fusermount3")
	defer theirs.Close()

	escape := strings.NewReplacer(`\`, `\\`, `,`, `\,`)
	words := append(m.fuseWords(opts), m.config.flags.words...)
	words = append(words, "fsname="+escape.Replace(m.source()), "subtype="+fsName)
	if m.config.ReadOnly {
		words = append(words, "ro")
	}
	cmd := exec.Command("fusermount3", "-o", strings.Join(words, ","), "--", m.path)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = m.config.Stderr
	if err := cmd.Run(); err != nil {
		return -1, fmt.Errorf("fusermount3: %w", err)
	}
	if device, err = receiveDescriptor(pair[0]); err != nil {
		return -1, errors.Join(fmt.Errorf("the device that fusermount3 has opened: %w", err), detach(m.path, true))
	}
	return device, nil
}

// receiveDescriptor takes the descriptor that the other end has sent, and has
// already sent.
func receiveDescriptor(socket int) (int, error) {
	text, control := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, text, control, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return -1, os.NewSyscallError("recvmsg", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil {
		return -1, err
	}
	for _, message := range messages {
		if fds, err := unix.ParseUnixRights(&message); err == nil && len(fds) == 1 {
			return fds[0], nil
		}
	}
	return -1, errors.New("no descriptor came")
}

// identify finds the device number of the new filesystem, by which it is known
// to all: to Find, and to the process that unmounts.
func (m *Mount) identify() error {
	p, err := lookup(m.path)
	if err != nil {
		return errors.Join(failed(err, "see what is mounted there", "%s can't be found after mounting", m.path), detach(m.path, true))
	}
	p.close()
	if p.mount.Type != FSType {
		return failed(nil, "mount again", "somebody has unmounted %s just now", m.path)
	}
	if m.unmounter != nil {
		if err := m.unmounter.assign(m.path, p.mount.Dev); err != nil {
			return errors.Join(failed(err, "mount again", "the process that is to unmount %s is gone", m.path), detach(m.path, true))
		}
	}
	m.entry.Dev = p.mount.Dev // also if it can't be listed: it has to be found for unmounting
	if err := m.entry.mounted(p.mount.Dev); err != nil {
		return failed(err, "make room in /run", "the mount can't be put on the list of running ones")
	}
	return nil
}
