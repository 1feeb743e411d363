package ntpproxy

import (
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

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
	// driftEvery is how often the drift is remembered.
	driftEvery = time.Hour
	// steerEvery is how often the loop turns at least.
	steerEvery = time.Second
	// interference is how far the kernel's frequency may be from what it was
	// told, in parts per million: it rounds to 2^-16.
	interference = 0.001
)

// heard is a source's answer, or its failure, or what a look-up of its name
// found.
type heard struct {
	source     int
	generation int // of the keeper, when it was asked
	sample     discipline.Sample
	packet     ntp.Packet
	at         netip.AddrPort // asked
	from       netip.Addr
	err        error

	lookup bool
	found  []netip.AddrPort // by that
	raw    time.Duration    // when the request was sent, or the look-up began
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

	leads      map[int]*lead  // where the names lead
	asking     sync.WaitGroup // goroutines that ask and look up
	generation int            // counts changes of the sources
	leapLater  bool           // the leap mode that the file says waits for the end of a leap second
	spoken     spoken
}

// keep steers until ctx ends or the file gives the clock to another, or until it
// can't: then it says why.
func (s *Server) keep(ctx context.Context, set *settings) string {
	k := &keeper{server: s}
	k.follow(set)
	k.heard = make(chan heard, 4*len(k.names))
	now, err := s.clock.Now()
	if err != nil {
		return err.Error()
	}
	remembered, err := readDrift(filepath.Join(s.config.StateDir, driftFile))
	if err != nil {
		s.log.Warn("the drift file is not used", "error", err)
	}
	config := set.discipline()
	config.Frequency, config.Skew = remembered.frequency*1e-6, remembered.skew*1e-6
	k.core = discipline.New(config, discipline.Reading(now))
	s.dropStep()
	s.log.Info("steering the clock", "sources", set.sources, "frequency_ppm", remembered.frequency)
	if err := s.repair(remembered); err != nil {
		return err.Error()
	}
	defer k.quiet()
	asking, cancel := context.WithCancel(ctx)
	defer k.asking.Wait()
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
		case h := <-k.heard:
			k.take(asking, h)
		case forced := <-s.stepNow:
			k.core.AllowStep(forced)
		case <-timer.C:
		}
		if ctx.Err() != nil || !k.adopt(s.settings.Load()) {
			k.release()
			k.leave()
			return ""
		}
		wait, err := k.turn(asking)
		if err != nil {
			return err.Error()
		}
		timer.Reset(wait)
	}
}

// quiet takes back what only a node that steers has to say.
func (k *keeper) quiet() {
	k.server.kept.Store(nil)
	for _, name := range []string{conditionOrphan, conditionHeld, conditionLeapSources, conditionPanic, conditionFalseticker} {
		k.server.board.Clear(name)
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
		k.send(ctx, i, now.Raw)
	}
	k.sayHeld(by)
	if actions.Err != nil {
		k.sayPanic(actions.Err)
	}
	if actions.Adjust != nil {
		if actions.Err == nil {
			s.board.Clear(conditionPanic)
			k.spoken.over(conditionPanic)
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
	ppm := inKernel(a.Frequency)
	if err := k.prepare(ppm); err != nil {
		return err
	}
	return k.order(a, ppm)
}

// inKernel is a frequency in ppm, as the kernel takes it: else told is not what
// it has.
func inKernel(ratio float64) float64 {
	return max(-clock.MaxFrequency, min(clock.MaxFrequency, ratio*1e6))
}

// prepare is what takes its time before the kernel is told a frequency, in ppm.
// It fails if another told it something since we did.
func (k *keeper) prepare(ppm float64) error {
	s := k.server
	state, err := s.kernel()
	if err != nil {
		return err
	}
	if k.told != nil && max(*k.told-state.Frequency, state.Frequency-*k.told) > interference {
		s.unmark()
		return fmt.Errorf("%w: its frequency is %.3f ppm and was told to be %.3f", errInterference, state.Frequency, *k.told)
	}
	if k.told != nil && state.Tick != 0 && state.Tick != clock.NominalTick {
		s.unmark()
		return fmt.Errorf("%w: its tick is %d µs, and this node leaves it at %d", errInterference, state.Tick, clock.NominalTick)
	}
	if err := s.mark(ppm, state.Frequency); err != nil {
		s.log.Warn("a restart will take this clock for another daemon's", "error", err)
	}
	return nil
}

// order tells the kernel at once. The frequency is what prepare was told.
func (k *keeper) order(a discipline.Adjustment, ppm float64) error {
	s := k.server
	if a.Step != 0 {
		s.log.Warn("stepping the clock", "by", a.Step)
	}
	err := s.clock.Steer(clock.Steering{
		Frequency: ppm, Slew: a.Slew, Fast: a.Fast, Step: a.Step, MaxError: a.MaxError, EstError: a.EstError,
		Insert: a.Leap == discipline.LeapInsert, Delete: a.Leap == discipline.LeapDelete,
	})
	if err != nil {
		return err
	}
	k.told = &ppm
	s.board.Clear(conditionRefused)
	return nil
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
		k.unanswered(h.source, h.raw)
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
	if raw-k.looked[i] >= lookAfter(i) {
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
	path, d := filepath.Join(k.server.config.StateDir, driftFile), drift{t.Frequency * 1e6, t.Skew * 1e6}
	k.server.files.save(path, func() error { return d.write(path) })
}

// publish tells the rest of the server how the clock stands.
func (k *keeper) publish(now clock.Reading) {
	s := k.server
	report := &Kept{Tracking: k.core.Tracking(discipline.Reading(now)), Sources: k.core.Sources(discipline.Reading(now)), at: now.Clock}
	report.leapMode = k.core.LeapMode()
	k.sayFalsetickers(report)
	k.sayLeap(report)
	k.orphaned(report.Phase)
	report.reference = k.reference(&report.Tracking)
	k.bridge(report)
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
	leapMode  discipline.LeapMode // that the clock follows
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
