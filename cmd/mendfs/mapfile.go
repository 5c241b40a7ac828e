package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// printMapfile describes the one file at rel as a mapfile of ddrescue.
func printMapfile(ctx context.Context, src source, rel string, each eachRow, stdout io.Writer) error {
	s, err := src.Status(ctx)
	if err != nil {
		return err
	}
	info, err := os.Lstat(pathOf(s, rel))
	switch {
	case err != nil:
		return &usageError{fmt.Sprintf("the size of %s is not known: %v", quote(rel), err), "a mapfile needs the file to be there; --json does not"}
	case !info.Mode().IsRegular():
		return &usageError{quote(rel) + " is not a regular file", "give one file: a mapfile describes no more"}
	}
	lost, code := ranges.Of(), outcome(exitClean)
	err = each(func(r ledger.Row) error {
		lost.Add(r.Range)
		code.add(r)
		return nil
	})
	if err != nil {
		return err
	}
	if err := writeMapfile(stdout, rel, info.Size(), lost); err != nil {
		return err
	}
	return code.orNil()
}

// pathOf is where the file that has the path rel in a mount can be reached.
func pathOf(s control.Status, rel string) string {
	if s.Running {
		return filepath.Join(s.Mountpoint, rel)
	}
	return filepath.Join(s.Backing, rel)
}

// writeMapfile writes what GNU ddrescue reads (its manual, "Mapfile
// structure"): blocks without a gap, "+" for what is there and "-" for what is lost.
func writeMapfile(w io.Writer, name string, size int64, lost *ranges.Set) error {
	text := bufio.NewWriter(w) // its error comes at Flush
	fmt.Fprintf(text, "# Mapfile. Created by mendfs\n# Lost bytes of: %s\n# current_pos  current_status  current_pass\n0x00000000     +               1\n#      pos        size  status\n", quote(name))
	block := func(r ranges.Range, status string) {
		if !r.Empty() {
			fmt.Fprintf(text, "0x%08X  0x%08X  %s\n", r.Off, r.Len, status)
		}
	}
	at := int64(0)
	for r := range lost.Within(ranges.Range{Len: size}) {
		block(ranges.Between(at, r.Off), "+")
		block(r, "-")
		at = r.End()
	}
	block(ranges.Between(at, size), "+")
	return text.Flush()
}
