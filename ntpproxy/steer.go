package ntpproxy

import (
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"holdfast/internal/health"
	"holdfast/internal/kernel/clock"
	"holdfast/internal/ntp"
	"holdfast/ntpproxy/discipline"
)

// Steered is the clock that is disciplined.
type Steered interface {
	Now() (clock.Reading, error)
	Steer(clock.Steering) error
}

// KernelClock is the machine's.
type KernelClock struct{}

// Now reads the machine's clock.
func (KernelClock) Now() (clock.Reading, error) { return clock.Now() }

// Steer sets the machine's clock.
func (KernelClock) Steer(s clock.Steering) error { return clock.Steer(s) }

// Conditions of the discipline.
const (
	conditionRefused     = "ntp.not_steering" // the clock is another's, or the kernel refuses
	conditionFalseticker = "ntp.falseticker"  // a source that the others outvote
	conditionPanic       = "ntp.panic"        // too far off to be corrected without an admin's word
)

const (
	driftFile = "ntp.drift"
	// markFile says that it was us who left the kernel's clock synchronised.
	markFile = "ntp.steering"
	// driftEvery is how often the drift is remembered.
	driftEvery = time.Hour
	// steerEvery is how often the loop turns at least.
	steerEvery = time.Second
	// interference is how far the kernel's frequency may be from what it was
	// told, in parts per million: it rounds to 2^-16.
	interference = 0.001
)

// heard is a source's answer, or its failure.
type heard struct {
	source int
	sample discipline.Sample
	packet ntp.Packet
	from   netip.Addr
	err    error
}

// keeper disciplines the clock. It belongs to one goroutine.
type keeper struct {
	server *Server
	set    *settings
	core   *discipline.Core
	heard  chan heard
	names  []string         // host:port of the sources, then of the other nodes
	peers  []peer           // the latter
	addrs  []netip.AddrPort // of the sources; zero: to be looked up
	last   []netip.Addr     // that each answered from
	looked []time.Duration  // raw time at which each name was last looked up
	told   *float64         // frequency that the kernel was told, in ppm
	saved  time.Duration    // raw time of the last drift file
}

// steer disciplines the clock until ctx ends, if that is our business.
func (s *Server) steer(ctx context.Context) {
	set := s.settings.Load()
	if set.keep == keepServe || len(set.sources) == 0 && !set.orphanSaid {
		return
	}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for said := ""; ; {
		why := s.another()
		if why == "" {
			s.board.Clear(conditionRefused)
			why = s.keep(ctx, set)
		}
		if ctx.Err() != nil {
			return
		}
		if why != said {
			s.log.Warn("not steering the clock", "why", why)
			said = why
		}
		if set.keep == keepDiscipline {
			s.board.Raise(conditionRefused, health.Error, "this node does not steer its clock: "+why)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// another tells who else steers the clock, "" for nobody.
func (s *Server) another() string {
	if _, err := askChrony(s.chrony, 1); err == nil {
		return "chronyd does; stop it, or write `keep: serve`"
	}
	k, err := s.kernel()
	if err != nil {
		return err.Error()
	}
	if _, err := os.Stat(filepath.Join(s.config.RunDir, markFile)); k.Synchronised && err != nil {
		return "the kernel says that another daemon did so lately; stop it, and wait until the kernel calls the clock unsynchronised, or restart the machine"
	}
	return ""
}

// keep steers until ctx ends or somebody else does, and says who.
func (s *Server) keep(ctx context.Context, set *settings) string {
	k := &keeper{server: s, set: set, names: slices.Clone(set.sources), peers: set.peers}
	for _, p := range k.peers {
		k.names = append(k.names, p.addr.String())
	}
	k.heard, k.addrs = make(chan heard, 4*len(k.names)), make([]netip.AddrPort, len(k.names))
	k.last, k.looked = make([]netip.Addr, len(k.names)), make([]time.Duration, len(k.names))
	now, err := s.clock.Now()
	if err != nil {
		return err.Error()
	}
	remembered, err := readDrift(filepath.Join(s.config.StateDir, driftFile))
	if err != nil {
		s.log.Warn("the drift file is not used", "error", err)
	}
	config := discipline.Config{StepOver: set.step, Frequency: remembered.frequency * 1e-6, Skew: remembered.skew * 1e-6, Agreeing: set.agreeing, Growth: set.growth, Leap: set.leap.mode, Shape: set.leap.shape}
	for _, name := range set.sources {
		config.Sources = append(config.Sources, discipline.SourceConfig{Name: name, MinPoll: set.minPoll, MaxPoll: set.maxPoll, Burst: true})
	}
	if set.orphanSaid || len(k.peers) > 0 {
		config.Orphan = set.orphan
	}
	for _, p := range k.peers {
		config.Sources = append(config.Sources, discipline.SourceConfig{Name: p.node, MinPoll: min(peerPoll, set.minPoll), MaxPoll: min(peerPoll, set.minPoll), Burst: true, Peer: true})
	}
	k.core = discipline.New(config, discipline.Reading(now))
	s.dropStep()
	s.log.Info("steering the clock", "sources", set.sources, "frequency_ppm", remembered.frequency)
	defer s.kept.Store(nil)
	defer s.board.Clear(conditionOrphan)
	defer s.board.Clear(conditionHeld)
	defer s.board.Clear(conditionLeapSources)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			k.remember()
			return ""
		case h := <-k.heard:
			k.hear(h)
		case forced := <-s.stepNow:
			k.core.AllowStep(forced)
		case <-timer.C:
		}
		wait, err := k.turn(ctx)
		if err != nil {
			return err.Error()
		}
		timer.Reset(wait)
	}
}

// turn asks the core what to do, and does it.
func (k *keeper) turn(ctx context.Context) (time.Duration, error) {
	s := k.server
	now, err := s.clock.Now()
	if err != nil {
		return 0, err
	}
	k.core.Lead(k.leader())
	by := s.heldBy()
	k.core.HoldSteps(len(by) > 0)
	k.core.Leaps(*s.leaps.Load())
	actions := k.core.Step(discipline.Reading(now))
	for _, i := range actions.Ask {
		go k.ask(ctx, i, k.where(i, now.Raw))
	}
	k.sayHeld(by)
	if actions.Err != nil {
		s.board.Raise(conditionPanic, health.Error, actions.Err.Error())
	}
	if actions.Adjust != nil {
		if actions.Err == nil {
			s.board.Clear(conditionPanic)
		}
		if err := k.apply(*actions.Adjust); err != nil {
			return 0, err
		}
		if now.Raw-k.saved >= driftEvery {
			k.remember()
			k.saved = now.Raw
		}
	}
	if now, err = s.clock.Now(); err != nil {
		return 0, err
	}
	k.publish(now)
	return max(0, min(steerEvery, actions.Next-now.Raw)), nil
}

// peerPoll is how often the other nodes are asked, in log2 seconds.
const peerPoll = 4

// leader is who leads the store, as the core counts.
func (k *keeper) leader() int {
	name := k.server.leader()
	switch i := slices.IndexFunc(k.peers, func(p peer) bool { return p.node == name }); {
	case name != "" && name == k.server.config.Node:
		return discipline.Self
	case i >= 0:
		return len(k.set.sources) + i
	}
	return discipline.Nobody // of those who serve the time
}

// errInterference: somebody else changed the kernel's frequency.
var errInterference = errors.New("somebody else steers this clock too")

// apply tells the kernel, unless another did since we last told it.
func (k *keeper) apply(a discipline.Adjustment) error {
	s := k.server
	state, err := s.kernel()
	if err != nil {
		return err
	}
	if k.told != nil && max(*k.told-state.Frequency, state.Frequency-*k.told) > interference {
		_ = os.Remove(filepath.Join(s.config.RunDir, markFile)) // the clock is theirs; it may never have been there
		return fmt.Errorf("%w: its frequency is %.3f ppm and was told to be %.3f", errInterference, state.Frequency, *k.told)
	}
	if a.Step != 0 {
		s.log.Warn("stepping the clock", "by", a.Step)
	}
	ppm := a.Frequency * 1e6
	err = s.clock.Steer(clock.Steering{
		Frequency: ppm, Slew: a.Slew, Step: a.Step, MaxError: a.MaxError, EstError: a.EstError,
		Insert: a.Leap == discipline.LeapInsert, Delete: a.Leap == discipline.LeapDelete,
	})
	if err != nil {
		return err
	}
	if k.told == nil && s.config.RunDir != "" {
		if err := os.WriteFile(filepath.Join(s.config.RunDir, markFile), nil, 0o644); err != nil {
			s.log.Warn("a restart will take this clock for another daemon's", "error", err)
		}
	}
	k.told = &ppm
	return nil
}

// ask asks a source, looked up first when its address is not known.
func (k *keeper) ask(ctx context.Context, i int, addr netip.AddrPort) {
	server := k.names[i]
	if addr.IsValid() {
		server = addr.String()
	}
	h := heard{source: i}
	h.sample, h.packet, h.from, h.err = exchange(ctx, server)
	select {
	case k.heard <- h:
	case <-ctx.Done():
	}
}

// hear takes an answer.
func (k *keeper) hear(h heard) {
	if h.err == nil || errors.As(h.err, new(*ntp.KissError)) {
		_, port, _ := net.SplitHostPort(k.names[h.source])
		k.addrs[h.source], _ = netip.ParseAddrPort(net.JoinHostPort(h.from.String(), port))
		k.moved(h.source, h.from)
	}
	switch {
	case errors.As(h.err, new(*ntp.KissError)):
		k.refused(h)
		k.server.log.Warn("a source wants to be asked more rarely", "source", k.names[h.source], "error", h.err)
		return
	case h.err != nil:
		// Another address of the name may answer; a short outage changes nothing.
		k.addrs[h.source] = netip.AddrPort{}
		k.server.log.Debug("a source does not answer", "source", k.names[h.source], "error", h.err)
		return
	}
	if h.packet.Stratum > 1 && k.set.own(h.packet.ReferenceID) {
		h.sample.Stratum = 0 // it follows us: a loop
	}
	h.sample.Authority = k.authority(h.packet)
	k.core.Sample(h.source, h.sample)
}

// lookAgain is how long the address of a name is taken for good, though it
// answers: who runs a pool takes servers out of it by their names alone.
const lookAgain = 24 * time.Hour

// where is the address to ask a source at; zero: its name is to be looked up.
func (k *keeper) where(i int, raw time.Duration) netip.AddrPort {
	if raw-k.looked[i] >= lookAgain-time.Duration(i)*lookApart {
		k.addrs[i] = netip.AddrPort{}
	}
	if !k.addrs[i].IsValid() {
		k.looked[i] = raw
	}
	return k.addrs[i]
}

// moved notes where a source answers. Another address of its name is another
// server: what was learned of the one before says nothing of it.
func (k *keeper) moved(i int, from netip.Addr) {
	if was := k.last[i]; was.IsValid() && was != from {
		k.core.Forget(i)
		k.server.log.Info("a source's name leads to another server now", "source", k.names[i], "before", was, "now", from)
	}
	k.last[i] = from
}

// remember writes the drift file.
func (k *keeper) remember() {
	if k.told == nil || k.server.config.StateDir == "" {
		return
	}
	now, err := k.server.clock.Now()
	if err != nil {
		return
	}
	t := k.core.Tracking(discipline.Reading(now))
	if err := (drift{t.Frequency * 1e6, t.Skew * 1e6}).write(filepath.Join(k.server.config.StateDir, driftFile)); err != nil {
		k.server.log.Warn("the drift is not remembered", "error", err)
	}
}

// publish tells the rest of the server how the clock stands.
func (k *keeper) publish(now clock.Reading) {
	s := k.server
	report := &Kept{Tracking: k.core.Tracking(discipline.Reading(now)), Sources: k.core.Sources(discipline.Reading(now)), at: now.Clock}
	liars := ""
	for i, source := range report.Sources {
		if source.State == discipline.Falseticker && report.Synchronised {
			liars += fmt.Sprintf("; %s is off by %v", k.names[i], source.Offset.Round(time.Microsecond))
		}
	}
	if liars != "" {
		s.board.Raise(conditionFalseticker, health.Warning, "sources that the majority outvotes"+liars)
	} else {
		s.board.Clear(conditionFalseticker)
	}
	k.sayLeap(report)
	k.orphaned(report.Phase)
	report.reference = k.reference(&report.Tracking)
	s.kept.Store(report)
}

// referenceOf is how packets name a source: an IPv4 address, or the start of
// the MD5 of an IPv6 one (RFC 5905 §7.3).
func referenceOf(a netip.Addr) (r ntp.Reference) {
	if a.Is4() {
		return a.As4()
	}
	sum := md5.Sum(a.AsSlice())
	return ntp.Reference(sum[:4])
}

// Kept is how a clock stands that this server disciplines.
type Kept struct {
	discipline.Tracking
	Sources   []discipline.SourceReport
	at        time.Time
	reference ntp.Reference
}

// standing is what clients are told.
func (k *Kept) standing(now time.Time) Standing {
	if !k.Synchronised {
		return unsynchronised(now)
	}
	s := Standing{
		At: k.at, Stratum: k.Stratum, Reference: k.reference, Set: k.at,
		RootDelay: k.RootDelay, RootDispersion: k.Dispersion + k.Offset.Abs(), Growth: keptGrowth,
	}
	switch k.Leap {
	case discipline.LeapInsert:
		s.Leap = ntp.LeapInsert
	case discipline.LeapDelete:
		s.Leap = ntp.LeapDelete
	}
	return s
}

// keptGrowth is how fast the dispersion grows from one look to the next, a
// second later (PHI, RFC 5905 §7.2).
const keptGrowth = 15e-6

// Kept is how the clock stands; nil while we don't discipline it.
func (s *Server) Kept() *Kept { return s.kept.Load() }

// StepNow lets the next answer of the sources step the clock, however far.
// The error is that this server does not discipline it, or, unless forced, what
// lives on this node that forbids steps.
func (s *Server) StepNow(forced bool) error {
	if s.kept.Load() == nil {
		return errors.New("ntpproxy: this node does not steer its clock: ask the daemon that does (chronyc makestep)")
	}
	if by := s.heldBy(); len(by) > 0 && !forced {
		return fmt.Errorf("ntpproxy: the clock is not stepped while these live on this node: %s: stop them first, or say `holdfast ntp step --force`", strings.Join(by, ", "))
	}
	select {
	case s.stepNow <- forced:
	default: // one is asked for already
	}
	return nil
}
