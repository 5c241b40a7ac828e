package pmem

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCopySafety(t *testing.T) {
	const mce = "sys/devices/system/machinecheck/machinecheck0/bank0"
	for _, c := range []struct {
		name, arch  string
		files       map[string]string
		safe, known bool
		why         string
	}{
		{"x86 with all", "amd64", map[string]string{mce: "1", "proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu erms mce\n"}, true, true, "has ERMS"},
		{"x86 guest", "amd64", map[string]string{mce: "1", "proc/cpuinfo": "flags : erms hypervisor\n"}, true, true, "host"},
		{"x86 without ERMS", "amd64", map[string]string{mce: "1", "proc/cpuinfo": "flags : fpu mce\n"}, false, true, "no ERMS"},
		{"x86 with a longer flag", "amd64", map[string]string{mce: "1", "proc/cpuinfo": "flags : xerms ermsx\n"}, false, true, "no ERMS"},
		{"x86 built without", "amd64", map[string]string{"proc/config.gz": "# CONFIG_X86_MCE is not set\n", "proc/cpuinfo": "flags : erms\n"}, false, true, "CONFIG_X86_MCE"},
		{"x86 mce=off", "amd64", map[string]string{"proc/config.gz": "CONFIG_X86_MCE=y\n", "proc/cpuinfo": "flags : erms\n"}, false, true, "machinecheck"},
		{"x86 without proc", "amd64", map[string]string{mce: "1"}, false, false, "cpuinfo"},
		{"x86 without flags", "amd64", map[string]string{mce: "1", "proc/cpuinfo": "processor : 0\n"}, false, false, "no flags"},
		{"arm64", "arm64", nil, false, true, "arm64"},
		{"arm64 of another day", "arm64", map[string]string{"proc/config.gz": "CONFIG_ARCH_HAS_COPY_MC=y\n"}, true, true, "built with"},
		{"power", "ppc64le", map[string]string{"proc/config.gz": "CONFIG_ARCH_HAS_COPY_MC=y\n"}, true, true, "built with"},
		{"power built without", "ppc64le", map[string]string{"proc/config.gz": "CONFIG_PPC64=y\n"}, false, true, "built without"},
		{"something else", "riscv64", nil, false, false, "may or may not"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			for path, text := range c.files {
				put(t, filepath.Join(root, path), text)
			}
			got := askCopySafety(root, c.arch)
			if got.Safe != c.safe || got.Known != c.known || !strings.Contains(got.Why, c.why) {
				t.Errorf("got %+v, want safe %v, known %v, saying %q", got, c.safe, c.known, c.why)
			}
		})
	}
}

func TestCopySafetyOfThisMachine(t *testing.T) {
	if got := AskCopySafety(); got.Why == "" || got.Safe && !got.Known {
		t.Errorf("%+v is no answer", got)
	}
}

// put writes text to path, and compresses what the kernel does.
func put(t *testing.T, path, text string) {
	t.Helper()
	if filepath.Ext(path) == ".gz" {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		if _, err := z.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		text = b.String()
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
