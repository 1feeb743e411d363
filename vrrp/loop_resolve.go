package vrrp

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"holdfast/internal/kernel/link"
)

// reopenAfter is how long after sockets could not be opened it is tried again.
const reopenAfter = time.Second

// resolve looks where every router belongs, after the kernel said something
// about interfaces, or when a debounce ends.
func (l *loop) resolve(now time.Time) {
	if !l.dirty && (l.recheck.IsZero() || now.Before(l.recheck)) {
		return
	}
	l.dirty, l.recheck = false, time.Time{}
	moved := false
	for _, in := range l.instances {
		moved = l.place(in, now) || moved
	}
	if moved {
		l.renew(l.instances, now)
	}
	for _, in := range l.instances {
		l.lookAtLink(in, now)
	}
}

// place puts a router on the interface where it belongs, and takes it off the
// one where it no longer does. It is true when the machine must be told of
// another interface or source.
func (l *loop) place(in *instance, now time.Time) (moved bool) {
	at := l.table.find(&in.settings)
	if in.port != nil && (at.link.Index != in.port.link.Index || !sameHardware(&at.link, &in.port.link)) {
		// Its addresses and sockets are of no use from now on.
		in.spot.why = at.why
		if at.link.Index == in.port.link.Index {
			in.spot.why = at.link.Name + " has another hardware address"
		}
		l.countLink(in, false, 0, now)
		l.detach(in)
	}
	if rival := l.rival(in, &at); rival != nil && at.why == "" {
		at.why = fmt.Sprintf("VRID %d is that of %s on %s, too; give one of them another", in.core.VRID, rival.settings.Name, at.link.Name)
	}
	core := in.core
	if at.source.IsValid() {
		core = coreOf(&in.settings, at)
	}
	moved = core.Source != in.core.Source
	in.core = core
	if in.port == nil && at.link.Index != 0 && at.source.IsValid() {
		if err := l.attach(in, at.link); err != nil {
			at.why = err.Error()
			l.checkAgain(now.Add(reopenAfter))
		}
	}
	if at.why != "" && at.why != in.spot.why {
		in.log.Warn("the interface is not fit", "reason", at.why)
	}
	if in.port != nil && in.port.link.Name != at.link.Name {
		in.log.Info("the interface has another name", "was", in.port.link.Name, "interface", at.link.Name)
		l.appliers.rename(at.link)
	}
	if in.port != nil {
		in.port.link = at.link
	}
	in.spot = at
	return moved
}

// rival is a router before this one that has the same VRID on the same
// interface: two networks may share a wire, and adverts say the VRID only.
func (l *loop) rival(in *instance, at *spot) *instance {
	for _, other := range l.instances {
		if other == in {
			break
		}
		if other.spot.link.Index == at.link.Index && at.link.Index != 0 &&
			other.core.VRID == in.core.VRID && other.core.is6() == in.core.is6() {
			return other
		}
	}
	return nil
}

// sameHardware tells whether sockets that were opened on one are good for the
// other.
func sameHardware(a, b *link.Link) bool {
	return slices.Equal(a.MAC, b.MAC) && slices.Equal(a.Broadcast, b.Broadcast)
}

// lookAtLink tells the machine when what a router's interface is has lasted.
func (l *loop) lookAtLink(in *instance, now time.Time) {
	debounce := in.settings.Debounce
	if in.port == nil {
		debounce = 0
	}
	l.countLink(in, in.port != nil && in.spot.why == "", debounce, now)
	if !in.settle.until.IsZero() {
		l.checkAgain(in.settle.until)
	}
}

func (l *loop) countLink(in *instance, up bool, debounce time.Duration, now time.Time) {
	if in.settle.see(up, debounce, now) {
		in.log.Info("interface", "counts_as_up", up, "interface", in.spot.link.Name, "reason", in.spot.why)
		l.tracked(Event{Kind: Tracked, At: now, Name: linkTrack(in.settings.Name), Up: up})
	}
}

// checkAgain makes resolve look again at a time, or before.
func (l *loop) checkAgain(at time.Time) {
	if l.recheck.IsZero() || at.Before(l.recheck) {
		l.recheck = at
	}
}

// renew gives the machine the routers as they are now. before are the
// instances that it has: those that are no more end.
func (l *loop) renew(before []*instance, now time.Time) {
	cores := make([]Router, len(l.instances))
	for i, in := range l.instances {
		in.index = i
		in.packets.forget()
		cores[i] = in.core
	}
	l.setPatience()
	l.fencedNow()
	actions, gone := l.machine.Reconfigure(cores, now)
	l.gone = l.gone[:0]
	for _, router := range gone {
		in := before[slices.IndexFunc(before, func(in *instance) bool { return in.settings.Name == router.Name })]
		l.gone = append(l.gone, l.last(in, router))
	}
	l.act(actions)
	for _, in := range l.instances { // peers, password or interval may be others: its last word must be believed, and in time
		if in.state == Active {
			l.guard.hold(l.keepsake(in))
		}
	}
	for _, in := range before {
		if !slices.Contains(l.instances, in) {
			l.detach(in)
			l.forget(in)
		}
	}
	for _, p := range l.listening {
		p.index(l)
	}
	l.tellAgain(cores, now)
}

// tracked passes word about a tracked thing on, and keeps it.
func (l *loop) tracked(word Event) {
	l.words[word.Name] = word
	l.step(word)
}

// tellAgain tells the machine what is known about tracked things: it may have
// routers that are new to them. For the others it is no news. What nobody
// tracks any more is forgotten.
func (l *loop) tellAgain(cores []Router, now time.Time) {
	named := map[string]bool{}
	for i := range cores {
		for _, t := range cores[i].Tracks {
			named[t.Name] = true
		}
	}
	maps.DeleteFunc(l.words, func(name string, _ Event) bool { return !named[name] })
	for _, word := range l.words {
		word.At = now
		l.step(word)
	}
}

// last is a router as it was, for its last adverts: another VRID or version
// under the same name is another virtual router to the peers.
func (l *loop) last(in *instance, core Router) *instance {
	was := *in
	was.index, was.core, was.packets = -1, core, packets{}
	in.state, in.dropped = Initialize, [drops]uint64{} // of the one that begins
	in.leasedUntil, in.told = time.Time{}, Initialize  // what the old one has, it gives back
	in.log = l.logOf(&in.settings)
	return &was
}

// reconfigure makes these the routers. One whose settings are the same is not
// touched. One whose new settings need a socket that can't be had is in fault,
// and off its interface, until it can: resolve tries again.
func (l *loop) reconfigure(settings []RouterSettings, now time.Time) {
	before := l.instances
	l.dirty = true // what is gone may have been in another's way
	for i := range settings {
		if at := slices.IndexFunc(before, func(in *instance) bool { return in.settings.Name == settings[i].Name }); at >= 0 {
			l.prepare(before[at], &settings[i], now)
		}
	}
	l.instances = make([]*instance, 0, len(settings))
	for i := range settings {
		at := slices.IndexFunc(before, func(in *instance) bool { return in.settings.Name == settings[i].Name })
		if at < 0 {
			l.instances = append(l.instances, l.newInstance(settings[i]))
			continue
		}
		in := before[at]
		l.instances = append(l.instances, in)
		if reflect.DeepEqual(in.settings, settings[i]) {
			continue
		}
		in.log.Info("reconfigured")
		in.settings = settings[i]
		in.core = coreOf(&in.settings, l.table.find(&in.settings))
	}
	l.renew(before, now)
	l.resolve(now)
}

// prepare opens what the new settings of a router need on the interface where it
// is: they may be of another family, or of a group now. When that fails, it lets
// go as the router that it was, whom its peers hear.
func (l *loop) prepare(in *instance, settings *RouterSettings, now time.Time) {
	at := l.table.find(settings)
	if in.port == nil || at.link.Index != in.port.link.Index || reflect.DeepEqual(in.settings, *settings) {
		return
	}
	next := instance{core: coreOf(settings, at)}
	err := l.openSocket(in.port, &next)
	if err == nil {
		return
	}
	in.log.Error("the new settings can't work yet", "error", err)
	in.spot.why = err.Error()
	l.countLink(in, false, 0, now)
	l.detach(in)
}
