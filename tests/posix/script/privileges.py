"""Setuid, setgid and capabilities go when somebody changes the file."""

import mmap
import ctypes

from kit import *

KEEP, PUNCH, COLLAPSE, ZERO, INSERT, UNSHARE = 1, 2, 8, 16, 32, 64


def allocate(mode, off=0, length=100):
    return lambda: opened('f', os.O_RDWR, lambda fd: c('fallocate', fd, mode, off, length))


def direct():
    buffer = mmap.mmap(-1, 4096)
    return opened('f', os.O_WRONLY | os.O_DIRECT, lambda fd: os.writev(fd, [buffer]))


def spliced():
    r, w = os.pipe()
    os.write(w, b'abc')
    return opened('f', os.O_WRONLY, lambda fd: os.splice(r, fd, 3))


def mapped():
    def change(fd):
        with mmap.mmap(fd, 10) as m:
            m[0] = 65
            m.flush()
    return opened('f', os.O_RDWR, change)


def twice():
    """The bits come back between two writes."""
    def change(fd):
        os.write(fd, b'a')
        before = oct(os.fstat(fd).st_mode)
        return before, result(os.fchmod, fd, 0o6777), os.write(fd, b'b')
    return opened('f', os.O_WRONLY, change)


CHANGES = {
    'write': lambda: write('f'),
    'append': lambda: write('f', flags=os.O_APPEND),
    'write of nothing': lambda: write('f', b''),
    'pwrite': lambda: opened('f', os.O_WRONLY, lambda fd: os.pwrite(fd, b'x', 5)),
    'pwritev': lambda: opened('f', os.O_WRONLY, lambda fd: os.pwritev(fd, [b'x', b'y'], 5)),
    'two writes': twice,
    'O_DIRECT write': direct,
    'O_SYNC write': lambda: write('f', flags=os.O_SYNC),
    'splice': spliced,
    'sendfile': lambda: opened('f', os.O_WRONLY, lambda fd: opened('from', os.O_RDONLY, lambda i: os.sendfile(fd, i, 0, 5))),
    'copy_file_range': lambda: opened('f', os.O_WRONLY, lambda fd: opened('from', os.O_RDONLY, lambda i: os.copy_file_range(i, fd, 5))),
    'mapping': mapped,
    'O_TRUNC': lambda: opened('f', os.O_WRONLY | os.O_TRUNC),
    'O_TRUNC, O_CREAT': lambda: opened('f', os.O_WRONLY | os.O_TRUNC | os.O_CREAT),
    'truncate': lambda: ok(os.truncate, 'f', 5),
    'truncate to the same': lambda: ok(os.truncate, 'f', 10),
    'truncate to more': lambda: ok(os.truncate, 'f', 10000),
    'ftruncate': lambda: opened('f', os.O_WRONLY, lambda fd: os.ftruncate(fd, 5)),
    'fallocate': allocate(0, 0, 8192),
    'fallocate, keeping the size': allocate(KEEP, 0, 8192),
    'fallocate of what is there': allocate(0, 0, 5),
    'punch': allocate(KEEP | PUNCH),
    'zero': allocate(ZERO),
    'zero, keeping the size': allocate(ZERO | KEEP),
    'open for writing': lambda: opened('f', os.O_WRONLY),
}


@check
def dropped_by_changes():
    make('from', 0o644)
    for name, change in CHANGES.items():
        for who in USERS:
            for mode, capable in ((0o6777, False), (0o2766, False), (0o4777 if who == 'root' else 0o666, True)):
                make('f', mode)
                if capable:
                    os.setxattr('f', 'security.capability', capability())
                answer = by(who, change)
                say(f"{name}, {who}, {mode:04o}{' with capabilities' if capable else ''}", f"{answer} {show('f')} {has_capability('f')}")
                remove('f')


@check
def not_dropped_from_directories():
    for who in USERS:
        make_dir('d', 0o2777)
        by(who, os.mkdir, 'd/x')
        say(who, show('d'))
        remove('d')


@check
def dropped_for_who_writes():
    """Root wrote first, and the next writer is not root."""
    make('f', 0o6777)
    say('root', f"{by('root', write, 'f')} {show('f')}")
    say('stranger', f"{by('stranger', write, 'f')} {show('f')}")
    os.chmod('f', 0o2766)
    say('member', f"{by('member', write, 'f')} {show('f')}")
    say('stranger after the member', f"{by('stranger', write, 'f')} {show('f')}")
    os.chmod('f', 0o6777)
    fd = os.open('f', os.O_WRONLY)

    def on_roots_descriptor():
        return os.write(fd, b'x')
    say('stranger, a descriptor of root', f"{by('stranger', on_roots_descriptor)} {show('f')}")
    os.close(fd)


@check
def capabilities_of_files():
    for who in USERS:
        make('f', 0o777, USERS[who][0])
        say(f'{who} sets', by(who, ok, os.setxattr, 'f', 'security.capability', capability()))
        say(f'{who} sees', by(who, os.getxattr, 'f', 'security.capability'))
        remove('f')
