package control

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mendfs/mendfs/mount/mounttest"
)

// askEnv makes the test program ask the socket that it names, and print the
// answer: to be somebody else a process of its own is needed.
const askEnv = "MENDFS_TEST_ASK"

func TestMain(m *testing.M) {
	if socket := os.Getenv(askEnv); socket != "" {
		os.Exit(askAsSomebody(socket))
	}
	os.Exit(m.Run())
}

func askAsSomebody(socket string) int {
	client := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", socket)
	}}}
	resp, err := client.Get("http://mendfs/v1/status")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	fmt.Println(resp.StatusCode, string(body), err)
	return 0
}

func TestOthersAreForbidden(t *testing.T) {
	u := mounttest.NewUser(t)
	socket := filepath.Join(u.Home, Socket) // a state directory can't be entered by others
	b := &canned{}
	for name, c := range map[string]struct {
		owner int    // who mounted
		uid   uint32 // who asks
		want  string
	}{
		"somebody else":        {1000, mounttest.UserID, "403 "},
		"somebody, of root's":  {0, mounttest.UserID, "403 "},
		"the user who mounted": {mounttest.UserID, mounttest.UserID, "200 "},
		"root":                 {mounttest.UserID, 0, "200 "},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(socket, 0o666); err != nil {
				t.Fatal(err)
			}
			s := Serve(l, b, c.owner)
			defer s.Close()
			got := askAs(t, u, c.uid, socket)
			if !strings.HasPrefix(got, c.want) {
				t.Errorf("uid %d was answered %q, want %q", c.uid, got, c.want)
			}
			if strings.HasPrefix(got, "403") == (b.asked != nil) {
				t.Errorf("answered %q, and the backend was asked %v", got, b.asked)
			}
			b.asked = nil
		})
	}
}

// askAs asks the socket as uid.
func askAs(t *testing.T, u *mounttest.User, uid uint32, socket string) string {
	t.Helper()
	cmd := exec.Command(u.Program)
	cmd.Env = append(os.Environ(), askEnv+"="+socket)
	u.RunAs(cmd, uid)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func TestNothingIsSentToAnotherUser(t *testing.T) {
	b := &canned{}
	state, _ := serve(t, b)
	if err := DialUser(state, os.Geteuid()).Answers(context.Background()); err != nil {
		t.Error(err)
	}
	stranger := DialUser(state, os.Geteuid()+1)
	if _, err := stranger.Status(context.Background()); err == nil || !strings.Contains(err.Error(), "is that of user") || b.asked != nil {
		t.Errorf("%v; asked %v", err, b.asked)
	}
	if err := stranger.Answers(context.Background()); err == nil {
		t.Error("a stranger's answer was taken")
	}
}
