package scan

import (
	"context"
	"io/fs"
	"path/filepath"
	"syscall"
)

// Size is about how much a scan of root will read: what the files have blocks for.
func Size(ctx context.Context, root string) (int64, error) {
	total, dev := int64(0), uint64(0)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return nil // the scan will say so
		}
		info, err := d.Info()
		if err != nil {
			return nil // gone
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if path == root {
			dev = st.Dev
		}
		switch {
		case st.Dev != dev && d.IsDir():
			return fs.SkipDir
		case info.Mode().IsRegular():
			total += min(st.Blocks*512, (info.Size()+4095)&^4095)
		}
		return nil
	})
	return total, err
}
