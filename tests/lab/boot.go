package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// The guest's memory: three regions of it are persistent memory to the kernel, and a
// fourth, which it leaves alone, to the module labbus. mkfs.xfs wants 300 MiB at least.
// The last 128 KiB of memory are ACPI's. Two NVDIMMs are beside it, which have machine
// checks and can't be cleared.
const (
	qemu   = "qemu-system-x86_64"
	memory = "3072M,slots=2,maxmem=4096M"
	pmem   = "memmap=384M!1024M memmap=384M!1536M memmap=384M!2048M"
	labbus = "memmap=384M$2560M labbus.start=0xa0000000 labbus.size=0x18000000"
	nvdimm = "320M"
)

// guest is what is to be booted.
type guest struct {
	kernel    kernel
	initramfs string
	console   string // where the kernel's messages go
	monitor   string // QEMU's, a socket
	accel     string // of QEMU
}

// command boots the guest. Its second serial line is the command's standard
// output, and input.
func (g guest) command(ctx context.Context, more ...string) *exec.Cmd {
	line := append([]string{"console=ttyS0 quiet loglevel=5 panic=-1 random.trust_cpu=on", pmem, labbus}, more...)
	cmd := exec.CommandContext(ctx, qemu,
		"-machine", "pc,nvdimm=on", "-accel", g.accel, "-cpu", "max,vendor=GenuineIntel", "-smp", "2", "-m", memory,
		"-object", "memory-backend-ram,id=nvdimm0,size="+nvdimm, "-device", "nvdimm,memdev=nvdimm0",
		"-object", "memory-backend-ram,id=nvdimm1,size="+nvdimm, "-device", "nvdimm,memdev=nvdimm1",
		"-nodefaults", "-display", "none", "-no-reboot", "-monitor", "unix:"+g.monitor+",server,wait=off",
		"-kernel", g.kernel.image, "-initrd", g.initramfs, "-append", strings.Join(line, " "),
		"-serial", "file:"+g.console, "-chardev", "stdio,id=line,signal=off", "-serial", "chardev:line")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// machineCheck has the guest's processors report a media error of 512 bytes at a
// physical address: uncorrected, found by the memory's scrubber. The last number
// says how long it is, 2^9.
func (g guest) machineCheck(address string) error {
	monitor, err := net.Dial("unix", g.monitor)
	if err != nil {
		return err
	}
	defer monitor.Close()
	if err := monitor.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	said := bufio.NewReader(monitor)
	if _, err := untilPrompt(said); err != nil {
		return err
	}
	order := fmt.Sprintf("mce -b 0 9 0xbd000000000000c0 0x5 %s 0x89", address)
	if _, err := fmt.Fprintln(monitor, order); err != nil {
		return err
	}
	answer, err := untilPrompt(said)
	if err != nil || strings.Contains(answer, "Error") {
		return fmt.Errorf("qemu's monitor, %s: %q: %w", order, answer, err)
	}
	return nil
}

// untilPrompt reads what the monitor says until it wants an order.
func untilPrompt(monitor *bufio.Reader) (string, error) {
	var said strings.Builder
	for !strings.HasSuffix(said.String(), "(qemu) ") {
		b, err := monitor.ReadByte()
		if err != nil {
			return said.String(), err
		}
		said.WriteByte(b)
	}
	return said.String(), nil
}

// run boots the guest and hands on its lines until it powers off. It returns how much
// processor time that took.
func (g guest) run(ctx context.Context, line func(string), more ...string) (time.Duration, error) {
	cmd := g.command(ctx, more...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	said := &strings.Builder{}
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	lines := bufio.NewReader(out)
	for {
		text, err := lines.ReadString('\n')
		if text = strings.TrimRight(text, "\r\n"); text != "" {
			line(text)
		}
		if err != nil {
			break // Wait says why
		}
	}
	err = cmd.Wait()
	if err != nil {
		err = fmt.Errorf("qemu: %w: %s", errors.Join(context.Cause(ctx), err), said)
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), err
}

// tcg needs nothing of the machine.
const tcg = "tcg,thread=multi"

// trialTime is several times what a guest needs under KVM to its first line.
const trialTime = 20 * time.Second

// chooseAccel is KVM if a guest boots with it: a nested hypervisor may have a
// /dev/kvm that opens, and then dies in the guest kernel's first instructions.
func chooseAccel(ctx context.Context, g guest) string {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return tcg
	}
	_ = f.Close() // only asked for
	ctx, cancel := context.WithTimeout(ctx, trialTime)
	defer cancel()
	g.accel, g.console = "kvm", filepath.Join(filepath.Dir(g.console), "trial.log")
	up := false
	_, err = g.run(ctx, func(line string) {
		up = up || strings.HasPrefix(line, "lab: up ")
	}, "lab.trial")
	if err == nil && up {
		return "kvm"
	}
	return tcg
}

// shell boots the guest with a shell on this terminal.
func (g guest) shell(ctx context.Context) error {
	cmd := g.command(ctx, "lab.shell")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

// copyTail writes the end of a file to w.
func copyTail(w io.Writer, path string, most int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if _, err := f.Seek(max(0, size-most), io.SeekStart); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}
