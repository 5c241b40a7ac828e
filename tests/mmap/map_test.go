package mmap

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// goMap is the Go program among those that map: this test binary, run again
// with goMapMark in its environment. Arguments as in testdata/map.c.
func goMap(args []string) error {
	store := len(args) > 2
	flags, open := unix.MAP_PRIVATE, os.O_RDONLY
	if args[0] == "shared" {
		flags = unix.MAP_SHARED
		if store {
			open = os.O_RDWR
		}
	}
	f, err := os.OpenFile(args[1], open, 0)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	prot := unix.PROT_READ
	if store {
		prot |= unix.PROT_WRITE
	}
	mapped, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), prot, flags)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	if store {
		if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
			return err
		}
		off, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		copy(mapped[off:], args[3])
		if flags == unix.MAP_SHARED {
			if err := unix.Msync(mapped, unix.MS_SYNC); err != nil {
				return fmt.Errorf("msync: %w", err)
			}
		}
	}
	_, err = os.Stdout.Write(bytes.Clone(mapped))
	return err
}
