package vrrp_test

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/lab"
	"holdfast/lab/site"
	"holdfast/lab/stall"
)

// binary is the program under test, built once.
var binary string

func TestMain(m *testing.M) {
	if lab.Init() {
		return
	}
	if lab.Probe() != nil || os.Getenv("LAB") == "off" {
		os.Exit(m.Run()) // tests that need hosts say why they are skipped
	}
	os.Exit(site.RunTests(m, &binary))
}

// bed is hosts on one wire that run the net unit of one cluster file.
type bed struct {
	*testing.T
	lab     *lab.Lab
	nodes   []*node
	machine *stall.Watch
}

type node struct {
	bed  *bed
	host *lab.Host
	proc *lab.Proc
}

// What a bed's file has beside its VIPs.
const bedFile = `schema: 1
cluster: test
domain: example.org
networks:
  lan: {prefix: 10.9.0.0/24}
roles:
  service: {voters: 1, run: [dns]}
nodes:
  n[1-3]: {role: service, addresses: {lan: "10.9.0.[1-3]"}}
`

// oneVIP is a VIP that n1 prefers, at an interval that tests have time for.
const oneVIP = `vips:
  web: {network: lan, address: 10.9.0.100, vrid: 51, members: "n[1-3]", prefer: n1, advertise: 100ms}
`

var vip = netip.MustParseAddr("10.9.0.100")

// newBed makes hosts n1, n2 ... Nothing is started.
func newBed(t *testing.T, hosts int, vips string) *bed {
	t.Helper()
	return newBedOf(t, hosts, bedFile+vips)
}

// newBedOf is newBed with the whole of a cluster file.
func newBedOf(t *testing.T, hosts int, file string) *bed {
	t.Helper()
	t.Parallel()
	b := &bed{T: t, machine: stall.Test(t, ""), lab: lab.NewTest(t, lab.Options{Networks: []string{"lan"}, Expose: []string{binary}})}
	for i := range hosts {
		host, err := b.lab.AddHost(fmt.Sprintf("n%d", i+1), lab.On("lan", fmt.Sprintf("10.9.0.%d/24", i+1)))
		b.must(err)
		n := &node{bed: b, host: host}
		b.must(n.host.Write("/etc/holdfast/cluster.yaml", []byte(file)))
		b.nodes = append(b.nodes, n)
	}
	return b
}

func (b *bed) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// lookMost is what a look counts for at most: one that takes longer says that the
// machine stood still, or was too busy to start a command, and not that an agent
// was late.
const lookMost = 100 * time.Millisecond

// within polls until try succeeds, and fails the test when it does not in time,
// which does not go on while the machine stands still.
func (b *bed) within(bound time.Duration, what string, try func() error) time.Duration {
	b.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	start, spent := time.Now(), time.Duration(0)
	for {
		began := time.Now()
		err := try()
		if err == nil {
			return time.Since(start)
		}
		if spent >= bound {
			b.Fatalf("not within %v: %s: %v", bound, what, err)
		}
		<-tick.C
		spent += min(time.Since(began), lookMost)
	}
}

// standstill is what the machine must have stood still for at a stretch, so that
// nodes with an interval of 100 ms may rightly have taken each other for dead, or
// a command its answer for lost.
const standstill = 200 * time.Millisecond

// stood is the longest that one processor stood still at a stretch since a time.
func (b *bed) stood(since time.Time) time.Duration { return b.machine.Longest(since, time.Now()) }

// unlessStood fails the test for what happened since a time, but when the machine
// stood still meanwhile for so long at a stretch that it was right; that is logged.
func (b *bed) unlessStood(most time.Duration, since time.Time, format string, args ...any) {
	b.Helper()
	tell, stood := b.Errorf, b.stood(since)
	if stood >= most {
		tell = b.Logf
	}
	tell(format+"; the machine stood still for %v at a stretch meanwhile", append(args, stood)...)
}

// start starts nodes, the first first, and waits until each is ready.
func (b *bed) start(nodes ...*node) {
	b.Helper()
	for _, n := range nodes {
		n.start()
	}
}

func (n *node) configure(vips string) {
	n.bed.Helper()
	n.bed.must(n.host.Write("/etc/holdfast/cluster.yaml", []byte(bedFile+vips)))
}

func (n *node) start() {
	n.bed.Helper()
	was := n.count(`msg=ready`)
	proc, err := n.host.Start(lab.Cmd{Args: []string{binary, "agent", "--only", "net", "--log-level", "debug"}, Name: "agent"})
	n.bed.must(err)
	n.proc = proc
	n.bed.within(10*time.Second, n.host.String()+" is ready", func() error {
		if n.count(`msg=ready`) == was {
			return fmt.Errorf("it is not: %s", n.log())
		}
		return nil
	})
}

// log is what the agent and its guard printed, over all starts.
func (n *node) log() string {
	if n.proc == nil {
		return ""
	}
	text, err := os.ReadFile(n.proc.StderrPath())
	n.bed.must(err)
	return string(text)
}

func (n *node) count(words string) int { return strings.Count(n.log(), words) }

// awaitLog waits until words were printed once more than before.
func (n *node) awaitLog(bound time.Duration, words string, before int) {
	n.bed.Helper()
	n.bed.within(bound, fmt.Sprintf("%s says %q", n.host, words), func() error {
		if n.count(words) <= before {
			return fmt.Errorf("said %d times", before)
		}
		return nil
	})
}

func (n *node) run(args ...string) string {
	n.bed.Helper()
	out, err := n.host.Run(n.bed.Context(), args...)
	n.bed.must(err)
	return out
}

// holds tells whether the kernel has an address.
func (n *node) holds(addr netip.Addr) bool {
	n.bed.Helper()
	return strings.Contains(n.run("ip", "-o", "address", "show"), " "+addr.String()+"/")
}

// awaitHolder waits until one of the nodes, and no other, has an address.
func (b *bed) awaitHolder(bound time.Duration, addr netip.Addr, want *node) time.Duration {
	b.Helper()
	return b.within(bound, fmt.Sprintf("%s alone holds %s", want.host, addr), func() error {
		var holders []string
		for _, n := range b.nodes {
			if n.host.IsOn() && n.holds(addr) {
				holders = append(holders, n.host.String())
			}
		}
		if len(holders) != 1 || holders[0] != want.host.String() {
			return fmt.Errorf("held by %v", holders)
		}
		return nil
	})
}

func (n *node) signal(sig syscall.Signal) {
	n.bed.Helper()
	n.bed.must(n.proc.Signal(sig))
}

// metric gives a value of the net unit's metrics; 0 when it is not there.
func (n *node) metric(series string) string {
	n.bed.Helper()
	for line := range strings.Lines(n.run("curl", "-s", "--unix-socket", "/run/holdfast/net.sock", "http://localhost/metrics")) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), series+" "); ok {
			return value
		}
	}
	return "0"
}

func TestPreferredNodeHoldsAndTheNextTakesOverAndGivesBack(t *testing.T) {
	b := newBed(t, 2, oneVIP)
	first, second := b.nodes[0], b.nodes[1]
	b.start(second)
	b.awaitHolder(3*time.Second, vip, second)
	b.start(first)
	b.awaitHolder(3*time.Second, vip, first) // it preempts
	b.must(first.host.PowerOff())
	b.awaitHolder(2*time.Second, vip, second)
	b.must(first.host.PowerOn())
	b.start(first)
	b.awaitHolder(3*time.Second, vip, first)
}
