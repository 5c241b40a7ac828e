package fs

import (
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// TestPosix runs go-fuse's conformance tests: all must pass, none be skipped.
func TestPosix(t *testing.T) {
	ext4 := mountNew(t, serveConfig{Timeout: time.Second})
	tmpfs := mountNew(t, serveConfig{Timeout: time.Second, Tmpfs: true})
	for name, test := range posixtest.All {
		m := ext4
		switch name {
		case "FcntlFlockLocksFile":
			continue // fails on every filesystem: locks of one process do not conflict
		case "XAttrLarge":
			m = tmpfs // ext4 has no room for it
		}
		t.Run(name, func(t *testing.T) {
			defer func() {
				if t.Skipped() {
					t.Error("skipped")
				}
			}()
			mkdir(t, m.path(name))
			test(t, m.path(name))
		})
	}
}
