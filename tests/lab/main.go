// Lab boots a guest on an unmodified Debian kernel whose persistent memory has media
// errors, and runs tests in it: what the kernel and its filesystems do
// (tests/lab/truth, compared with testdata), and what mendfs does above them
// (tests/lab/guest). It needs no persistent memory, no KVM and no root.
//
//	go run ./tests/lab [-kernel 6.12|6.1] [-run REGEXP] [-accept] [-shell] [-fetch]
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	var l lab
	flag.StringVar(&l.series, "kernel", "6.12", "the kernel's `series`: 6.12 or 6.1")
	flag.StringVar(&l.run, "run", "", "run only the tests that match `regexp`, and compare no facts")
	flag.BoolVar(&l.accept, "accept", false, "write down the facts as they are now instead of comparing them")
	flag.BoolVar(&l.shell, "shell", false, "boot to a shell on this terminal instead of the tests")
	flag.BoolVar(&l.fetch, "fetch", false, "only see to it that there is a kernel to boot, QEMU and a compiler")
	flag.DurationVar(&l.timeout, "timeout", 15*time.Minute, "how long the guest may take")
	flag.Parse()
	if l.accept && l.run != "" {
		fmt.Fprintln(os.Stderr, "lab: -accept writes down what all tests tell: leave -run out")
		os.Exit(2)
	}
	if err := l.main(untilSignal()); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

// untilSignal is done when someone wants the lab to end, so that it ends QEMU and takes
// away what it has made. The second signal ends it at once.
func untilSignal() context.Context {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx
}

// lab is one run.
type lab struct {
	series, run   string
	accept, shell bool
	fetch         bool
	timeout       time.Duration
	begin         time.Time

	saying sync.Mutex // guards standard output
}

func (l *lab) main(ctx context.Context) error {
	l.begin = time.Now()
	if l.fetch {
		return fetch(ctx, l.series)
	}
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	g, err := l.prepare(ctx, dir)
	if err != nil {
		return err
	}
	l.say("booting %s with %s", g.kernel.release, g.accel)
	if l.shell {
		return g.shell(ctx)
	}
	return l.test(ctx, g)
}

// fetch sees to it that there is what the lab boots with and from.
func fetch(ctx context.Context, series string) error {
	for _, program := range []string{qemu, "make", "gcc"} {
		if _, err := exec.LookPath(program); err != nil {
			return err
		}
	}
	_, err := fetchKernel(ctx, cacheDir(), series)
	return err
}

func (l *lab) say(format string, args ...any) {
	l.print("lab: %5.1fs %s", time.Since(l.begin).Seconds(), fmt.Sprintf(format, args...))
}

func (l *lab) print(format string, args ...any) {
	l.saying.Lock()
	defer l.saying.Unlock()
	fmt.Printf(format+"\n", args...)
}

// prepare makes all that the guest boots from.
func (l *lab) prepare(ctx context.Context, dir string) (guest, error) {
	l.say("kernel %s", l.series)
	k, err := fetchKernel(ctx, cacheDir(), l.series)
	if err != nil {
		return guest{}, err
	}
	l.say("building for %s", k.release)
	programs, err := build(ctx, dir)
	if err != nil {
		return guest{}, err
	}
	module, err := buildModule(ctx, k, dir)
	if err != nil {
		return guest{}, err
	}
	a, err := initramfs(k, programs)
	if err != nil {
		return guest{}, fmt.Errorf("making the guest's root: %w", err)
	}
	if err := a.addFile("lib/labbus.ko", module); err != nil {
		return guest{}, err
	}
	a.add("etc/tests", entry{0o644, []byte(l.script())})
	a.add("etc/motd", entry{0o644, []byte(motd)})
	g := guest{kernel: k, initramfs: filepath.Join(dir, "initramfs"), console: filepath.Join(dir, "console"), monitor: filepath.Join(dir, "monitor")}
	if err := writeArchive(g.initramfs, a); err != nil {
		return guest{}, err
	}
	g.accel = chooseAccel(ctx, g)
	return g, nil
}

// cacheDir is where kernels are kept.
func cacheDir() string {
	if dir, err := os.UserCacheDir(); err == nil {
		return filepath.Join(dir, "mendfs", "lab")
	}
	return filepath.Join("bin", "lab")
}

// build builds what runs in the guest: static, since the guest has no libraries of
// Go's liking.
func build(ctx context.Context, dir string) (map[string]string, error) {
	programs := map[string]string{}
	for name, args := range map[string][]string{
		"mendfs":        {"build", "-tags", "failpoints", "./cmd/mendfs"},
		"lab.test":      {"test", "-c", "-tags", "failpoints,lab", "./tests/lab/guest"},
		"security.test": {"test", "-c", "-tags", "failpoints,quota", "./tests/security"},
	} {
		programs[name] = filepath.Join(dir, name)
		last := len(args) - 1
		args = append(args[:last:last], "-o", programs[name], args[last])
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=amd64")
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return programs, nil
}

func writeArchive(path string, a archive) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	return errors.Join(a.writeTo(w), w.Flush(), f.Close())
}

const motd = `
/dev/pmem0, pmem1 and pmem2 are empty disks for -o dax=always. Let a sector go bad with

    echo "SECTOR 1" >/sys/block/pmem0/badblocks

/dev/pmem5 has firmware that can refuse to clear: /sys/module/labbus/parameters.
docs/lab.md has a walk through it. 'poweroff -f' ends the guest.

`
