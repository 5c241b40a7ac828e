package mount

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// kill ends a helper as a crash does.
func kill(t *testing.T, helper *exec.Cmd) {
	t.Helper()
	if err := helper.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = helper.Wait() // says that it was killed
}

// deadMount leaves a dead mount, over the backing directory or beside it.
func deadMount(t *testing.T, over bool) (*bench, Options) {
	t.Helper()
	b := newBench(t)
	b.write(b.backing+"/f", "text")
	o := b.options()
	if over {
		o.Mountpoint, b.point = "", b.backing
	}
	kill(t, startHelper(t, o))
	t.Cleanup(func() { _ = unix.Unmount(b.point, unix.MNT_DETACH) }) // a test may have taken it away
	return b, o
}

func (b *bench) isDead() bool {
	b.t.Helper()
	p, err := lookup(b.point)
	if err != nil {
		b.t.Fatal(err)
	}
	defer p.close()
	return p.isDead()
}

// TestRefusalLeavesTheDeadMount: it keeps programs from the unprotected files.
func TestRefusalLeavesTheDeadMount(t *testing.T) {
	for _, over := range []bool{true, false} {
		for name, c := range map[string]struct {
			change func(b *bench, o *Options)
			text   string
		}{
			"not a state directory":    {func(b *bench, o *Options) { o.State = "/etc" }, "is not a state directory"},
			"state of another backing": {func(b *bench, o *Options) { o.State = b.dir + "/foreign" }, "is the state directory of another"},
			"state in use":             {func(b *bench, o *Options) {}, "in use by another mendfs"},
			"state is a file":          {func(b *bench, o *Options) { o.State = b.dir + "/file" }, "give a directory"},
			"state in the backing":     {func(b *bench, o *Options) { o.State = b.backing }, "lies inside"},
			"state below the backing":  {func(b *bench, o *Options) { o.State = b.point + "/sub/st" }, "lies inside"},
			"event log is a link":      {func(b *bench, o *Options) { o.EventLog = b.dir + "/link" }, "is a symbolic link"},
			"mount option":             {func(b *bench, o *Options) { o.MountOpts = []string{"frob"} }, "frob"},
		} {
			where := " (beside)"
			if over {
				where = " (over)"
			}
			t.Run(name+where, func(t *testing.T) {
				b, o := deadMount(t, over)
				b.mkdir(b.dir + "/foreign")
				b.write(b.dir+"/foreign/"+metaFile, `{"version":1,"fs":"x","root":{"ino":2},"backing":"/elsewhere"}`)
				b.write(b.dir+"/file", "")
				if err := os.Symlink(b.backing+"/f", b.dir+"/link"); err != nil {
					t.Fatal(err)
				}
				if name == "state in use" {
					lock, err := lockState(b.state)
					if err != nil {
						t.Fatal(err)
					}
					defer lock.Close()
				}
				c.change(b, &o)
				m, err := New(o)
				if err == nil {
					b.end(m)
					t.Fatal("was mounted")
				}
				if !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "detached") {
					t.Errorf("got %v", err)
				}
				if !b.isDead() || strings.Contains(b.stderr.String(), "detached") {
					t.Errorf("the dead mount is gone; said %q", b.stderr.String())
				}
			})
		}
	}
}

// TestRefusalByOtherMountsLeavesTheDeadMount has a live mount whose backing
// directory contains that of the dead one.
func TestRefusalByOtherMountsLeavesTheDeadMount(t *testing.T) {
	b, o := deadMount(t, true)
	other := newBench(t)
	alias := other.dir + "/alias"
	b.mkdir(alias)
	if err := unix.Mount(b.dir, alias, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(alias, 0); err != nil {
			t.Error(err)
		}
	}()
	live := Options{Backing: alias, Mountpoint: other.point, State: other.state, Stderr: &other.stderr}
	m := other.mount(live)
	defer other.end(m)
	if _, err := New(o); err == nil || !strings.Contains(err.Error(), "lies within "+alias) {
		t.Errorf("got %v", err)
	}
	if !b.isDead() {
		t.Error("the dead mount is gone")
	}
}

// TestRefusalAfterDetachingSaysSo damages what can't be checked before.
func TestRefusalAfterDetachingSaysSo(t *testing.T) {
	for name, over := range map[string]bool{"over": true, "beside": false} {
		t.Run(name, func(t *testing.T) {
			b, o := deadMount(t, over)
			b.write(b.state+"/"+ledgerFile, strings.Repeat("damaged\n", 4096))
			_, err := New(o)
			if err == nil || !strings.Contains(err.Error(), ledgerFile) {
				t.Fatalf("got %v", err)
			}
			if told := strings.Contains(err.Error(), "was detached"); told != over || b.isDead() == over {
				t.Errorf("dead: %v; said %v", b.isDead(), err)
			}
		})
	}
}
