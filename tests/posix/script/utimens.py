"""Setting times."""

from kit import *

NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2


class Timespec(ctypes.Structure):
    _fields_ = [('sec', ctypes.c_long), ('nsec', ctypes.c_long)]


def utimens(path, atime, mtime, flags=0):
    return c('utimensat', AT_FDCWD, os.fsencode(path), (Timespec * 2)(atime, mtime), flags)


def stamps(path):
    s = os.lstat(path)
    recent = lambda ns: 'now' if abs(time.time_ns() - ns) < 3600 * 10**9 else ns
    return f'{recent(s.st_atime_ns)} {recent(s.st_mtime_ns)}'


@check
def utimensat():
    wishes = {'both now': None, 'now': ((0, NOW), (0, NOW)), 'values': ((5, 6), (7, 8)), 'omit both': ((0, OMIT), (0, OMIT)), 'omit atime': ((0, OMIT), (7, 8)),
              'omit mtime': ((5, 6), (0, OMIT)), 'atime now': ((0, NOW), (0, OMIT)), 'mtime now': ((0, OMIT), (0, NOW)), 'one of each': ((0, NOW), (7, 999999999)),
              'no such nanosecond': ((5, 1000000000), (7, 8))}
    for mode in (0o644, 0o666, 0o444):
        for who in USERS:
            for name, wish in wishes.items():
                make('f', mode)
                os.utime('f', (100, 200))
                if wish is None:
                    answer = by(who, c, 'utimensat', AT_FDCWD, b'f', None, 0)
                else:
                    answer = by(who, utimens, 'f', *wish)
                say(f'{mode:o}, {who}, {name}', f"{answer} {stamps('f')}")
                remove('f')


@check
def utimensat_of_others():
    make_dir('d', 0o777)
    os.symlink('none', 'l')
    os.lchown('l', OWNER, GROUP)
    os.mkfifo('p')
    for who in USERS:
        for path in ('d', 'l', 'p'):
            say(f'{who}, {path}', f'{by(who, utimens, path, (5, 6), (7, 8), AT_SYMLINK_NOFOLLOW)} {stamps(path)}')
    for when in (-1, -2**31, 2**31, 2**33, 0):
        make('f')
        say(f'at {when}', f"{by('owner', utimens, 'f', (when, 1), (when, 2))} {os.stat('f').st_atime_ns} {os.stat('f').st_mtime_ns}")
        remove('f')
