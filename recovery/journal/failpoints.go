//go:build failpoints

package journal

// Disk is where journal files lie, for tests that let it lose power.
type Disk = disk

// File is a journal file on a Disk.
type File = file

// OpenOn is Open on another disk than the kernel's.
func OpenOn(d Disk, path, filesystem string) (*Journal, error) { return open(d, path, filesystem) }
