"""Content: holes, allocation, copies, mappings, sizes."""

import mmap

from kit import *

MODES = {'allocate': 0, 'keep': 1, 'punch': 3, 'punch alone': 2, 'zero': 16, 'zero, keep': 17, 'collapse': 8, 'insert': 32, 'unshare': 64, 'unknown': 1 << 20}


@check
def fallocate():
    for name, mode in MODES.items():
        for off, length in ((4096, 4096), (100, 5000), (0, 100000), (65536, 10), (0, 0), (-1, 10)):
            make('f', data=bytes(range(256)) * 64)
            answer = opened('f', os.O_RDWR, lambda fd: result(c, 'fallocate', fd, mode, off, length))
            say(f'{name}, {off}+{length}', f"{answer} {show('f')} {hash_of(read('f'))}")
            remove('f')
    say('of a directory', opened('.', os.O_RDONLY, lambda fd: result(c, 'fallocate', fd, 0, 0, 10)))


def hash_of(data):
    import hashlib
    return hashlib.sha1(data).hexdigest()[:12]


@check
def holes():
    fd = os.open('f', os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, b'x' * 4096, 1 << 20)
    os.ftruncate(fd, 2 << 20)
    os.fsync(fd)
    for off in (0, 4096, 1 << 20, (1 << 20) + 4096, (2 << 20) - 1, 2 << 20, 3 << 20, -1):
        for name, whence in (('data', os.SEEK_DATA), ('hole', os.SEEK_HOLE)):
            say(f'{name} from {off}', result(os.lseek, fd, off, whence))
    say('the hole is empty', os.pread(fd, 4096, 4096) == bytes(4096))
    say('it takes no room', os.fstat(fd).st_blocks < 1 << 10)
    os.close(fd)


@check
def sizes():
    make('f')
    for size in (0, 1, 4095, 4096, 4097, 1 << 32, (1 << 43) - 1):
        say(f'truncate to {size}', f"{by('owner', ok, os.truncate, 'f', size)} {show('f')}")
    os.truncate('f', 10)
    for size in (-1, (1 << 63) - 1):
        say(f'truncate to {size}', f"{by('owner', ok, os.truncate, 'f', size)} {show('f')}")
    make_dir('d')
    say('of a directory', by('root', ok, os.truncate, 'd', 0))
    os.mkfifo('p')
    say('of a fifo', by('root', ok, os.truncate, 'p', 0))
    os.symlink('none', 'l')
    say('of a dangling link', by('root', ok, os.truncate, 'l', 0))
    os.truncate('f', 0)
    say('grown', opened('f', os.O_RDWR, lambda fd: (os.write(fd, b'abcdef'), os.ftruncate(fd, 3), os.ftruncate(fd, 6), os.pread(fd, 10, 0))))
    say('a write behind the end', opened('f', os.O_RDWR, lambda fd: (os.pwrite(fd, b'z', 10), os.pread(fd, 20, 0))))
    say('a negative offset', opened('f', os.O_RDWR, lambda fd: result(os.pwrite, fd, b'x', -1)))


@check
def file_size_limit():
    """RLIMIT_FSIZE."""
    import resource
    import signal

    def act():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        fd = os.open('f', os.O_CREAT | os.O_RDWR)
        return [result(os.write, fd, b'x' * 150), result(os.write, fd, b'y'), result(os.ftruncate, fd, 101), result(c, 'fallocate', fd, 0, 0, 200), os.fstat(fd).st_size]
    say('owner', by('owner', act))


@check
def copies():
    make('a', 0o666, data=bytes(range(256)) * 40)
    for off_in, off_out, length in ((0, 0, 10240), (100, 5000, 3000), (10000, 0, 5000), (20000, 0, 10), (0, 20000, 100), (0, 0, 0)):
        make('b', 0o666)
        answer = opened('a', os.O_RDONLY, lambda i: opened('b', os.O_RDWR, lambda o: result(os.copy_file_range, i, o, length, off_in, off_out)))
        say(f'{off_in} to {off_out}, {length}', f"{answer} {show('b')} {hash_of(read('b'))}")
        remove('b')
    within = lambda i, o: opened('a', os.O_RDWR, lambda fd: result(os.copy_file_range, fd, fd, 100, i, o))
    say('within a file', within(0, 5000))
    say('over itself', within(0, 50))
    make('b', 0o666)
    say('to read-only', opened('a', os.O_RDONLY, lambda i: opened('b', os.O_RDONLY, lambda o: result(os.copy_file_range, i, o, 10))))
    say('to an appending file', opened('a', os.O_RDONLY, lambda i: opened('b', os.O_WRONLY | os.O_APPEND, lambda o: result(os.copy_file_range, i, o, 10))))
    say('from a directory', opened('.', os.O_RDONLY, lambda i: opened('b', os.O_WRONLY, lambda o: result(os.copy_file_range, i, o, 10))))


@check
def mappings():
    make('f', 0o666, data=b'0123456789')
    fd = os.open('f', os.O_RDWR)
    shared = mapped(fd, 4096)
    say('what is there', bytes(shared[:12]))
    os.pwrite(fd, b'W', 0)
    say('sees a write', bytes(shared[:3]))
    shared[1] = ord('M')
    say('is seen by a read', os.pread(fd, 3, 0))
    shared[4000] = 1
    msync(shared)
    say('does not grow the file', os.fstat(fd).st_size)
    private = mapped(fd, 4096, flags=mmap.MAP_PRIVATE)
    private[2] = ord('P')
    say('private is private', os.pread(fd, 4, 0))
    os.ftruncate(fd, 20)
    say('behind the old end is zero', os.pread(fd, 20, 0))
    os.close(fd)
    shared[3] = ord('C')
    msync(shared)
    say('works after close', read('f'))
    direct = os.open('f', os.O_RDWR | os.O_DIRECT)
    of_direct = mapped(direct, 20)
    of_direct[5] = ord('D')
    say('of an O_DIRECT file', result(msync, of_direct))
    os.close(direct)
    say('of an O_DIRECT file, content', read('f'))
    os.unlink('f')
    say('works after unlink', bytes(shared[:20]))
    make('f')
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        for prot in (mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_READ | mmap.PROT_WRITE):
            say(f'access {flags}, protection {prot}', opened('f', flags, lambda fd: result(lambda: bytes(mapped(fd, 10, prot)[:3]) if prot & 1 else len(mapped(fd, 10, prot)))))
    say('of a directory', opened('.', os.O_RDONLY, lambda fd: result(mapped, fd, 10, 1)))


@check
def vectors():
    make('f', 0o666, data=b'')
    with_flags = {'none': 0, 'RWF_DSYNC': os.RWF_DSYNC, 'RWF_SYNC': os.RWF_SYNC, 'RWF_APPEND': 0x10, 'RWF_HIPRI': 1, 'unknown': 1 << 20}
    for name, flags in with_flags.items():
        say(f'pwritev2, {name}', opened('f', os.O_RDWR, lambda fd: f"{result(os.pwritev, fd, [b'ab', b'', b'cd'], 1, flags)} {os.fstat(fd).st_size}"))
    buffers = [bytearray(2), bytearray(0), bytearray(10)]
    say('preadv', f"{opened('f', os.O_RDONLY, lambda fd: os.preadv(fd, buffers, 0))} {[bytes(b) for b in buffers]}")


@check
def statfs():
    """Numbers are sane and those of one filesystem."""
    make('f')
    here, there = os.statvfs('.'), opened('f', os.O_RDONLY, os.fstatvfs)
    say('same', (here.f_blocks, here.f_files, here.f_bsize, here.f_namemax) == (there.f_blocks, there.f_files, there.f_bsize, there.f_namemax))
    say('numbers', f'{here.f_bsize} {here.f_blocks} {here.f_namemax}')
    say('order', here.f_bavail <= here.f_bfree <= here.f_blocks and 0 < here.f_ffree <= here.f_files)
    say('block size of a file', os.stat('f').st_blksize)
    for who in USERS:
        say(f'pathconf, {who}', by(who, lambda: [result(os.pathconf, '.', name) for name in ('PC_NAME_MAX', 'PC_PATH_MAX', 'PC_LINK_MAX', 'PC_NO_TRUNC')]))


@check
def syncing():
    make('f')
    fd = os.open('f', os.O_RDWR)
    directory = os.open('.', os.O_RDONLY)
    for name, act in {'fsync': lambda: os.fsync(fd), 'fdatasync': lambda: os.fdatasync(fd), 'of a directory': lambda: os.fsync(directory),
                      'syncfs': lambda: c('syncfs', fd), 'sync_file_range': lambda: c('sync_file_range', fd, 0, 0, 7),
                      'fadvise': lambda: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED), 'readahead': lambda: c('readahead', fd, 0, 4096)}.items():
        say(name, result(act))
