"""flock, fcntl and open-file locks between two processes, and leases."""

import fcntl

from kit import *

OFD_SETLK = 37
KINDS_OF = {'read': fcntl.F_RDLCK, 'write': fcntl.F_WRLCK}


def lock(fd, kind, start=0, length=0, command=fcntl.F_SETLK):
    return 'ok' if fcntl.fcntl(fd, command, struct.pack('hhqqi4x', KINDS_OF[kind], 0, start, length, 0)) else None


WAYS = {
    'flock': lambda fd, kind: ok(fcntl.flock, fd, (fcntl.LOCK_SH if kind == 'read' else fcntl.LOCK_EX) | fcntl.LOCK_NB),
    'fcntl': lock,
    'open file': lambda fd, kind: lock(fd, kind, command=OFD_SETLK),
}


@check
def conflicts():
    make('f', 0o666)
    for held, hold in WAYS.items():
        for kind in KINDS_OF:
            fd = os.open('f', os.O_RDWR)
            hold(fd, kind)
            for wanted, want in WAYS.items():
                for other in KINDS_OF:
                    say(f'{held} {kind} held, {wanted} {other}', by('stranger', opened, 'f', os.O_RDWR, lambda fd: want(fd, other)))
                    say(f'{held} {kind} held, {wanted} {other}, same process', opened('f', os.O_RDWR, lambda fd: result(want, fd, other)) if wanted != 'fcntl' else '-')
            os.close(fd)
            say(f'{held} {kind} given back', by('stranger', opened, 'f', os.O_RDWR, lambda fd: hold(fd, 'write')))


@check
def ranges():
    make('f', 0o666)
    fd = os.open('f', os.O_RDWR)
    lock(fd, 'write', 10, 10)
    for start_at, length in ((0, 10), (0, 11), (15, 1), (20, 0), (19, 1), (0, 0)):
        say(f'{start_at}+{length}', by('member', opened, 'f', os.O_RDWR, lambda fd: lock(fd, 'read', start_at, length)))

    def ask(fd):
        kind, _, start_at, length, pid = struct.unpack('hhqqi4x', fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0)))
        return kind, start_at, length, pid == os.getppid()
    say('who holds it', by('member', opened, 'f', os.O_RDWR, ask))
    opened('f', os.O_RDONLY)
    say('any close gives it back', by('member', opened, 'f', os.O_RDWR, lambda fd: lock(fd, 'write')))


@check
def waiting():
    make('f', 0o666)
    fd = os.open('f', os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    r, w = os.pipe()

    def wait_for_it():
        def act(mine):
            os.write(w, b'.')
            fcntl.flock(mine, fcntl.LOCK_EX)
            return os.pread(mine, 10, 0)
        return opened('f', os.O_RDWR, act)
    waits = start('owner', wait_for_it)
    os.read(r, 1)
    os.pwrite(fd, b'after', 0)
    fcntl.flock(fd, fcntl.LOCK_UN)
    say('gets it in the end', waits())
    os.close(fd)
    say('read-only and a write lock', opened('f', os.O_RDONLY, lambda fd: result(lock, fd, 'write')))
    say('read-only and a read lock', opened('f', os.O_RDONLY, lambda fd: result(lock, fd, 'read')))


@check
def leases():
    for who in USERS:
        make('f', 0o666, USERS[who][0])
        for name, kind, flags in (('read', fcntl.F_RDLCK, os.O_RDONLY), ('write', fcntl.F_WRLCK, os.O_RDWR)):
            say(f'{who}, {name}', by(who, opened, 'f', flags, lambda fd: (fcntl.fcntl(fd, fcntl.F_SETLEASE, kind), fcntl.fcntl(fd, fcntl.F_GETLEASE))))
        fd = os.open('f', os.O_RDONLY)
        say(f'{who}, write, while it is open', by(who, opened, 'f', os.O_RDWR, lambda fd: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)))
        os.close(fd)
        remove('f')
    make('f', 0o666)
    fd = os.open('f', os.O_RDONLY)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    signal_off()
    say('a lease is broken', by('owner', opened, 'f', os.O_WRONLY | os.O_NONBLOCK))
    os.close(fd)


def signal_off():
    import signal
    signal.signal(signal.SIGIO, signal.SIG_IGN)
