"""File handles (name_to_handle_at), as NFS servers and backup programs use them."""

from kit import *

SIZE = 128


class Handle(ctypes.Structure):
    _fields_ = [('size', ctypes.c_uint), ('kind', ctypes.c_int), ('bytes', ctypes.c_ubyte * SIZE)]


def handle_of(path):
    h, mount = Handle(SIZE), ctypes.c_int()
    c('name_to_handle_at', AT_FDCWD, os.fsencode(path), ctypes.byref(h), ctypes.byref(mount), 0)
    return h


def by_handle(h, flags=os.O_RDONLY, act=lambda fd: text(os.fstat(fd))):
    anywhere = os.open('.', os.O_RDONLY)
    try:
        fd = c('open_by_handle_at', anywhere, ctypes.byref(h), flags)
    finally:
        os.close(anywhere)
    try:
        return act(fd)
    finally:
        os.close(fd)


def in_the_end(handle):
    """What comes of it when the closes before, which FUSE does not wait for, are done."""
    for _ in range(200):
        got = result(by_handle, handle)
        if got == 'ESTALE':
            break
        time.sleep(0.01)
    return got


@check
def handles():
    make('f')
    make_dir('d')
    os.symlink('f', 'l')
    of_file, of_dir, of_link = handle_of('f'), handle_of('d'), handle_of('l')
    say('file', result(by_handle, of_file))
    say('content', result(by_handle, of_file, os.O_RDWR, lambda fd: (os.write(fd, b'by handle'), os.pread(fd, 20, 0))))
    say('directory', result(by_handle, of_dir))
    say('listed', result(by_handle, of_dir, os.O_RDONLY, os.listdir))
    say('link', result(by_handle, of_link, os.O_PATH))
    os.rename('f', 'd/g')
    say('renamed', result(by_handle, of_file))
    fd = os.open('d/g', os.O_RDONLY)
    os.unlink('d/g')
    say('unlinked and open', result(by_handle, of_file))
    os.close(fd)
    say('gone', in_the_end(of_file))
    os.rmdir('d')
    say('directory gone', in_the_end(of_dir))


@check
def handles_are_for_root():
    make('f', 0o666)
    h = handle_of('f')
    for who in USERS:
        say(f'{who} makes one', by(who, lambda: type(handle_of('f')).__name__))
        say(f'{who} uses one', by(who, by_handle, h))
