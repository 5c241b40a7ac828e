"""Flags of open, and programs that run."""

import fcntl
import mmap

from kit import *
from permission import execute, program


@check
def o_noatime():
    for mode in (0o666, 0o644):
        make(f'{mode:o}', mode)
        for who in USERS:
            say(f'{mode:o}, {who}', by(who, opened, f'{mode:o}', os.O_RDONLY | os.O_NOATIME))
            say(f'{mode:o}, {who}, later', by(who, opened, f'{mode:o}', os.O_RDONLY, lambda fd: fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NOATIME)))


@check
def o_direct():
    make('f', 0o666, data=b'x' * 16384)
    page = mmap.mmap(-1, 8192)
    for what, off, length in (('a page', 0, 4096), ('at the end', 12288, 8192), ('behind the end', 16384, 4096)):
        say(f'read, {what}', opened('f', os.O_RDWR | os.O_DIRECT, lambda fd: result(os.preadv, fd, [memoryview(page)[:length]], off)))
        say(f'write, {what}', opened('f', os.O_RDWR | os.O_DIRECT, lambda fd: result(os.pwritev, fd, [memoryview(page)[:length]], off)))
        say(f'now, {what}', f"{show('f')} {len(read('f'))}")
    say('flag is kept', opened('f', os.O_RDWR | os.O_DIRECT, lambda fd: bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)))


@check
def o_direct_unaligned():
    make('f', 0o666, data=b'x' * 16384)
    page = mmap.mmap(-1, 8192)
    for what, off, length in (('offset', 100, 4096), ('length', 0, 100), ('both', 7, 9)):
        say(f'read, {what}', opened('f', os.O_RDWR | os.O_DIRECT, lambda fd: result(os.preadv, fd, [memoryview(page)[:length]], off)))
        say(f'write, {what}', opened('f', os.O_RDWR | os.O_DIRECT, lambda fd: result(os.pwritev, fd, [memoryview(page)[:length]], off)))


@check
def o_append():
    """Several processes append; no line is lost or torn."""
    make('f', 0o666, data=b'')

    def append(mark):
        return opened('f', os.O_WRONLY | os.O_APPEND, lambda fd: [os.write(fd, mark * 100 + b'\n') for _ in range(50)][-1])
    waits = [start(who, append, who[:1].encode()) for who in USERS]
    say('written', [wait() for wait in waits])
    lines = read('f').split(b'\n')[:-1]
    say('lines', f'{len(lines)} {sorted((set(lines)), key=bytes)!r}'.replace("b'", "'"))
    fd = os.open('f', os.O_RDWR | os.O_APPEND)
    size = os.fstat(fd).st_size
    say('pwrite appends', f'{os.pwrite(fd, b"end", 0)} {os.fstat(fd).st_size - size} {os.pread(fd, 3, size)}')
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    say('no longer', f'{os.pwrite(fd, b"top", 0)} {os.pread(fd, 3, 0)} {os.fstat(fd).st_size - size}')


@check
def other_flags():
    make('f', 0o644)
    os.symlink('f', 'l')
    os.mkfifo('p')
    os.chmod('p', 0o666)
    make_dir('d')
    cases = {
        'O_EXCL on a link': ('l', os.O_CREAT | os.O_EXCL | os.O_RDWR), 'O_EXCL on a file': ('f', os.O_CREAT | os.O_EXCL | os.O_RDWR),
        'O_NOFOLLOW on a link': ('l', os.O_NOFOLLOW), 'O_NOFOLLOW on a file': ('f', os.O_NOFOLLOW), 'O_PATH': ('f', os.O_PATH),
        'O_PATH of a link': ('l', os.O_PATH | os.O_NOFOLLOW), 'O_DIRECTORY on a file': ('f', os.O_DIRECTORY), 'O_DIRECTORY': ('d', os.O_DIRECTORY),
        'O_DIRECTORY on a link': ('l', os.O_DIRECTORY), 'writing a directory': ('d', os.O_WRONLY), 'truncating a directory': ('d', os.O_TRUNC),
        'truncating read-only': ('f', os.O_RDONLY | os.O_TRUNC), 'fifo, no reader': ('p', os.O_WRONLY | os.O_NONBLOCK), 'fifo': ('p', os.O_RDONLY | os.O_NONBLOCK),
        'O_CREAT with O_DIRECTORY': ('n', os.O_CREAT | os.O_DIRECTORY), 'O_SYNC': ('f', os.O_SYNC | os.O_WRONLY), 'O_DSYNC': ('f', os.O_DSYNC | os.O_WRONLY),
    }
    for name, (path, flags) in cases.items():
        for who in USERS:
            say(f'{name}, {who}', by(who, opened, path, flags))
        say(f'{name}, left', show('f'))
    say('device without a driver', by('root', lambda: (os.mknod('c', stat.S_IFCHR, os.makedev(250, 250)), opened('c', os.O_RDONLY))))
    say('write to read-only', opened('f', os.O_RDONLY, lambda fd: result(os.write, fd, b'x')))
    say('read from write-only', opened('f', os.O_WRONLY, lambda fd: result(os.read, fd, 1)))
    say('ftruncate read-only', opened('f', os.O_RDONLY, lambda fd: result(os.ftruncate, fd, 0)))
    say('fallocate read-only', opened('f', os.O_RDONLY, lambda fd: result(c, 'fallocate', fd, 0, 0, 10)))
    say('read of a directory', opened('d', os.O_RDONLY, lambda fd: result(os.read, fd, 1)))
    for mode in (0o200, 0o400, 0o600):
        os.chmod('f', mode)
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, 3):
            say(f'mode {mode:o}, access {flags}', by('owner', opened, 'f', flags))


@check
def what_stays_of_open():
    """Rights are those at open."""
    make('f', 0o600)

    def act():
        fd = os.open('f', os.O_RDWR)
        os.chmod('f', 0)
        return os.write(fd, b'x'), os.pread(fd, 3, 0), result(os.open, 'f', os.O_RDONLY), result(os.open, f'/proc/self/fd/{fd}', os.O_RDONLY), os.ftruncate(fd, 2)
    say('owner', by('owner', act))


@check
def busy_programs():
    program('sleeper', 'sleep', 0o777)
    pid = os.posix_spawn('./sleeper', ['./sleeper', '100'], {})
    try:
        while b'sleeper' not in read(f'/proc/{pid}/comm'):
            time.sleep(0.001)
        for who in USERS:
            say(f'{who} writes', by(who, opened, 'sleeper', os.O_WRONLY))
            say(f'{who} truncates', by(who, ok, os.truncate, 'sleeper', 0))
        say('reading', by('stranger', opened, 'sleeper', os.O_RDONLY))
        say('unlink', by('root', ok, os.unlink, 'sleeper'))
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    program('written', 'true', 0o777)
    fd = os.open('written', os.O_WRONLY)
    say('run while written', by('owner', execute, './written'))
    os.close(fd)
    say('run afterwards', by('owner', execute, './written'))
    make('script', 0o755, data=b'#!/bin/sh\necho script\n')
    say('script', by('stranger', execute, './script'))
    make('text', 0o755, data=b'nothing')
    say('no program', by('stranger', execute, './text'))
    say('a directory', by('stranger', execute, '.'))
