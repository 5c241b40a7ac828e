package recovery

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// spoil destroys what the state disk has of a piece of data.
func (r *rig) spoil(what []byte) {
	r.t.Helper()
	name := filepath.Join(r.state, "journal")
	b, err := os.ReadFile(name)
	r.check(err)
	at := bytes.LastIndex(b, what)
	if at < 0 {
		r.t.Fatal("the journal does not have it")
	}
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	r.check(err)
	_, err = f.WriteAt([]byte{what[0] ^ 0xff}, int64(at))
	r.check(err)
	r.check(f.Close())
}

// P1: an image that the state disk does not give back costs nothing that the medium has.
func TestMediumIsAskedWhereTheImageCannotBeRead(t *testing.T) {
	for name, use := range map[string]func(d *daxRig, want []byte){
		"read": func(d *daxRig, want []byte) { wantBytes(d.t, "read", d.read(0, 4*pg), want) },
		"write": func(d *daxRig, want []byte) {
			d.write(pg, []byte("x"))
			want[pg] = 'x'
			wantBytes(d.t, "below", d.below(), want)
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaxRig(t, "ext4", 4*pg)
			bad := rng(pg+512, 512)
			d.bad(bad)
			want := without(pattern(4*pg), bad)
			wantBytes(t, "first read", d.read(0, 4*pg), want)
			d.spoil(want[pg+1024 : 2*pg])
			use(d, want)
			wantBytes(t, "once more", d.read(0, 4*pg), want)
		})
	}
}

// P5: what is nowhere but in the image is not told to be zero without a record.
func TestEmptiedPageFailsWhereItsImageCannotBeRead(t *testing.T) {
	d, old := grownPoison(t, 4*pg, rng(pg, pg))
	d.medium.noRoom.Store(true)
	_, err := d.file.Write([]byte("fresh"), pg+1000, false, Caller{})
	d.medium.noRoom.Store(false)
	if Errno(err) != unix.EIO {
		t.Fatalf("write: %v", err)
	}
	d.spoil(old[pg+1024 : 2*pg])
	if n, err := d.file.Read(make([]byte, pg), pg, Caller{}); Errno(err) != unix.EIO {
		t.Errorf("read = %d, %v", n, err)
	}
	wantBytes(t, "the others", d.read(2*pg, 2*pg), old[2*pg:])
}
