"""Hard links, symbolic links, renames."""

from creation import link_fd
from kit import *
from permission import rename2

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4


@check
def hard_links():
    make('a')
    say('made', by('owner', ok, os.link, 'a', 'b'))
    say('first', show('a'))
    say('second', show('b'))
    say('one file', os.path.samestat(os.stat('a'), os.stat('b')))
    write('b', b'through b')
    say('content', read('a'))
    os.chmod('b', 0o600)
    say('mode', show('a'))
    fd = os.open('a', os.O_RDONLY)
    os.unlink('a')
    say('after unlink', f"{show('b')} {os.fstat(fd).st_nlink}")
    os.rename('b', 'c')
    say('after rename', f"{show('c')} {os.fstat(fd).st_nlink}")
    os.unlink('c')
    say('after both', os.fstat(fd).st_nlink)
    os.close(fd)
    make_dir('d')
    say('of a directory', by('root', ok, os.link, 'd', 'e'))
    make('f')
    say('over a file', by('root', ok, os.link, 'f', 'f'))
    os.symlink('f', 'l')
    os.link('l', 'of-link', follow_symlinks=False)
    say('of a link', show('of-link'))
    say('followed', by('root', c, 'linkat', AT_FDCWD, b'l', AT_FDCWD, b'followed', AT_SYMLINK_FOLLOW))
    say('is', show('followed'))
    say('same name', by('root', ok, os.rename, 'followed', 'f'))
    say('both stay', f"{show('followed')} {show('f')}")
    for who in USERS:
        say(f'of an open file, {who}', by(who, opened, 'f', os.O_RDONLY, lambda fd: link_fd(fd, f'f.{who}')))
    os.mkfifo('p')
    os.link('p', 'q')
    say('of a fifo', show('p'))


@check
def nlink_of_directories():
    make_dir('d')
    say('empty', show('d'))
    os.mkdir('d/a')
    os.mkdir('d/b')
    make('d/f')
    say('two in it', show('d'))
    os.rmdir('d/a')
    say('one in it', show('d'))
    os.mkdir('e')
    os.rename('d/b', 'e/b')
    say('moved', f"{show('d')} {show('e')}")


@check
def rename_flags():
    kinds = {'file': lambda p: make(p, data=os.fsencode(p)), 'dir': make_dir, 'symlink': lambda p: os.symlink(p, p), 'none': lambda p: None,
             'full': lambda p: (make_dir(p), make(f'{p}/f'))}
    for flags in (0, NOREPLACE, EXCHANGE, WHITEOUT, NOREPLACE | WHITEOUT, NOREPLACE | EXCHANGE, 8):
        for old, make_old in kinds.items():
            for new, make_new in kinds.items():
                make_old('a')
                make_new('b')
                say(f'{flags}, {old} to {new}', f"{result(rename2, 'a', 'b', flags)} {show('a')} {show('b')}")
                remove('a')
                remove('b')
    for who in USERS:
        make('a', 0o644, USERS[who][0])
        say(f'whiteout of {who}', f"{by(who, rename2, 'a', 'b', WHITEOUT)} {show('a')} {show('b')}")
        remove('a')
        remove('b')


@check
def rename_errors():
    make_dir('a', 0o777)
    make_dir('a/b', 0o777)
    make('f')
    os.symlink('a', 'l')
    for old, new in (('a', 'a/b/c'), ('a/b', 'a'), ('a', 'f'), ('f', 'a'), ('f', 'a/b/.'), ('a/.', 'x'), ('.', 'x'), ('f/', 'x'), ('a/', 'x/'),
                     ('x', 'a/'), ('none', 'x'), ('f', 'none/x'), ('f', 'f/x'), ('l/', 'y'), ('l', 'k'), ('', 'x'), ('f', '')):
        say(f'{old} to {new}', result(ok, os.rename, old, new))
    say('left', listed())


@check
def removal_errors():
    make_dir('d', 0o777)
    make('d/f')
    os.symlink('d', 'l')
    make('f')
    for name, act, path in (('unlink of a directory', os.unlink, 'd'), ('rmdir of a file', os.rmdir, 'f'), ('rmdir of a full one', os.rmdir, 'd'),
                            ('rmdir of a link', os.rmdir, 'l'), ('unlink of a link with slash', os.unlink, 'l/'), ('rmdir of .', os.rmdir, 'd/.'),
                            ('rmdir of ..', os.rmdir, 'd/..'), ('unlink of nothing', os.unlink, 'none'), ('below a file', os.unlink, 'f/x'),
                            ('rmdir below a file', os.rmdir, 'f/x'), ('unlink of a file with slash', os.unlink, 'f/')):
        for who in USERS:
            say(f'{name}, {who}', by(who, ok, act, path))


@check
def symbolic_links():
    make('f')
    os.symlink('f', 'l')
    say('is', show('l'))
    say('to nothing', by('root', ok, os.symlink, '', 'e'))
    say('over a file', by('root', ok, os.symlink, 'x', 'f'))
    os.symlink('loop', 'loop')
    say('loop', by('root', read, 'loop'))
    os.symlink('c2', 'c1')
    os.symlink('c1', 'c2')
    say('circle', by('root', read, 'c1/x'))
    for length in (1, 59, 60, 61, 255, 1023):
        target = 't' * length
        os.symlink(target, f's{length}')
        say(f'{length} bytes', f"{os.readlink(f's{length}') == target} {show(f's{length}')}")
    for length in (4095, 4096):
        say(f'{length} bytes', f"{result(ok, os.symlink, 't' * length, f's{length}')} {show(f's{length}')}")
        say(f'{length} bytes, read', result(lambda: os.readlink(f's{length}') == 't' * length))
    os.symlink(b'\xff\n\x01', b'odd')
    say('odd bytes', os.readlink(b'odd'))
    say('readlink of a file', by('root', os.readlink, 'f'))
    os.symlink('.', 'self')
    say('40 in a row', by('root', show, 'self/' * 39 + 'f'))
    say('41 in a row', by('root', show, 'self/' * 41 + 'f'))
