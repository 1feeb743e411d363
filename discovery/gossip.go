package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/serf"

	"holdfast/internal/state"
)

// The gossip's times, before Config.Timing. A node that dies is probed by one
// of the others within probeInterval or two, is suspected one interval later,
// and is failed when nobody heard from it for another
// suspicionMult × max(1, log10(members)) intervals.
const (
	probeInterval  = 200 * time.Millisecond
	probeTimeout   = 100 * time.Millisecond
	gossipInterval = 50 * time.Millisecond
	suspicionMult  = 3
	// suspicionMaxMult bounds the suspicion that nobody confirms: the last
	// one alive of a cluster must come to know it, too. awarenessMax bounds
	// how much slower a node probes that has reason to doubt itself, as the
	// last one alive has.
	suspicionMaxMult  = 2
	awarenessMax      = 4
	pushPullInterval  = 10 * time.Second
	streamTimeout     = 2 * time.Second
	broadcastTimeout  = time.Second
	leaveDelay        = 500 * time.Millisecond
	reconnectInterval = 5 * time.Second
	// queryIntervals is how many intervals of the gossip the members have to
	// answer about keys, times ⌈log10(members + 1)⌉: 3.2 s for up to nine of
	// them, 6.4 s for 10 to 99, 9.6 s for 100 to 999, as by Serf's defaults, whose
	// interval is four times as long. Who waits is done when all answered, or
	// when the gossip ends.
	queryIntervals = 64
	// stopPatience is how long the end of the gossip waits for what it was
	// asked. A question about keys goes on after that for what is left of its
	// time; nobody waits for it any more.
	stopPatience = time.Second
	// reclaim is how long after the death of a node its name may be taken by
	// another address.
	reclaim = 5 * time.Second
)

const snapshotFile = "serf.snapshot"

// gossip is one life of the Serf agent.
type gossip struct {
	serf   *serf.Serf
	events chan serf.Event
	port   uint16 // as bound

	mu    sync.Mutex
	ended chan struct{}  // closed, with mu held, when the gossip is about to end
	calls sync.WaitGroup // of withGossip
}

// over tells whether the gossip is about to end.
func (g *gossip) over() bool {
	select {
	case <-g.ended:
		return true
	default:
		return false
	}
}

// enter counts a caller in, unless the gossip is about to end.
func (g *gossip) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over() {
		return false
	}
	g.calls.Add(1)
	return true
}

// startGossip binds the port and starts Serf. Everything that it starts ends
// with stop, and its streams with ctx.
func startGossip(ctx context.Context, c Config, tags map[string]string, doorman *doorman, log *slog.Logger) (*gossip, error) {
	std := newStdLogger(log, doorman.count)
	times := func(d time.Duration) time.Duration { return time.Duration(float64(d) * c.Timing) }
	wire, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{
		BindAddrs: []string{c.Address.String()},
		BindPort:  int(c.Port),
		Logger:    std,
	})
	if err != nil {
		return nil, fmt.Errorf("listen for gossip on %s: %w", netip.AddrPortFrom(c.Address, c.Port), err)
	}
	port := wire.GetAutoBindPort()

	list := memberlist.DefaultLANConfig()
	list.Transport = &transport{NetTransport: wire, ctx: ctx}
	list.BindAddr, list.BindPort = c.Address.String(), port
	list.AdvertiseAddr, list.AdvertisePort = c.Address.String(), port
	if list.Keyring, err = loadKeyring(c.DataDir, c.Key); err != nil {
		return nil, errors.Join(err, wire.Shutdown())
	}
	list.ProbeInterval, list.ProbeTimeout = times(probeInterval), times(probeTimeout)
	list.GossipInterval = times(gossipInterval)
	list.SuspicionMult, list.SuspicionMaxTimeoutMult = suspicionMult, suspicionMaxMult
	list.AwarenessMaxMultiplier = awarenessMax
	list.PushPullInterval = times(pushPullInterval)
	list.TCPTimeout = times(streamTimeout)
	list.DeadNodeReclaimTime = times(reclaim)
	list.Logger = std

	conf := serf.DefaultConfig()
	conf.NodeName = c.Node
	conf.Tags = tags
	conf.MemberlistConfig = list
	conf.Logger = std
	conf.Merge = doorman
	conf.UserEventSizeLimit = maxEvent + len(eventPrefix)
	if list.Keyring != nil {
		conf.KeyringFile = filepath.Join(c.DataDir, keyringFile) // Serf keeps it when keys change
	}
	events := make(chan serf.Event, 256)
	conf.EventCh = events
	conf.SnapshotPath = filepath.Join(c.DataDir, snapshotFile)
	conf.RejoinAfterLeave = true // who starts the program wants to be in
	conf.DisableCoordinates = true
	// Resolution would silence one of the two nodes, perhaps the right one.
	conf.EnableNameConflictResolution = false
	conf.BroadcastTimeout = times(broadcastTimeout)
	conf.QueryTimeoutMult = queryIntervals
	conf.LeavePropagateDelay = times(leaveDelay)
	conf.ReconnectInterval = times(reconnectInterval)
	conf.ReconnectTimeout = forgetAfter
	conf.TombstoneTimeout = forgetAfter
	doorman.at(c.Node, netip.AddrPortFrom(c.Address, uint16(port)))

	agent, err := serf.Create(conf)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the gossip: %w", err), wire.Shutdown())
	}
	return &gossip{serf: agent, events: events, port: uint16(port), ended: make(chan struct{})}, nil
}

// members lists everybody whom Serf knows, each node once.
func (g *gossip) members() []state.Member {
	known := g.serf.Members()
	members := make([]state.Member, 0, len(known))
	for _, m := range known {
		members = append(members, member(m))
	}
	return withoutFormerNames(members)
}

// reachable lists the addresses of the alive members.
func (g *gossip) reachable() map[netip.AddrPort]bool {
	alive := map[netip.AddrPort]bool{}
	for _, m := range g.serf.Members() {
		if a, ok := netip.AddrFromSlice(m.Addr); ok && m.Status == serf.StatusAlive {
			alive[netip.AddrPortFrom(a.Unmap(), m.Port)] = true
		}
	}
	return alive
}

// stop ends Serf without a word to the others, who will see a failure. Who waits
// for an answer is told at once. What is under way inside Serf, which breaks off no
// question, is waited for up to stopPatience; it is called once.
func (g *gossip) stop() error {
	g.mu.Lock()
	close(g.ended)
	g.mu.Unlock()
	err := g.serf.Shutdown()
	left := make(chan struct{})
	go func() {
		g.calls.Wait()
		close(left)
	}()
	patience := time.NewTimer(stopPatience)
	defer patience.Stop()
	select {
	case <-left:
	case <-patience.C:
	}
	return err
}

// doorman looks at everyone who comes into the gossip: it turns away members
// of other clusters, and notices a second node under our name. Serf calls it
// with its locks held, so that it must not call Serf.
type doorman struct {
	cluster string
	log     *slog.Logger
	count   func(refusal)
	noticed chan struct{} // has an element when a conflict was noticed

	mu       sync.Mutex
	name     string
	self     netip.AddrPort
	conflict conflict
	told     map[string]time.Time // refused members, by name and address
}

// conflict is another node that uses our name.
type conflict struct {
	address     netip.AddrPort
	first, last time.Time // seen
}

const (
	// conflictSpan is how long signs of another node under our name must go
	// on: a node that has come back with another address hears of its old
	// one for a moment.
	conflictSpan = 10 * time.Second
	// conflictMemory is how long after its last sign a conflict lasts.
	conflictMemory = time.Minute
)

func newDoorman(cluster string, log *slog.Logger, count func(refusal)) *doorman {
	return &doorman{cluster: cluster, log: log, count: count, noticed: make(chan struct{}, 1), told: map[string]time.Time{}}
}

// at says who and where we are ourselves.
func (d *doorman) at(name string, self netip.AddrPort) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.name, d.self = name, self
}

// NotifyMerge is called with every member that another node tells of; an error
// keeps all of them out.
func (d *doorman) NotifyMerge(members []*serf.Member) error {
	for _, m := range members {
		from := memberAddress(m)
		if theirs := m.Tags[tagCluster]; theirs != d.cluster {
			d.refuse(m.Name, theirs, from)
			return fmt.Errorf("member %s at %s is of cluster %q, not %q", m.Name, from, theirs, d.cluster)
		}
		d.lookForConflict(m, from)
	}
	return nil
}

func (d *doorman) refuse(name, cluster string, from netip.AddrPort) {
	d.count(refusedCluster)
	now := time.Now()
	key := name + " " + from.String()
	d.mu.Lock()
	last, told := d.told[key]
	quiet := told && now.Sub(last) < repeatInterval
	if len(d.told) > 1000 {
		clear(d.told)
	}
	if !quiet {
		d.told[key] = now
	}
	d.mu.Unlock()
	if !quiet {
		d.log.Warn("refused a member of another cluster", "member", name, "address", from, "cluster", cluster, "ours", d.cluster)
	}
}

func (d *doorman) lookForConflict(m *serf.Member, from netip.AddrPort) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m.Name != d.name || from == d.self || m.Status == serf.StatusLeft {
		return
	}
	now := time.Now()
	if d.conflict.address != from || now.Sub(d.conflict.last) > conflictMemory {
		d.conflict = conflict{address: from, first: now}
	}
	d.conflict.last = now
	d.count(refusedConflict)
	poke(d.noticed)
}

// conflictNow returns the other node that uses our name: its signs have gone
// on for at least span, and the last is not older than memory.
func (d *doorman) conflictNow(span, memory time.Duration) (netip.AddrPort, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.conflict
	return c.address, c.address.IsValid() && c.last.Sub(c.first) >= span && time.Since(c.last) < memory
}

func memberAddress(m *serf.Member) netip.AddrPort {
	a, _ := netip.AddrFromSlice(net.IP(m.Addr))
	return netip.AddrPortFrom(a.Unmap(), m.Port)
}
