package mount

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// stat is a line of /proc/PID/stat with these fields, by their numbers.
func stat(comm, state string, flags, pending string) string {
	fields := strings.Fields(strings.Repeat("0 ", 50))
	fields[0], fields[9-3], fields[22-3], fields[31-3] = state, flags, "4711", pending // the first is number 3
	return "12 (" + comm + ") " + strings.Join(fields, " ") + "\n"
}

func TestVitals(t *testing.T) {
	for name, c := range map[string]struct {
		stat string
		died bool
	}{
		"lives":                           {stat("mendfs", "S", "4194560", "0"), false},
		"waits in the kernel":             {stat("mendfs", "D", "4194560", "0"), false},
		"is stopped":                      {stat("mendfs", "T", "4194560", "0"), false},
		"is told to terminate":            {stat("mendfs", "D", "4194560", "16384"), false},
		"zombie":                          {stat("mendfs", "Z", "4228364", "0"), true},
		"killed, its first thread waits":  {stat("mendfs", "D", "4194560", "256"), true},
		"its first thread closes files":   {stat("mendfs", "D", "4194564", "0"), true},
		"a name that looks like a zombie": {stat("x) Z 1 (y", "S", "4194560", "0"), false},
	} {
		v, err := parseVitals(c.stat)
		if err != nil || v.started != 4711 || v.hasDied() != c.died {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
	}
	for _, text := range []string{"", "12 (mendfs) S 1 2 3\n", stat("mendfs", "S", "many", "0")} {
		if v, err := parseVitals(text); err == nil {
			t.Errorf("%q: %+v", text, v)
		}
	}
}

// TestProcessHasDied: as a zombie, and when its number is free again.
func TestProcessHasDied(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := openProcess(itoa(cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if p.hasDied() {
		t.Error("dead before it was killed")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if !p.hasDied() {
		t.Error("a zombie lives")
	}
	_ = cmd.Wait() // says that it was killed
	if !p.hasDied() {
		t.Error("lives when it is gone")
	}
}

// TestEntryOfAnotherProcess: a number alone names no process.
func TestEntryOfAnotherProcess(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := openProcess(itoa(cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	v, err := p.vitals()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }() // says that it was killed
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	for started, died := range map[uint64]bool{v.started: true, v.started + 1: false, 0: false} {
		e := entry{Running: Running{Pid: cmd.Process.Pid}, Started: started}
		if e.hasDied() != died {
			t.Errorf("started at %d of %d: died: %v", started, v.started, e.hasDied())
		}
	}
	own := entry{Running: Running{Pid: os.Getpid()}, Started: ownStart()}
	if own.Started == 0 || own.hasDied() {
		t.Errorf("this process, started at %d, is dead", own.Started)
	}
}
