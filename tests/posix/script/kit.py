"""What the checks are written with.

A check is a function with the decorator @check. It runs as root in a fresh
directory of its own, its working directory, does things as several users, and
says what came of each: one line "check: what was done: outcome". Outcomes hold
nothing that differs from run to run or from one filesystem to another: no
inode numbers, no absolute times, no sizes of directories.
"""

import ctypes
import errno
import os
import stat
import struct
import sys
import time
import traceback

USERS = {
    'root': (0, 0, []),
    'owner': (1000, 1000, []),
    'member': (1002, 1002, [2000]),  # of the group that the owner's files have
    'stranger': (1001, 1001, []),
}
OWNER, MEMBER, STRANGER, GROUP = 1000, 1002, 1001, 2000

AT_FDCWD, AT_SYMLINK_NOFOLLOW, AT_EACCESS = -100, 0x100, 0x200
AT_SYMLINK_FOLLOW, AT_EMPTY_PATH = 0x400, 0x1000

checks = []


def check(function):
    checks.append(function)
    return function


def run(directory, only):
    """Runs the checks, or those whose module has the given name. 1: not all came to their end."""
    broken = 0
    os.chdir(directory)
    top = os.open('.', os.O_PATH)
    for function in checks:
        if only and function.__module__ != only:
            continue
        os.fchdir(top)
        os.umask(0)
        os.mkdir(function.__name__, 0o777)
        os.chdir(function.__name__)
        say.check = function.__name__
        try:
            function()
        except Exception:
            traceback.print_exc()
            broken = 1
    return broken


def say(what, outcome):
    print(f'{say.check}: {what}: {outcome}')


# What programs do, and what came of it.

def result(act, *args, **named):
    """What act answers, or the name of its errno."""
    try:
        return act(*args, **named)
    except OSError as e:
        return errno.errorcode[e.errno]


def by(who, act, *args, umask=0o022, **named):
    """result(act) in a process of that user. The answer is text."""
    return start(who, act, *args, umask=umask, **named)()


def start(who, act, *args, umask=0o022, **named):
    """Starts by(), and answers with a function that waits for its end."""
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(r)
        child(who, w, umask, act, args, named)
    os.close(w)

    def wait():
        with open(r, 'rb') as pipe:
            text = pipe.read().decode()
        _, status = os.waitpid(pid, 0)
        if status != 0:
            raise ChildProcessError(f'{say.check}: a process of {who} ended with status {status}')
        return text
    return wait


def tell(name, who, act, *args):
    """Says each of the pairs (what, outcome) that act answers in a process of the user."""
    def lines():
        return '\0'.join(f'{what}\1{outcome}' for what, outcome in act(*args))
    for line in by(who, lines).split('\0'):
        what, _, outcome = line.partition('\1')
        say(f'{name}, {what}', outcome)


def each(name, who, acts):
    """Says the result of each act, done in one process of the user."""
    tell(name, who, lambda: [(what, result(act)) for what, act in acts.items()])


def child(who, answer, umask, act, args, named):
    try:
        uid, gid, groups = USERS[who]
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        os.umask(umask)
        os.write(answer, str(result(act, *args, **named)).encode(errors='backslashreplace'))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(99)


libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = libc.mmap.restype = ctypes.c_long


def c(function, *args):
    """A function of libc; integers are longs."""
    args = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    answer = getattr(libc, function)(*args)
    if answer == -1:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))
    return answer


def mapped(fd, length, prot=3, flags=1):
    """Bytes of a file, in memory until the end: unlike Python's mmap it keeps no descriptor."""
    return (ctypes.c_ubyte * length).from_address(c('mmap', None, length, prot, flags, fd, 0))


def msync(bytes_):
    return c('msync', ctypes.addressof(bytes_), len(bytes_), 4)  # MS_SYNC


def opened(path, flags, act=lambda fd: 'ok', mode=0o666):
    """What act answers for a descriptor of path."""
    fd = os.open(path, flags, mode)
    try:
        return act(fd)
    finally:
        os.close(fd)


def ok(act, *args, **named):
    """act, with the answer "ok"."""
    act(*args, **named)
    return 'ok'


def read(path):
    return opened(path, os.O_RDONLY, lambda fd: os.read(fd, 1 << 20))


def write(path, data=b'x', flags=0):
    return opened(path, os.O_WRONLY | flags, lambda fd: os.write(fd, data))


def listed(path='.'):
    return sorted(os.listdir(path))


# What there is.

KINDS = {stat.S_IFREG: 'file', stat.S_IFDIR: 'dir', stat.S_IFLNK: 'symlink', stat.S_IFIFO: 'fifo',
         stat.S_IFSOCK: 'socket', stat.S_IFCHR: 'char', stat.S_IFBLK: 'block'}


def text(s):
    """A stat result, as text."""
    size = '' if stat.S_ISDIR(s.st_mode) else f' size={s.st_size}'
    device = f' dev={os.major(s.st_rdev)}:{os.minor(s.st_rdev)}' if stat.S_IFMT(s.st_mode) in (stat.S_IFCHR, stat.S_IFBLK) else ''
    return f'{KINDS[stat.S_IFMT(s.st_mode)]} {stat.S_IMODE(s.st_mode):04o} {s.st_uid}:{s.st_gid} n={s.st_nlink}{size}{device}'


def show(path, **named):
    try:
        return text(os.lstat(path, **named))
    except OSError as e:
        return errno.errorcode[e.errno]


def make(path, mode=0o644, uid=OWNER, gid=GROUP, data=b'0123456789'):
    """A file."""
    opened(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, lambda fd: os.write(fd, data) if data else None)
    os.chown(path, uid, gid)
    os.chmod(path, mode)
    return path


def make_dir(path, mode=0o755, uid=OWNER, gid=GROUP):
    os.mkdir(path)
    os.chown(path, uid, gid)
    os.chmod(path, mode)
    return path


def remove(path):
    """Whatever it is."""
    if not os.path.lexists(path):
        return
    if stat.S_ISDIR(os.lstat(path).st_mode):
        for name in os.listdir(path):
            remove(os.path.join(path, name))
        os.rmdir(path)
    else:
        os.unlink(path)


# Attributes.

def capability():
    """security.capability with cap_net_raw+ep (struct vfs_cap_data, version 2)."""
    return struct.pack('<IIIII', 0x02000001, 1 << 13, 0, 0, 0)


def has_capability(path):
    return 'security.capability' in os.listxattr(path)


USER_OBJ, USER, GROUP_OBJ, GROUP_, MASK, OTHER = 1, 2, 4, 8, 16, 32
ACCESS, DEFAULT = 'system.posix_acl_access', 'system.posix_acl_default'


def acl(user, group, other, users={}, groups={}, mask=None):
    """The value of an ACL attribute."""
    none = 0xffffffff
    entries = [(USER_OBJ, user, none)] + [(USER, p, i) for i, p in sorted(users.items())]
    entries += [(GROUP_OBJ, group, none)] + [(GROUP_, p, i) for i, p in sorted(groups.items())]
    if mask is not None:
        entries.append((MASK, mask, none))
    entries.append((OTHER, other, none))
    return struct.pack('<I', 2) + b''.join(struct.pack('<HHI', *e) for e in entries)


def acl_text(path, name=ACCESS):
    """An ACL as getfacl shows it."""
    value = result(os.getxattr, path, name)
    if isinstance(value, str):
        return value
    names = {USER_OBJ: 'u:', USER: 'u:', GROUP_OBJ: 'g:', GROUP_: 'g:', MASK: 'm:', OTHER: 'o:'}
    words = []
    for tag, perm, who in struct.iter_unpack('<HHI', value[4:]):
        words.append(f"{names[tag]}{who if tag in (USER, GROUP_) else ''}:{perm}")
    return ','.join(words)


# Times.

def tick():
    """Returns when the clock that filesystems use has moved on."""
    before = time.clock_gettime_ns(5)  # CLOCK_REALTIME_COARSE
    while time.clock_gettime_ns(5) == before:
        time.sleep(0.001)


def moved(act, *paths):
    """Which times of the files moved with act, and what it answers if that is an error."""
    for path in paths:
        os.utime(path, (1000, 2000), follow_symlinks=False)
    before = [os.lstat(path) for path in paths]
    tick()
    answer = result(act)
    words = [answer] if isinstance(answer, str) and answer in errno.errorcode.values() else []
    for path, b in zip(paths, before):
        a = os.lstat(path)
        which = [t for t in ('atime', 'mtime', 'ctime') if getattr(a, f'st_{t}_ns') != getattr(b, f'st_{t}_ns')]
        words.append('+'.join(which) or 'none')
    return ' '.join(words)
