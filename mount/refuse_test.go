package mount

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/fileid"
)

const (
	usageCode       = control.ExitUsage
	operationalCode = control.ExitOperational
)

func TestBadInputChangesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		change func(b *bench, o *Options)
		exit   int
		text   string
	}{
		"no backing":              {func(b *bench, o *Options) { o.Backing = b.dir + "/none" }, usageCode, "does not exist"},
		"no backing, over-mount":  {func(b *bench, o *Options) { o.Backing, o.Mountpoint = b.dir+"/none", "" }, usageCode, "does not exist"},
		"no mountpoint":           {func(b *bench, o *Options) { o.Mountpoint = b.dir + "/none" }, usageCode, "does not exist"},
		"a file as backing":       {func(b *bench, o *Options) { o.Backing = b.backing + "/f" }, usageCode, "is not a directory"},
		"a file as mountpoint":    {func(b *bench, o *Options) { o.Mountpoint = b.backing + "/f" }, usageCode, "is not a directory"},
		"mountpoint in backing":   {func(b *bench, o *Options) { o.Mountpoint = b.backing + "/sub" }, usageCode, "lies inside the backing directory"},
		"backing in mountpoint":   {func(b *bench, o *Options) { o.Backing, o.Mountpoint = b.backing+"/sub", b.backing }, usageCode, "lies inside the mountpoint"},
		"mountpoint in use":       {func(b *bench, o *Options) { o.Mountpoint = "/proc" }, operationalCode, "is in use: proc"},
		"state in backing":        {func(b *bench, o *Options) { o.State = b.backing + "/sub/deeper/st" }, usageCode, "lies inside the backing directory"},
		"state is backing":        {func(b *bench, o *Options) { o.State = b.backing }, usageCode, "lies inside the backing directory"},
		"state in mountpoint":     {func(b *bench, o *Options) { o.State = b.point + "/st" }, usageCode, "lies inside the mountpoint"},
		"state by symlink":        {func(b *bench, o *Options) { o.State = b.dir + "/link" }, usageCode, "it is a symbolic link; give a directory"},
		"state is a file":         {func(b *bench, o *Options) { o.State = b.dir + "/file" }, usageCode, "not a directory; give a directory"},
		"state writable by all":   {func(b *bench, o *Options) { o.State = b.dir + "/open" }, usageCode, "others can write it (mode 0777)"},
		"state of another user":   {func(b *bench, o *Options) { o.State = b.dir + "/theirs" }, usageCode, "belongs to uid 65534"},
		"state holds other files": {func(b *bench, o *Options) { o.State = b.dir + "/home" }, usageCode, "is not a state directory, and not empty"},
		"state of another mount":  {func(b *bench, o *Options) { o.State = b.dir + "/foreign" }, usageCode, "is the state directory of another filesystem"},
		"state of the future":     {func(b *bench, o *Options) { o.State = b.dir + "/newer" }, operationalCode, "has version 2"},
		"state damaged":           {func(b *bench, o *Options) { o.State = b.dir + "/damaged" }, operationalCode, "meta.json in"},
		"unknown mount option":    {func(b *bench, o *Options) { o.MountOpts = []string{"rw", "nosiud"} }, usageCode, `"nosiud"`},
		"unknown profile":         {func(b *bench, o *Options) { o.Simulate = "optane" }, usageCode, `"optane"`},
		"unknown semantics":       {func(b *bench, o *Options) { o.Semantics = "lenient" }, usageCode, "lenient"},
		"semantics of later":      {func(b *bench, o *Options) { o.Semantics = "prefix" }, usageCode, "not in this version"},
		"events in backing":       {func(b *bench, o *Options) { o.EventLog = b.backing + "/sub/events" }, usageCode, "lies inside the backing directory"},
		"events by symlink":       {func(b *bench, o *Options) { o.EventLog = b.dir + "/link" }, usageCode, "is a symbolic link"},
		"no directory for events": {func(b *bench, o *Options) { o.EventLog = b.dir + "/none/events" }, operationalCode, "none"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.badStates()
			o := b.options()
			c.change(b, &o)
			b.refused(o, c.exit, c.text)
		})
	}
}

// badStates makes directories that can't be state directories.
func (b *bench) badStates() {
	b.t.Helper()
	b.mkdir(b.backing + "/sub")
	b.write(b.backing+"/f", "")
	b.write(b.dir+"/file", "")
	for name, text := range map[string]string{
		"foreign": `{"version":1,"fs":"x","root":{"ino":2},"backing":"/elsewhere"}`,
		"newer":   `{"version":2}`,
		"damaged": `{"version":`,
		"home":    "",
		"open":    "",
		"theirs":  "",
	} {
		b.mkdir(b.dir + "/" + name)
		file := metaFile
		if name == "home" {
			file = "letter"
		}
		b.write(filepath.Join(b.dir, name, file), text)
	}
	err := errors.Join(
		os.Symlink(b.dir+"/home", b.dir+"/link"),
		os.Chmod(b.dir+"/open", 0o777),
		os.Chown(b.dir+"/theirs", 65534, 65534),
	)
	if err != nil {
		b.t.Fatal(err)
	}
}

func TestRefusedBesideARunningMount(t *testing.T) {
	b := newBench(t)
	b.mkdir(b.backing + "/sub")
	b.mkdir(b.dir + "/other")
	b.mkdir(b.dir + "/point2")
	b.mkdir(b.dir + "/alias")
	if err := unix.Mount(b.backing+"/sub", b.dir+"/alias", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(b.dir+"/alias", 0); err != nil {
			t.Error(err)
		}
	}()
	b.mount(b.options())
	for name, c := range map[string]struct {
		o    Options
		exit int
		text string
	}{
		"same mountpoint":      {Options{Backing: b.dir + "/other", Mountpoint: b.point, State: b.dir + "/st2"}, operationalCode, "already mounted"},
		"same backing":         {Options{Backing: b.backing, Mountpoint: b.dir + "/point2", State: b.dir + "/st2"}, operationalCode, "already mounted"},
		"over-mount it":        {Options{Backing: b.backing, State: b.dir + "/st2"}, operationalCode, "already mounted"},
		"within":               {Options{Backing: b.backing + "/sub", State: b.dir + "/st2"}, operationalCode, "lies within " + b.backing},
		"within, by a bind":    {Options{Backing: b.dir + "/alias", Mountpoint: b.dir + "/point2", State: b.dir + "/st2"}, operationalCode, "lies within " + b.backing},
		"contains":             {Options{Backing: b.dir, Mountpoint: "/mnt", State: "/var/lib/mendfs-test-none"}, operationalCode, "contains " + b.backing},
		"the mount":            {Options{Backing: b.point, Mountpoint: b.dir + "/point2", State: b.dir + "/st2"}, operationalCode, "lies in the mendfs mount at " + b.point},
		"below the mount":      {Options{Backing: b.point + "/sub", State: b.dir + "/st2"}, operationalCode, "lies in the mendfs mount at " + b.point},
		"over the mount":       {Options{Backing: b.point, State: b.dir + "/st2"}, operationalCode, "already mounted"},
		"same state":           {Options{Backing: b.dir + "/other", State: b.state}, usageCode, "is the state directory of another directory: " + b.backing + ", not "},
		"state in its mount":   {Options{Backing: b.dir + "/other", State: b.point + "/st"}, usageCode, "lies in the mendfs mount at " + b.point},
		"state of its backing": {Options{Backing: b.dir + "/other", State: b.backing + "/st"}, operationalCode, "lies inside"},
	} {
		t.Run(name, func(t *testing.T) {
			b.refused(c.o, c.exit, c.text)
		})
	}
}

// TestMountOfAnotherUserIsRespected hides a mount from the registry, as those
// of other users are.
func TestMountOfAnotherUserIsRespected(t *testing.T) {
	b := newBench(t)
	m := b.mount(b.options())
	if err := os.Rename(m.entry.path, m.entry.path+".hidden"); err != nil {
		t.Fatal(err)
	}
	b.mkdir(b.dir + "/point2")
	o := Options{Backing: b.backing, Mountpoint: b.dir + "/point2", State: b.dir + "/state2"}
	b.refused(o, control.ExitOperational, "another user's mount at "+b.point)
	if err := os.Rename(m.entry.path+".hidden", m.entry.path); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedRecordsAreLeftAlone(t *testing.T) {
	for _, name := range []string{ledgerFile, journalFile, poisonFile} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			o := b.options()
			o.Simulate = "dax"
			b.end(b.mount(o))
			damaged := strings.Repeat("damaged\n", 4096)
			b.write(b.state+"/"+name, damaged)
			_, err := New(o)
			var e *Error
			if !errors.As(err, &e) || e.Exit != control.ExitOperational || !strings.Contains(err.Error(), name) {
				t.Errorf("got %v", err)
			}
			if got := b.read(b.state + "/" + name); got != damaged {
				t.Error("the file was changed")
			}
			if all, err := List(); err != nil || slices.ContainsFunc(all, func(r Running) bool { return r.Backing == b.backing }) {
				t.Errorf("listed as running: %v, %v", all, err)
			}
		})
	}
}

// TestEventLogIsNotFollowed has the symbolic link made after the check.
func TestEventLogIsNotFollowed(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(dir+"/victim", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	log, err := event.New(event.Options{Path: dir + "/events", Extra: dir + "/link"})
	if err == nil {
		err = log.Close()
		t.Fatalf("was opened; closing: %v", err)
	}
	if _, missing := os.Stat(dir + "/victim"); !errors.Is(err, unix.ELOOP) || !errors.Is(missing, os.ErrNotExist) {
		t.Errorf("%v; behind the link: %v", err, missing)
	}
}

func TestNoFUSE(t *testing.T) {
	dir := t.TempDir()
	if err := checkFUSE(dir+"/fuse", false); err == nil || !strings.Contains(err.Error(), "this machine has no") {
		t.Errorf("no device: %v", err)
	}
}

func TestDefaultStateNamesBackingAndFilesystem(t *testing.T) {
	m := meta{FS: "uuid", Root: fileid.ID{Ino: 2}}
	other := meta{FS: "uuid2", Root: fileid.ID{Ino: 2}}
	a, b, root := defaultState("/srv/db", m), defaultState("/srv/db", other), defaultState("/", m)
	if a == b || filepath.Dir(a) != stateHome() || !strings.HasPrefix(filepath.Base(a), "db-") || !strings.HasPrefix(filepath.Base(root), "root-") {
		t.Errorf("%s, %s, %s", a, b, root)
	}
}
