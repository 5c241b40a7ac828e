package mount

import (
	"os"
	"path/filepath"
	"strings"
)

// pmemDevice is the name of the persistent memory device that a filesystem with
// the device number dev ("major:minor") lies on; "" if it lies on another kind.
func pmemDevice(dev string) string {
	link, err := os.Readlink("/sys/dev/block/" + dev)
	if err != nil {
		return "" // no block device at all: tmpfs, NFS
	}
	if name := filepath.Base(link); strings.HasPrefix(name, "pmem") {
		return name
	}
	return ""
}
