package mount

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestStatePutInPlace: what another user has put in the place of the state
// directory since it was looked at is neither used nor changed.
func TestStatePutInPlace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: only root can act for another user")
	}
	const stranger = 65534
	for name, put := range map[string]func(path, elsewhere string) error{
		"a symbolic link": func(path, elsewhere string) error { return os.Symlink(elsewhere, path) },
		"a directory": func(path, _ string) error {
			return errors.Join(os.Mkdir(path, 0o755), os.Chown(path, stranger, stranger))
		},
		"a directory above": func(path, _ string) error {
			above := filepath.Dir(path)
			return errors.Join(os.Mkdir(above, 0o755), os.Mkdir(path, 0o700), os.Chown(above, stranger, stranger))
		},
	} {
		t.Run(name, func(t *testing.T) {
			elsewhere, path := t.TempDir(), filepath.Join(t.TempDir(), "state")
			if name == "a directory above" {
				path = filepath.Join(path, "state")
			}
			if err := errors.Join(os.Chmod(elsewhere, 0o755), put(path, elsewhere)); err != nil {
				t.Fatal(err)
			}
			if s, err := takeState(path, meta{}); err == nil {
				t.Errorf("%s was taken", s.path)
			}
			if info, err := os.Stat(elsewhere); err != nil || info.Mode().Perm() != 0o755 {
				t.Errorf("%v, %v", info, err)
			}
			if list, err := os.ReadDir(path); err != nil || len(list) > 0 {
				t.Errorf("made there: %v, %v", list, err)
			}
		})
	}
}
