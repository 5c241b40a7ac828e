"""Names and paths of all lengths and bytes."""

from kit import *


@check
def names():
    for what, name in {'255 bytes': b'n' * 255, '256 bytes': b'n' * 256, 'invalid UTF-8': b'\xff\xfe\x80', 'newline': b'a\nb', 'control': bytes(range(1, 32)),
                       'blank': b' ', 'backslash': b'\\', 'dashes': b'--', 'dots': b'...', 'quotes': b'\'"', '255 bytes that are no text': bytes([0x80 + i % 128 for i in range(255)]),
                       '256 bytes that are no text': b'\xff' * 256, 'two-byte letters': 'ä'.encode() * 127, 'combining': 'a\u0308'.encode(),
                       'fuse': b'.fuse_hidden0000000100000001', 'ours': b'user.mendfs.lost'}.items():
        for kind, do in {'file': lambda p: opened(p, os.O_CREAT | os.O_EXCL | os.O_WRONLY), 'dir': os.mkdir, 'symlink': lambda p: os.symlink(p[:255], p),
                         'fifo': os.mkfifo}.items():
            say(f'{what}, {kind}', result(ok, do, name))
            say(f'{what}, {kind}, listed', name in os.listdir(b'.'))
            say(f'{what}, {kind}, renamed', result(ok, os.rename, name, b'x'))
            say(f'{what}, {kind}, back', result(ok, os.rename, b'x', name))
            say(f'{what}, {kind}, linked', result(ok, os.link, name, b'm' + name[1:], follow_symlinks=False))
            say(f'{what}, {kind}, shown', show(name))
            for path in (name, b'm' + name[1:], b'x'):
                if len(path) < 256:
                    remove(path)
    say('left', listed())


@check
def two_names_that_look_alike():
    make('Name', data=b'1')
    make('name', data=b'2')
    make('\u00e4', data=b'3')
    make('a\u0308', data=b'4')
    say('all are there', [read(n) for n in ('Name', 'name', '\u00e4', 'a\u0308')])


@check
def long_paths():
    """Paths as long as they may be, and files much deeper than that."""
    step = 'd' * 250
    here = os.open('.', os.O_RDONLY)
    for _ in range(20):
        os.mkdir(step)
        os.chdir(step)
    make('f', data=b'deep')
    os.symlink('f', 'l')
    say('at the bottom', f"{read('f')} {show('f')} {listed()} {os.readlink('l')}")
    say('the way up', result(lambda: KINDS[stat.S_IFMT(os.stat('../' * 20 + step).st_mode)]))
    os.fchdir(here)
    stem = (step + '/') * 16  # 4016 bytes
    for length in (4094, 4095, 4096, 5000):
        path = stem + 'x' * (length - len(stem)) if length < 4272 else stem + 'x' * 100 + '/' + 'x' * 2000
        act = {
            'create': lambda: opened(path, os.O_CREAT | os.O_WRONLY, lambda fd: os.write(fd, b'x')), 'read': lambda: read(path),
            'chmod': lambda: os.chmod(path, 0o600), 'truncate': lambda: os.truncate(path, 0), 'chown': lambda: os.chown(path, 1, 1),
            'utimes': lambda: os.utime(path, (1, 2)), 'setxattr': lambda: os.setxattr(path, 'user.a', b'1'), 'stat': lambda: show(path),
            'link': lambda: os.link(path, 'linked'), 'link to': lambda: os.link('linked', path[:-1] + 'y'), 'rename': lambda: os.rename(path, 'moved'),
            'rename to': lambda: os.rename('moved', path), 'unlink': lambda: os.unlink(path), 'mkdir': lambda: os.mkdir(path), 'rmdir': lambda: os.rmdir(path),
            'symlink': lambda: os.symlink('t', path), 'readlink': lambda: os.readlink(path), 'mkfifo': lambda: os.mkfifo(path[:-1] + 'z'),
            'unlink the link': lambda: os.unlink(path),
        }
        for name, do in act.items():
            say(f'{length} bytes, {name}', result(do))
        remove('linked')
        remove('moved')
    os.close(here)
    climb_down(step, 20)


def climb_down(step, depth):
    """Removes what no path reaches."""
    for _ in range(depth):
        os.chdir(step)
    for _ in range(depth):
        for name in os.listdir('.'):
            if name != step:
                os.unlink(name)
        os.chdir('..')
        os.rmdir(step)


@check
def directories_in_paths():
    make('f')
    make_dir('d', 0o777)
    for path in ('f/', 'f/.', 'f/..', 'f/x', 'd/', 'd/.', 'd/..', 'd//', './/d', 'none/', 'none/..', '', '/'):
        say(f'stat of {path!r}', result(lambda: KINDS[stat.S_IFMT(os.stat(path).st_mode)]))
        say(f'directory {path!r}', result(opened, path, os.O_RDONLY | os.O_DIRECTORY))
        say(f'writing {path!r}', result(opened, path, os.O_WRONLY))


@check
def large_directory():
    os.mkdir('d')
    for i in range(1500):
        os.mknod(f'd/{"long" * 10}{i}')
    say('listed', len(set(os.listdir('d'))))
    entries = os.scandir('d')
    first = [next(entries).name for _ in range(10)]
    for name in os.listdir('d'):
        if name not in first:
            os.unlink(f'd/{name}')
    entries.close()
    say('left', len(os.listdir('d')))
    say('types', {e.is_file(follow_symlinks=False) for e in os.scandir('d')})
    for name in first:
        os.unlink(f'd/{name}')
    say('empty', result(ok, os.rmdir, 'd'))


@check
def types_in_listings():
    """What readdir says of a file is what stat says."""
    make('file')
    make_dir('dir')
    os.symlink('file', 'link')
    os.mkfifo('fifo')
    os.mknod('char', stat.S_IFCHR, os.makedev(1, 3))
    for e in sorted(os.scandir('.'), key=lambda e: e.name):
        say(e.name, f"{e.is_file(follow_symlinks=False)} {e.is_dir(follow_symlinks=False)} {e.is_symlink()} {e.inode() == os.lstat(e.name).st_ino}")
