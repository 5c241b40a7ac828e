package mount

import (
	"cmp"
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

// serve mounts and starts to answer the kernel.
func (m *Mount) serve(t *target) error {
	timeout := cacheBeside
	if t.overMounted() {
		timeout = cacheOverMounted
	}
	var err error
	m.fs, err = fs.New(fs.Config{
		Root: m.root, Engine: m.engine, ReadOnly: m.config.ReadOnly,
		AttrTimeout: timeout, EntryTimeout: timeout, Exclusive: t.overMounted(),
		NoAtime: m.flags(t)&unix.MS_NOATIME != 0,
	})
	if err != nil {
		return failed(err, "see the limits of this process with ulimit -a", "the files of %s can't be served", m.backing)
	}
	m.onClose(m.fs.Close)
	at, opts := m.fuseOptions(t)
	if m.server, err = fuse.NewServer(m.fs, at, opts); err != nil {
		return m.cannotMount(err)
	}
	m.served = make(chan struct{})
	go func() { // ends when the mount is gone
		m.server.Serve()
		close(m.served)
	}()
	m.onClose(m.endServing)
	return m.list()
}

// fuseOptions says where and how to mount. Who may call mount(2) does so on
// the descriptor that was checked; fusermount3 has to find the path again.
func (m *Mount) fuseOptions(t *target) (at string, opts *fuse.MountOptions) {
	opts = m.fs.MountOptions()
	opts.Name = fsName
	opts.FsName = cmp.Or(m.config.flags.source, m.backing)
	opts.AllowOther = m.config.AllowOther
	opts.Logger = log.New(m.config.Stderr, "mendfs: ", 0)
	if !privileged() {
		opts.Options = append(opts.Options, m.config.flags.words...)
		if m.config.ReadOnly {
			opts.Options = append(opts.Options, "ro")
		}
		return m.path, opts
	}
	opts.DirectMountStrict = true
	opts.DirectMountFlags = m.flags(t) | unix.MS_MGC_VAL // without it go-fuse takes 0 for its own default
	return fdPath(t.mountpoint.fd), opts
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

func (m *Mount) cannotMount(err error) error {
	if privileged() {
		return failed(err, "see dmesg", "%s can't be mounted", m.path)
	}
	return failed(err, "see what fusermount3 said above; the mountpoint must be yours", "%s can't be mounted", m.path)
}

// list notes the new filesystem's device number, by which Find knows it.
func (m *Mount) list() error {
	p, err := lookup(m.path)
	if err != nil {
		return failed(err, "see whether it was unmounted just now", "%s can't be found after mounting", m.path)
	}
	defer p.close()
	if err := m.entry.mounted(p.mount.Dev); err != nil {
		return failed(err, "make room in /run", "the mount can't be put on the list of running ones")
	}
	return nil
}

// endServing waits until no request is under way. If the connection broke
// without an umount (an abort through sysfs), or New fails, the mount is still
// there and is taken away.
func (m *Mount) endServing() error {
	err := m.removeMount()
	<-m.served
	return err
}

func (m *Mount) removeMount() error {
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
