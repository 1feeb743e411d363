package logs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/peer"
	"holdfast/lab/stall"
	"holdfast/lab/vm"
)

// Bounds of the test of a pair.
const (
	pairAnswered = 40              // lines that clients are answered between two cuts, at least
	pairWithin   = 4 * time.Minute // for whatever is waited for
	pairLater    = 2 * time.Second // when the power goes, at most
	// pairStall is a stall of the machine that may be the end of a node's patience
	// with the other, which then acknowledges alone: that would be a second fault.
	pairStall = time.Second
	// pairFar is how long a packet is on its way to the other node. One to a
	// client takes nothing of that: an answer that does not wait for the other
	// node is with the client when the line is lost.
	pairFar = 200 * time.Millisecond
	// pairNear is that where the power of the node goes that clients send to: what
	// it sends to the other while its own disk syncs is to get there before.
	pairNear = 0
)

// cutKinds are whose power is cut, in turn: of the node that clients send to,
// of both, and of the one that holds the replica.
var cutKinds = [...]string{"holder", "both", "other"}

// TestPowerCutOfOneOrBothNodesLosesNoLineThatWasAcknowledged cuts the power of
// two machines with a relay each, which hold each other's lines, in the midst of
// a flush of a disk that forgets what was not flushed. Clients on a third send
// to one of them, and to the other when that is gone. In the end the files of
// both nodes have every line that was acknowledged, and of each client the first
// time in order. LOGS_CUTS says how often (3).
//
// It fails if lines are acknowledged before the other node has them (that is far
// away: a client's younger lines then stand before its older ones), if the
// journal does not sync, if a node that comes back is not given what it lost, and
// if the other takes for stored on both what was on its way to this one's disk.
func TestPowerCutOfOneOrBothNodesLosesNoLineThatWasAcknowledged(t *testing.T) {
	cuts := len(cutKinds)
	if text := os.Getenv("LOGS_CUTS"); text != "" {
		var err error
		if cuts, err = strconv.Atoi(text); err != nil {
			t.Fatalf("LOGS_CUTS: %v", err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	dice := rand.New(rand.NewPCG(seed, 0))
	machine := stall.Test(t, "")
	s := newPairSite(t, seed)
	for _, n := range s.nodes {
		n.serve(t)
	}
	s.clients.send(t, s.nodes[0])
	degraded := 0
	for cut := range cuts {
		holder, other := s.nodes[s.holder], s.nodes[1-s.holder]
		s.clients.answered(t, pairAnswered)
		kind, began := cutKinds[cut%len(cutKinds)], time.Now()
		far := pairFar
		if kind == "holder" {
			far = pairNear
		}
		for range 5 {
			// One fault at a time: lines that a node took alone, and that died with
			// it before the other had them, come when it is back, behind younger ones.
			from := time.Now()
			for _, n := range s.nodes {
				n.caughtUp(t)
			}
			for _, n := range s.nodes {
				n.away(t, far)
			}
			<-time.After(time.Duration(dice.Int64N(int64(pairLater)))) // when the power goes
			stood := machine.Within(from, time.Now())
			if stood < pairStall {
				break
			}
			t.Logf("cut %d waits again: the machine stood still for %v", cut, stood)
		}
		switch kind {
		case "holder":
			holder.cut(t)
			s.move(t)
			s.clients.answered(t, pairAnswered) // by the other, which has nobody else
			holder.back(t)
		case "other":
			other.cut(t)
			s.clients.answered(t, pairAnswered)
			other.back(t)
		case "both":
			flush := other.disk.CutAtFlush()
			holder.cut(t)
			select { // in the midst of a flush as well, if there is one
			case <-flush:
			case <-time.After(100 * time.Millisecond):
			}
			must(t, "power off", other.PowerOff())
			s.move(t)
			must(t, "power on", vm.PowerOn(t.Context(), holder.Machine, other.Machine))
			other.back(t) // the one that clients go to, before the other one is there
			holder.back(t)
		}
		alone := s.degraded()
		t.Logf("cut %d, of %s: %v; %d lines answered, %d times on one disk alone", cut, kind, time.Since(began).Round(time.Second), s.clients.total(), alone-degraded)
		degraded = alone
	}
	for _, n := range s.nodes {
		n.caughtUp(t)
	}
	sent := s.clients.end(t)
	for _, n := range s.nodes {
		n.caughtUp(t)
	}
	// What is in the journal reaches the files at a planned end at the latest.
	for _, n := range s.nodes {
		must(t, "stop", n.relay.Stop(t.Context()))
	}
	lost := 0
	for _, n := range s.nodes {
		lost += n.disk.Stats().Lost
		n.complete(t, sent)
	}
	t.Logf("%d cuts, lines of each client acknowledged: %v; %d sectors lost", cuts, sent, lost)
}

// pairSite is two nodes and a machine with clients.
type pairSite struct {
	nodes   []*pairMachine
	clients *pairLoad
	holder  int // of the address
}

// pairMachine is a machine with a relay.
type pairMachine struct {
	*vm.Machine
	name, run string // of the relay: what it is told
	binary    string
	disk      *vm.Disk
	relay     *vm.Proc
	says      *heard
}

const pairMount = "e2fsck -fp /dev/vda >/dev/null || test $? = 1; " + // status 1: it repaired the file system
	"echo 0 >/proc/sys/vm/dirty_writeback_centisecs; mkdir -p /srv/data; mount -o commit=300 /dev/vda /srv/data"

func newPairSite(t *testing.T, seed uint64) *pairSite {
	t.Helper()
	vm.Require(t)
	dir := t.TempDir()
	binary := filepath.Join(dir, "logs.test")
	build := exec.Command("go", "test", "-c", "-o", binary, ".") // static, and without the race detector
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	must(t, "authority", peer.Init(filepath.Join(dir, "ca"), pairCluster))
	wire := vm.NewWire()
	s := &pairSite{}
	var options []vm.Options
	for i, name := range pairNames {
		pki := filepath.Join(dir, "pki-"+name)
		must(t, "certificate", peer.Issue(filepath.Join(dir, "ca"), pki, peer.Request{Identity: peer.Identity{Name: name, Role: peer.RoleServer}}))
		disk := vm.NewTestDisk(t, vm.DiskOptions{Size: 512 << 20, Survivors: rand.New(rand.NewPCG(seed, uint64(i+1)))})
		s.nodes = append(s.nodes, &pairMachine{name: name, run: name + " /srv/data " + pki, binary: binary, disk: disk})
		options = append(options, vm.Options{
			Name: name, CPUs: 1, MemoryMB: 768, Disks: []*vm.Disk{disk}, Expose: []string{dir},
			Modules: []string{"ext4", "sch_netem", "sch_prio", "cls_u32"},
			NICs:    []vm.NIC{vm.On(wire, pairAddr(name).String()+"/24")},
		})
	}
	client := vm.Options{Name: "clients", CPUs: 1, MemoryMB: 512, Expose: []string{dir}, NICs: []vm.NIC{{Wire: wire}}}
	for i := range pairClientCount {
		client.NICs[0].Addrs = append(client.NICs[0].Addrs, vm.On(wire, pairClientAddr(i).String()+"/24").Addrs...)
	}
	machines := vm.NewTests(t, append(options, client)...)
	for i, n := range s.nodes {
		n.Machine = machines[i]
		n.shell(t, "mkfs.ext4 -q /dev/vda")
	}
	s.clients = newPairLoad(t, machines[len(s.nodes)], binary)
	return s
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// move gives the address to the other node.
func (s *pairSite) move(t *testing.T) {
	t.Helper()
	s.holder = 1 - s.holder
	s.clients.send(t, s.nodes[s.holder])
}

// degraded is how often a node began to acknowledge lines on its disk alone.
func (s *pairSite) degraded() (sum int) {
	for _, n := range s.nodes {
		sum += n.says.count(pairAlone)
	}
	return sum
}

func (m *pairMachine) shell(t *testing.T, script string) string {
	t.Helper()
	out, err := m.Run(t.Context(), "sh", "-ec", script)
	if err != nil {
		t.Fatalf("%s: %s: %v", m.name, script, err)
	}
	return out
}

func (m *pairMachine) other() string {
	return pairNames[1-slices.Index(pairNames, m.name)]
}

// soundClock boots a machine anew whose clock does not run as ours. Emulated ones
// set it by a processor that others may have had meanwhile, and it then may run
// thirty times as fast: five seconds of patience are none.
func soundClock(t *testing.T, m *vm.Machine) {
	t.Helper()
	uptime := func() (seconds float64) {
		text, err := m.Run(t.Context(), "cat", "/proc/uptime")
		must(t, "uptime", err)
		_, err = fmt.Sscan(text, &seconds)
		must(t, text, err)
		return seconds
	}
	const tries = 10
	for range tries {
		began, from := time.Now(), uptime()
		<-time.After(time.Second) // of which it is to have one as well
		if rate := (uptime() - from) / time.Since(began).Seconds(); rate < 1.5 {
			return
		}
		must(t, "power off", m.PowerOff())
		must(t, "power on", m.PowerOn(t.Context()))
	}
	t.Fatalf("%s: its clock ran fast after each of %d boots: other work keeps the processors from it", m, tries)
}

// serve starts the relay and waits until it serves.
func (m *pairMachine) serve(t *testing.T) {
	t.Helper()
	soundClock(t, m.Machine)
	m.shell(t, pairMount)
	m.shell(t, fmt.Sprintf("tc qdisc add dev eth0 root handle 1: prio; tc qdisc add dev eth0 parent 1:3 netem delay %dms limit 10000; "+
		"tc filter add dev eth0 parent 1: protocol ip prio 1 u32 match ip dst %s/32 flowid 1:3", pairFar.Milliseconds(), pairAddr(m.other())))
	if m.says == nil {
		m.says = newHeard()
	}
	m.says.forget()
	var err error
	m.relay, err = m.Start(vm.Cmd{Args: []string{m.binary}, Env: []string{pairEnv + "=" + m.run}, Stdout: m.says})
	must(t, "start", err)
	m.says.until(t, m.name+" serves", m.relay.Done(), func(state pairState, known bool) bool { return known })
}

// away says how long a packet is on its way from it to the other node.
func (m *pairMachine) away(t *testing.T, far time.Duration) {
	t.Helper()
	m.shell(t, fmt.Sprintf("tc qdisc replace dev eth0 parent 1:3 netem delay %dms limit 10000", far.Milliseconds()))
}

// cut cuts its power when its disk is next asked for a flush.
func (m *pairMachine) cut(t *testing.T) {
	t.Helper()
	select {
	case <-m.disk.CutAtFlush():
	case <-time.After(pairWithin):
		t.Fatalf("%s: nothing is flushed", m.name)
	}
	must(t, "power off", m.PowerOff())
}

// back gives it its power back and starts its relay.
func (m *pairMachine) back(t *testing.T) {
	t.Helper()
	must(t, "power on", m.PowerOn(t.Context()))
	m.serve(t)
}

// caughtUp waits until the other node has what this one has now, and this one
// acknowledges nothing without it.
func (m *pairMachine) caughtUp(t *testing.T) {
	t.Helper()
	var goal uint64
	m.says.until(t, "the other node has the lines of "+m.name, m.relay.Done(), func(state pairState, known bool) bool {
		if known && goal == 0 {
			goal = max(1, state.end)
		}
		return known && state.replicated >= goal && !state.alone
	})
}

// complete tells whether the node's files have all lines of each client, and
// once the order in which they came first is that of the client; it counts the
// others.
func (m *pairMachine) complete(t *testing.T, sent []int) {
	t.Helper()
	doubled := 0
	for client, count := range sent {
		b, err := m.Read(t.Context(), fmt.Sprintf("/srv/data/hosts/client%d.log", client))
		if err != nil {
			t.Error(err)
			continue
		}
		lines := pairLine.FindAllSubmatch(b, -1)
		if whole := bytes.Count(b, []byte{'\n'}); whole != len(lines) {
			t.Errorf("%s: %d of %d lines of client %d can't be read", m.name, whole-len(lines), whole, client)
		}
		seen := make([]bool, count)
		greatest, unordered, there := -1, 0, 0
		for _, l := range lines {
			n, err := strconv.Atoi(string(l[1]))
			switch {
			case err != nil || n >= count:
				t.Errorf("%s: client %d has sent no line %s", m.name, client, l[1])
				continue
			case seen[n]:
				doubled++
				continue
			case n < greatest:
				unordered++
			}
			seen[n], greatest = true, max(greatest, n)
			there++
		}
		if there < count {
			t.Errorf("%s: client %d was answered %d lines, and %d are not there, the first is %d", m.name, client, count, count-there, slices.Index(seen, false))
		}
		if unordered > 0 {
			t.Errorf("%s: client %d: %d lines stand behind younger ones", m.name, client, unordered)
		}
	}
	t.Logf("%s: %d lines are in its files more than once; it counted %d", m.name, doubled, m.says.doubled())
}

// heard is what a process prints: of each kind of line the last, and how many
// there were. Its methods may be called from any goroutine.
type heard struct {
	mu      sync.Mutex
	rest    []byte
	state   pairState
	known   bool
	counts  map[string]int
	before  uint64               // lines that processes before this counted as doubled
	clients [pairClientCount]int // lines answered
	ended   [pairClientCount]bool
	changed chan struct{}
	broken  error
}

func newHeard() *heard { return &heard{counts: map[string]int{}, changed: make(chan struct{})} }

// Write takes what a process prints.
func (h *heard) Write(data []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rest = append(h.rest, data...)
	for {
		line, rest, whole := bytes.Cut(h.rest, []byte("\n"))
		if !whole {
			break
		}
		if err := h.line(string(line)); err != nil && h.broken == nil {
			h.broken = fmt.Errorf("%q: %w", line, err)
		}
		h.rest = rest
	}
	close(h.changed)
	h.changed = make(chan struct{})
	return len(data), nil
}

func (h *heard) line(text string) (err error) {
	kind, rest, _ := strings.Cut(text, " ")
	h.counts[kind]++
	var client, count int
	switch kind {
	case pairStateLine:
		_, err = fmt.Sscan(rest, &h.state.end, &h.state.replicated, &h.state.alone, &h.state.doubled)
		h.known = err == nil
	case pairAnswer, pairEnd:
		if _, err = fmt.Sscan(rest, &client, &count); err == nil {
			h.clients[client], h.ended[client] = count, kind == pairEnd
		}
	}
	return err
}

// forget is for a process that starts anew.
func (h *heard) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.before += h.state.doubled
	h.rest, h.known, h.state = nil, false, pairState{}
}

// doubled is how many lines the relay counted as such, in all its lives.
func (h *heard) doubled() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.before + h.state.doubled
}

func (h *heard) count(kind string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.counts[kind]
}

// until waits until what a relay says fits; the process is to live meanwhile.
func (h *heard) until(t *testing.T, what string, done <-chan struct{}, fits func(state pairState, known bool) bool) {
	t.Helper()
	limit := time.NewTimer(pairWithin)
	defer limit.Stop()
	for {
		h.mu.Lock()
		state, ok, changed, broken := h.state, fits(h.state, h.known), h.changed, h.broken
		h.mu.Unlock()
		if broken != nil {
			t.Fatal(broken)
		}
		if ok {
			return
		}
		select {
		case <-changed:
		case <-done:
			t.Fatalf("%s: the process has ended", what)
		case <-limit.C:
			t.Fatalf("%s: not within %v: %+v", what, pairWithin, state)
		}
	}
}
