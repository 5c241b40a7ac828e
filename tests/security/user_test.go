package security

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mendfs/mendfs/tests/harness"
)

// byUser runs a script as an ordinary user who may mount, in a mount namespace of
// its own, with $1 a directory of his and $2 the program. fuse.conf is what
// /etc/fuse.conf says there.
func byUser(t *testing.T, fuseConf, script string) (harness.Result, string) {
	t.Helper()
	harness.Need(t, harness.Root, harness.FUSE, harness.Program("unshare", "setpriv", "fusermount3"))
	dir := harness.Dir(t)
	program, err := os.ReadFile(os.Getenv("MENDFS_BIN"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"mendfs": string(program), "fuse.conf": fuseConf, "script": script} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	setup := `set -e
mknod "$1/fuse" c 10 229; chmod 666 "$1/fuse"; mount --bind "$1/fuse" /dev/fuse
touch /etc/fuse.conf; mount --bind "$1/fuse.conf" /etc/fuse.conf
mkdir "$1/his" "$1/his/db" "$1/his/run"; echo text >"$1/his/db/f"; chown -R 65534:65534 "$1/his"; cd /
export HOME="$1/his" XDG_STATE_HOME="$1/his/state" XDG_RUNTIME_DIR="$1/his/run"
exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -e "$1/script" "$1/his" "$1/mendfs"`
	r := harness.Run(t, "unshare", "--mount", "--propagation", "private", "sh", "-c", setup, "sh", dir)
	return r, filepath.Join(dir, "his")
}

// TestOrdinaryUser mounts over a directory of his own, confined, and unmounts
// in each way.
func TestOrdinaryUser(t *testing.T) {
	r, _ := byUser(t, "", `
dir=$1 mendfs=$2
for end in TERM umount; do
  "$mendfs" mount --daemon "$dir/db"
  grep -q text "$dir/db/f"
  mkdir -p "$dir/db/sub"; mv "$dir/db/f" "$dir/db/sub/"; mv "$dir/db/sub/f" "$dir/db/f"
  "$mendfs" status "$dir/db" | grep sandbox
  pid=$("$mendfs" status --json "$dir/db" | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p')
  grep NoNewPrivs "/proc/$pid/status"
  if [ $end = TERM ]; then
    kill "$pid"
    while [ -e "/proc/$pid" ]; do sleep 0.1; done
  else
    "$mendfs" umount "$dir/db"
  fi
  ! grep -q "$dir/db" /proc/self/mountinfo
done
echo done`)
	if r.Exit != 0 || !strings.HasSuffix(r.Stdout, "done\n") {
		t.Fatalf("%+v", r)
	}
	for _, want := range []string{"no_new_privs, no capabilities", "NoNewPrivs:\t1"} {
		if !strings.Contains(r.Stdout, want) {
			t.Errorf("%q is not in %s", want, r.Stdout)
		}
	}
	if !strings.Contains(r.Stderr, "mounted by an ordinary user") {
		t.Errorf("it says only %s", r.Stderr)
	}
}

func TestAllowOtherByAnOrdinaryUser(t *testing.T) {
	const script = `
"$2" mount --daemon --allow-other "$1/db" || echo "refused: $?"
"$2" mount --daemon --allow-other --force "$1/db" && "$2" umount "$1/db" && echo forced || echo "refused: $?"`
	for _, c := range []struct{ conf, stdout, stderr string }{
		{"", "refused: 16\nrefused: 16\n", "user_allow_other"},
		{"user_allow_other\n", "forced\n", "would belong to you"},
	} {
		r, _ := byUser(t, c.conf, script)
		if !strings.HasSuffix(r.Stdout, c.stdout) || !strings.Contains(r.Stdout, "refused: 16") || !strings.Contains(r.Stderr, c.stderr) {
			t.Errorf("with %q in fuse.conf: %+v", c.conf, r)
		}
	}
}
