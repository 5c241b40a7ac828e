package main

import (
	"github.com/spf13/cobra"

	"github.com/mendfs/mendfs/mount"
)

func newUmount() *cobra.Command {
	return &cobra.Command{
		Use:   "umount MOUNTPOINT",
		Short: "take a mendfs mount away, running or dead",
		Long: `umount unmounts MOUNTPOINT. The mount's own process ends by itself. A dead mount,
left by a crash, is taken away too. Mounts that are not of mendfs are refused.

Exit status: 0 unmounted, 8 it did not work, 16 wrong usage.`,
		Args: takes(1, 1),
		RunE: func(_ *cobra.Command, args []string) error { return mount.Unmount(args[0]) },
	}
}
