"""Who may do what by mode bits, and in sticky directories."""

from kit import *


@check
def mode_bits():
    for mode in (0o400, 0o200, 0o040, 0o020, 0o004, 0o002, 0o604, 0o066, 0):
        name = f'{mode:03o}'
        make(name, mode)
        for who in USERS:
            each(f'{name}, {who}', who, {'reads': lambda: read(name), 'writes': lambda: write(name)})


@check
def directory_bits():
    for mode in (0o700, 0o500, 0o300, 0o100, 0o070, 0o050, 0o030, 0o007, 0o005, 0o003, 0o001, 0):
        name = f'{mode:03o}'
        make_dir(name, 0o777)
        make(f'{name}/f')
        os.chmod(name, mode)
        for who in USERS:
            each(f'{name}, {who}', who, {
                'lists': lambda: listed(name),
                'looks up': lambda: show(f'{name}/f'),
                'makes': lambda: ok(os.mkdir, f'{name}/{who}'),
                'renames': lambda: ok(os.rename, f'{name}/f', f'{name}/g'),
                'renames back': lambda: ok(os.rename, f'{name}/g', f'{name}/f'),
                'links': lambda: ok(os.link, f'{name}/f', f'{name}/l'),
            })
            remove(f'{name}/l')
            if os.path.exists(f'{name}/g'):
                os.rename(f'{name}/g', f'{name}/f')


@check
def access():
    for mode in (0o640, 0o751, 0o124, 0):
        for make_it in (make, make_dir):
            name = f'{make_it.__name__}.{mode:03o}'
            make_it(name, mode)
            for who in USERS:
                def all_of_it():
                    return ' '.join(str(os.access(name, m)) for m in (os.F_OK, os.R_OK, os.W_OK, os.X_OK))
                say(f'{name}, {who}', by(who, all_of_it))


@check
def faccessat2():
    """The effective ids count, if that is asked for."""
    make('f', 0o600)
    make_dir('d', 0o700)

    def ask(path, flags):
        return result(c, 'syscall', 439, AT_FDCWD, path, os.R_OK, flags)

    def as_owner(path):
        os.setresuid(STRANGER, OWNER, 0)
        return ask(path, 0), ask(path, AT_EACCESS)
    for path in (b'f', b'd'):
        say(path.decode(), by('root', as_owner, path))
    os.symlink('nowhere', 'l')
    say('symlink itself', by('stranger', ask, b'l', AT_SYMLINK_NOFOLLOW))


@check
def execution():
    for mode in (0o700, 0o070, 0o007, 0o711, 0o644):
        name = f'{mode:03o}'
        program(name, 'true', mode)
        for who in USERS:
            say(f'{name}, {who}', by(who, execute, f'./{name}'))


def program(path, name, mode, uid=OWNER, gid=GROUP):
    with open(f'/bin/{name}', 'rb') as f:
        return make(path, mode, uid, gid, f.read())


def execute(*argv):
    """What a program prints, or its errno; it runs in a process of its own."""
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(w, 1)
        try:
            os.execv(argv[0], argv)
        except OSError as e:
            os.write(w, errno.errorcode[e.errno].encode())
        os._exit(1)
    os.close(w)
    with open(r) as pipe:
        said = pipe.read().strip()
    return f'{said} exit={os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}'


@check
def sticky_directory():
    """A member owns the directory, the owner owns the files in it."""
    make_dir('sticky', 0o1777, MEMBER, GROUP)
    attempts = {
        'unlinks': lambda: ok(os.unlink, 'sticky/f'),
        'removes a directory': lambda: ok(os.rmdir, 'sticky/d'),
        'renames': lambda: ok(os.rename, 'sticky/f', 'sticky/g'),
        'renames a directory': lambda: ok(os.rename, 'sticky/d', 'sticky/e'),
        'renames out of it': lambda: ok(os.rename, 'sticky/f', 'out/f'),
        'renames onto it': lambda: ok(os.rename, 'out/mine', 'sticky/f'),
        'exchanges': lambda: rename2('sticky/f', 'out/mine', 2),
        'links': lambda: ok(os.link, 'sticky/f', 'out/l'),
    }
    for who in USERS:
        for name, attempt in attempts.items():
            for path in ('sticky/f', 'sticky/g', 'sticky/d', 'sticky/e', 'out'):
                remove(path)
            make_dir('out', 0o777)
            make('out/mine', 0o644, USERS[who][0])
            make('sticky/f', 0o666)
            make_dir('sticky/d', 0o777)
            say(f'{who} {name}', by(who, attempt))


def rename2(old, new, flags):
    return c('renameat2', AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)


@check
def renames_of_directories():
    """Moving a directory changes its "..", so it has to be writable."""
    for who in USERS:
        make_dir(f'{who}.from', 0o777)
        make_dir(f'{who}.to', 0o777)
        for mode in (0o755, 0o777):
            make_dir(f'{who}.from/{mode:o}', mode)
            say(f'{who} moves {mode:o}', by(who, ok, os.rename, f'{who}.from/{mode:o}', f'{who}.to/{mode:o}'))


@check
def protected_links():
    """The sysctls fs.protected_* hold here as everywhere."""
    make_dir('sticky', 0o1777, 0, 0)
    make('sticky/f', 0o666)
    make('private', 0o600)
    os.mkfifo('sticky/p')
    os.chown('sticky/p', OWNER, GROUP)
    os.chmod('sticky/p', 0o666)
    os.symlink('f', 'sticky/l')
    os.lchown('sticky/l', OWNER, GROUP)
    for who in USERS:
        say(f'{who} creates over a file', by(who, opened, 'sticky/f', os.O_WRONLY | os.O_CREAT))
        say(f'{who} creates over a fifo', by(who, opened, 'sticky/p', os.O_RDWR | os.O_CREAT))
        say(f'{who} follows a link', by(who, read, 'sticky/l'))
        say(f'{who} links a private file', by(who, ok, os.link, 'private', f'sticky/{who}'))
