package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"unsafe"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// newTouch is the program that `mendfs demo` runs to see what poison does to
// one that maps a file; it is not for people.
func newTouch() *cobra.Command {
	return &cobra.Command{
		Use:    "demo-touch FILE OFF",
		Hidden: true,
		Args:   takes(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			off, err := strconv.Atoi(args[1])
			if err != nil {
				return &usageError{err.Error(), "this verb is for 'mendfs demo' only"}
			}
			return runTouch(args[0], off, cmd.OutOrStdout())
		},
	}
}

// runTouch maps the file, loads the byte at off, and prints it: what any
// program does that was not written with poison in mind. Where the page can't
// be read the kernel kills the process with SIGBUS.
func runTouch(path string, off int, stdout io.Writer) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	page, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mapping %s: %w", path, err)
	}
	if err := dieOfSIGBUS(); err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, page[off])
	return err
}

// dieOfSIGBUS takes Go's handler off SIGBUS, so that this process dies of it as
// a C program would, and leaves no core file.
func dieOfSIGBUS() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return err
	}
	var byDefault struct { // struct sigaction of the kernel; all zero: SIG_DFL
		handler, flags, restorer uintptr
		mask                     uint64
	}
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGBUS),
		uintptr(unsafe.Pointer(&byDefault)), 0, unsafe.Sizeof(byDefault.mask), 0, 0)
	if errno != 0 {
		return fmt.Errorf("rt_sigaction: %w", errno)
	}
	return nil
}
