"""What new objects are: owner, group, mode."""

import socket

from kit import *


def bind(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(path)


def unnamed(path):
    """A file made without a name, and given one."""
    directory = os.path.dirname(path) or '.'
    return opened(directory, os.O_TMPFILE | os.O_RDWR, lambda fd: link_fd(fd, path))


def link_fd(fd, path):
    return c('linkat', AT_FDCWD, b'/proc/self/fd/%d' % fd, AT_FDCWD, os.fsencode(path), AT_SYMLINK_FOLLOW)


TYPES = {
    'file': lambda path: opened(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, mode=0o666),
    'mknod': lambda path: ok(os.mknod, path, stat.S_IFREG | 0o666),
    'unnamed': unnamed,
    'dir': lambda path: ok(os.mkdir, path, 0o777),
    'symlink': lambda path: ok(os.symlink, 'target', path),
    'fifo': lambda path: ok(os.mkfifo, path, 0o666),
    'socket': lambda path: ok(bind, path),
    'char': lambda path: ok(os.mknod, path, stat.S_IFCHR | 0o666, os.makedev(1, 3)),
    'block': lambda path: ok(os.mknod, path, stat.S_IFBLK | 0o666, os.makedev(7, 0)),
    'whiteout': lambda path: ok(os.mknod, path, stat.S_IFCHR | 0o666, 0),
}
DIRECTORIES = {
    'plain': (0o777, 0, 0),
    'group': (0o770, 0, GROUP),  # for members
    'setgid': (0o2777, 0, GROUP),
    'setgid, sticky': (0o3777, OWNER, GROUP),
    'closed': (0o755, 0, 0),
}


def everything(directory):
    return ' '.join(f'{name}={result(do, f"{directory}/{name}")}' for name, do in TYPES.items())


@check
def owners():
    for kind, (mode, uid, gid) in DIRECTORIES.items():
        for umask in (0, 0o022, 0o077):
            for who in USERS:
                directory = make_dir(f'{kind}.{umask:03o}.{who}', mode, uid, gid)
                where = f'{kind}, umask {umask:03o}, {who}'
                say(where, by(who, everything, directory, umask=umask))
                for name in listed(directory):
                    say(f'{where}, {name}', show(f'{directory}/{name}'))


@check
def setgid_is_inherited():
    for who in USERS:
        make_dir(who, 0o2777)

        def nested():
            os.makedirs(f'{who}/a/b/c')
            os.mkdir(f'{who}/s', 0o2755)
            os.chmod(f'{who}/a/b', 0o755)
            os.mkdir(f'{who}/a/b/d')
            os.mknod(f'{who}/a/b/c/f')
        by(who, nested)
        for name in ('a', 'a/b', 'a/b/c', 'a/b/c/f', 'a/b/d', 's'):
            say(f'{who}, {name}', show(f'{who}/{name}'))


@check
def group_of_what_moves_in():
    """Only what is made there gets the directory's group."""
    make_dir('setgid', 0o2777)
    make('f', 0o644, OWNER, OWNER)
    make_dir('d', 0o755, OWNER, OWNER)
    os.link('f', 'setgid/linked')
    os.rename('f', 'setgid/f')
    os.rename('d', 'setgid/d')
    for name in ('linked', 'f', 'd'):
        say(name, show(f'setgid/{name}'))


@check
def special_bits():
    for kind in ('plain', 'setgid'):
        for who in USERS:
            mode, uid, gid = DIRECTORIES[kind]
            directory = make_dir(f'{kind}.{who}', mode, uid, gid)

            def all_modes():
                for mode in (0o1644, 0o4755, 0o6755, 0o2755, 0o2644, 0o7777):
                    opened(f'{directory}/open.{mode:04o}', os.O_CREAT | os.O_RDWR, mode=mode)
                    os.mknod(f'{directory}/mknod.{mode:04o}', stat.S_IFREG | mode)
                    os.mkfifo(f'{directory}/fifo.{mode:04o}', mode)
                    os.mkdir(f'{directory}/mkdir.{mode:04o}', mode)
                    opened(directory, os.O_TMPFILE | os.O_RDWR, lambda fd: link_fd(fd, f'{directory}/unnamed.{mode:04o}'), mode)
            by(who, all_modes, umask=0)
            for name in listed(directory):
                say(f'{kind}, {who}, {name}', show(f'{directory}/{name}'))


@check
def unusual_creation():
    os.symlink('there', 'dangling')
    say('through a dangling link', by('owner', write, 'dangling', flags=os.O_CREAT))
    say('the link', show('dangling'))
    say('the file', show('there'))
    say('exclusively on a link', by('owner', opened, 'dangling', os.O_CREAT | os.O_EXCL | os.O_WRONLY))

    def without_rights():
        return opened('mode0', os.O_CREAT | os.O_RDWR, lambda fd: (os.write(fd, b'x'), os.pread(fd, 9, 0)), 0)
    say('with mode 0', by('owner', without_rights))
    say('with mode 0, again', by('owner', without_rights))
    for flags in (os.O_CREAT, os.O_CREAT | os.O_EXCL):
        say(f'over a directory, {flags:o}', by('root', opened, '.', flags | os.O_WRONLY))
    say('with a slash behind', by('root', opened, 'slash/', os.O_CREAT | os.O_WRONLY))
    say('mkdir with a slash behind', by('root', ok, os.mkdir, 'slash/'))
    say('mkdir over a file', by('root', ok, os.mkdir, 'there'))
    say('mkdir over a link', by('root', ok, os.mkdir, 'dangling'))
    say('mknod of a directory', by('root', ok, os.mknod, 'node', stat.S_IFDIR))
