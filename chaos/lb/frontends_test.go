// Package lb_test takes things away from load-balanced frontends, on a kernel
// that has IPVS. It measures times, so it runs when nothing else does.
package lb_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/kernel/ipvs"
	"holdfast/lab"
	"holdfast/lab/site"
	"holdfast/lab/vm"
	"holdfast/lab/wire"
)

// What the bounds of testFrontends come from.
const (
	advert = time.Second
	// Between two checks of OpenSSH. It starts a process for each of them, nine
	// for three directors: every second would be more than an emulator has.
	// It is given nearly as long to answer: where the machine stands still for a
	// second, a server would be out, and its people with it.
	delay     = 5 * time.Second
	allowance = 300 * time.Millisecond // beyond VRRP's own figure
	silent    = 100 * time.Millisecond // what an emulator may take to hear of the next Active
)

// activeDown is Active_Down_Interval of a Backup (RFC 9568 §6.1); without the
// three adverts it is Skew_Time.
func activeDown(priority int) time.Duration {
	return 3*advert + skew(priority)
}

func skew(priority int) time.Duration {
	return advert * time.Duration(256-priority) / 256
}

// frontends are three that share an address, up to what VRRP alone knows of it.
const frontends = `schema: 1
cluster: lab
domain: lab.example.com
networks:
  adm: {prefix: 10.1.0.0/24}
roles:
  frontend: {voters: 3, run: []}
nodes:
  f[1-3]: {role: frontend, addresses: {adm: "10.1.0.[1-3]"}}
vips:
  front:
    network: adm
    address: 10.1.0.100
    vrid: 20
    version: 3
    advertise: 1s
    members: "@frontend"
`

const clusterFile = frontends + `    vrrp: {priority: {f1: 250, f2: 200, f3: 100}, preempt: false}
lb:
  handover: 1s
  firewall: nftables
  services:
    plain: {vip: front, port: 7, scheduler: rr, path: true, check: {tcp: true, every: 1s, timeout: 1s}}
    ssh:   {vip: front, port: 22, scheduler: rr, persistence: 600s, check: {ssh: true, every: 5s, timeout: 4s}}
`

func TestMain(m *testing.M) {
	if lab.Init() {
		return
	}
	m.Run()
}

// buildForMachine builds the program where hosts in a machine see it: below the
// module, not in /tmp.
func buildForMachine(t *testing.T) {
	t.Helper()
	if vm.IsInside() {
		return
	}
	vm.Require(t)
	check(t, os.MkdirAll("../../build", 0o755))
	dir := must(os.MkdirTemp("../../build", "lb-"))(t)
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Setenv(binaryE, must(site.Build(t.Context(), must(filepath.Abs(dir))(t)))(t))
}

// Three frontends that are directors and real servers, with OpenSSH and with
// their real agents. A client asks all the time who has the address.
func TestFrontends(t *testing.T) {
	buildForMachine(t)
	vm.Inside(t, vm.Options{Modules: []string{"ip_vs", "ip_vs_rr"}}, testFrontends)
}

func testFrontends(t *testing.T) {
	b := newBed(t, clusterFile)
	ctx, stop := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	asking.Go(func() { b.ask(ctx) })
	t.Run("log-ins are balanced and stay", b.testBalance)
	t.Run("a server whose sshd stops gets nobody", b.testStoppedSSHD)
	t.Run("a server that lost the address gets nobody", b.testLostAddress)
	t.Run("rules that are thrown away are put back", b.testFirewall)
	t.Run("a killed director loses no session", b.testKilledDirector)
	t.Run("a planned move loses no session", b.testMove)
	t.Run("a director that is cut off loses only its own sessions", b.testCutDirector)
	stop()
	asking.Wait()
	t.Run("only the Active answers for the address", b.testARP)
	t.Run("who stops leaves nothing", b.testStop)
}

// 60 log-ins that run hostname and 300 connections for a banner, from 30
// addresses. Persistence binds an address to a server, so round robin's ideal
// is a third of the addresses each, and with them of all that they do.
func (b *bed) testBalance(t *testing.T) {
	logins, banners, home := map[string]int{}, map[string]int{}, make([]string, sources)
	var mu sync.Mutex
	count := func(in map[string]int, source int, on string, err error) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err != nil:
			t.Errorf("source %d: %v", source, err)
		case home[source] == "":
			home[source] = on
		case home[source] != on:
			t.Errorf("source %d went to %s first, then to %s", source, home[source], on)
		}
		in[on]++
	}
	// One round goes in turn: what runs beside each other may come in any order.
	for i := range sources {
		on, err := b.banner(i)
		count(banners, i, on, err)
	}
	start := time.Now()
	b.beside(4, 9*sources, func(i int) {
		on, err := b.banner(i % sources)
		count(banners, i%sources, on, err)
	})
	t.Logf("270 of 300 banners took %v", time.Since(start))
	start = time.Now()
	b.beside(3, 2*sources, func(i int) {
		on, err := b.login(t.Context(), i%sources)
		count(logins, i%sources, on, err)
	})
	t.Logf("60 log-ins took %v; they are on %v, banners on %v", time.Since(start), logins, banners)
	places := map[string]int{}
	for _, on := range home {
		places[on]++
	}
	within := func(what string, in map[string]int, ideal, most int) {
		for _, f := range b.frontends {
			if n := in[f.String()]; n < ideal-most || n > ideal+most {
				t.Errorf("%s got %d %s; %d is the ideal", f, n, what, ideal)
			}
		}
	}
	within("addresses", places, sources/3, 1)
	within("log-ins", logins, 2*sources/3, 1)
	within("banners", banners, 10*sources/3, 1)
}

func (b *bed) testStoppedSSHD(t *testing.T) {
	b.settle(t)
	h := b.tables[0]
	s := b.shell(t, b.sourceOn(t, "f3"))
	check(t, b.sshd[2].Kill())
	start := time.Now()
	out := b.eventually(t, "f3 is out", func() error { return inTable(h, 22, "10.1.0.3", false) })
	t.Logf("out after %v", out.Sub(start))
	b.machine.Judge(t, "until a server without sshd is out", delay+time.Second, start, out)
	for i := settled; i < sources; i++ { // the others stay at home on f3
		if on, err := b.banner(i); err != nil || on == "f3" {
			t.Errorf("source %d went to %q, %v", i, on, err)
		}
	}
	if err := s.echo("still there"); err != nil {
		t.Errorf("a session on f3 does not outlive its listener: %v", err)
	}
	b.startSSHD(t, 2)
	b.eventually(t, "f3 is back", func() error { return inTable(h, 22, "10.1.0.3", true) })
}

// testLostAddress takes the address from f3's loopback, whose services answer at
// its own address still. Its agent would put it back, and is away meanwhile.
func (b *bed) testLostAddress(t *testing.T) {
	check(t, b.agents[2].Kill())
	if out, err := b.frontends[2].Run(t.Context(), "ip", "address", "delete", vip+"/32", "dev", "lo"); err != nil {
		t.Fatal(out, err)
	}
	start := time.Now()
	out := b.eventually(t, "f3 is out", func() error { return inTable(b.tables[0], 7, "10.1.0.3", false) })
	t.Logf("out after %v", out.Sub(start))
	// Every second, and a timeout of one.
	b.machine.Judge(t, "until a server without the address is out", advert+time.Second+time.Second/4, start, out)
	b.startAgent(t, 2)
	b.eventually(t, "f3 is back", func() error { return inTable(b.tables[0], 7, "10.1.0.3", true) })
}

// testKilledDirector kills the agent of f1. Its guard waits two adverts for a
// successor, takes the address away, and tells the others with priority 0.
func (b *bed) testKilledDirector(t *testing.T) {
	all := b.sessions(t, 0, 1)
	tries := b.tries(t)
	killed := time.Now()
	check(t, b.agents[0].Kill())
	works := b.outage(t, tries, killed)
	took := works.Sub(killed)
	made, lost := tries.Count()
	t.Logf("new connections work again %v after the kill, of %d tried %d failed; Active_Down_Interval of f2 is %v", took, made, lost, activeDown(200))
	b.machine.Judge(t, "until new connections work again (VRRP's figure, and an allowance)", activeDown(200)+allowance, killed, works)
	b.survive(t, all, "")
	b.startAgent(t, 0)
}

func (b *bed) testMove(t *testing.T) {
	b.eventually(t, "f1's tables are back", func() error { return b.standsBy(0) })
	all := b.sessions(t, 1, 0)
	out, err := b.frontends[0].Run(t.Context(), b.binary, "vip", "hold", "front", "--socket", "/run/holdfast/net.sock")
	if err != nil {
		t.Fatal(out, err)
	}
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); { // through the handover and beyond
		for _, s := range all {
			if err := s.echo("during"); err != nil {
				t.Fatalf("during the move: %v", err)
			}
		}
	}
	b.eventually(t, "f1 directs", func() error { return b.directs(0) })
	b.survive(t, all, "")
	if out, err = b.frontends[1].Run(t.Context(), "cat", "/proc/sys/net/ipv4/vs/backup_only"); err != nil || out != "1\n" {
		t.Errorf("f2 directs still: %q, %v", out, err)
	}
}

func (b *bed) testCutDirector(t *testing.T) {
	all := b.sessions(t, 0, 1)
	tries := b.tries(t)
	cut := time.Now()
	check(t, b.frontends[0].Unplug("adm"))
	works := b.outage(t, tries, cut)
	took := works.Sub(cut)
	made, lost := tries.Count()
	t.Logf("new connections work again %v after the cut, of %d tried %d failed; Active_Down_Interval of f2 is %v", took, made, lost, activeDown(200))
	b.machine.Judge(t, "until new connections work again (VRRP's figure, and an allowance)", activeDown(200)+allowance, cut, works)
	b.survive(t, all, "f1")
	check(t, b.frontends[0].Plug("adm"))
	b.eventually(t, "f1, which was to hold it, directs again", func() error { return b.directs(0) })
}

// testARP judges all that was said since the start, through five changes of
// role.
func (b *bed) testARP(t *testing.T) {
	events := b.watch.Events()
	router := wire.Router{VRID: 20, Interval: advert}
	answers := 0
	by := map[wire.MAC]int{}
	for _, e := range events {
		if e.Kind == wire.Answer && e.Addr == netip.MustParseAddr(vip) {
			answers++
			by[e.From]++
		}
	}
	actives := wire.Actives(events, router)
	t.Logf("%d answers %v, of %d asked; Active were %v", answers, by, b.asked.Load(), actives)
	if b.asked.Load() < 1000 || answers < 1000 {
		t.Errorf("%d answers to %d questions are too few to judge by", answers, b.asked.Load())
	}
	// A killed Active's address is there for the guard's patience, two adverts
	// after the last: less than its peers wait.
	for _, e := range wire.Strays(events, actives, netip.MustParseAddr(vip), 3*advert) {
		// Its kernel answers while its agent stands still.
		if stood := b.machine.Within(e.At.Add(-6*advert), e.At); stood > allowance {
			t.Logf("%v answered at %v and was not Active; the machine stood still for %v in the %v before", e.From, e.At, stood, 6*advert)
			continue
		}
		t.Fatalf("%v answered at %v and was not Active", e.From, e.At)
	}
	// Answers of two mean two owners. Who gives way to a new Active is silent
	// from its first advert on, but for what an emulator takes to hear it.
	spans := wire.Answering(events, netip.MustParseAddr(vip), 200*time.Millisecond)
	t.Logf("two answered: %v", wire.Overlaps(spans, 0))
	var stalls []wire.Window
	for _, s := range b.machine.Spans(time.Time{}, time.Now()) {
		stalls = append(stalls, wire.Window{From: s.From, To: s.To})
	}
	if got := wire.Overlaps(spans, silent, stalls...); len(got) > 0 {
		t.Errorf("two answered: %v", got)
	}
}

// testFirewall throws the director's rules away, as a restart of the site's
// firewall does.
func (b *bed) testFirewall(t *testing.T) {
	must(b.frontends[0].Run(t.Context(), "nft", "flush", "ruleset"))(t)
	b.eventually(t, "the rules are put back", func() error {
		_, err := b.frontends[0].Run(t.Context(), "nft", "list", "table", "inet", "holdfast")
		return err
	})
}

func (b *bed) testStop(t *testing.T) {
	for _, i := range []int{2, 1, 0} {
		check(t, b.agents[i].Stop(t.Context()))
		out := must(b.frontends[i].Run(t.Context(), "sh", "-c", "ip -o address; nft list tables; ipvsadm -Sn; ipvsadm -L --daemon; cat /proc/sys/net/ipv4/conf/all/arp_ignore /proc/sys/net/ipv4/conf/all/arp_announce /proc/sys/net/ipv4/vs/backup_only"))(t)
		if strings.Contains(out, vip) || strings.Contains(out, "holdfast") || strings.Contains(out, "sync daemon") || !strings.HasSuffix(out, "0\n0\n0\n") {
			t.Errorf("f%d left\n%s", i+1, out)
		}
	}
}

// sessions are six on the plain service and three shells on the other, at least
// one of each on every frontend.
func (b *bed) sessions(t *testing.T, director, next int) (all []session) {
	t.Helper()
	b.settle(t)
	before := b.connections(t, director)
	for i := range 6 {
		s := must(b.open(i, "7"))(t)
		t.Cleanup(func() { s.Close() })
		all = append(all, s)
	}
	for _, f := range b.frontends {
		all = append(all, b.shell(t, b.sourceOn(t, f.String())))
	}
	on := map[string]int{}
	// A connection is told to the other directors after its third packet.
	for _, text := range []string{"first", "second", "third"} {
		for _, s := range all {
			check(t, s.echo(text))
			on[s.on]++
		}
	}
	if len(on) != 3 {
		t.Fatalf("the sessions are on %v; they must be on all three", on)
	}
	// The kernel gathers up to 2 s of connections before it tells of them.
	opened := b.connections(t, director)
	b.eventually(t, "the next director knows the sessions", func() error {
		known := b.connections(t, next)
		for c := range opened {
			if !before[c] && !known[c] {
				return fmt.Errorf("it lacks %s of %d", c, len(opened))
			}
		}
		return nil
	})
	return all
}

// connections are the clients of a frontend's established ones, as its kernel
// writes them.
func (b *bed) connections(t *testing.T, frontend int) map[string]bool {
	t.Helper()
	text := must(b.frontends[frontend].Run(t.Context(), "cat", "/proc/net/ip_vs_conn"))(t)
	found := map[string]bool{}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 7 && f[7] == "ESTABLISHED" {
			found[f[1]+":"+f[2]] = true
		}
	}
	return found
}

// survive proves that all sessions live but those on a frontend, and that who
// was persistent stays where it was.
func (b *bed) survive(t *testing.T, all []session, but string) {
	t.Helper()
	lost := 0
	for i, s := range all {
		if s.on == but {
			continue
		}
		if err := s.echo("after"); err != nil {
			lost++
			t.Errorf("session %d: %v", i, err)
		}
	}
	moved := 0
	for i, before := range b.home {
		if before == but {
			continue
		}
		if on, err := b.banner(i); err != nil || on != before {
			moved++
			t.Errorf("source %d was on %s and is now on %s (%v)", i, before, on, err)
		}
	}
	t.Logf("%d of %d sessions lost, %d of %d persistent addresses moved", lost, len(all), moved, len(b.home))
}

// inTable tells whether a real server stands in a table with some weight, as it
// should.
func inTable(h *ipvs.Handle, port uint16, server string, want bool) error {
	o, _, err := h.Get(ipvs.ByAddr(ipvs.TCP, netip.AddrPortFrom(netip.MustParseAddr(vip), port)))
	if err != nil {
		return err
	}
	there := slices.ContainsFunc(o.Servers, func(r ipvs.Server) bool { return r.Addr.Addr().String() == server && r.Weight > 0 })
	if there != want {
		return fmt.Errorf("the servers are %v", o.Servers)
	}
	return nil
}

// standsBy tells whether a frontend has tables that are not in force.
func (b *bed) standsBy(i int) error { return b.has(i, "1", false) }

// directs tells whether a frontend directs with all three servers.
func (b *bed) directs(i int) error { return b.has(i, "0", true) }

// has tells whether a frontend has backup_only, the address on its interface,
// and all real servers, as it should. It starts no process: these cost an
// emulator most.
func (b *bed) has(i int, backupOnly string, holds bool) error {
	var only []byte
	var addrs []net.Addr
	err := b.frontends[i].Do(func() (err error) {
		only, err = os.ReadFile("/proc/sys/net/ipv4/vs/backup_only")
		if err != nil {
			return err
		}
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		addrs, err = ifi.Addrs()
		return err
	})
	if err != nil {
		return err
	}
	services, err := b.tables[i].List()
	if err != nil {
		return err
	}
	servers := 0
	for _, s := range services {
		for _, r := range s.Servers {
			if s.Mark == 0 {
				servers += r.Weight
			}
		}
	}
	held := slices.ContainsFunc(addrs, func(a net.Addr) bool { return strings.HasPrefix(a.String(), vip+"/") })
	if got := strings.TrimSpace(string(only)); got != backupOnly || held != holds || servers != 6 {
		return fmt.Errorf("f%d has backup_only %s, the address: %v, %d real servers", i+1, got, held, servers)
	}
	return nil
}

// eventually polls and says when f had no error any more.
func (b *bed) eventually(t *testing.T, what string, f func() error) time.Time {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := site.Poll(ctx, func(context.Context) error { return f() }); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return time.Now()
}

// startAgent starts the real program on a frontend.
func (b *bed) startAgent(t *testing.T, i int) {
	t.Helper()
	h := b.frontends[i]
	b.agents[i] = must(h.Start(lab.Cmd{Name: "agent", Args: []string{
		b.binary, "agent", "--only", "net", "--config", "/etc/holdfast/cluster.yaml", "--node", h.String(), "--run-dir", "/run/holdfast",
	}}))(t)
}

// startSSHD starts OpenSSH's server; its sessions outlive it. With -r it does
// not execute itself anew for each connection, which costs an emulator most.
func (b *bed) startSSHD(t *testing.T, i int) {
	t.Helper()
	b.sshd[i] = must(b.frontends[i].Start(lab.Cmd{Name: "sshd", Args: []string{"/usr/sbin/sshd", "-r", "-D", "-e", "-f", "/etc/ssh/frontend"}}))(t)
}
