package vrrp

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/scripttest"
)

var update = flag.Bool("update", false, "rewrite testdata/scripts with what the machine does")

// TestScripts plays testdata/scripts/*.txt: paragraphs of commands, "----",
// and what the machine does, with the time since the start. The commands are
// those of script.run; lines that begin with # are for the reader.
func TestScripts(t *testing.T) {
	scripttest.Files(t, "testdata/scripts/*.txt", *update, func(t *testing.T) scripttest.Block { return (&script{t: t}).block })
}

// script is a machine with a clock that stands still between commands.
type script struct {
	t       *testing.T
	configs []Router
	m       *Machine
	now     time.Time
	gone    []Router
	out     []string
}

func (s *script) block(commands string, _ bool) string {
	s.out = nil
	scripttest.Commands(commands, s.run)
	return scripttest.WithResults(commands, s.out)
}

func (s *script) run(words []string) {
	s.t.Helper()
	args := parseArgs(s.t, words[1:])
	switch words[0] {
	case "new": // forget everything
		s.configs, s.m, s.now = nil, nil, time.Time{}
	case "router": // NAME KEY=VALUE...: one of the configuration; see args.router
		s.configure(args)
	case "without": // NAME: the configuration has it no longer
		s.configs = slices.DeleteFunc(s.configs, func(r Router) bool { return r.Name == args.name(0) })
	case "reload": // take the configuration as it is now
		actions, gone := s.m.Reconfigure(s.configs, s.now)
		s.gone = gone
		s.show(actions)
	case "start": // [adopted=NAME,...]
		if s.m == nil {
			s.m, s.now = NewMachine(s.configs), epoch
		}
		s.step(Event{Kind: Start, Adopted: s.indices(args.list("adopted"))})
	case "stop":
		s.step(Event{Kind: Stop})
	case "suspend": // grace=DURATION
		s.step(Event{Kind: Suspend, Grace: args.duration("grace", 0)})
	case "run": // DURATION: time passes, every deadline is met
		s.pass(args.span(0))
	case "sleep": // DURATION: time passes, nothing is done
		s.now = s.now.Add(args.span(0))
	case "tick":
		s.step(Event{Kind: Tick})
	case "advert": // ROUTER FROM PRIORITY KEY=VALUE...: what differs from the router's own; see args.advert
		r := s.router(args.name(0))
		s.step(Event{Kind: Received, Router: r, From: args.addr(1), Advert: args.advert(s.m.routers[r])})
	case "track": // NAME up|down|NUMBER
		up, value := args.track(1)
		s.step(Event{Kind: Tracked, Name: strings.ReplaceAll(args.name(0), "_", " "), Up: up, Value: value})
	case "yield", "pull", "release": // ROUTER
		kind := map[string]EventKind{"yield": Yield, "pull": Pull, "release": Release}[words[0]]
		s.step(Event{Kind: kind, Router: s.router(args.name(0))})
	case "stalled": // DURATION: the shell noticed that it did not run
		s.step(Event{Kind: Stalled, Stall: args.span(0)})
	case "owner": // ROUTER: somebody else answers for its address
		s.step(Event{Kind: Owner, Router: s.router(args.name(0)), MAC: [6]byte{2, 0, 0, 0, 0, 9}})
	case "next":
		s.next()
	case "status": // ROUTER
		s.status(s.router(args.name(0)))
	case "counters": // ROUTER
		s.counters(s.router(args.name(0)))
	default:
		s.t.Fatalf("unknown command %q", words[0])
	}
}

// epoch is when scripts begin. It has no monotonic reading: the machine must
// not care.
var epoch = time.Date(2026, 11, 25, 9, 0, 0, 0, time.UTC)

func (s *script) configure(args args) {
	name := args.name(0)
	i := slices.IndexFunc(s.configs, func(r Router) bool { return r.Name == name })
	if i < 0 {
		s.configs = append(s.configs, Router{
			Name: name, Interface: "eth0", Version: 3, VRID: uint8(len(s.configs) + 1), Priority: 100,
			Interval: time.Second, Preempt: true,
		})
		i = len(s.configs) - 1
	}
	args.router(&s.configs[i])
}

func (s *script) router(name string) int {
	i := slices.IndexFunc(s.m.routers, func(r *router) bool { return r.Name == name })
	if i < 0 {
		s.t.Fatalf("no router %q", name)
	}
	return i
}

func (s *script) indices(names []string) []int {
	var list []int
	for _, name := range names {
		list = append(list, s.router(name))
	}
	return list
}

func (s *script) step(e Event) {
	e.At = s.now
	s.show(s.m.Step(e))
}

func (s *script) pass(d time.Duration) {
	end := s.now.Add(d)
	for {
		at, ok := s.m.Next()
		if !ok || at.After(end) {
			s.now = end
			return
		}
		s.now = at
		s.step(Event{Kind: Tick})
	}
}

func (s *script) say(format string, args ...any) {
	s.out = append(s.out, fmt.Sprintf("%-10s ", s.since(s.now))+fmt.Sprintf(format, args...))
}

func (s *script) since(at time.Time) string { return at.Sub(epoch).String() }

func (s *script) next() {
	at, ok := s.m.Next()
	if !ok {
		s.say("next: never")
		return
	}
	s.say("next: %s", s.since(at))
}

func (s *script) show(actions []Action) {
	for _, a := range actions {
		r := Router{}
		if a.Router >= 0 {
			r = s.m.routers[a.Router].Router
		} else {
			r = s.gone[-1-a.Router]
		}
		s.say("%s: %s", r.Name, showAction(a))
	}
}

func showAction(a Action) string {
	switch a.Kind {
	case Send:
		return fmt.Sprintf("send priority %d, interval %s", a.Priority, a.Interval)
	case Hold:
		return "hold"
	case Withdraw:
		if a.Linger > 0 {
			return fmt.Sprintf("withdraw, within %s", a.Linger)
		}
		return "withdraw"
	case Announce:
		return "announce"
	case Ask:
		return "ask who has it"
	case Became:
		peer := ""
		if a.Peer.IsValid() {
			peer = " [" + a.Peer.String() + "]"
		}
		return fmt.Sprintf("%s -> %s: %s%s", a.From, a.To, a.Reason, peer)
	case Disagree:
		if a.Reason != "" {
			return fmt.Sprintf("%s counts no more: %s", a.Peer, a.Reason)
		}
		return fmt.Sprintf("%s %s", a.Peer, showFields(a.Fields))
	}
	return fmt.Sprintf("unknown action %d", a.Kind)
}

func showFields(fields []Disagreement) string {
	if len(fields) == 0 {
		return "agrees"
	}
	var list []string
	for _, f := range fields {
		list = append(list, fmt.Sprintf("%s (ours %s, theirs %s)", f.Field, f.Ours, f.Theirs))
	}
	return "disagrees: " + strings.Join(list, ", ")
}

func (s *script) status(i int) {
	st := s.m.Status(i)
	line := fmt.Sprintf("%s is %s since %s (%s), priority %d, interval %s", s.m.routers[i].Name, st.State, s.since(st.Since), st.Reason, st.Priority, st.Interval)
	if st.Active.IsValid() {
		line += ", active " + st.Active.String()
	}
	if st.Pulled {
		line += ", pulled"
	}
	if st.Yielded {
		line += ", yielded"
	}
	s.say("%s", line)
	for _, t := range st.Tracks {
		s.out = append(s.out, fmt.Sprintf("  track %s: known=%v up=%v value=%d", t.Name, t.Known, t.Up, t.Value))
	}
	for _, p := range st.Peers {
		if p.At.IsZero() {
			s.out = append(s.out, fmt.Sprintf("  peer %s: never heard", p.Address))
			continue
		}
		s.out = append(s.out, fmt.Sprintf("  peer %s: at %s priority %d interval %s, %s",
			p.Address, s.since(p.At), p.Advert.Priority, p.Advert.Interval, showFields(p.Disagrees)))
	}
}

func (s *script) counters(i int) {
	c := s.m.Counters(i)
	line := fmt.Sprintf("received %d, resigned %d, sent %d", c.Received, c.Resigned, c.Sent)
	for _, d := range Drops() {
		if n := c.Dropped[d]; n > 0 {
			line += fmt.Sprintf(", dropped %s %d", d, n)
		}
	}
	s.say("%s: %s", s.m.routers[i].Name, line)
}
