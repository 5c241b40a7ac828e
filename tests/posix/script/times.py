"""Which times move with what."""

import mmap

from kit import *


def use(path, flags, act):
    return lambda: opened(path, flags, act)


def changed_mapping(fd):
    with mmap.mmap(fd, 4096) as m:
        m[0] = 65
        m.flush()


def read_mapping(fd):
    with mmap.mmap(fd, 4096, prot=mmap.PROT_READ) as m:
        return m[0]


OF_FILES = {
    'open': use('d/f', os.O_RDONLY, lambda fd: None),
    'read': lambda: read('d/f'),
    'read of nothing': use('d/f', os.O_RDONLY, lambda fd: os.read(fd, 0)),
    'read at the end': use('d/f', os.O_RDONLY, lambda fd: os.pread(fd, 10, 1 << 20)),
    'read without atime': use('d/f', os.O_RDONLY | os.O_NOATIME, lambda fd: os.read(fd, 10)),
    'mapped read': use('d/f', os.O_RDONLY, read_mapping),
    'write': lambda: write('d/f'),
    'write of nothing': lambda: write('d/f', b''),
    'write at the end': lambda: write('d/f', flags=os.O_APPEND),
    'mapped write': use('d/f', os.O_RDWR, changed_mapping),
    'truncate': lambda: os.truncate('d/f', 4096),
    'truncate to the same': lambda: os.truncate('d/f', 5000),
    'ftruncate to the same': use('d/f', os.O_RDWR, lambda fd: os.ftruncate(fd, 5000)),
    'truncate to more': lambda: os.truncate('d/f', 9000),
    'O_TRUNC': use('d/f', os.O_WRONLY | os.O_TRUNC, lambda fd: None),
    'O_TRUNC of nothing': lambda: (os.truncate('d/f', 0), opened('d/f', os.O_WRONLY | os.O_TRUNC)),
    'fallocate': use('d/f', os.O_WRONLY, lambda fd: c('fallocate', fd, 0, 0, 20000)),
    'fallocate, keeping the size': use('d/f', os.O_WRONLY, lambda fd: c('fallocate', fd, 1, 0, 20000)),
    'punch': use('d/f', os.O_WRONLY, lambda fd: c('fallocate', fd, 3, 0, 4096)),
    'zero': use('d/f', os.O_WRONLY, lambda fd: c('fallocate', fd, 16, 0, 4096)),
    'chmod': lambda: os.chmod('d/f', 0o600),
    'chmod to the same': lambda: os.chmod('d/f', 0o644),
    'chown': lambda: os.chown('d/f', 1, 1),
    'chown to nobody': lambda: os.chown('d/f', -1, -1),
    'link': lambda: os.link('d/f', 'd/l'),
    'unlink of a link': lambda: os.unlink('d/l'),
    'rename': lambda: (os.rename('d/f', 'd/g'), os.rename('d/g', 'd/f')),
    'setxattr': lambda: os.setxattr('d/f', 'user.a', b'1'),
    'getxattr': lambda: os.getxattr('d/f', 'user.a'),
    'removexattr': lambda: os.removexattr('d/f', 'user.a'),
    'set an ACL': lambda: os.setxattr('d/f', ACCESS, acl(6, 4, 0, {STRANGER: 6}, mask=6)),
    'utimes': lambda: os.utime('d/f', (3, 4)),
    'access': lambda: os.access('d/f', os.R_OK),
    'fsync': use('d/f', os.O_RDWR, os.fsync),
    'copied from': use('d/f', os.O_RDONLY, lambda i: opened('other', os.O_WRONLY, lambda o: os.copy_file_range(i, o, 100))),
    'copied to': use('d/f', os.O_WRONLY, lambda o: opened('other', os.O_RDONLY, lambda i: os.copy_file_range(i, o, 100))),
    'replaced': lambda: (os.link('d/f', 'd/l'), os.rename('other', 'd/l')),
    'flock': use('d/f', os.O_RDONLY, lambda fd: c('flock', fd, 2)),
}


@check
def of_files():
    """For each operation: the times of the file, and of its directory."""
    make_dir('d')
    make('d/f')
    make('other', data=b'o' * 5000)
    for name, act in OF_FILES.items():
        if not os.path.exists('other'):
            make('other')
        opened('d/f', os.O_WRONLY | os.O_TRUNC, lambda fd: os.write(fd, b'x' * 5000))
        say(name, moved(act, 'd/f', 'd'))


OF_DIRECTORIES = {
    'list': lambda: os.listdir('d'),
    'look up': lambda: show('d/f'),
    'look up in vain': lambda: show('d/none'),
    'create': lambda: make('d/new'),
    'create what is there': lambda: opened('d/new', os.O_CREAT | os.O_WRONLY),
    'create what is there exclusively': lambda: opened('d/new', os.O_CREAT | os.O_WRONLY | os.O_EXCL),
    'unlink': lambda: os.unlink('d/new'),
    'mkdir': lambda: os.mkdir('d/sub'),
    'mkdir of what is there': lambda: os.mkdir('d/sub'),
    'rmdir': lambda: os.rmdir('d/sub'),
    'symlink': lambda: os.symlink('x', 'd/link'),
    'mkfifo': lambda: os.mkfifo('d/fifo'),
    'unnamed file': lambda: opened('d', os.O_TMPFILE | os.O_RDWR),
    'rename in it': lambda: os.rename('d/link', 'd/other'),
    'rename to the same': lambda: os.rename('d/other', 'd/other'),
    'rename out': lambda: os.rename('d/other', 'other'),
    'rename in': lambda: os.rename('other', 'd/other'),
    'rename of itself': lambda: (os.rename('d', 'e'), os.rename('e', 'd')),
    'chmod': lambda: os.chmod('d', 0o700),
    'write in a file of it': lambda: write('d/f'),
    'setxattr': lambda: os.setxattr('d', 'user.a', b'1'),
    'set a default ACL': lambda: os.setxattr('d', DEFAULT, acl(7, 5, 0)),
    'link': lambda: os.link('d/f', 'd/hard'),
    'exchange': lambda: c('renameat2', AT_FDCWD, b'd/f', AT_FDCWD, b'd/hard', 2),
}


@check
def of_directories():
    make_dir('d')
    make('d/f')
    for name, act in OF_DIRECTORIES.items():
        say(name, moved(act, 'd', '.'))


@check
def of_others():
    os.symlink('none', 'l')
    os.mkfifo('p')
    say('readlink', moved(lambda: os.readlink('l'), 'l'))
    say('lchown', moved(lambda: os.lchown('l', 1, 1), 'l'))
    say('rename', moved(lambda: (os.rename('l', 'k'), os.rename('k', 'l')), 'l'))
    say('link', moved(lambda: os.link('l', 'm', follow_symlinks=False), 'l'))
    say('use of a fifo', moved(lambda: opened('p', os.O_RDWR, lambda fd: (os.write(fd, b'x'), os.read(fd, 1))), 'p'))
    say('chmod of a fifo', moved(lambda: os.chmod('p', 0o600), 'p'))


@check
def of_removed_files():
    make('f')
    os.link('f', 'g')
    fd = os.open('f', os.O_RDWR)
    for name in ('f', 'g'):
        before = os.fstat(fd)
        tick()
        os.unlink(name)
        after = os.fstat(fd)
        say(f'ctime after unlink of {name}', after.st_ctime_ns > before.st_ctime_ns)
        say(f'mtime after unlink of {name}', after.st_mtime_ns != before.st_mtime_ns)


@check
def birth():
    """statx has a time of birth, and it stays."""
    make('f')
    first = born('f')
    tick()
    write('f')
    os.chmod('f', 0o600)
    os.rename('f', 'g')
    say('is the time of creation', abs(first - time.time()) < 3600)
    say('stays', first == born('g'))


def born(path):
    buffer = ctypes.create_string_buffer(256)
    c('statx', AT_FDCWD, os.fsencode(path), 0, 0x800, buffer)
    return struct.unpack_from('<q', buffer, 80)[0]


@check
def order():
    """What comes later has a later time, and all are of one clock."""
    make('a')
    tick()
    before = time.clock_gettime_ns(5)
    make('b')
    after = time.clock_gettime_ns(0)
    say('later', os.stat('b').st_mtime_ns > os.stat('a').st_mtime_ns)
    say('between', before <= os.stat('b').st_mtime_ns <= after)
    say('whole', os.stat('b').st_ctime_ns >= os.stat('b').st_mtime_ns)
