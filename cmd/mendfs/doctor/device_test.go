package doctor

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mendfs/mendfs/recovery/media/pmem"
)

// fake is directories that stand for /sys and /proc.
func fake(t *testing.T) sources {
	t.Helper()
	dir := t.TempDir()
	return sources{sys: filepath.Join(dir, "sys"), proc: filepath.Join(dir, "proc")}
}

// write makes files; one that begins with "->" is a symbolic link.
func write(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		err := os.WriteFile(path, []byte(text), 0o644)
		if target, ok := strings.CutPrefix(text, "->"); ok {
			err = errors.Join(os.Remove(path), os.Symlink(target, path))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// disk is the files of a pmem disk in sysfs, as they are on an nvdimm bus.
func disk(name, number, provider, commands, badblocks string) map[string]string {
	at := "devices/" + provider + "/ndbus0/"
	block := at + "region0/namespace0.0/block/" + name
	return map[string]string{
		at + "provider": provider + "\n", at + "commands": commands + "\n",
		block + "/size": "1048576\n", block + "/badblocks": badblocks,
		block + "/queue/dax": "1\n", block + "/queue/logical_block_size": "512\n",
		"block/" + name:       "->../" + block,
		"dev/block/" + number: "->../../" + block,
	}
}

// onDevice is the facts of a filesystem with the device number.
func onDevice(from sources, number string) *facts {
	return &facts{from: from, medium: medium{mount: mountLine{dev: number, fstype: "ext4", source: "/dev/none"}}}
}

func TestAskDevice(t *testing.T) {
	from := fake(t)
	write(t, from.sys, disk("pmem0", "259:0", "ACPI.NFIT", "ars_cap clear_error", "8 2\n4096 1\n"))
	f := onDevice(from, "259:0")
	f.askDevice()
	defer f.medium.device.close()
	d := f.medium.device
	if !d.pmem() || d.path != "/dev/pmem0" || d.dax != yes || !slices.Equal(d.disks, []string{"pmem0"}) {
		t.Errorf("%+v", d)
	}
	if d.badblocks != nil || d.list.Bad.Bytes() != 3*512 || !d.list.Complete {
		t.Errorf("the list is %+v, %v", d.list, d.badblocks)
	}
	if d.bus.provider != "ACPI.NFIT" || d.bus.clears() != yes {
		t.Errorf("the bus is %+v, clears %v", d.bus, d.bus.clears())
	}
	if !errors.Is(d.rawRead, pmem.ErrNoRaw) || !errors.Is(d.rawWrite, pmem.ErrNoRaw) {
		t.Errorf("a device that is not there can be opened: %v, %v", d.rawRead, d.rawWrite)
	}
}

func TestAskDeviceOfAPartition(t *testing.T) {
	from := fake(t)
	files := disk("pmem0", "259:0", "e820", "", "")
	part := "devices/e820/ndbus0/region0/namespace0.0/block/pmem0/pmem0p1"
	files[part+"/partition"], files[part+"/start"], files[part+"/size"] = "1\n", "2048\n", "4096\n"
	files["dev/block/259:1"] = "->../../" + part
	files[part+"/holders/dm-7/x"] = ""
	write(t, from.sys, files)
	f := onDevice(from, "259:1")
	f.askDevice()
	defer f.medium.device.close()
	d := f.medium.device
	if !d.pmem() || d.path != "/dev/pmem0p1" || !slices.Equal(d.names, []string{"pmem0p1", "pmem0"}) || d.dax != yes {
		t.Errorf("%+v", d)
	}
	if !slices.Equal(d.holders, []string{"dm-7"}) {
		t.Errorf("holders are %v", d.holders)
	}
}

// One disk below dm without DAX is enough to have none.
func TestAskDeviceBelowDM(t *testing.T) {
	from := fake(t)
	write(t, from.sys, map[string]string{
		"devices/virtual/block/dm-0/slaves/sda": "->../../../../a/block/sda",
		"devices/virtual/block/dm-0/slaves/sdb": "->../../../../b/block/sdb",
		"devices/a/block/sda/queue/dax":         "1\n",
		"devices/b/block/sdb/queue/dax":         "0\n",
		"dev/block/253:0":                       "->../../devices/virtual/block/dm-0",
	})
	f := onDevice(from, "253:0")
	f.askDevice()
	d := f.medium.device
	if d.pmem() || d.dax != no || !slices.Equal(d.names, []string{"dm-0", "sda", "sdb"}) {
		t.Errorf("%+v", d)
	}
}

func TestAskDeviceWithoutOne(t *testing.T) {
	f := onDevice(fake(t), "0:42")
	f.askDevice()
	if d := f.medium.device; d.path != "" || d.pmem() {
		t.Errorf("%+v", d)
	}
}

func TestBusClears(t *testing.T) {
	for _, c := range []struct {
		name string
		bus  bus
		want answer
	}{
		{"firmware with the command", bus{"ACPI.NFIT", []string{"ars_cap", "clear_error"}}, yes},
		{"firmware without", bus{"ACPI.NFIT", []string{"ars_cap"}}, no},
		{"memmap", bus{"e820", nil}, yes},
		{"another", bus{"of_pmem", nil}, unknown},
		{"none", bus{}, unknown},
	} {
		if got := c.bus.clears(); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
