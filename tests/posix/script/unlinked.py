"""Open files and directories that have no name any more."""

import mmap

from creation import link_fd
from kit import *


def reopened(fd, flags=os.O_RDWR):
    return os.open(f'/proc/self/fd/{fd}', flags)


def through_proc(fd):
    again = reopened(fd)
    try:
        os.pwrite(again, b'!', 0)
        return os.pread(fd, 100, 0)
    finally:
        os.close(again)


OPERATIONS = {
    'fstat': lambda fd: text(os.fstat(fd)),
    'pwrite': lambda fd: os.pwrite(fd, b'abcdefghij', 0),
    'pread': lambda fd: os.pread(fd, 100, 0),
    'fchmod': lambda fd: ok(os.fchmod, fd, 0o640),
    'fchown': lambda fd: ok(os.fchown, fd, -1, -1),
    'fchown to the group': lambda fd: ok(os.fchown, fd, -1, GROUP),
    'ftruncate': lambda fd: ok(os.ftruncate, fd, 5),
    'futimens': lambda fd: ok(os.utime, fd, (1, 2)),
    'times': lambda fd: (os.fstat(fd).st_atime, os.fstat(fd).st_mtime),
    'fsetxattr': lambda fd: ok(os.setxattr, fd, 'user.a', b'1'),
    'fgetxattr': lambda fd: os.getxattr(fd, 'user.a'),
    'flistxattr': lambda fd: os.listxattr(fd),
    'fremovexattr': lambda fd: ok(os.removexattr, fd, 'user.a'),
    'set an ACL': lambda fd: ok(os.setxattr, fd, ACCESS, acl(6, 4, 0, {STRANGER: 4}, mask=4)),
    'fallocate': lambda fd: c('fallocate', fd, 0, 0, 100),
    'through /proc': through_proc,
    'chmod through /proc': lambda fd: ok(os.chmod, f'/proc/self/fd/{fd}', 0o600),
    'truncate through /proc': lambda fd: ok(os.truncate, f'/proc/self/fd/{fd}', 7),
    'stat through /proc': lambda fd: text(os.stat(f'/proc/self/fd/{fd}')),
    'fsync': lambda fd: ok(os.fsync, fd),
    'seek for a hole': lambda fd: os.lseek(fd, 0, os.SEEK_HOLE),
    'linkat': lambda fd: link_fd(fd, 'again'),
    'fstat at the end': lambda fd: text(os.fstat(fd)),
}


@check
def unlinked_files():
    for who in USERS:
        def all_operations():
            fd = os.open(who, os.O_CREAT | os.O_RDWR, 0o666)
            os.write(fd, b'0123456789')
            os.unlink(who)
            return [(name, result(do, fd)) for name, do in OPERATIONS.items()]
        tell(who, who, all_operations)


@check
def unnamed_files():
    """O_TMPFILE."""
    def all_operations(flags):
        fd = os.open('.', os.O_TMPFILE | os.O_RDWR | flags, 0o666)
        return [(f'{flags:o} {name}', result(do, fd)) for name, do in OPERATIONS.items()]
    for who in USERS:
        for flags in (0, os.O_EXCL):
            tell(who, who, all_operations, flags)
            say(f'{who}, {flags:o}, its name', show('again'))
            remove('again')
    make('f')
    say('read-only', by('owner', opened, '.', os.O_TMPFILE | os.O_RDONLY))
    say('in a file', by('owner', opened, 'f', os.O_TMPFILE | os.O_RDWR))
    make_dir('closed', 0o755, 0, 0)
    say('in a closed directory', by('owner', opened, 'closed', os.O_TMPFILE | os.O_RDWR))
    fd = os.open('.', os.O_TMPFILE | os.O_RDWR)
    link_fd(fd, 'given')
    say('by descriptor alone', result(c, 'linkat', fd, b'', AT_FDCWD, b'other', AT_EMPTY_PATH))
    say('both names', f"{show('given')} {show('other')}")
    os.close(fd)


@check
def replaced_by_rename():
    """An open file that a rename replaced."""
    for who in USERS:
        def act():
            for name in ('a', 'b'):
                opened(f'{who}.{name}', os.O_CREAT | os.O_RDWR, lambda fd: os.write(fd, name.encode()))
            fd = os.open(f'{who}.b', os.O_RDWR)
            mapped = mmap.mmap(fd, 1)
            os.rename(f'{who}.a', f'{who}.b')
            outcomes = [('old content', os.pread(fd, 9, 0)), ('mapping', mapped[0]), ('new content', read(f'{who}.b'))]
            mapped[0] = 66
            mapped.flush()
            return outcomes + [('after the mapping', os.pread(fd, 9, 0))] + [(name, result(do, fd)) for name, do in OPERATIONS.items()]
        tell(who, who, act)


def on_directory(fd):
    return [
        ('fstat', result(lambda: text(os.fstat(fd)).replace(' n=2', ' n=?'))),
        ('nlink', os.fstat(fd).st_nlink),
        ('list', result(os.listdir, fd)),
        ('openat of nothing', result(os.open, 'x', os.O_RDONLY, dir_fd=fd)),
        ('create in it', result(os.open, 'x', os.O_RDWR | os.O_CREAT, dir_fd=fd)),
        ('mkdir in it', result(os.mkdir, 'x', dir_fd=fd)),
        ('unnamed file in it', result(os.open, '.', os.O_RDWR | os.O_TMPFILE, dir_fd=fd)),
        ('itself', result(lambda: text(os.stat('.', dir_fd=fd)))),
        ('its parent', result(lambda: KINDS[stat.S_IFMT(os.stat('..', dir_fd=fd).st_mode)])),
        ('fchmod', result(os.fchmod, fd, 0o700)),
        ('futimens', result(os.utime, fd, (1, 2))),
        ('fsetxattr', result(os.setxattr, fd, 'user.a', b'1')),
        ('flistxattr', result(os.listxattr, fd)),
        ('reopen', result(lambda: text(os.fstat(reopened(fd, os.O_RDONLY))))),
        ('fsync', result(os.fsync, fd)),
        ('fchdir', result(os.fchdir, fd)),
        ('getcwd', result(os.getcwd)),
        ('remove it again', result(os.rmdir, f'/proc/self/fd/{fd}')),
    ]


@check
def removed_directories():
    for who in USERS:
        def removed():
            os.mkdir(who)
            fd = os.open(who, os.O_RDONLY)
            os.rmdir(who)
            return on_directory(fd)
        tell(who, who, removed)

        def replaced():
            os.mkdir(f'{who}.a')
            os.mkdir(f'{who}.a/inside')
            os.mkdir(f'{who}.b')
            fd = os.open(f'{who}.b', os.O_RDONLY)
            os.rename(f'{who}.a', f'{who}.b')
            return [(f'replaced, {name}', outcome) for name, outcome in on_directory(fd)]
        tell(who, who, replaced)


@check
def descriptor_of_a_moved_file():
    """Descriptors follow the file, not the name."""
    make_dir('a', 0o777)
    make('a/f', data=b'first')
    fd = os.open('a/f', os.O_RDWR)
    directory = os.open('a', os.O_RDONLY)
    os.rename('a', 'b')
    make_dir('a', 0o777)
    make('a/f', data=b'second')
    os.ftruncate(fd, 3)
    os.fchmod(fd, 0o600)
    os.setxattr(fd, 'user.a', b'1')
    say('by file', f"{show('b/f')} {os.listxattr('b/f')} {read('b/f')}")
    say('the other', f"{show('a/f')} {os.listxattr('a/f')} {read('a/f')}")
    os.unlink('f', dir_fd=directory)
    say('by directory', f"{listed('b')} {listed('a')}")
