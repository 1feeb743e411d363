// Package hack tests the scripts of this folder, inside lab hosts: what they
// install and remove is gone with the host.
package hack

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/lab"
)

func TestMain(m *testing.M) {
	if lab.Init() {
		return
	}
	m.Run()
}

// A stand-in for apt-get. It notes what it was asked and whether daemons were
// forbidden meanwhile; install puts ping back, unless the test wants a failure.
const fakeAptGet = `#!/bin/sh
echo "$*" >>/run/apt.log
case "$*" in
*install*) ;;
*) exit 0 ;;
esac
/usr/sbin/policy-rc.d; echo "policy $?" >>/run/apt.log
[ ! -e /run/apt-fails ] || exit 100
mv /usr/bin/ping.away /usr/bin/ping
`

const fakeGo = `#!/bin/sh
[ "$*" = "env GOVERSION" ] && echo "$(cat /run/goversion)"
`

// machine is a host on which ping is missing and everything else is there.
type machine struct {
	t    *testing.T
	host *lab.Host
	deps string
}

func newMachine(t *testing.T) machine {
	t.Helper()
	repository, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	l := lab.NewTest(t, lab.Options{Expose: []string{repository}})
	h, err := l.AddHost("bare")
	if err != nil {
		t.Fatal(err)
	}
	m := machine{t, h, filepath.Join(repository, "hack/deps")}
	m.script("/usr/local/sbin/apt-get", fakeAptGet)
	m.script("/usr/local/sbin/go", fakeGo)
	m.write("/run/goversion", "go1.99.1\n")
	// So that this test needs none of the packages itself.
	for _, tool := range []string{
		"make", "gcc", "ip", "nft", "dig", "ps", "curl", "nsenter", "keepalived",
		"qemu-system-x86_64", "depmod", "xz", "mkfs.ext4", "ipvsadm", "exportfs", "apt-ftparchive", "dpkg-source", "debootstrap", "gpg",
	} {
		m.script("/usr/local/sbin/"+tool, "#!/bin/sh\n")
	}
	// dpkg knows every package but those that the test takes away.
	m.script("/usr/local/sbin/dpkg-query", "#!/bin/sh\nfor name; do :; done\n[ -e /run/gone-$name ] || printf installed\n")
	m.sh("[ -e /usr/bin/python3 ] || ln -s /bin/true /usr/bin/python3")
	m.write("/usr/include/stdlib.h", "")
	m.write("/etc/ssl/certs/ca-certificates.crt", "")
	m.sh("rm -f /usr/bin/ping /bin/ping /usr/sbin/policy-rc.d; cp /bin/true /usr/bin/ping.away")
	return m
}

func (m machine) write(path, text string) {
	m.t.Helper()
	if err := m.host.Write(path, []byte(text)); err != nil {
		m.t.Fatal(err)
	}
}

func (m machine) script(path, text string) {
	m.t.Helper()
	m.write(path, text)
	m.sh("chmod 755 " + path)
}

func (m machine) sh(script string) {
	m.t.Helper()
	if _, err := m.host.Run(m.t.Context(), "sh", "-c", script); err != nil {
		m.t.Fatal(err)
	}
}

// run runs hack/deps and returns its exit status and what it said.
func (m machine) run(user string, args ...string) (int, string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	_, err := m.host.RunCmd(ctx, lab.Cmd{Args: append([]string{m.deps}, args...), User: user})
	if err == nil {
		return 0, ""
	}
	exit := new(lab.ExitError)
	if !errors.As(err, &exit) {
		m.t.Fatal(err)
	}
	return exit.Status.ExitStatus(), exit.Stderr
}

func (m machine) expect(gotStatus int, gotText string, status int, text string) {
	m.t.Helper()
	if gotStatus != status || !strings.Contains(gotText, text) {
		m.t.Errorf("exit status %d and %q, want %d and %q", gotStatus, gotText, status, text)
	}
}

// aptLog is what apt-get was asked, "" when it was not called.
func (m machine) aptLog() string {
	m.t.Helper()
	data, err := m.host.Read("/run/apt.log")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		m.t.Fatal(err)
	}
	return string(data)
}

func (m machine) noPolicyLeft() {
	m.t.Helper()
	if _, err := m.host.Read("/usr/sbin/policy-rc.d"); !errors.Is(err, os.ErrNotExist) {
		m.t.Errorf("policy-rc.d is still there: %v", err)
	}
}

func TestDepsInstallsWhatIsMissingWithoutStartingDaemons(t *testing.T) {
	m := newMachine(t)
	status, text := m.run("root", "--check")
	m.expect(status, text, 1, "missing Debian packages: iputils-ping")
	if log := m.aptLog(); log != "" {
		t.Errorf("--check called apt-get:\n%s", log)
	}
	status, text = m.run("root")
	m.expect(status, text, 0, "")
	if want := "-qq install -y --no-install-recommends iputils-ping\npolicy 101\n"; m.aptLog() != want {
		t.Errorf("apt-get was called so:\n%swant:\n%s", m.aptLog(), want)
	}
	m.noPolicyLeft()

	m.sh("rm /run/apt.log")
	status, text = m.run("root")
	m.expect(status, text, 0, "")
	if log := m.aptLog(); log != "" {
		t.Errorf("with nothing missing apt-get was called:\n%s", log)
	}
}

func TestDepsThatFailsToInstallCleansUp(t *testing.T) {
	m := newMachine(t)
	m.write("/run/apt-fails", "")
	status, text := m.run("root")
	m.expect(status, text, 1, "apt-get install iputils-ping failed")
	if !strings.Contains(m.aptLog(), "update") {
		t.Errorf("the package lists were not refreshed before giving up:\n%s", m.aptLog())
	}
	m.noPolicyLeft()
}

func TestDepsLeavesThePolicyOfTheAdminAlone(t *testing.T) {
	m := newMachine(t)
	m.script("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 104\n")
	status, text := m.run("root")
	m.expect(status, text, 0, "")
	data, err := m.host.Read("/usr/sbin/policy-rc.d")
	if err != nil || string(data) != "#!/bin/sh\nexit 104\n" {
		t.Errorf("the admin's policy-rc.d is now %q, %v", data, err)
	}
}

func TestDepsWithoutRootSaysWhatToRun(t *testing.T) {
	m := newMachine(t)
	status, text := m.run("nobody")
	m.expect(status, text, 1, "Run: sudo apt-get install --no-install-recommends iputils-ping")
	if log := m.aptLog(); log != "" {
		t.Errorf("apt-get was called:\n%s", log)
	}
}

func TestDepsWantsTheGoOfTheModule(t *testing.T) {
	m := newMachine(t)
	m.sh("mv /usr/bin/ping.away /usr/bin/ping")
	for version, want := range map[string]int{"go1.26.7": 0, "go1.27rc1": 0, "go1.30": 0, "go1.26.6": 1, "go1.9.9": 1} {
		m.write("/run/goversion", version+"\n")
		if status, text := m.run("nobody"); status != want {
			t.Errorf("with %s: exit status %d, %q; want %d", version, status, text, want)
		}
	}
	m.sh("rm /usr/local/sbin/go")
	if _, err := m.host.Run(t.Context(), "which", "go"); err == nil {
		if os.Getenv("CI") != "" {
			t.Fatal("this machine has another go in the hosts' PATH")
		}
		t.Skip("this machine has another go in the hosts' PATH")
	}
	status, text := m.run("nobody")
	m.expect(status, text, 1, "Go is missing: install Go 1.26")
}

func TestALibraryOfAPeerThatIsMissingIsNamed(t *testing.T) {
	m := newMachine(t)
	m.sh("mv /usr/bin/ping.away /usr/bin/ping; touch /run/gone-libseccomp2")
	status, text := m.run("root", "--check")
	m.expect(status, text, 1, "missing Debian packages: libseccomp2")
	m.sh("rm /run/gone-libseccomp2")
	status, text = m.run("root", "--check")
	m.expect(status, text, 0, "")
}
