package fs

import (
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// TestSystemXattr: attributes for which the kernel checks no rights get nowhere:
// no filesystem that has them can be counted on to be there, so they are refused
// before one is looked at.
func TestSystemXattr(t *testing.T) {
	f := &FS{}
	for _, name := range []string{"system.nfs4_acl", "system.cifs_acl", "system.ntfs_security", "system.posix_acl"} {
		if st := f.SetXAttr(nil, &fuse.SetXAttrIn{}, name, []byte("x")); st != fuse.ENOTSUP {
			t.Errorf("setting %s: %v", name, st)
		}
		if st := f.RemoveXAttr(nil, &fuse.InHeader{}, name); st != fuse.ENOTSUP {
			t.Errorf("removing %s: %v", name, st)
		}
		if _, st := f.GetXAttr(nil, &fuse.InHeader{}, name, nil); st != fuse.ENOTSUP {
			t.Errorf("getting %s: %v", name, st)
		}
	}
	for _, name := range []string{"system.posix_acl_access", "system.posix_acl_default", "user.system.x", "trusted.x", "security.capability"} {
		if isForeign(name) {
			t.Errorf("%s is refused", name)
		}
	}
}
