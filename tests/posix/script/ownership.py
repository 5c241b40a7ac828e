"""chown and chmod: who may, and what else they change."""

from kit import *


@check
def chmod():
    for who in USERS:
        for gid in (GROUP, 1002, 0):
            for mode in (0o600, 0o4755, 0o2755, 0o2644, 0o6777, 0o1777):
                make('f', 0o644, USERS[who][0], gid)
                make_dir('d', 0o755, USERS[who][0], gid)
                answer = f"{by(who, ok, os.chmod, 'f', mode)}, {by(who, ok, os.chmod, 'd', mode)}"
                say(f'{who}, own with group {gid}, {mode:04o}', f"{answer}, {show('f')}, {show('d')}")
                remove('f')
                remove('d')
        make('f')
        say(f'{who}, of another', f"{by(who, ok, os.chmod, 'f', 0o777)} {show('f')}")
        remove('f')
    os.symlink('f', 'l')
    make('f')
    say('through a link', f"{by('owner', ok, os.chmod, 'l', 0o600)} {show('f')}")


@check
def chown():
    wishes = {'nothing': (-1, -1), 'to oneself': (None, -1), 'to a stranger': (STRANGER, -1), 'own group': (-1, None),
              'the group': (-1, GROUP), 'another group': (-1, 3000), 'both': (None, GROUP), 'all': (0, 0)}
    for who in USERS:
        me = USERS[who][0]
        for uid in sorted({me, OWNER}):
            for mode in (0o6777, 0o2766, 0o644):
                for name, (to, group) in wishes.items():
                    make('f', mode, uid, 3000)
                    os.setxattr('f', 'security.capability', capability())
                    to, group = me if to is None else to, me if group is None else group
                    answer = by(who, ok, os.chown, 'f', to, group)
                    say(f'{who}, of {uid}, {mode:04o}, {name}', f"{answer} {show('f')} {has_capability('f')}")
                    remove('f')


@check
def chown_of_directories():
    for who in USERS:
        me = USERS[who][0]
        for mode in (0o6777, 0o2706):
            for to, group in ((-1, -1), (me, -1), (-1, GROUP), (me, me)):
                make_dir('d', mode, me, 3000)
                answer = by(who, ok, os.chown, 'd', to, group)
                say(f'{who}, {mode:04o}, {to}:{group}'.replace(str(me), 'me'), f"{answer} {show('d')}")
                remove('d')


@check
def chown_of_others():
    for name, do in (('symlink', lambda: os.symlink('f', 'x')), ('fifo', lambda: os.mkfifo('x'))):
        do()
        os.lchown('x', MEMBER, 3000)
        for who in USERS:
            say(f'{name}, {who}', f"{by(who, ok, os.lchown, 'x', -1, GROUP)} {show('x')}")
        remove('x')


@check
def fchown_and_fchmod():
    for who in USERS:
        make('f', 0o4666, USERS[who][0])
        for name, act in (('fchown', lambda fd: os.fchown(fd, -1, USERS[who][0])), ('fchmod', lambda fd: os.fchmod(fd, 0o6711))):
            say(f'{who} {name}', f"{by(who, opened, 'f', os.O_RDONLY, act)} {show('f')}")
        remove('f')
    make('f')
    say('fchmod of O_PATH', by('owner', opened, 'f', os.O_PATH, lambda fd: os.fchmod(fd, 0o600)))
