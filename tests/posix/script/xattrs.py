"""Extended attributes: namespaces, flags, limits."""

from kit import *

CREATE, REPLACE = os.XATTR_CREATE, os.XATTR_REPLACE


@check
def namespaces():
    """By namespace, user, and kind of file: set, get, list, remove."""
    kinds = {'file': lambda p: make(p, 0o666), 'readable': lambda p: make(p, 0o644), 'dir': lambda p: make_dir(p, 0o777),
             'sticky': lambda p: make_dir(p, 0o1777), 'symlink': lambda p: os.symlink('f', p), 'fifo': lambda p: (os.mkfifo(p), os.chmod(p, 0o666)),
             'char': lambda p: (os.mknod(p, stat.S_IFCHR, os.makedev(1, 3)), os.chmod(p, 0o666))}
    for kind, do in kinds.items():
        do(kind)
        for who in USERS:
            acts = {}
            for name in ('user.a', 'trusted.a', 'security.a', 'system.a', 'nowhere.a', 'noname', 'user.', 'user'):
                acts |= {
                    f'sets {name}': lambda name=name: ok(os.setxattr, kind, name, b'1', follow_symlinks=False),
                    f'gets {name}': lambda name=name: os.getxattr(kind, name, follow_symlinks=False),
                    f'lists with {name}': lambda: os.listxattr(kind, follow_symlinks=False),
                    f'removes {name}': lambda name=name: ok(os.removexattr, kind, name, follow_symlinks=False),
                }
            each(f'{kind}, {who}', who, acts)


@check
def hidden():
    """trusted.* is not for users, and neither are its names."""
    make('f', 0o666)
    for name in ('trusted.a', 'user.b', 'security.c', 'trusted.d'):
        os.setxattr('f', name, b'secret')
    for who in USERS:
        say(f'{who} lists', by(who, lambda: sorted(os.listxattr('f'))))
        say(f'{who} asks for the size of the list', by(who, c, 'listxattr', b'f', None, 0))
        say(f'{who} gets', by(who, os.getxattr, 'f', 'trusted.a'))
        say(f'{who} changes', by(who, ok, os.setxattr, 'f', 'trusted.a', b'x'))
        say(f'{who} removes', by(who, ok, os.removexattr, 'f', 'trusted.d'))


@check
def flags():
    make('f')
    for flag in (0, CREATE, REPLACE, CREATE | REPLACE, 8):
        say(f'{flag}, not there', by('owner', ok, os.setxattr, 'f', 'user.new', b'1', flag))
        remove_attr('f', 'user.new')
        os.setxattr('f', 'user.old', b'1')
        say(f'{flag}, there', f"{by('owner', ok, os.setxattr, 'f', 'user.old', b'2', flag)} {os.getxattr('f', 'user.old')}")
    say('removing what is not there', by('owner', ok, os.removexattr, 'f', 'user.none'))
    say('getting what is not there', by('owner', os.getxattr, 'f', 'user.none'))
    say('an empty value', f"{by('owner', ok, os.setxattr, 'f', 'user.old', b'')} {os.getxattr('f', 'user.old')}")


def remove_attr(path, name):
    if name in os.listxattr(path):
        os.removexattr(path, name)


@check
def limits():
    make('f')
    os.setxattr('f', 'user.ten', b'0123456789')
    buffer = ctypes.create_string_buffer(70000)
    for size in (0, 5, 10, 11, 70000):
        say(f'get into {size}', result(c, 'getxattr', b'f', b'user.ten', buffer, size))
        say(f'list into {size}', result(c, 'listxattr', b'f', buffer, size))
    for length in (255, 256, 300):
        say(f'a name of {length}', result(ok, os.setxattr, 'f', 'user.' + 'n' * (length - 5), b''))
    for length in (2000, 65537):
        say(f'a value of {length}', result(ok, os.setxattr, 'f', 'user.big', b'v' * length))
    say('any bytes in a name', result(ok, os.setxattr, 'f', b'user.\xff\n\x01=', bytes(range(256))))
    say('any bytes come back', result(os.getxattr, 'f', b'user.\xff\n\x01='))
    say('no name', result(ok, os.setxattr, 'f', '', b''))
    make('many')
    for i in range(50):
        os.setxattr('many', f'user.{i}', b'%d' % i)
    say('many', len(os.listxattr('many')))
    say('all of them', all(os.getxattr('many', f'user.{i}') == b'%d' % i for i in range(50)))


@check
def by_descriptor():
    for who in USERS:
        make('f', 0o664)
        say(f'{who}, read-only', by(who, opened, 'f', os.O_RDONLY, lambda fd: (os.setxattr(fd, 'user.a', b'1'), os.listxattr(fd), os.removexattr(fd, 'user.a'))))
        say(f'{who}, O_PATH', by(who, opened, 'f', os.O_PATH, lambda fd: os.setxattr(fd, 'user.a', b'1')))
        remove('f')
