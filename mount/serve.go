package mount

import (
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/fs"
	"github.com/mendfs/mendfs/mount/control"
)

// How long the kernel may keep what it was told of names and attributes: over-mounted,
// nobody else can reach the files to change them.
const (
	cacheOverMounted = time.Hour
	cacheBeside      = time.Second
)

// openFS makes the filesystem that is to be mounted.
func (m *Mount) openFS(t *target) error {
	timeout := cacheBeside
	if t.overMounted() {
		timeout = cacheOverMounted
	}
	var err error
	m.fs, err = fs.New(fs.Config{
		Root: m.root, Engine: m.engine, ReadOnly: m.config.ReadOnly, Warn: m.config.warn,
		AttrTimeout: timeout, EntryTimeout: timeout, Exclusive: t.overMounted(), Protect: m.config.protect,
		NoAtime:     m.flags(t)&unix.MS_NOATIME != 0,
		StrictAtime: atimeAttr(m.flags(t))&unix.MOUNT_ATTR_STRICTATIME != 0,
	})
	if err != nil {
		return failed(err, "see the limits of this process with ulimit -a", "the files of %s can't be served", m.backing)
	}
	m.onClose(m.fs.Close)
	return nil
}

// connect greets the kernel, and finds out whether it can do what is wanted of
// it. Requests wait until serve.
func (m *Mount) connect(*target) error {
	opts := m.fs.MountOptions()
	opts.Logger = log.New(fs.Quiet(m.config.Stderr), "mendfs: ", 0)
	raw, err := m.fs.Answer(m.device)
	if err != nil {
		return failed(err, "see the limits of this process with ulimit -a", "the kernel can't be answered")
	}
	device := m.device
	m.device = -1 // the server closes it
	if m.server, err = fuse.NewServer(raw, fmt.Sprintf("/dev/fd/%d", device), opts); err != nil {
		return failed(err, "see dmesg", "the kernel can't be answered")
	}
	if err := m.checkPassthrough(); err != nil {
		if left := m.removeMount(); left != nil {
			return errors.Join(err, left)
		}
		m.server.Serve() // ends at once, and closes the device
		return err
	}
	return nil
}

// serve starts to answer the kernel.
func (m *Mount) serve(*target) error {
	go func() { // ends when the mount is gone
		m.server.Serve()
		close(m.served)
	}()
	m.onClose(m.endServing)
	return nil
}

// flags is the MS_* bits of the mount: those of the backing's own mount, as
// -o changes them. Who is not root gets no devices and no suid programs.
func (m *Mount) flags(t *target) uintptr {
	flags := msFlags(t.backing.mount.Options)
	if os.Geteuid() != 0 {
		flags |= unix.MS_NOSUID | unix.MS_NODEV
	}
	flags = flags&^m.config.flags.clear | m.config.flags.set
	if m.config.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	return flags
}

// endServing waits until no request is under way. If the connection broke
// without an umount (an abort through sysfs), or New fails, the mount is still
// there and is taken away.
func (m *Mount) endServing() error {
	err := m.detachLeft()
	<-m.served
	return err
}

// removeMount takes the mount away if it is still there, and gives the device
// free.
func (m *Mount) removeMount() error {
	err := m.detachLeft()
	if m.device >= 0 {
		err = errors.Join(err, unix.Close(m.device))
		m.device = -1
	}
	return err
}

func (m *Mount) detachLeft() error {
	all, err := mounts()
	if err != nil {
		return err
	}
	for _, e := range all {
		if e.Dev == m.entry.Dev && e.Mountpoint == m.path && e.Type == FSType {
			return m.detach(true)
		}
	}
	return nil
}

// control opens the socket for the verbs.
func (m *Mount) control(*target) error {
	l, err := control.Listen(m.state.path)
	if err != nil {
		return failed(err, "give another directory with --state", "the control socket in %s can't be made", m.state.path)
	}
	m.onClose(control.Serve(l, backend{m}, os.Geteuid()).Close)
	return nil
}
