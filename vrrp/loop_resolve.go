package vrrp

import (
	"reflect"
	"slices"
	"time"
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
	if in.port != nil && (at.link.Index != in.port.link.Index || !slices.Equal(at.link.MAC, in.port.link.MAC)) {
		// Its addresses and sockets are of no use from now on.
		in.spot.why = at.why
		if at.link.Index == in.port.link.Index {
			in.spot.why = at.link.Name + " has another hardware address"
		}
		l.countLink(in, false, 0, now)
		l.detach(in)
	}
	if in.port == nil && at.link.Index != 0 && at.source.IsValid() {
		in.core = coreOf(&in.settings, at)
		if err := l.attach(in, at.link); err != nil {
			at.why = err.Error()
			l.checkAgain(now.Add(reopenAfter))
		}
		moved = true
	}
	if at.why != "" && at.why != in.spot.why {
		in.log.Warn("the interface is not fit", "reason", at.why)
	}
	if in.port != nil {
		in.port.link, in.port.link.MAC = at.link, in.port.link.MAC
	}
	before := in.spot
	in.spot = at
	if at.source.IsValid() && (at.source != before.source || at.link.Name != before.link.Name) {
		in.core = coreOf(&in.settings, at)
		moved = true
	}
	return moved
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
		l.step(Event{Kind: Tracked, At: now, Name: linkTrack(in.settings.Name), Up: up})
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
	for _, p := range l.listening {
		p.index(l)
	}
	l.setPatience()
	actions, gone := l.machine.Reconfigure(cores, now)
	l.gone = l.gone[:0]
	for _, router := range gone {
		l.gone = append(l.gone, before[slices.IndexFunc(before, func(in *instance) bool { return in.settings.Name == router.Name })])
	}
	l.act(actions)
	for _, in := range l.gone {
		l.detach(in)
		l.forget(in)
	}
	clear(l.gone)
}

// reconfigure makes these the routers. One whose settings are the same is not
// touched.
func (l *loop) reconfigure(settings []RouterSettings, now time.Time) {
	before := l.instances
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
		in.core = coreOf(&in.settings, in.spot)
		if in.port == nil {
			continue
		}
		if err := l.openSocket(in.port, in); err != nil { // of another family, or of a group now
			in.log.Error("the new settings can't work", "error", err)
		}
	}
	l.renew(before, now)
	l.dirty = true
	l.resolve(now)
}
