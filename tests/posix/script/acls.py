"""POSIX ACLs: enforced, inherited, and tied to the mode."""

from creation import TYPES, everything
from kit import *


@check
def access_acls():
    cases = {
        'grants a user': acl(6, 0, 0, {STRANGER: 6}, mask=7),
        'denies a user': acl(6, 4, 4, {STRANGER: 0}, mask=7),
        'grants a group': acl(6, 0, 0, groups={GROUP: 6}, mask=7),
        'denies a group': acl(6, 4, 4, groups={GROUP: 0}, mask=7),
        'is masked': acl(6, 6, 0, {STRANGER: 6}, {GROUP: 6}, mask=4),
        'grants others': acl(6, 0, 6, {MEMBER: 4}, mask=7),
        'denies the owner': acl(0, 6, 6, {OWNER: 6}, mask=7),
    }
    for name, value in cases.items():
        make(name, 0o600, OWNER, OWNER)
        say(f'{name}, set', by('owner', ok, os.setxattr, name, ACCESS, value))
        say(f'{name}, is', f'{show(name)} {acl_text(name)}')
        for who in USERS:
            say(f'{name}, {who} reads', by(who, read, name))
            say(f'{name}, {who} writes', by(who, write, name, b'0'))


@check
def access_acls_of_directories():
    cases = {'lets in': acl(7, 0, 0, {STRANGER: 7}, {GROUP: 5}, mask=7), 'keeps out': acl(7, 5, 5, {STRANGER: 0}, {GROUP: 1}, mask=7)}
    for name, value in cases.items():
        make_dir(name, 0o755, OWNER, OWNER)
        make(f'{name}/f')
        os.setxattr(name, ACCESS, value)
        for who in USERS:
            say(f'{name}, {who} lists', by(who, listed, name))
            say(f'{name}, {who} looks up', by(who, show, f'{name}/f'))
            say(f'{name}, {who} makes', by(who, ok, os.mkdir, f'{name}/{who}'))
            remove(f'{name}/{who}')


@check
def default_acls():
    cases = {
        'wide': acl(7, 7, 7, {STRANGER: 7}, {GROUP: 7}, mask=7),
        'narrow': acl(7, 5, 0, {STRANGER: 6}, {GROUP: 5}, mask=5),
        'minimal': acl(7, 5, 0),
        'no mask for the group': acl(6, 7, 4, {MEMBER: 7}, mask=6),
    }
    for name, value in cases.items():
        for umask in (0, 0o077):
            for who in ('root', 'owner', 'member'):
                directory = make_dir(f'{name}.{umask:o}.{who}', 0o2777 if who == 'member' else 0o777)
                os.setxattr(directory, DEFAULT, value)
                by(who, everything, directory, umask=umask)
                for made in TYPES:
                    path = f'{directory}/{made}'
                    say(f'{name}, umask {umask:03o}, {who}, {made}', f'{show(path)} {acl_text(path)} {acl_text(path, DEFAULT)}'
                        if made != 'symlink' else show(path))


@check
def default_acls_are_handed_down():
    make_dir('top', 0o777)
    os.setxattr('top', DEFAULT, acl(7, 5, 5, {STRANGER: 7}, mask=7))

    def nested():
        os.makedirs('top/a/b', 0o700)
        opened('top/a/b/f', os.O_CREAT | os.O_WRONLY, mode=0o4640)
        opened('top/a/b/tmp', os.O_CREAT | os.O_WRONLY, mode=0o600)
    by('owner', nested, umask=0o077)
    for name in ('a', 'a/b', 'a/b/f', 'a/b/tmp'):
        say(name, f'{show("top/" + name)} {acl_text("top/" + name)} {acl_text("top/" + name, DEFAULT)}')
    say('the stranger may write', by('stranger', write, 'top/a/b/tmp'))


@check
def modes_and_acls():
    """A mode with group bits is the mask; the mask is shown as the group's bits."""
    for mode in (0o600, 0o640, 0o770, 0o2777, 0o007):
        make('f', 0o600)
        os.setxattr('f', ACCESS, acl(6, 4, 0, {STRANGER: 6}, mask=6))
        say(f'chmod {mode:04o}', f"{by('owner', ok, os.chmod, 'f', mode)} {show('f')} {acl_text('f')}")
        say(f'chmod {mode:04o}, stranger writes', by('stranger', write, 'f'))
        remove('f')
    make('f', 0o640)
    say('an ACL that is a mode', f"{by('owner', ok, os.setxattr, 'f', ACCESS, acl(7, 0, 1))} {show('f')} {acl_text('f')}")


@check
def setting_acls():
    value = acl(7, 5, 5, {STRANGER: 4}, mask=5)
    for who in USERS:
        for mode, gid in ((0o2755, GROUP), (0o2755, USERS[who][0]), (0o6755, GROUP), (0o2745, GROUP)):
            make('f', mode, USERS[who][0], gid)
            answer = by(who, ok, os.setxattr, 'f', ACCESS, value)
            say(f"{who}, own {mode:04o}, {'group' if gid == GROUP else 'own group'}", f"{answer} {show('f')} {acl_text('f')}")
            say(f"{who}, own {mode:04o}, {'group' if gid == GROUP else 'own group'}, removed",
                f"{by(who, ok, os.removexattr, 'f', ACCESS)} {show('f')} {acl_text('f')}")
            remove('f')
        make('f', 0o666)
        say(f'{who}, of the owner', by(who, ok, os.setxattr, 'f', ACCESS, value))
        say(f'{who}, of the owner, removed', by(who, ok, os.removexattr, 'f', ACCESS))
        say(f'{who} sees it', by(who, acl_text, 'f'))
        remove('f')
        make_dir('d', 0o2777, USERS[who][0])
        say(f'{who}, directory', f"{by(who, ok, os.setxattr, 'd', ACCESS, value)} {show('d')}")
        say(f'{who}, default', f"{by(who, ok, os.setxattr, 'd', DEFAULT, value)} {show('d')}")
        say(f'{who}, default removed', f"{by(who, ok, os.removexattr, 'd', DEFAULT)} {acl_text('d', DEFAULT)}")
        remove('d')


@check
def bad_acls():
    make('f')
    os.symlink('f', 'l')
    say('a default ACL for a file', by('root', ok, os.setxattr, 'f', DEFAULT, acl(7, 5, 5)))
    say('removing none', by('root', ok, os.removexattr, 'f', ACCESS))
    say('of a link', by('root', ok, os.setxattr, 'l', ACCESS, acl(7, 5, 5), follow_symlinks=False))
    for name, value in {'empty': b'', 'short': acl(7, 5, 5)[:-1], 'version': b'\3' + acl(7, 5, 5)[1:], 'without a mask': acl(7, 5, 5, {1: 7}),
                        'bits': acl(8, 5, 5), 'header only': acl(7, 5, 5)[:4]}.items():
        say(f'value {name}', f"{by('root', ok, os.setxattr, 'f', ACCESS, value)} {show('f')}")
    say('listed without', os.listxattr('f'))
    os.setxattr('f', ACCESS, acl(7, 5, 5, {1: 7}, mask=7))
    say('listed with', os.listxattr('f'))
