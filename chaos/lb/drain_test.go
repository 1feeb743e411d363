package lb_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/lab"
	"holdfast/lab/site"
	"holdfast/lab/stall"
	"holdfast/lab/vm"
)

const drainFile = `schema: 1
cluster: lab
domain: lab.example.com
networks:
  adm: {prefix: 10.1.0.0/24}
roles:
  frontend: {voters: 1, run: []}
  other: {agent: false}
nodes:
  f1: {role: frontend, addresses: {adm: 10.1.0.1}}
  f2: {role: other, addresses: {adm: 10.1.0.2}}
vips:
  front: {network: adm, address: 10.1.0.100, vrid: 20, version: 3, advertise: 1s, members: f1}
lb:
  services:
    plain: {vip: front, port: 7, servers: "f[1-2]", scheduler: rr, persistence: 600s, check: {tcp: true, every: 2s, timeout: 2s}}
`

// wallLimit is how long it may take until the node says that all have gone: it
// looks every ten seconds.
const wallLimit = 40 * time.Second

// A frontend that is drained, by the command, with the whole agent and its
// store: somebody is logged in there, and a connection is open.
func TestDrain(t *testing.T) {
	buildForMachine(t)
	vm.Inside(t, vm.Options{Modules: []string{"ip_vs", "ip_vs_rr"}}, testDrain)
}

func testDrain(t *testing.T) {
	b := newDrainBed(t)
	cli := func(args ...string) (string, error) {
		return b.frontends[0].Run(t.Context(), append([]string{b.binary, "lb"}, args...)...)
	}
	// A store that stood still with its machine may refuse what it is told, until
	// it has its leader again. To tell it once more is harmless.
	told := func(what, word string, args ...string) {
		t.Helper()
		b.eventually(t, what, func() error {
			out, err := cli(args...)
			if err == nil && !strings.Contains(out, word) {
				err = fmt.Errorf("it says %q", out)
			}
			return err
		})
	}
	inside := b.openOn(t, "f1")
	// The frontend balances before its store has a leader.
	told("f2 is drained", "nobody new", "drain", "f2")
	b.eventually(t, "both at a time are refused", func() error {
		out, err := cli("drain", "f1")
		if err == nil {
			t.Fatalf("both are drained at a time: %q", out)
		}
		if !strings.Contains(err.Error()+out, "quorum") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	told("f2 is not drained any more", "", "undrain", "f2")
	terminal := b.terminal(t)
	told("f1 is drained", "", "drain", "f1", "--deadline", "2h", "--message", "new kernel")
	b.eventually(t, "the store says who is logged in", func() error {
		out, err := cli("status")
		if err == nil && (!strings.Contains(out, "1 logins on f1") || !strings.Contains(out, "root ")) {
			err = fmt.Errorf("it says %q", out)
		}
		return err
	})
	line, err := terminal.line()
	for err == nil && !strings.Contains(line, "out of service") { // what sshd says stands before it
		line, err = terminal.line()
	}
	if err != nil || !strings.Contains(line, "new kernel") {
		t.Errorf("who is logged in was told %q, %v", line, err)
	}
	// A check that failed in a stall would keep all away from f2 as well.
	told("new people go to f2 alone", "one of f2 (weight 1), by rr; not to f1 (drained)", "explain", source(0).String())
	for i := range sources { // also those who were at home on f1
		if s := must(b.open(i, "7"))(t); s.on != "f2" {
			t.Errorf("source %d came to %s", i, s.on)
		} else {
			s.Close()
		}
	}
	if err := inside.echo("still there"); err != nil {
		t.Errorf("a session on the drained node: %v", err)
	}
	inside.Close()
	if _, err := terminal.out.Write([]byte{4}); err != nil { // the end of file, as typed
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*wallLimit)
	defer cancel()
	gone := time.Now()
	out, err := b.frontends[0].Run(ctx, b.binary, "lb", "drain", "f1", "--wait")
	b.machine.Judge(t, "until it is said that all have gone", wallLimit, gone, time.Now())
	if err != nil || !strings.HasSuffix(out, "empty, safe to reboot\n") {
		t.Errorf("wait until it is empty: %q, %v", out, err)
	}
	out = must(cli("explain", source(0).String()))(t)
	if !strings.Contains(out, "f1 (drained)") {
		t.Errorf("explain says %q", out)
	}
	told("f1 is not drained any more", "", "undrain", "f1")
	b.eventually(t, "f1 takes new people again", func() error { // those who were here are at home on f2
		out, err := cli("explain", "10.1.0.99")
		if err == nil && !strings.Contains(out, "f1 (weight 1)") {
			err = fmt.Errorf("explain says %q", out)
		}
		return err
	})
}

// newDrainBed is f1 with the whole agent, and f2 as an admin makes a real
// server that has none.
func newDrainBed(t *testing.T) *bed {
	t.Helper()
	l := lab.NewTest(t, lab.Options{Networks: []string{"adm"}})
	b := &bed{whole: t, binary: os.Getenv(binaryE), machine: stall.Test(t, "")}
	var addrs []string
	for i := range sources {
		addrs = append(addrs, source(i).String()+"/24")
	}
	b.client = must(l.AddHost("client", lab.On("adm", addrs...)))(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "cluster.yaml")
	check(t, os.WriteFile(path, []byte(drainFile), 0o600))
	issued := must(site.Certify(t.Context(), b.binary, path, "lab", dir))(t)
	for i := range 2 {
		h := must(l.AddHost(fmt.Sprintf("f%d", i+1), lab.On("adm", fmt.Sprintf("10.1.0.%d/24", i+1))))(t)
		b.frontends = append(b.frontends, h)
		b.listen(t, h, "7")
	}
	must(b.frontends[1].Run(t.Context(), "sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore; echo 2 >/proc/sys/net/ipv4/conf/all/arp_announce; ip address add "+vip+"/32 dev lo"))(t)
	h := b.frontends[0]
	check(t, h.Write("/etc/holdfast/cluster.yaml", []byte(drainFile)))
	for _, e := range must(os.ReadDir(filepath.Join(issued, "f1")))(t) {
		check(t, install(h, "/etc/holdfast/pki/"+e.Name(), must(os.ReadFile(filepath.Join(issued, "f1", e.Name())))(t)))
	}
	must(h.Start(lab.Cmd{Name: "agent", Args: []string{
		b.binary, "agent", "--node", "f1", "--dns-listen", "127.0.0.1:5353", "--http-listen", "127.0.0.1:8500",
	}}))(t)
	b.openOn(t, "f1").Close()
	b.openOn(t, "f2").Close()
	return b
}

// openOn waits for somebody who comes to a frontend.
func (b *bed) openOn(t *testing.T, frontend string) (found session) {
	t.Helper()
	from := 0
	b.eventually(t, "somebody comes to "+frontend, func() error {
		s, err := b.open(from%sources, "7")
		if err != nil {
			return err
		}
		if from++; s.on != frontend {
			s.Close()
			return fmt.Errorf("came to %s", s.on)
		}
		found = s
		return nil
	})
	return found
}

// terminal logs in on f1 itself with a terminal, over real SSH.
func (b *bed) terminal(t *testing.T) session {
	t.Helper()
	h := b.frontends[0]
	keys := makeKeys(t)
	check(t, install(b.client, "/etc/ssh/id", keys["user"]))
	check(t, install(h, "/etc/ssh/host", keys["host"]))
	check(t, h.Write("/etc/ssh/users", keys["user.pub"]))
	check(t, h.Write("/etc/ssh/frontend", []byte(sshdFile)))
	must(h.Run(t.Context(), "sh", "-c", "mkdir -p /run/sshd; touch /run/utmp"))(t) // systemd-tmpfiles makes it
	b.sshd = make([]*lab.Proc, 1)
	b.startSSHD(t, 0)
	args := append([]string{"ssh", "-tt"}, b.ssh(0, "stty -echo; echo; exec cat")[1:]...)
	for i, a := range args {
		if a == "root@"+vip {
			args[i] = "root@10.1.0.1"
		}
	}
	var s session
	b.eventually(t, "somebody logs in", func() (err error) {
		s, err = b.pipe(t, args)
		return err
	})
	return s
}
