package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/mendfs/mendfs/recovery/ranges"
)

func newDemo() *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "the whole story in a minute, on a scratch directory, no pmem needed",
		Long: `demo makes a scratch directory with one file, poisons simulated memory below it, and
shows what a program sees without mendfs and with it. Everything that it says was
measured and checked just before. It cleans up, also when it is interrupted.

Exit status: 0 every step showed what it claims, 8 one did not, 32 interrupted.`,
		Args: takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runDemo(cmd.Context(), cmd.OutOrStdout())
		},
	}
}

// What the demo does to what.
const (
	demoProfile = "dax"
	demoSize    = 256 << 10
)

var (
	errClaim = errors.New("the demo did not see what it claims")
	demoNext = "please report this with the output of 'mendfs doctor' for the directory in $TMPDIR"
)

// demo is one run. Its children, the mounts among them, are this same binary;
// they work in dir, so that paths are as short as they are printed.
type demo struct {
	dir     string // scratch: files/ is the backing, mnt/ the mountpoint, state/ the state directory
	out     io.Writer
	mounted *demoMount // nil while nothing is mounted

	poison ranges.Range // what is injected
	want   []byte       // what the file holds, were it not for poison
	lost   *ranges.Set  // bytes that read as zero, measured
}

func runDemo(ctx context.Context, stdout io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "mendfs-demo-")
	if err != nil {
		return &failure{err, "set TMPDIR to a directory that you may write"}
	}
	d := &demo{dir: dir, out: stdout, poison: ranges.Range{Off: 81920, Len: ranges.LineSize}, want: demoContent()}
	defer func() {
		err = errors.Join(err, d.cleanUp())
		if err == nil {
			err = d.say("Cleaned up. Next: mendfs doctor DIR, then mendfs mount DIR")
		}
	}()
	for _, step := range []func(context.Context) error{d.prepare, d.withoutMendfs, d.withMendfs, d.overwrite, d.aftermath} {
		if err := errors.Join(ctx.Err(), step(ctx)); err != nil {
			if ctx.Err() != nil {
				return ctx.Err() // a step that was cut short proves nothing
			}
			return err
		}
	}
	return nil
}

// demoContent has no zero byte, so that zeros in what is read stand for loss.
func demoContent() []byte {
	content := make([]byte, demoSize)
	for i := range content {
		content[i] = byte(1 + (i+i/251)%255)
	}
	return content
}

func (d *demo) cleanUp() error {
	err := d.unmount()
	if err == nil {
		err = os.RemoveAll(d.dir)
	}
	if err != nil {
		return &failure{fmt.Errorf("cleaning up %s: %w", d.dir, err), "umount " + filepath.Join(d.dir, "mnt") + " and remove the directory"}
	}
	return nil
}

// say prints one line of the story.
func (d *demo) say(format string, args ...any) error {
	_, err := fmt.Fprintf(d.out, format+"\n", args...)
	return err
}

// claim prints one checked line of the story, or fails if it isn't so.
func (d *demo) claim(holds bool, what, format string, args ...any) error {
	text := fmt.Sprintf("%-11s  %s", what, fmt.Sprintf(format, args...))
	if !holds {
		return &failure{fmt.Errorf("%w; measured: %s", errClaim, text), demoNext}
	}
	return d.say("  ok  %s", text)
}
