"""ioctls: nobody gets more of them through the mount than without it."""

import fcntl

from kit import *

SHUTDOWN, FITRIM, FREEZE = 0x8004587d, 0xc0185879, 0xc0045877
GETFLAGS, SETFLAGS, GETXATTR, SETXATTR = 0x80086601, 0x40086602, 0x801c581f, 0x401c5820
IMMUTABLE, APPEND, NODUMP, NOATIME = 0x10, 0x20, 0x40, 0x80


def refused(number, argument):
    def ask(fd):
        try:
            fcntl.ioctl(fd, number, argument)
        except OSError:
            return 'refused'
        return 'done'
    return ask


@check
def of_the_filesystem():
    """Who has no right to them can't have them; with which errno is left open."""
    trim = struct.pack('QQQ', 0, 1 << 40, 0)
    for who in ('owner', 'member', 'stranger'):
        uid = USERS[who][0]
        make(f'f.{who}', 0o600, uid)
        make_dir(f'd.{who}', 0o700, uid)
        for name, number, argument in (('shut down', SHUTDOWN, struct.pack('I', 2)), ('trim', FITRIM, trim), ('freeze', FREEZE, b'\0' * 4)):
            for path, flags in ((f'f.{who}', os.O_RDWR), (f'd.{who}', os.O_RDONLY)):
                say(f'{who}, {path[0]}, {name}', by(who, opened, path, flags, refused(number, argument)))
    say('it still works', read('f.owner'))


def flags_of(fd):
    return struct.unpack('I4x', fcntl.ioctl(fd, GETFLAGS, b'\0' * 8))[0] & (IMMUTABLE | APPEND | NODUMP | NOATIME)


def set_flags(flags):
    def act(fd):
        old = struct.unpack('I4x', fcntl.ioctl(fd, GETFLAGS, b'\0' * 8))[0]
        fcntl.ioctl(fd, SETFLAGS, struct.pack('I4x', old & ~0xf0 | flags))
        return flags_of(fd)
    return act


@check
def file_flags():
    """chattr."""
    for kind in ('f', 'd'):
        for name, flags in (('nodump', NODUMP), ('noatime', NOATIME), ('immutable', IMMUTABLE), ('append', APPEND)):
            for who in USERS:
                make('f', 0o666)
                make_dir('d', 0o777)
                say(f'{who} sets {name}, {kind}', by(who, opened, kind, os.O_RDONLY, set_flags(flags)))
                each(f'{who} has set {name}, {kind}', 'owner', {
                    'write': lambda: write('f'), 'append': lambda: write('f', flags=os.O_APPEND), 'truncate': lambda: ok(os.truncate, 'f', 0),
                    'chmod': lambda: ok(os.chmod, 'f', 0o660), 'link': lambda: ok(os.link, 'f', 'd/l'), 'make': lambda: ok(os.mkdir, 'd/x'),
                    'remove': lambda: ok(os.rmdir, 'd/x'), 'utimes': lambda: ok(os.utime, 'f', (1, 2)), 'xattr': lambda: ok(os.setxattr, 'f', 'user.a', b''),
                })
                say(f'{who} has set {name}, {kind}, root takes it back', result(opened, kind, os.O_RDONLY, set_flags(0)))
                remove('d')
                remove('f')
