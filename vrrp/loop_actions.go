package vrrp

import (
	"net/netip"
	"slices"
	"time"
)

// act does what the machine answered: first all that moves addresses, then
// what tells others, whose goroutines would run in the appliers' place. Nothing
// here blocks: adverts are handed to the kernel, everything else to the
// goroutines beside the loop.
func (l *loop) act(actions []Action) {
	tell := false
	for i := range actions {
		a := &actions[i]
		in := l.subject(a.Router)
		switch a.Kind {
		case Send:
			l.send(in, a.Priority, a.Interval)
			continue
		case Hold:
			in.lingers = false
			if in.core.Fenced {
				l.holdFenced(in)
				break
			}
			l.tellHolds(in, true)
			if in.applier != nil {
				in.applier.hold(in)
			}
		case Withdraw:
			l.withdraw(in, a.Linger)
		case Announce:
			if in.applier != nil && (!in.core.Fenced || !in.leasedUntil.IsZero()) {
				in.applier.announce(in)
			}
			continue
		case Ask:
			l.ask(in)
			continue
		}
		tell = true
	}
	if tell {
		l.tell(actions)
	}
}

// tell tells the guard, people and hooks.
func (l *loop) tell(actions []Action) {
	for i := range actions {
		a := &actions[i]
		in := l.subject(a.Router)
		switch a.Kind {
		case Hold:
			// That it hears of it a moment late costs nothing: the journal
			// has what it withdraws.
			l.guard.hold(l.keepsake(in))
		case Withdraw:
			l.guard.release(in.settings.Name)
		case Became:
			l.became(in, a)
		case Disagree:
			l.disagree(in, a)
		}
	}
}

// subject finds the router of an action.
func (l *loop) subject(index int) *instance {
	if index < 0 {
		return l.gone[-1-index]
	}
	return l.instances[index]
}

// packets are adverts as they go out, kept for as long as they say the same.
type packets struct {
	priority uint8
	interval time.Duration
	to       []netip.Addr
	payload  [][]byte
}

func (p *packets) forget() { p.to = p.to[:0] }

// prepare makes the packets for all that the router's adverts go to.
func (in *instance) prepare(priority uint8, interval time.Duration) *packets {
	p := &in.packets
	if len(p.to) > 0 && p.priority == priority && p.interval == interval {
		return p
	}
	p.priority, p.interval = priority, interval
	p.to = append(p.to[:0], in.core.Peers...)
	if len(p.to) == 0 {
		p.to = append(p.to, in.group())
	}
	for len(p.payload) < len(p.to) {
		p.payload = append(p.payload, nil)
	}
	advert := in.advert(priority, interval)
	for i, to := range p.to {
		p.payload[i] = advert.Append(p.payload[i][:0], in.core.Source, to, in.core.Checksum)
	}
	return p
}

func (in *instance) advert(priority uint8, interval time.Duration) Advert {
	a := Advert{
		Version: in.core.Version, VRID: in.core.VRID, Priority: priority, Interval: interval,
		Addresses: in.core.Advertised,
	}
	if a.Version == 2 && in.core.Password != [8]byte{} {
		a.AuthType, a.Password = AuthPass, in.core.Password
	}
	return a
}

// send sends an advert. That one can't be sent is said once, and again when
// one can.
func (l *loop) send(in *instance, priority uint8, interval time.Duration) {
	if in.port == nil || in.port.socket(in) == nil {
		return // the machine is told by another way
	}
	p := in.prepare(priority, interval)
	socket := in.port.socket(in)
	var failed error
	for i, to := range p.to {
		if err := socket.Send(p.payload[i], in.core.Source, to); err != nil {
			failed = err
		}
	}
	if failed == nil {
		in.sent++
		in.lastSent = time.Now()
		in.metrics.sent.Inc()
	} else {
		in.sendErrors++
		in.metrics.sendErrors.Inc()
	}
	if refused := failed != nil; refused != in.refused {
		in.refused = refused
		l.told.send(in, failed)
	}
}

// withdraw takes them off again, at the latest after linger: before, when the
// one who took over says that he has them, or when no packet would be lost.
func (l *loop) withdraw(in *instance, linger time.Duration) {
	if in.core.Fenced {
		l.fence.want(in.settings.Name, false)
		l.withdrawFenced(in)
		return
	}
	if linger > 0 && l.keepsAll(in) {
		linger = 0
	}
	if in.applier != nil {
		in.applier.withdraw(in.settings.Name, linger)
	}
	in.lingers = linger > 0
	l.tellHolds(in, false)
}

// keepsAll tells whether the node takes packets for all of a router's addresses
// also when they are not on the interface.
func (l *loop) keepsAll(in *instance) bool {
	return l.keeps != nil && !slices.ContainsFunc(in.core.Held, func(p netip.Prefix) bool { return !l.keeps(p.Addr()) })
}

func (l *loop) tellHolds(in *instance, holds bool) {
	if l.holds != nil {
		l.holds(in.settings.Name, holds)
	}
}

// ask asks who has the router's addresses. The answers come as claims.
func (l *loop) ask(in *instance) {
	if in.port == nil {
		return
	}
	for _, prefix := range in.core.Held {
		if err := in.port.neighbors.Ask(prefix.Addr(), in.core.Source); err != nil {
			in.log.Debug("ask who has an address", "address", prefix.Addr(), "error", err)
		}
	}
}

// maxHistory is how many transitions of a router are kept to be explained.
const maxHistory = 16

// became tells everybody about a change of state.
func (l *loop) became(in *instance, a *Action) {
	in.log.Info("state", "from", a.From, "to", a.To, "reason", a.Reason)
	in.state = a.To
	l.remember(in, Transition{At: time.Now(), From: a.From, To: a.To, Reason: a.Reason})
	in.metrics.set(a.To)
	l.metrics.transitions.WithLabelValues(in.settings.Name, stateLabel(a.To)).Inc()
	l.told.state(in, a.To, a.Reason)
	priority := l.priority(in, a.Router)
	in.metrics.priority.Set(float64(priority))
	if !in.core.Fenced {
		l.hooks.changed(in, a.To, priority, l.everywhere)
	} else if a.To != Active { // then the lease decides
		l.tellHooks(in, a.To)
	}
	l.groupChanged(in)
	l.orders.changed = true
}

// remember keeps a transition to be explained. That of a router that another
// follows under its name is part of the other's story.
func (l *loop) remember(in *instance, t Transition) {
	if in.index < 0 {
		if at := slices.IndexFunc(l.instances, func(other *instance) bool { return other.settings.Name == in.settings.Name }); at >= 0 {
			in = l.instances[at]
		}
	}
	if len(in.history) == maxHistory {
		in.history = slices.Delete(in.history, 0, 1)
	}
	in.history = append(in.history, t)
}

// priority is the router's with its weights; of one that is gone its own.
func (l *loop) priority(in *instance, index int) uint8 {
	if index < 0 {
		return in.core.Priority
	}
	return l.machine.Priority(index)
}

// groupChanged tells hooks of a sync group once all of its routers came to a
// state.
func (l *loop) groupChanged(in *instance) {
	group := in.settings.Group
	if group == "" || in.groupState == in.state {
		return
	}
	all := l.instances
	if in.index < 0 { // those that go with it belong to it, too
		all = slices.Concat(all, l.gone)
	}
	for _, other := range all {
		if other.settings.Group == group && other.state != in.state {
			return
		}
	}
	for _, other := range all {
		if other.settings.Group == group {
			other.groupState = in.state
		}
	}
	in.groupState = in.state
	l.hooks.groupChanged(in, in.state, l.everywhere)
}

func (l *loop) disagree(in *instance, a *Action) {
	l.told.disagreement(in, a.Peer, a.Fields, a.Reason)
}

// forget ends what is told about a router that this node no longer has.
func (l *loop) forget(in *instance) {
	in.log.Info("the virtual router is gone from the configuration")
	l.told.forget(in.settings.Name)
	l.metrics.forget(in.settings.Name)
}
