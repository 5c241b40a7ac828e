package state

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/tests/harness"
)

// inJournal changes the journal of a mount that is not running.
func inJournal(t *testing.T, m *harness.Mount, change func(j *journal.Journal) error) {
	t.Helper()
	dir, err := os.Open(m.Backing)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	fs, err := fileid.Filesystem(int(dir.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(filepath.Join(m.State, "journal"), fs)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(change(j), j.Shutdown()); err != nil {
		t.Fatal(err)
	}
}

func identity(t *testing.T, path string) fileid.ID {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	id, err := fileid.Of(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// manifest is what an export says of itself, version 1.
type manifest struct {
	Version            int
	FS, Backing, State string
	Images             []image
}

type image struct {
	Name, Why, Path, Next string
	ID                    uint64
	File                  fileid.ID
	Offset, Length        int64
	Missing               []rng
}

// export exports, and returns the manifest and the images by their path and reason.
func export(t *testing.T, flags ...string) (manifest, map[string]string) {
	t.Helper()
	dir := filepath.Join(harness.Dir(t), "out")
	r := harness.Mendfs(t, append([]string{"lost", "--export", dir}, flags...)...)
	if r.Exit != exitOK || r.Stdout != "" {
		t.Fatalf("lost --export: %+v", r)
	}
	var out manifest
	if err := json.Unmarshal([]byte(read(t, dir+"/manifest.json")), &out); err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadDir(dir)
	if err != nil || len(list) != len(out.Images)+1 || out.Version != 1 {
		t.Errorf("version %d, %d images in the manifest, and files %v, %v", out.Version, len(out.Images), list, err)
	}
	content := map[string]string{}
	for _, im := range out.Images {
		info, err := os.Lstat(filepath.Join(dir, im.Name))
		if err != nil || !info.Mode().IsRegular() || info.Mode().Perm() != 0o600 || info.Size() != im.Length || im.Next == "" {
			t.Errorf("%+v: %v, %v", im, info, err)
		}
		content[im.Path+" "+im.Why] = read(t, filepath.Join(dir, im.Name))
	}
	return out, content
}

// scene is a mount with one image of each kind: conflict and interrupted are crafted,
// since they take a power cut.
func scene(t *testing.T) (m *harness.Mount, data []byte, ours string) {
	t.Helper()
	m = harness.Simulated(t, "dax")
	data = m.File("f", 1, 2*page+1000)
	m.File("other", 1, 2*page)
	m.Inject("f", rng{Off: 100, Len: 64})
	m.Inject("other", rng{Off: 0, Len: 64})
	m.Check("f", data, rng{Off: 0, Len: sector})
	harness.Mendfs(t, "lost", m.At)
	if _, err := os.ReadFile(m.Path("other")); err != nil {
		t.Fatal(err)
	}
	m.Stop()
	tail := harness.Pattern(5, page)
	clear(tail[1000:])
	inJournal(t, m, func(j *journal.Journal) error {
		return j.Keep(&journal.Intent{
			FS: "?", File: identity(t, m.Below("f")), Path: "before/f", Range: rng{Off: 2 * page, Len: page},
			Size: int64(len(data)), End: int64(len(data)), Image: tail, Missing: []rng{{Off: 2 * page, Len: 64}}, Time: time.Now().UnixNano(),
		})
	})
	return m, data, string(tail[:1000])
}

// checkExport checks an export of the file f of a scene.
func checkExport(t *testing.T, m *harness.Mount, data []byte, ours string, flags ...string) {
	t.Helper()
	out, content := export(t, flags...)
	saved := slices.Clone(data[:page])
	clear(saved[:sector])
	if len(content) != 2 || content["f conflict"] != ours || content["f salvaged"] != string(saved) {
		t.Errorf("exported: %+v", out)
	}
	if out.Backing != m.Backing || out.State != m.State || out.FS == "" {
		t.Errorf("the manifest says %+v", out)
	}
	for _, im := range out.Images {
		want := image{Offset: 0, Length: page, Missing: []rng{{Off: 0, Len: sector}}}
		if im.Why == "conflict" {
			want = image{Offset: 2 * page, Length: 1000, Missing: []rng{{Off: 2 * page, Len: 64}}}
		}
		if im.Offset != want.Offset || im.Length != want.Length || !slices.Equal(im.Missing, want.Missing) || im.File != identity(t, m.Below("f")) {
			t.Errorf("%+v, want %+v", im, want)
		}
	}
}

// An export is the same from a running mount and from its state directory, of the whole
// and of one file, and changes nothing.
func TestExport(t *testing.T) {
	m, data, ours := scene(t)
	checkExport(t, m, data, ours, "--state", m.State, "f")
	checkExport(t, m, data, ours, "--state", m.State, m.Below("f"))
	if out, _ := export(t, "--state", m.State); len(out.Images) != 3 {
		t.Errorf("of all: %+v", out)
	}
	m.Start()
	checkExport(t, m, data, ours, m.Path("f"))
	checkExport(t, m, data, ours, "--state", m.State, "f")
	if out, _ := export(t, m.At); len(out.Images) != 3 {
		t.Errorf("of all, mounted: %+v", out)
	}
	harness.WriteFile(t, m.Path("clean"), []byte("x"))
	if out, _ := export(t, m.Path("clean")); len(out.Images) != 0 {
		t.Errorf("of a file without images: %+v", out)
	}
	m.Check("f", data, rng{Off: 0, Len: sector})
}

// What dd puts back is there, and then the conflict can be forgotten.
func TestPutBackAndDrop(t *testing.T) {
	for name, running := range map[string]bool{"mounted": true, "not mounted": false} {
		t.Run(name, func(t *testing.T) {
			m, data, ours := scene(t)
			target := []string{"--state", m.State}
			if running {
				m.Start()
				target = []string{m.At}
			}
			r := harness.Mendfs(t, append([]string{"lost", "--pending"}, target...)...)
			for _, words := range []string{"conflict", "--export", "--drop"} {
				if r.Exit != exitLossLeft || !strings.Contains(r.Stdout+r.Stderr, words) {
					t.Errorf("lost --pending does not say %s: %+v", words, r)
				}
			}
			dir := filepath.Join(harness.Dir(t), "out")
			r = harness.Mendfs(t, append([]string{"lost", "--export", dir, "--drop"}, target...)...)
			if r.Exit != exitOK || !strings.Contains(r.Stderr, "1 conflict forgotten") {
				t.Errorf("--drop: %+v", r)
			}
			if r = harness.Mendfs(t, append([]string{"lost", "--pending"}, target...)...); r.Exit != exitOK {
				t.Errorf("afterwards: %+v", r)
			}
			if !running {
				m.Start()
			}
			var out manifest
			if err := json.Unmarshal([]byte(read(t, dir+"/manifest.json")), &out); err != nil {
				t.Fatal(err)
			}
			for _, im := range out.Images {
				if im.Why == "conflict" {
					m.Sh(`dd if="$1" of=f bs=4096 seek="$2" oflag=seek_bytes conv=notrunc status=none`, filepath.Join(dir, im.Name), "8192")
				}
			}
			m.Check("f", append(slices.Clone(data[:2*page]), ours...), rng{Off: 0, Len: sector})
			m.Kill() // it stays forgotten
			m.Start()
			if r = harness.Mendfs(t, "lost", "--pending", m.At); r.Exit != exitOK {
				t.Errorf("after a crash: %+v", r)
			}
		})
	}
}

func TestExportRefusals(t *testing.T) {
	m, _, _ := scene(t)
	dir := harness.Dir(t)
	full := mkdir(t, dir, "full")
	harness.WriteFile(t, full+"/manifest.json", []byte("of before"))
	harness.WriteFile(t, dir+"/file", nil)
	if err := os.Symlink(mkdir(t, dir, "elsewhere"), dir+"/link"); err != nil {
		t.Fatal(err)
	}
	v := newVolume(t, "size=8k")
	v.fill()
	for name, c := range map[string]struct {
		dir  string
		exit int
		says string
	}{
		"not empty":       {full, exitUsage, "not empty"},
		"a file":          {dir + "/file", exitUsage, "not a directory"},
		"a symbolic link": {dir + "/link", exitUsage, "not a directory"},
		"no parent":       {dir + "/none/out", exitOperational, "no such file"},
		"a full disk":     {v.path("out"), exitOperational, "no space left"},
	} {
		t.Run(name, func(t *testing.T) {
			r := harness.Mendfs(t, "lost", "--export", c.dir, "--drop", "--state", m.State)
			if r.Exit != c.exit || r.Stdout != "" || !strings.Contains(r.Stderr, c.says) || strings.Count(r.Stderr, "\n") != 1 {
				t.Errorf("%+v", r)
			}
		})
	}
	if got := read(t, full+"/manifest.json"); got != "of before" {
		t.Errorf("overwritten: %s", got)
	}
	for _, none := range []string{v.path("out"), dir + "/none"} {
		if _, err := os.Lstat(none); !errors.Is(err, unix.ENOENT) {
			t.Errorf("%s: %v", none, err)
		}
	}
	if out, _ := export(t, "--state", m.State); len(out.Images) != 3 {
		t.Errorf("something was dropped: %+v", out)
	}
	// Over the socket, too, only a conflict can be dropped.
	m.Start()
	var refused *control.Error
	if err := control.Dial(m.State).Drop(t.Context(), 12345); !errors.As(err, &refused) || refused.Exit != exitUsage {
		t.Errorf("dropping what is not there: %v", err)
	}
}

// A page that the medium refused: its image is listed, exported and served.
func TestRefusedPage(t *testing.T) {
	m := harness.Simulated(t, "dax")
	data := m.File("f", 1, 2*page)
	m.Inject("f", rng{Off: 0, Len: page})
	m.Stop()
	inJournal(t, m, func(j *journal.Journal) error {
		return j.SaveImage(identity(t, m.Below("f")), "f", journal.Image{Data: data[:page], Pending: true})
	})
	for range 2 {
		m.Start()
		m.CheckContent("f", data)
		r := harness.Mendfs(t, "lost", "--pending", m.At)
		if r.Exit != exitLossLeft || !strings.Contains(r.Stdout, "refused") || !strings.Contains(r.Stderr, "write the whole page") {
			t.Errorf("lost --pending: %+v", r)
		}
		if _, content := export(t, m.At, "--drop"); content["f refused"] != string(data[:page]) {
			t.Errorf("exported: %d images", len(content))
		}
		m.Stop()
	}
	m.Start()
	data = m.Overwrite("f", data, harness.Pattern(3, page), 0)
	m.Check("f", data)
	if r := harness.Mendfs(t, "lost", "--pending", m.At); r.Exit != exitOK {
		t.Errorf("after the page was written: %+v", r)
	}
}
