package vrrp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"time"

	"holdfast/internal/kernel/link"
	"holdfast/internal/kernel/rawsock"
	"holdfast/internal/runfile"
)

const (
	lockPatience = 5 * time.Second // for a predecessor that ends, or a guard at work: rtnetlink may be busy
	hookPatience = 5 * time.Second // for hooks at the end
)

// session is what exists while the service runs.
type session struct {
	service  *Service
	dir      string
	settings Settings // that it began with
	lock     *os.File
	handle   *link.Handle
	journal  *journal
	guard    *guardian
	appliers *appliers
	hooks    *hooks
	watch    *watcher
	loop     *loop
	fence    *fence

	killHooks context.CancelFunc
	adopted   bool
}

// Run moves addresses until ctx ends, then hands them over with priority 0;
// or leaves them to a successor when MarkRestart was called before. An error
// leaves them too: for the next Run, or else for the guard. It calls ready
// once the protocol runs. Without routers nothing runs, and no privilege is
// needed, until Reconfigure brings some.
func (s *Service) Run(ctx context.Context, ready func()) error {
	select {
	case <-s.wanted:
	default:
		ready()
		select {
		case <-s.wanted:
		case <-ctx.Done():
			return nil
		}
	}
	s.suspended.Store(false)
	live, err := s.open()
	if err != nil {
		return err
	}
	defer live.close()
	looped := make(chan error, 1)
	go func() { looped <- live.loop.run() }()
	go live.guard.run()
	beside, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var others sync.WaitGroup
	watched := make(chan error, 1)
	others.Go(func() { watched <- live.follow(beside) })
	others.Go(func() { live.watch.run(beside, live.adopted) })
	others.Go(func() { live.fence.follow(beside) })
	s.setLive(live)
	defer s.setLive(nil)
	ready()

	end := crash
	select {
	case <-ctx.Done():
		end = live.howToEnd()
	case err = <-watched:
		err = fmt.Errorf("vrrp: interfaces and addresses: %w", err)
	case err = <-looped:
		looped <- err
	}
	stop()
	live.finish(end, looped)
	others.Wait()
	return err
}

func (s *Service) setLive(live *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live = live
	if live != nil && !reflect.DeepEqual(s.settings, live.settings) { // it changed since open
		if err := live.reconfigure(s.settings); err != nil {
			s.log.Error("settings not taken over", "error", err)
		}
	}
}

// end is how a session ends.
type end uint8

const (
	crash   end = iota // addresses stay; the guard withdraws them soon
	restart            // addresses stay, peers are told to wait
	handOver
)

// open takes the lock, looks at the kernel and the journal, and starts the
// machine. Nothing runs yet.
func (s *Service) open() (_ *session, err error) {
	s.mu.Lock()
	live := &session{service: s, dir: filepath.Join(s.config.RunDir, dirName), settings: s.settings}
	s.mu.Unlock()
	opened := false
	defer func() {
		if !opened {
			live.close()
		}
	}()
	if err := os.MkdirAll(live.dir, 0o755); err != nil {
		return nil, fmt.Errorf("vrrp: %w", err)
	}
	if live.lock, err = takeOver(live.dir, lockPatience); err != nil {
		return nil, err
	}
	at, err := runfile.Here()
	if err != nil {
		return nil, fmt.Errorf("vrrp: %w", err)
	}
	if live.handle, err = link.Open(); err != nil {
		return nil, fmt.Errorf("vrrp: %w", err)
	}
	var broken int
	if live.journal, broken, err = openJournal(live.dir, at); err != nil {
		return nil, fmt.Errorf("vrrp: journal: %w", err)
	}
	if broken > 0 {
		s.log.Warn("lines of the journal can't be read and are left out", "lines", broken, "path", live.journal.path)
	}
	if err := live.make(); err != nil {
		return nil, err
	}
	if err := live.start(at); err != nil {
		return nil, err
	}
	opened = true
	return live, nil
}

// make makes the parts.
func (v *session) make() error {
	s := v.service
	told := &conditions{board: s.board, log: s.log, disagreeing: map[string]map[netip.Addr]string{}}
	v.guard = &guardian{
		argv: s.config.Guard, log: s.log, told: told, metrics: s.metrics, report: &s.guard,
		held: map[string]guardWord{}, leases: map[string]guardWord{}, wake: make(chan struct{}, 1), done: make(chan struct{}), ending: make(chan ending),
	}
	v.appliers = &appliers{
		handle: v.handle, journal: v.journal, told: told, metrics: s.metrics, log: s.log, byIndex: map[int]*applier{},
	}
	hookCtx, kill := context.WithCancel(context.Background())
	v.killHooks = kill
	v.hooks = newHooks(hookCtx, s.commands, s.log, s.metrics)
	poller, err := rawsock.NewPoller()
	if err != nil {
		return fmt.Errorf("vrrp: %w", err)
	}
	v.loop = &loop{
		log: s.log, metrics: s.metrics, told: told, guard: v.guard, hooks: v.hooks, appliers: v.appliers,
		poller: poller, ports: map[int]*port{}, table: newLinkTable(), realtime: v.settings.Realtime,
		everywhere: v.settings.Hooks, holds: s.holds, keeps: s.keeps,
		garbage: newGarbage(), mail: newMailbox(poller.Wake), words: map[string]Event{},
	}
	v.makeFence(told)
	v.watch = newWatcher(s.commands, s.log, v.tracked)
	return nil
}

// start looks at the kernel once, adopts what a predecessor left, and starts
// the machine.
func (v *session) start(at runfile.Origin) error {
	l := v.loop
	links, err := v.handle.Links()
	if err != nil {
		return fmt.Errorf("vrrp: %w", err)
	}
	addrs, err := v.handle.Addrs()
	if err != nil {
		return fmt.Errorf("vrrp: %w", err)
	}
	for i := range links {
		l.table.take(link.Event{Link: &links[i]})
		v.watch.linkChanged(&links[i], false)
	}
	for i := range addrs {
		l.table.take(link.Event{Addr: &addrs[i]})
	}
	now := time.Now()
	settings := v.settings
	for i := range settings.Routers { // of a Run that ended with an error: nobody would end them
		l.told.forget(settings.Routers[i].Name)
	}
	for _, warning := range settings.Warnings {
		v.service.log.Warn(warning)
	}
	l.machine = NewMachine(nil)
	l.reconfigure(settings.Routers, now)
	if err := v.watch.set(settings.Checks, settings.Watches); err != nil {
		return err
	}
	for _, f := range l.mail.take() { // words about interfaces that are tracked
		f()
	}
	adopted := v.adopt(addrs)
	v.adopted = len(adopted) > 0
	l.orders = openOrders(v.dir, at)
	l.step(Event{Kind: Start, At: now, Adopted: adopted})
	l.orders.give(l)
	return nil
}

// adopt finds the routers whose addresses a predecessor left on the interface
// where they belong, a moment ago, and removes everything else that is ours by
// the journal. Without a guard that lives, or a predecessor's word that it left
// them for a restart whose grace lasts, nobody knows how long ago that was:
// then nothing is adopted.
func (v *session) adopt(addrs []link.Addr) (adopted []int) {
	fresh := leftJustNow(v.dir)
	entries := v.journal.list()
	if len(entries) == 0 {
		return nil
	}
	fresh = fresh || guardAlive(v.dir)
	log := v.service.log
	var gone []entry
	for _, e := range entries {
		there := slices.ContainsFunc(addrs, func(a link.Addr) bool { return a.Link == e.Index && a.Prefix == e.Prefix })
		at := slices.IndexFunc(v.loop.instances, func(in *instance) bool {
			return in.settings.Name == e.Router && !in.core.Fenced && in.port != nil && in.port.link.Index == e.Index && slices.Contains(in.core.Held, e.Prefix)
		})
		if there && fresh && at >= 0 {
			if !slices.Contains(adopted, at) {
				adopted = append(adopted, at)
				log.Info("adopted from a predecessor", "router", e.Router, "address", e.Prefix, "interface", e.Name)
			}
			continue
		}
		if there {
			if err := v.handle.Remove(link.Addr{Link: e.Index, Prefix: e.Prefix}); err != nil {
				log.Error("an address that a predecessor left could not be removed", "address", e.Prefix, "interface", e.Name, "error", err)
				continue
			}
			log.Warn("removed an address that a predecessor left", "router", e.Router, "address", e.Prefix, "interface", e.Name)
		}
		gone = append(gone, e)
	}
	if err := v.journal.remove(gone); err != nil {
		log.Error("journal", "error", err)
	}
	return adopted
}

// follow tells what the kernel says about interfaces and addresses.
func (v *session) follow(ctx context.Context) error {
	synced := false
	err := v.handle.Watch(ctx, func(e link.Event) {
		switch {
		case e.Synced && synced:
			v.appliers.verifyAll() // notices were lost
		case e.Synced:
			synced = true
		case e.Addr != nil:
			if e.Gone {
				v.appliers.removed(e.Addr.Link, e.Addr.Prefix)
			}
			a := *e.Addr
			e.Addr = &a
			v.loop.mail.post(func() { v.loop.linkChanged(e) })
		case e.Link != nil:
			l := *e.Link
			e.Link = &l
			v.watch.linkChanged(&l, e.Gone)
			v.loop.mail.post(func() { v.loop.linkChanged(e) })
		}
	})
	if err == nil && ctx.Err() == nil {
		err = errors.New("the watch ended")
	}
	return err
}

// tracked passes word about a tracked thing on.
func (v *session) tracked(name string, up bool, value int) {
	v.loop.mail.post(func() {
		v.loop.tracked(Event{Kind: Tracked, At: time.Now(), Name: name, Up: up, Value: value})
	})
}

// howToEnd tells whether a successor is to come.
func (v *session) howToEnd() end {
	if grace, ok := restartMark(v.dir); ok {
		if err := leaveFor(v.dir, grace); err != nil {
			v.service.log.Warn("a successor adopts only while the guard lives", "error", err)
		}
		v.service.suspended.Store(true)
		v.loop.grace = grace
		return restart
	}
	return handOver
}

// finish ends what Run started.
func (v *session) finish(how end, looped <-chan error) {
	v.loop.mail.post(func() { v.loop.finish(how) })
	<-looped
	v.appliers.close() // with what they were told last
	if how == crash {
		v.fence.cancel()
	} else {
		v.fence.end(leaseGiveBack)
	}
	// An address that could not be removed is the guard's to try again.
	v.guard.leave(how == handOver && len(v.journal.list()) == 0)
	ctx, cancel := context.WithTimeout(context.Background(), hookPatience)
	defer cancel()
	v.hooks.close(ctx, v.killHooks)
}

// close gives back what open took.
func (v *session) close() {
	if v.killHooks != nil {
		v.killHooks()
	}
	if v.loop != nil {
		for _, p := range v.loop.listening {
			v.loop.closePort(p)
		}
		v.appliers.close()
		v.fence.wait() // what the appliers removed last was told
		_ = v.loop.poller.Close()
	}
	if v.handle != nil {
		_ = v.handle.Close()
	}
	if v.lock != nil {
		_ = v.lock.Close()
	}
}

// reconfigure hands new settings to the parts. service.mu is held.
func (v *session) reconfigure(settings Settings) error {
	for _, warning := range settings.Warnings {
		v.service.log.Warn(warning)
	}
	if err := v.watch.set(settings.Checks, settings.Watches); err != nil {
		return err
	}
	v.loop.mail.post(func() {
		v.loop.everywhere = settings.Hooks
		if v.loop.realtime != settings.Realtime {
			v.loop.realtime = settings.Realtime
			v.loop.changeRealtime()
		}
		v.loop.reconfigure(settings.Routers, time.Now())
	})
	return nil
}

// order gives a router an admin's order.
func (v *session) order(ctx context.Context, router string, kind EventKind) error {
	refused := make(chan error, 1)
	err := v.loop.do(ctx, func() {
		defer close(refused)
		at := slices.IndexFunc(v.loop.instances, func(in *instance) bool { return in.settings.Name == router })
		if at < 0 {
			refused <- ErrUnknown
			return
		}
		v.loop.instances[at].log.Info("an admin's order", "order", orderWord(kind))
		v.loop.step(Event{Kind: kind, At: time.Now(), Router: at})
		v.loop.orders.changed = true
	})
	if err != nil { // the loop may be at it still, or never come to it
		return err
	}
	return <-refused
}

func orderWord(kind EventKind) string {
	switch kind {
	case Pull:
		return "pull"
	case Yield:
		return "yield"
	default:
		return "release"
	}
}

// leaseGiveBack bounds the wait at the end for leases to be given back.
const leaseGiveBack = time.Second

// makeFence makes what keeps the leases. What it says is heard on the loop.
func (v *session) makeFence(told *conditions) {
	s := v.service
	v.fence = newFence(s.config.Node, s.store)
	v.fence.log, v.fence.metrics, v.fence.told = s.log, s.metrics, told
	v.fence.granted = func(router string) { v.loop.mail.post(func() { v.loop.leased(router) }) }
	v.fence.revoked = func(router, reason string) {
		v.loop.mail.post(func() { v.loop.unleased(router, reason) })
	}
	v.fence.reachable = func(router string, up bool) { v.tracked(storeTrack(router), up, 0) }
	v.loop.fence = v.fence
}
