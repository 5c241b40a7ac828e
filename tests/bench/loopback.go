package main

import (
	"context"
	"flag"
	"fmt"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// loopbackMain is go-fuse's example/loopback with its options, as root and for all
// users; -served keeps the kernel from passing reads and writes by the daemon, which
// the example has no switch for.
func loopbackMain(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("loopback", flag.ContinueOnError)
	served := f.Bool("served", false, "answer each read and write instead of handing files to the kernel")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 2 {
		return fmt.Errorf("loopback [-served] BACKING MOUNTPOINT, not %q", args)
	}
	root, err := gofs.NewLoopbackRoot(f.Arg(0))
	if err != nil {
		return fmt.Errorf("opening %s: %w", f.Arg(0), err)
	}
	server, err := gofs.Mount(f.Arg(1), root, loopbackOptions(f.Arg(0), *served))
	if err != nil {
		return fmt.Errorf("mounting loopback: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Unmount() }) // bench unmounts by force what is left
	defer stop()
	server.Wait()
	return nil
}

func loopbackOptions(backing string, served bool) *gofs.Options {
	second := time.Second
	o := &gofs.Options{
		AttrTimeout:     &second,
		EntryTimeout:    &second,
		NullPermissions: true,
		MountOptions: fuse.MountOptions{
			AllowOther:        true,
			Options:           []string{"default_permissions"},
			DirectMountStrict: true,
			FsName:            backing,
			Name:              "loopback",
		},
	}
	if served {
		o.DisabledCapabilities = fuse.CAP_PASSTHROUGH
	}
	return o
}
