"""What the options of the mount decide: setuid programs, devices, execution."""

from kit import *
from permission import execute, program


@check
def setuid_programs():
    for mode in (0o4755, 0o2755, 0o6755, 0o755):
        program('id', 'id', mode)
        for who in USERS:
            say(f'{mode:04o}, {who}', by(who, execute, './id', '-u') + ' ' + by(who, execute, './id', '-g'))
        remove('id')


@check
def devices():
    os.mknod('null', stat.S_IFCHR, os.makedev(1, 3))
    os.chmod('null', 0o666)
    os.mknod('zero', stat.S_IFCHR, os.makedev(1, 5))
    for who in USERS:
        say(f'{who} writes', by(who, write, 'null'))
        say(f'{who} reads', by(who, opened, 'zero', os.O_RDONLY, lambda fd: os.read(fd, 3)))
        say(f'{who} makes', by(who, ok, os.mknod, f'new.{who}', stat.S_IFCHR | 0o666, os.makedev(1, 3)))


@check
def execution_of_programs():
    program('true', 'true', 0o755)
    make('script', 0o755, data=b'#!/bin/sh\n')
    for who in USERS:
        say(f'{who}, program', by(who, execute, './true'))
        say(f'{who}, script', by(who, execute, './script'))
        say(f'{who}, access', by(who, os.access, 'true', os.X_OK))
