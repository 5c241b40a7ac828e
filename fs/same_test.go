package fs

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	root  = user{}
	alice = user{uid: 65534, gid: 65534}
	bob   = user{uid: 1000, gid: 1000}
	carol = user{uid: 1001, gid: 1001, groups: []uint32{1000, 2000}} // in bob's group
)

// TestSameAsBacking runs each script in a directory of the mount and in a
// fresh one without mendfs: what it says, and what it leaves, must be equal.
// Each step is "prepare", as root, then "script", as the user.
func TestSameAsBacking(t *testing.T) {
	everything := `touch f; mkdir d; ln -s target l; mkfifo p; python3 -c "import socket; socket.socket(socket.AF_UNIX).bind('s')"`
	tests := []struct {
		name            string
		who             user
		prepare, script string
	}{
		{"root makes everything", root, ``, everything + `; mknod c c 1 3; mknod b b 7 0`},
		{"a user makes everything", alice, `chmod 777 .`, everything},
		{"a user can't make a device", alice, `chmod 777 .`, `mknod c c 1 3`},
		{"a directory writable by a supplementary group", carol, `chgrp 2000 .; chmod 770 .`, everything},
		{"a directory of somebody else", bob, `chmod 755 .`, everything},
		{"setgid directory", bob, `chgrp 2000 .; chmod 2777 .`, everything + `; mkdir d/e; touch d/e/f`},
		{"setgid directory, member", carol, `chgrp 2000 .; chmod 2770 .`, everything},
		{"setgid directory, root", root, `chgrp 2000 .; chmod 2755 .`, everything},
		{"setgid directory of a group that the user is not in, mkdir with setgid", bob, `chgrp 2000 .; chmod 2777 .`, opens(`os.mkdir('d', 0o2755); os.mkdir('e', 0o755)`)},
		{"umask 0", bob, `chmod 777 .`, `umask 0; ` + everything},
		{"umask 077", bob, `chmod 777 .`, `umask 077; ` + everything},
		{"umask 027", root, ``, `umask 027; ` + everything},
		{"default ACL", bob, `chmod 777 .; setfacl -d -m u:1001:rwx,g:2000:rx,o::- .`, `umask 077; ` + everything + `; mkdir d/e; getfacl -n f d d/e p`},
		{"default ACL, root", root, `setfacl -d -m u:1000:rw .`, everything + `; getfacl -n f d p`},
		{"default ACL and setgid directory", carol, `chgrp 2000 .; chmod 2777 .; setfacl -d -m u:1000:rwx .`, everything + `; getfacl -n f d`},
		{"an ACL grants", bob, `echo data >f; chmod 600 f; setfacl -m u:1000:r f`, `cat f; echo no >>f`},
		{"an ACL denies", bob, `echo data >f; chmod 644 f; setfacl -m u:1000:- f`, `cat f`},
		{"an ACL for a supplementary group", carol, `echo data >f; chmod 600 f; setfacl -m g:2000:rw f`, `cat f; echo more >>f; cat f`},
		{"setfacl by a non-member drops setgid", bob, `touch f; chown 1000:2000 f; chmod 2755 f`, `setfacl -m u:1001:r f; getfacl -n f`},
		{"setfacl by a member keeps setgid", carol, `touch f; chown 1001:2000 f; chmod 2755 f`, `setfacl -m u:1000:r f; getfacl -n f`},

		{"special bits at creation", bob, `chmod 777 .`, opens(`os.open('f', C, 0o4755); os.open('g', C, 0o6755); os.open('h', C, 0o2644); os.mkdir('d', 0o1777); os.mkdir('e', 0o2777); os.mknod('n', stat.S_IFREG | 0o4711)`)},
		{"special bits at creation, root", root, ``, opens(`os.open('f', C, 0o4755); os.open('g', C, 0o6755); os.mkdir('d', 0o1777)`)},
		{"setgid at creation in a setgid directory", bob, `chgrp 2000 .; chmod 2777 .`, opens(`os.open('f', C, 0o2755); os.open('g', C, 0o2644); os.mknod('n', stat.S_IFREG | 0o2711)`)},
		{"setgid at creation in a setgid directory, member", carol, `chgrp 2000 .; chmod 2777 .`, opens(`os.open('f', C, 0o2755); os.open('g', C, 0o2644); os.mknod('n', stat.S_IFREG | 0o2711)`)},
		{"create with mode 0", bob, `chmod 777 .`, opens(`f = os.open('f', C, 0); os.write(f, b'x'); print(os.fstat(f).st_size)`)},
		{"create through a symbolic link", bob, `chmod 777 .; ln -s there l`, `echo x >l; cat there`},
		{"O_TMPFILE, given a name", bob, `chmod 777 .`, opens(`f = os.open('.', os.O_TMPFILE | os.O_RDWR, 0o4640); os.write(f, b'x'); import ctypes; print(ctypes.CDLL(None).linkat(-100, b'/proc/self/fd/%d' % f, -100, b'f', 0x400))`)},
		{"O_TMPFILE with O_EXCL", bob, `chmod 777 .`, opens(`f = os.open('.', os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o640); import ctypes; print(ctypes.CDLL(None).linkat(-100, b'/proc/self/fd/%d' % f, -100, b'f', 0x400))`)},

		{"a write drops setuid and setgid", bob, suid(`6777`), `echo x >>f`},
		{"a write by root keeps them", root, suid(`6777`), `echo x >>f`},
		{"a write, setgid without group execution", bob, suid(`2666`), `echo x >>f`},
		{"a write, the same, member", carol, suid(`2666`), `echo x >>f`},
		{"a second write after chmod u+s", bob, `echo >f; chmod 777 .; chown 1000 f`, opens(`f = os.open('f', os.O_WRONLY); os.write(f, b'x'); os.chmod('f', 0o6777); os.write(f, b'x')`)},
		{"O_DIRECT write", bob, suid(`6777`), `dd if=/dev/zero of=f bs=4096 count=1 oflag=direct conv=notrunc status=none`},
		{"O_TRUNC", bob, suid(`6777`), `: >f`},
		{"O_TRUNC, setgid without group execution", bob, suid(`2666`), `: >f`},
		{"truncate", bob, suid(`6777`), `truncate -s 100 f`},
		{"truncate by root", root, suid(`6777`), `truncate -s 100 f`},
		{"fallocate", bob, suid(`6777`), `fallocate -l 8192 f`},
		{"fallocate, setgid without group execution", bob, suid(`2666`), `fallocate -l 8192 f`},
		{"punch", bob, suid(`2666`), `fallocate -p -o 0 -l 10 f`},
		{"zero range by root", root, suid(`6777`), `fallocate -z -o 0 -l 10 f`},
		{"copy_file_range", bob, suid(`6777`), opens(`s = os.open('f', os.O_RDONLY); d = os.open('f', os.O_WRONLY); os.copy_file_range(s, d, 4, 0, 100)`)},
		{"chown drops setuid and setgid", root, suid(`6777`), `chown 1001 f`},
		{"chown that changes nothing", carol, `touch f; chown 1001:2000 f; chmod 6777 f`, opens(`os.chown('f', -1, -1)`)},
		{"chown that changes nothing, of a directory", carol, `mkdir d; chown 1001:3000 d; chmod 2706 d`, opens(`os.chown('d', -1, -1)`)},
		{"chown that changes nothing, by others", carol, `touch f g h i j; chown 1000:2000 f g h; chown 1000:3000 i j; chmod 4755 f; chmod 2755 g; chmod 2666 h; chmod 2666 i; mkdir d; chmod 2777 d; setcap cap_net_raw+ep j`, opens(`
for f in 'fghijd':
	try: os.chown(f, -1, -1); print(f)
	except OSError as e: print(e)`) + `; getcap j`},
		{"fallocate by a member", carol, suid(`2666`), `fallocate -l 8192 f`},
		{"copy_file_range by root", root, suid(`6777`), opens(`s = os.open('f', os.O_RDONLY); d = os.open('f', os.O_WRONLY); os.copy_file_range(s, d, 4, 0, 100)`)},
		{"chgrp by the owner", carol, `touch f; chown 1001:3000 f; chmod 6770 f; touch g; chown 1001:3000 g; chmod 2660 g`, `chgrp 2000 f g`},
		{"chown of a directory keeps setgid", root, `mkdir d; chmod 2755 d`, `chown 1000:1000 d`},
		{"chmod g+s by a non-member", bob, `touch f; chown 1000:2000 f`, `chmod 2755 f`},
		{"chmod g+s by a member", carol, `touch f; chown 1001:2000 f`, `chmod 2755 f`},
		{"a write drops file capabilities", bob, suid(`0777`) + `; setcap cap_net_raw+ep f; getcap f`, `getcap f; echo x >>f; getcap f`},

		{"read what is not ours", alice, `echo secret >f; chmod 600 f`, `cat f; echo x >>f; chmod 644 f; chown 65534 f; touch f; rm -f f`},
		{"sticky directory", alice, `chmod 1777 .; touch f; chown 1000 f`, `rm -f f; mv f g; touch mine; rm mine`},
		{"rename flags", root, ``, `echo a >a; echo b >b; ` + rename("a", "b", 2) + `; cat a b; ` + rename("a", "b", 1) + `; ` + rename("a", "w", 4) + `; ls -l w | cut -c1`},
		{"a whiteout belongs to who renames", bob, `chmod 777 .; touch a; chown 1000 a`, rename("a", "b", 4)},
		{"hard links", bob, `chmod 777 .`, `echo x >a; ln a b; ln -s a l; ln -P l m; rm a; cat b; stat -c %h b; readlink l m`},
		{"times", root, `touch f; ln -s f l`, `touch -d @12345.6789 f; touch -h -d @222.5 l; touch -a -d @99 f; stat -c '%n %x %y' f l`},
		{"times of others", bob, `touch f; chmod 666 f`, `touch f; touch -d @5 f`},
		{"time of birth", bob, `chmod 777 .`, `touch f; [ $(stat -c %W f) -ge $(($(date +%s) - 60)) ] && echo recent`},
		{"xattrs", root, `touch f; ln -s f l; mkdir d`, `setfattr -n user.a -v 1 f; setfattr -n user.b -v 2 d; setfattr -n trusted.t -v 3 f; setfattr -h -n trusted.l -v 4 l; getfattr -d -m - f d; getfattr -h -d -m - l; setfattr -x user.a f; setfattr -x user.none f; getfattr -d -m - f; getfattr -n user.none f`},
		{"trusted xattrs are hidden", bob, `touch f; chmod 777 f; setfattr -n trusted.t -v 3 f; setfattr -n user.a -v 1 f`, `getfattr -d -m - f; getfattr -n trusted.t f; setfattr -n trusted.t -v 4 f; setfattr -x trusted.t f`},
		{"security xattrs of others", bob, `touch f; chmod 777 f`, `setfattr -n security.x -v 4 f`},
		{"a file without a name", bob, `chmod 777 .`, opens(`
f = os.open('f', C, 0o600); os.write(f, b'0123456789'); os.unlink('f')
os.ftruncate(f, 5); os.fchmod(f, 0o640); os.utime(f, (1, 2)); os.setxattr(f, 'user.a', b'1'); print(os.listxattr(f), os.getxattr(f, 'user.a'))
g = os.open('/proc/self/fd/%d' % f, os.O_RDONLY); print(os.read(g, 100)); s = os.fstat(f); print(s.st_nlink, s.st_size, oct(s.st_mode), s.st_mtime)
os.fsync(f)`)},
		{"an open directory that a rename replaced", bob, `chmod 777 .`, opens(`
os.mkdir('a'); os.mkdir('b'); f = os.open('b', os.O_RDONLY); os.rename('a', 'b'); s = os.fstat(f); print(oct(s.st_mode)); print(os.listdir(f))`)},
		{"permissions of the mode", bob, `echo x >f; chown 1000 f; chmod 0 f`, `cat f; chmod 400 f; cat f; echo y >f`},
		{"write-only file", bob, `echo x >f; chown 1000 f; chmod 200 f`, `echo y >>f; cat f`},
		{"holes", root, ``, opens(`
f = os.open('f', C, 0o600); os.pwrite(f, b'x', 1 << 20); print(os.lseek(f, 0, os.SEEK_DATA), os.lseek(f, 1 << 20, os.SEEK_HOLE), os.fstat(f).st_size)
print(os.lseek(f, 1 << 21, os.SEEK_DATA))`)},
		{"long and odd names", root, ``, `touch "$(printf 'n%.0s' $(seq 255))" 'a
b' ' ' '-'; touch "$(printf 'n%.0s' $(seq 256))"; ls -b`},
		{"whoever executes a setuid program", bob, `cp /usr/bin/id x; chown 1001 x; chmod 4755 x`, `./x -u`},
		{"devices work", bob, `mknod n c 1 3; chmod 666 n`, `echo x >n; cat n`},
	}
	for _, tool := range []string{"/usr/bin/python3", "setfacl", "setfattr", "fallocate"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("without %s this would show nothing: %v", tool, err)
		}
	}
	oldMask := unix.Umask(0o022)
	defer unix.Umask(oldMask)
	for _, protect := range []Protect{ProtectFull, ProtectRW, ProtectKnown} {
		m := mountNew(t, serveConfig{Timeout: time.Second, Protect: protect})
		bare := newDir(t)
		for i, test := range tests {
			t.Run(protect.String()+"/"+test.name, func(t *testing.T) {
				var said [2]string
				for k, dir := range []string{bare, m.mnt} {
					dir += "/" + string(rune('a'+i/26)) + string(rune('a'+i%26))
					mkdir(t, dir)
					said[k] = "prepare: " + sh(t, dir, root, test.prepare) +
						"\nscript: " + sh(t, dir, test.who, test.script) +
						"\nleft: " + sh(t, dir, root, `find . -printf '%p %y %#m %U:%G %n %l\n' | sort; find . -type f -printf '%p %s\n' | sort`)
				}
				if bits, ok := clearedBits[test.name]; ok && protect == ProtectKnown {
					said[0] = bits.Replace(said[0])
				}
				if said[0] != said[1] {
					t.Errorf("without mendfs:\n%s\nthrough the mount:\n%s", said[0], said[1])
				}
			})
		}
	}
}

// clearedBits is what writes by way of passthrough clear, and the backing would
// not: see passage.
var clearedBits = map[string]*strings.Replacer{
	"a write by root keeps them": strings.NewReplacer(" 06777 ", " 0777 "),
	"a write, the same, member":  strings.NewReplacer(" 02666 ", " 0666 "),
}

// suid makes a file with the given mode that bob's group has nothing to do with.
func suid(mode string) string {
	return `echo 1234567890 >f; chown 1001:2000 f; chmod ` + mode + ` f; chmod 777 .`
}

// opens is a Python script.
func opens(script string) string {
	return "python3 - <<'EOF'\nimport os, stat\nos.umask(0)\nC = os.O_CREAT | os.O_RDWR\n" + script + "\nEOF"
}

func rename(from, to string, flags int) string {
	return `python3 -c "
import ctypes, os
r = ctypes.CDLL(None, use_errno=True).renameat2(-100, b'` + from + `', -100, b'` + to + `', ` + string(rune('0'+flags)) + `)
print(r, ctypes.get_errno())"`
}
