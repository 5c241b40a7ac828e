package pmem

import (
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// CopySafety says whether this kernel survives poison that nobody has listed
// yet when it meets it in a copy out of persistent memory, as read(2) makes:
// the read fails, or the machine stops with a panic.
type CopySafety struct {
	Safe  bool   // the read fails
	Known bool   // false: it could not be found out, and Safe is false
	Why   string // what was found
}

// AskCopySafety finds out from the architecture, the kernel's configuration,
// its machine-check driver and the processor's flags. It reads no memory.
func AskCopySafety() CopySafety { return askCopySafety("/", runtime.GOARCH) }

// askCopySafety looks at the machine that is seen below root. On x86, pmem is
// read by copy_mc_to_user and copy_mc_to_kernel: `rep movsb` on processors with
// ERMS, a copy by words where a quirk asks for it, else an ordinary copy that
// nothing survives (arch/x86/lib/copy_mc.c, 5.10 to 6.18). The quirk can't be
// seen from outside; the server processors that have it have ERMS, too.
func askCopySafety(root, arch string) CopySafety {
	config := kernelConfig(root)
	if arch != "amd64" {
		return safetyByConfig(config, arch)
	}
	_, err := os.Stat(filepath.Join(root, "sys/devices/system/machinecheck"))
	switch {
	case config["CONFIG_X86_MCE"] == "n":
		return CopySafety{Known: true, Why: "this kernel was built without CONFIG_X86_MCE"}
	case errors.Is(err, fs.ErrNotExist):
		return CopySafety{Known: true, Why: "the kernel handles no machine checks (there is no /sys/devices/system/machinecheck; mce=off?)"}
	case err != nil:
		return CopySafety{Why: "/sys/devices/system/machinecheck can't be looked at: " + err.Error()}
	}
	flags, err := cpuFlags(root)
	switch {
	case err != nil:
		return CopySafety{Why: "/proc/cpuinfo can't be read: " + err.Error()}
	case !slices.Contains(flags, "erms"):
		return CopySafety{Known: true, Why: "the processor has no ERMS, and the kernel then copies in a way that nothing survives"}
	case slices.Contains(flags, "hypervisor"):
		return CopySafety{Safe: true, Known: true, Why: "machine checks are handled, and the processor has ERMS (in a virtual machine it also takes the host to pass them on)"}
	}
	return CopySafety{Safe: true, Known: true, Why: "machine checks are handled, and the processor has ERMS"}
}

// safetyByConfig is for architectures other than x86. arm64 has none up to 6.18.
func safetyByConfig(config map[string]string, arch string) CopySafety {
	const option = "CONFIG_ARCH_HAS_COPY_MC"
	switch {
	case config[option] == "y":
		return CopySafety{Safe: true, Known: true, Why: "this kernel was built with " + option}
	case len(config) > 0:
		return CopySafety{Known: true, Why: "this kernel was built without " + option}
	case arch == "arm64":
		return CopySafety{Known: true, Why: "Linux has no such copy on arm64"}
	}
	return CopySafety{Why: "the kernel's configuration is not to be had, and " + arch + " may or may not have " + option}
}

// kernelConfig is the options that the running kernel was built with, as far as
// they can be had: "y", "m", "n" or a value. It is empty if they can't.
func kernelConfig(root string) map[string]string {
	text := configText(root)
	config := make(map[string]string)
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "# "); ok {
			if name, ok := strings.CutSuffix(name, " is not set"); ok {
				config[name] = "n"
			}
		} else if name, value, ok := strings.Cut(line, "="); ok {
			config[name] = value
		}
	}
	return config
}

func configText(root string) string {
	if f, err := os.Open(filepath.Join(root, "proc/config.gz")); err == nil {
		defer f.Close()
		if z, err := gzip.NewReader(f); err == nil {
			if text, err := io.ReadAll(z); err == nil {
				return string(text)
			}
		}
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	release := unix.ByteSliceToString(u.Release[:])
	for _, path := range []string{"boot/config-" + release, "lib/modules/" + release + "/config", "lib/modules/" + release + "/build/.config"} {
		if text, err := os.ReadFile(filepath.Join(root, path)); err == nil {
			return string(text)
		}
	}
	return ""
}

// cpuFlags are those of the first processor; all have the same as far as the
// kernel uses them.
func cpuFlags(root string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(root, "proc/cpuinfo"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if strings.TrimSpace(name) == "flags" {
			return strings.Fields(value), nil
		}
	}
	return nil, errors.New("it lists no flags")
}
