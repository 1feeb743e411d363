package ntpproxy

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/lab"
	"holdfast/ntpproxy/discipline"
)

// A chronyd that takes its own time for right is 300 ms off: what makes a
// falseticker in real life, unlike a server that shows another day.
func TestChronydThatIsWrongAmongGoodOnesIsNamedAndMovesNothing(t *testing.T) {
	root := peers(t)
	good := chronyServer(t, root, 21241)
	wrong := chronyFollowing(t, root, 21243, "127.0.0.1 port 21241 iburst minpoll -4 maxpoll -4 offset 0.3")
	c := newFakeClock(t, -2*time.Second, 40)
	f := keeping(t, c, keepDiscipline, good, wrong, chronyServer(t, root, 21242))
	f.serve(t)
	eventually(t, "the chronyd that is wrong is called a falseticker, and the clock is right", func() bool {
		k := f.server.Kept()
		return k != nil && k.Updates > 20 && k.Sources[1].State == discipline.Falseticker && c.off(t).Abs() < time.Millisecond
	})
	eventually(t, "an admin is told by how much", func() bool {
		k := f.server.Kept()
		return k != nil && (k.Sources[1].Offset-300*time.Millisecond).Abs() < 10*time.Millisecond
	})
	eventually(t, "the falseticker is a condition", func() bool { return raised(f.board, conditionFalseticker) })
	for _, s := range c.stepped() {
		if s < time.Second {
			t.Errorf("stepped by %v: that is halfway to the one that is wrong", s)
		}
	}
}

// chronyFollowing starts a chronyd that serves what it makes of a source, and
// leaves the machine's clock alone.
func chronyFollowing(t *testing.T, root string, port int, source string) string {
	t.Helper()
	dir := t.TempDir()
	config := fmt.Sprintf("server %s\nmakestep 0.1 3\nallow 127.0.0.0/8\nport %d\ncmdport 0\nbindcmdaddress /\nbindaddress 127.0.0.1\npidfile %s/pid\n", source, port, dir)
	path := filepath.Join(dir, "chrony.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(root, "usr/sbin/chronyd"), "-x", "-d", "-u", "root", "-f", path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return fmt.Sprintf("127.0.0.1:%d", port)
}

// ntpsec's ntpd follows the server, and is itself a source that the discipline
// can read. It may not set the clock, which is the machine's.
func TestNtpsecFollowsTheServerAndIsASource(t *testing.T) {
	s := newSite(t)
	const config = "server 10.1.0.1 iburst minpoll 1 maxpoll 3\ndisable kernel\ndriftfile /tmp/drift\n"
	if err := s.client.Write("/etc/ntp.conf", []byte(config)); err != nil {
		t.Fatal(err)
	}
	log := s.start(lab.Cmd{Args: []string{"setpriv", "--bounding-set=-sys_time", "--inh-caps=-sys_time",
		filepath.Join(s.root, "usr/sbin/ntpd"), "-n", "-g", "-c", "/etc/ntp.conf", "-p", "/run/ntpd.pid"}})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s.eventually("ntpd follows, and answers as a source", func() error {
		out, err := s.client.RunCmd(t.Context(), lab.Cmd{Args: []string{self}, Env: []string{askEnv + "=10.1.0.99:123"}})
		if err != nil {
			return fmt.Errorf("%w: %s; ntpd says: %s", err, out, log())
		}
		if err := holds(out, "stratum 5 reference 10.1.0.1 leap none error <nil> off true"); err != nil {
			return fmt.Errorf("%w; ntpd says: %s", err, log())
		}
		return nil
	})
}

// OpenNTPD checks origin, stratum, leap and delay in its own way, and asks from
// a new port each time. It can't set the clock here, so it is no source.
func TestOpenNTPDBelievesTheServer(t *testing.T) {
	s := newSite(t)
	openntpd := filepath.Join(s.root, "../openntpd")
	for path, text := range map[string]string{
		"/etc/openntpd.conf": "server 10.1.0.1\n",
		"/etc/passwd":        "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\nntpd:x:991:991::/run/openntpd:/bin/false\n",
		"/etc/group":         "root:x:0:\nnogroup:x:65534:\nntpd:x:991:\n",
	} {
		if err := s.client.Write(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := s.client.Run(t.Context(), "mkdir", "-p", "/run/openntpd", "/var/lib/openntpd/run", "/var/lib/openntpd/db"); err != nil {
		t.Fatal(err, out)
	}
	log := s.start(lab.Cmd{Args: []string{"setpriv", "--bounding-set=-sys_time", "--inh-caps=-sys_time",
		filepath.Join(openntpd, "usr/sbin/ntpd"), "-d", "-v", "-v", "-f", "/etc/openntpd.conf"}})
	s.eventually("OpenNTPD takes a reply", func() error { return holds(log(), "reply from 10.1.0.1: offset", "delay") })
	if text := log(); strings.Contains(text, "not synced") {
		t.Errorf("it thinks that we are not synchronised: %s", text)
	}
}
