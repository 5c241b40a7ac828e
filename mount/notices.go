package mount

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
)

// notices says what somebody should know who has just mounted.
func (m *Mount) notices(t *target) {
	if m.state.fresh {
		m.config.warn("new state directory %s: what was lost before now is unknown to it", m.state.path)
	}
	if p, err := lookup(m.state.path); err == nil { // only a notice depends on it
		if device := pmemDevice(p.mount.Dev); device != "" && p.mount.Dev == t.backing.mount.Dev {
			m.config.warn("the state directory %s is on %s, the same memory as the data: one defect can take both; give another with --state", m.state.path, device)
		}
		p.close()
	}
	m.identities(t)
	if !m.config.semantics.Recover {
		m.config.warn("semantics %s: programs get EIO over poison, and SIGBUS where they map it", m.config.semantics.Name)
	}
	m.unprotected()
	if m.unmounter != nil && m.unmounter.noAbort != nil {
		m.config.warn("if mendfs is killed while it waits in the kernel, programs that use %s may hang until its connection is aborted, and that can't be done from here (%v); as root, now or then: mount -t fusectl none %s", m.path, m.unmounter.noAbort, connections)
	}
	if os.Geteuid() != 0 {
		m.config.warn("mounted by an ordinary user: files keep their owner only if that is you, interrupted repairs find files by path alone, suid and devices are off, and --protect rw or known needs root")
	}
	if m.config.AllowOther && os.Geteuid() != 0 {
		m.config.warn("--force: what other users make at %s belongs to you, as far as the modes let them make it", m.path)
	}
	if os.Geteuid() == 0 && !m.config.AllowOther {
		m.config.warn("only root can reach the files at %s; --allow-other lets other users in", m.path)
	}
}

// identities says what it costs where files can't be told by their handles.
func (m *Mount) identities(t *target) {
	root, kind := m.state.meta.Root, t.backing.mount.Type
	if root.Handle == "" {
		m.config.warn("%s (%s) has no file handles that last: files are known by their inode numbers and birth times, and found by their paths; a repair that a crash interrupts is finished only if the file has the same path at the next mount, and records of removed files stay in mendfs lost", m.backing, kind)
	}
	if root.Btime == 0 && !m.hasBirthTimes() {
		m.config.warn("%s (%s) has no birth times: a new file that gets the inode number of a removed one gets its records, too", m.backing, kind)
	}
	if !fileid.Lasting(m.state.meta.FS) {
		m.config.warn("%s (%s) has no name that lasts: if that filesystem is mounted anew, its records are taken for those of another; mendfs umount before that, with mendfs lost --pending empty", m.backing, kind)
	}
}

// hasBirthTimes reports whether the filesystem keeps them. A directory that a tool
// made with the filesystem's image may have none itself.
func (m *Mount) hasBirthTimes() bool {
	var st unix.Statx_t
	return unix.Statx(m.root, "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &st) == nil && st.Mask&unix.STATX_BTIME != 0
}

// liftFileSize frees the process of its limit of file sizes, which would be
// that of all files in the mount and of the records.
func (m *Mount) liftFileSize(*target) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		return failed(err, "see dmesg", "the limit of file sizes can't be read")
	}
	if limit.Cur == unix.RLIM_INFINITY {
		return nil
	}
	if unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}) == nil {
		return nil
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		return failed(err, "ulimit -f unlimited", "the limit of file sizes can't be raised")
	}
	if limit.Max != unix.RLIM_INFINITY {
		m.config.warn("no file in the mount, and none of the records, can have more than %d bytes: that is the limit (ulimit -f) of who mounts", limit.Max)
	}
	return nil
}
