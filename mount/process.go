package mount

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A process that was killed lives on in those of its threads that wait for what
// can't be interrupted, with all its descriptors: a pidfd says nothing, and
// locks and connections stay. /proc/PID/stat tells (proc_pid_stat(5)).

// process is a process, by its open /proc/PID/stat: never another one that got its
// number, and whoever may open the file or not (hidepid).
type process struct{ stat *os.File }

func openProcess(pid string) (process, error) {
	stat, err := os.Open("/proc/" + pid + "/stat")
	return process{stat}, err
}

func (p process) close() { _ = p.stat.Close() } // nothing was written

// hasDied reports whether it is dead or can't but die, whatever its threads
// still wait for. What can't be asked lives.
func (p process) hasDied() bool {
	v, err := p.vitals()
	if err != nil {
		return errors.Is(err, unix.ESRCH)
	}
	return v.hasDied()
}

// vitals are fields of /proc/PID/stat: those of the first thread.
type vitals struct {
	state   string
	flags   uint64 // PF_*
	started uint64 // clock ticks after boot; with the number it names a process
	signals uint64 // pending ones, one bit each
}

func (p process) vitals() (vitals, error) {
	text := make([]byte, 4096)
	n, err := p.stat.ReadAt(text, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return vitals{}, err
	}
	return parseVitals(string(text[:n]))
}

func parseVitals(stat string) (v vitals, err error) {
	fields := strings.Fields(stat[strings.LastIndex(stat, ")")+1:]) // a name may hold anything
	const first = 3                                                 // the number of the first of them in the manual
	if len(fields) <= 31-first {
		return vitals{}, fmt.Errorf("/proc/PID/stat: %q has too few fields", stat)
	}
	v.state = fields[0]
	for number, to := range map[int]*uint64{9: &v.flags, 22: &v.started, 31: &v.signals} {
		if *to, err = strconv.ParseUint(fields[number-first], 10, 64); err != nil {
			return vitals{}, fmt.Errorf("/proc/PID/stat, field %d: %w", number, err)
		}
	}
	return v, nil
}

const pfExiting = 0x4 // PF_EXITING, include/linux/sched.h

// hasDied: the first thread of a Go program never ends while others go on. If it
// is the one that hangs, the signal that kills is pending in it for good.
func (v vitals) hasDied() bool {
	return v.state == "Z" || v.state == "X" || v.flags&pfExiting != 0 || v.signals&(1<<(unix.SIGKILL-1)) != 0
}

// ownStart is when this process started, as in vitals; 0 if that can't be told.
func ownStart() uint64 {
	p, err := openProcess("self")
	if err != nil {
		return 0
	}
	defer p.close()
	v, err := p.vitals()
	if err != nil {
		return 0
	}
	return v.started
}
