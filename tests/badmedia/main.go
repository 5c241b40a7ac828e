// Command badmedia is a FUSE filesystem for tests: a directory whose files have
// bad ranges. It stands for media that mendfs's own simulator knows nothing
// of, and behaves like persistent memory seen from far:
//
//   - a READ that begins in a bad unit fails with EIO, one that begins before
//     is short (-cached: a READ with a bad unit anywhere in it fails with EIO,
//     since a kernel that caches takes a short one for the end of the file; -short:
//     it is short all the same);
//   - a WRITE of a part of a page with a bad unit fails with EIO and changes
//     nothing, one of the whole page clears it;
//   - what zeroes a part of such a page (truncate into it or up from it, fallocate) fails
//     with EIO, what frees or zeroes all of it clears it.
//
// During an outage every READ, WRITE, FSYNC and FALLOCATE fails with EIO, while
// attributes and names are still there.
//
//	badmedia [-unit 64|4096] [-cached|-short] [-no-handles] [-volatile SEED] DIRECTORY MOUNTPOINT
//
// With -volatile the medium has a memory that a power cut takes: what was changed
// and not synced since may be gone. The programs that use it have to be dead before.
//
// It prints "ready" and then obeys its standard input, answering each line
// with one:
//
//	bad OFF LEN NAME    poison; answers "ok"
//	left NAME           what is bad: "OFF+LEN ..."
//	outage on|off       answers "ok"
//	hang NAME           the file's data can't be reached, and who asks for it waits; "ok"
//	go on               for what hangs; "ok"
//	reads               how many READs there were
//	cut                 the power goes, and is there again; "ok"
//
// At the end of its input, or when told to terminate, it unmounts and ends.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

func main() {
	unit := flag.Int64("unit", ranges.LineSize, "what fails at once, in bytes")
	cached := flag.Bool("cached", false, "let the kernel cache")
	short := flag.Bool("short", false, "let the kernel cache, and answer short all the same")
	noHandles := flag.Bool("no-handles", false, "have no file handles")
	seed := flag.Uint64("volatile", 0, "lose at a power cut what was not synced, by this seed, which is not 0")
	flag.Parse()
	if flag.NArg() != 2 {
		flag.Usage()
		os.Exit(2)
	}
	m := &media{unit: *unit, cached: *cached, short: *short, bad: map[uint64]*ranges.Set{}, hung: map[uint64]chan struct{}{}}
	if *seed != 0 {
		m.volatile = newVolatile(*seed)
	}
	if err := serve(m, flag.Arg(0), flag.Arg(1), *noHandles); err != nil {
		fmt.Fprintln(os.Stderr, "badmedia:", err)
		os.Exit(1)
	}
}

func serve(m *media, dir, at string, noHandles bool) error {
	root, err := gofs.NewLoopbackRoot(dir)
	if err != nil {
		return err
	}
	options := &gofs.Options{MountOptions: fuse.MountOptions{
		FsName: dir, Name: "badmedia", DirectMountStrict: true,
		Options:              []string{"default_permissions"},
		DisableSplice:        true,
		DisabledCapabilities: fuse.CAP_PASSTHROUGH,
	}}
	if noHandles {
		options.ExtraCapabilities |= fuse.CAP_NO_EXPORT_SUPPORT
	}
	server, err := gofs.Mount(at, &node{root.(*gofs.LoopbackNode), m}, options)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	go func() { // ends with the process
		obey(m, dir, os.Stdin, os.Stdout)
		signals <- unix.SIGTERM
	}()
	<-signals
	return server.Unmount()
}

// obey answers commands until the input ends.
func obey(m *media, dir string, in io.Reader, out io.Writer) {
	for lines := bufio.NewScanner(in); lines.Scan(); {
		answer, err := m.command(dir, lines.Text())
		if err != nil {
			answer = "error: " + err.Error()
		}
		fmt.Fprintln(out, answer)
	}
}

func (m *media) command(dir, line string) (string, error) {
	verb, rest, _ := strings.Cut(line, " ")
	switch verb {
	case "bad":
		var r ranges.Range
		var name string
		if _, err := fmt.Sscanf(rest, "%d %d %s", &r.Off, &r.Len, &name); err != nil {
			return "", err
		}
		ino, err := inode(dir, name)
		if err != nil {
			return "", err
		}
		m.poison(ino, r)
	case "left":
		ino, err := inode(dir, rest)
		if err != nil {
			return "", err
		}
		var left []string
		for _, r := range m.left(ino) {
			left = append(left, fmt.Sprintf("%d+%d", r.Off, r.Len))
		}
		return strings.Join(left, " "), nil
	case "outage":
		m.setOutage(rest == "on")
	case "hang":
		ino, err := inode(dir, rest)
		if err != nil {
			return "", err
		}
		m.hang(ino)
	case "go":
		m.goOn()
	case "cut":
		return "ok", m.cut()
	case "reads":
		return fmt.Sprint(m.reads.Load()), nil
	default:
		return "", fmt.Errorf("unknown command %q", line)
	}
	return "ok", nil
}

func inode(dir, name string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat(filepath.Join(dir, name), &st)
	return st.Ino, err
}
