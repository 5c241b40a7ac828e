package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount"
)

func TestHelperNames(t *testing.T) {
	for program, want := range map[string]bool{
		"mendfs": false, "/sbin/mount.mendfs": true, "mount.fuse.mendfs": true, "/sbin/mount.fuse": false, "": false,
	} {
		if got := isHelper(program); got != want {
			t.Errorf("%q: %v", program, got)
		}
	}
}

// TestHelperCalls: the command lines are what mount(8) of util-linux 2.38 runs,
// or a person.
func TestHelperCalls(t *testing.T) {
	for name, c := range map[string]struct {
		args string
		want string // of mendfs
	}{
		"plain":              {"/b /m -o rw", "--options=rw -- /b /m"},
		"all letters":        {"/b /m -s -f -n -v -o rw", "--fake --options=rw -- /b /m"},
		"in one":             {"-sfnv /b /m", "--fake --options= -- /b /m"},
		"the type":           {"/b /m -o rw -t fuse.mendfs", "--options=rw -- /b /m"},
		"flags":              {"/b /m -o state=/s,protect=rw,ro", "--protect=rw --state=/s --options=ro -- /b /m"},
		"with underscores":   {"/b /m -o verify_writes,event_log=/e_f", "--event-log=/e_f --verify-writes=true --options= -- /b /m"},
		"with dashes":        {"/b /m -o verify-writes,event-log=/e_f,allow-other", "--event-log=/e_f --verify-writes=true --options=allow_other -- /b /m"},
		"a flag with value":  {"/b /m -o verify_writes=false,force", "--force=true --verify-writes=false --options= -- /b /m"},
		"a flag without":     {"/b /m -o state", "--state= --options= -- /b /m"},
		"read-only":          {"/b /m -o read_only", "--options=ro -- /b /m"},
		"several lists":      {"-o ro /b /m -o nosuid", "--options=ro,nosuid -- /b /m"},
		"the later one wins": {"/b /m -o state=/a,state=/b", "--state=/b --options= -- /b /m"},
		"words of others": {"/b /m -o rw,noexec,nosuid,nodev,allow_other,nofail,_netdev,user,default_permissions,x-systemd.automount,fsname=a-b",
			"--options=rw,noexec,nosuid,nodev,allow_other,nofail,_netdev,user,default_permissions,x-systemd.automount,fsname=a-b -- /b /m"},
		"unknown, sloppy": {"/b /m -s -o frob,ro,uid=5", "--options=ro -- /b /m"},
		"no flags":        {"-o rw -- -b -m", "--options=rw -- -b -m"},
		"simulated":       {"/b /b -o simulate=dax-5.18,semantics=strict", "--semantics=strict --simulate=dax-5.18 --options= -- /b /b"},
	} {
		t.Run(name, func(t *testing.T) {
			call, err := parseHelper(strings.Fields(c.args))
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(call.mountArgs(), " "); got != "mount --daemon "+c.want || call.remount {
				t.Errorf("%s\ngives %q\n want %q", c.args, got, "mount --daemon "+c.want)
			}
		})
	}
}

func TestHelperRemountCall(t *testing.T) {
	call, err := parseHelper(strings.Fields("/b /m -o ro,relatime,remount,user_id=0,group_id=0,default_permissions,max_read=1048576,allow_other,state=/s"))
	if err != nil {
		t.Fatal(err)
	}
	if !call.remount || !maps.Equal(call.flags, map[string]string{"state": "/s"}) ||
		!slices.Equal(call.words, []string{"ro", "relatime", "default_permissions", "allow_other"}) {
		t.Errorf("%+v", call)
	}
}

func TestHelperRefusals(t *testing.T) {
	for args, says := range map[string]string{
		"":                        "0 arguments",
		"/b":                      "1 argument",
		"/b /m /x":                "3 arguments",
		"/b /m -x":                "-x",
		"/b /m -o":                "o",
		"/b /m -t ext4":           `"ext4"`,
		"--help":                  "usage:",
		"/b /m -o ro,frob":        `"frob"`,
		"/b /m -o daemon":         `"daemon"`,
		"/b /m -o fake":           `"fake"`,
		"/b /m -o options=ro":     `"options=ro"`,
		"/b /m -o max_read=4096":  `"max_read=4096"`,
		"/b /m -o state=/a,b":     `"b"`, // no quotes keep a comma
		`/b /m -o state="/a,b"`:   `"b\""`,
		`/b /m -o state=/a\,b`:    `"b"`,
		"/b /m -o state=,ro":      "--state is empty",
		"/b /m -o verify_writes=": "verify-writes",
		"/b /m -o semantics=odd":  "odd",
	} {
		var stdout, stderr strings.Builder
		code := runHelper(context.Background(), append(strings.Fields(args), "-f"), &stdout, &stderr)
		if code != mountUsage || !strings.Contains(stderr.String(), says) || stdout.Len() > 0 ||
			strings.Count(stderr.String(), "\n") != 1 || !strings.HasPrefix(stderr.String(), "mount.mendfs: ") || !strings.Contains(stderr.String(), "; ") {
			t.Errorf("%q: exit %d, %q%q, want it to say %q", args, code, stdout.String(), stderr.String(), says)
		}
	}
}

func TestHelperExitCodes(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want int
	}{
		"mounted":       {nil, 0},
		"wrong usage":   {&usageError{}, 1},
		"refused":       {&mount.Error{Exit: exitUsage}, 1},
		"no permission": {&mount.Error{Exit: exitOperational, Err: unix.EPERM}, 1},
		"no memory":     {fmt.Errorf("fork: %w", unix.ENOMEM), 2},
		"a bug":         {errors.New("something else"), 4},
		"interrupted":   {context.Canceled, 8},
		"not mounted":   {&mount.Error{Exit: exitOperational, Err: unix.EBUSY}, 32},
		"no remount":    {&failure{errors.New("strict"), ""}, 32},
	} {
		if got := helperCode(c.err); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

// TestCalledWithoutHelper is what mount.fuse(8) runs for the type fuse.mendfs
// where our own helper is not installed.
func TestCalledWithoutHelper(t *testing.T) {
	for _, args := range [][]string{{"/srv/db", "/mnt", "-o", "rw,nosuid"}, {"/srv/db"}} {
		refused(t, exitUsage, "run 'make install' for mount.mendfs and mount.fuse.mendfs", args...)
	}
}
