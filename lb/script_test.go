package lb

import (
	"flag"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/internal/kernel/ipvs"
	"holdfast/internal/scripttest"
)

var update = flag.Bool("update", false, "rewrite testdata/scripts with what the planner does")

// TestScripts plays testdata/scripts/*.txt: paragraphs of commands, "----",
// and what changed in the plan, with the time since the start. The commands
// are those of script.run; lines that begin with # are for the reader.
func TestScripts(t *testing.T) {
	scripttest.Files(t, "testdata/scripts/*.txt", *update, func(t *testing.T) scripttest.Block { return (&script{t: t, now: epoch}).block })
}

var epoch = time.Unix(0, 0)

// script is a planner with a clock that stands still between commands.
type script struct {
	t        *testing.T
	settings Settings
	p        *Planner
	now      time.Time
	shown    []string // of the last plan
	out      []string
}

func (s *script) block(commands string, _ bool) string {
	s.out = nil
	scripttest.Commands(commands, s.run)
	return scripttest.WithResults(commands, s.out)
}

func (s *script) run(words []string) {
	s.t.Helper()
	switch words[0] {
	case "node": // NAME [handover=DURATION]: which one this is
		s.settings = Settings{Node: words[1], Sync: Sync{ID: 7}, Handover: option(s.t, words, "handover", time.Duration(0), time.ParseDuration)}
	case "service": // NAME VIP ADDR:PORT SERVER=WEIGHT,... KEY=VALUE...: see scriptService
		s.settings.Services = append(s.settings.Services, scriptService(s.t, words))
	case "remote": // SERVICE: this node may not hold its address
		s.service(words[1]).Director = false
	case "reload":
		s.p.Reconfigure(s.settings)
		s.show()
	case "weight": // SERVICE SERVER WEIGHT
		servers := s.service(words[1]).Servers
		i := slices.IndexFunc(servers, func(r Server) bool { return r.Node == words[2] })
		servers[i].Weight, _ = strconv.Atoi(words[3])
	case "start":
		s.p = NewPlanner(s.settings)
		s.show()
	case "active", "standby": // VIP
		s.p.Role(words[1], map[string]Role{"active": Active, "standby": Standby}[words[0]], s.now)
		s.show()
	case "presume": // VIP DURATION
		d, err := time.ParseDuration(words[2])
		if err != nil {
			s.t.Fatal(err)
		}
		s.p.Presume(words[1], s.now.Add(d))
		s.show()
	case "up", "down": // SERVICE SERVER...
		for _, node := range words[2:] {
			s.p.Check(words[1], node, words[0] == "up", s.now)
		}
		s.show()
	case "key": // SERVICE NODE KEY
		s.p.HostKey(words[1], words[2], words[3])
		s.show()
	case "drained": // NODE...: these and no others
		s.p.Drained(words[1:])
		s.show()
	case "alive": // NODE...: these and no others
		s.p.Alive(words[1:])
		s.show()
	case "run": // DURATION: time passes, plans are made when they said
		s.pass(words[1])
	default:
		s.t.Fatalf("no such command: %v", words)
	}
}

func (s *script) service(name string) *VirtualService {
	i := slices.IndexFunc(s.settings.Services, func(v VirtualService) bool { return v.Name == name })
	if i < 0 {
		s.t.Fatalf("no service %s", name)
	}
	return &s.settings.Services[i]
}

func (s *script) pass(word string) {
	d, err := time.ParseDuration(word)
	if err != nil {
		s.t.Fatal(err)
	}
	end := s.now.Add(d)
	for range 1000 {
		_, next := s.p.Plan(s.now)
		if next.IsZero() || next.After(end) {
			s.now = end
			return
		}
		if !next.After(s.now) {
			s.t.Fatalf("at %v the next plan is for %v", s.now.Sub(epoch), next.Sub(epoch))
		}
		s.now = next
		s.show()
	}
	s.t.Fatalf("1,000 plans in %v", d)
}

// show prints what is no longer and what is new in the plan.
func (s *script) show() {
	plan, _ := s.p.Plan(s.now)
	lines := describe(plan)
	at := s.now.Sub(epoch).Round(time.Millisecond)
	for _, l := range s.shown {
		if !slices.Contains(lines, l) {
			s.out = append(s.out, fmt.Sprintf("%-8v - %s", at, l))
		}
	}
	for _, l := range lines {
		if !slices.Contains(s.shown, l) {
			s.out = append(s.out, fmt.Sprintf("%-8v + %s", at, l))
		}
	}
	s.shown = lines
}

func describe(p Plan) (lines []string) {
	for _, a := range p.Hidden {
		lines = append(lines, fmt.Sprintf("lo %v", a))
	}
	for _, c := range p.Sysctls {
		lines = append(lines, fmt.Sprintf("%s=%d", c.Name, c.Value))
	}
	for _, d := range p.Daemons {
		lines = append(lines, fmt.Sprintf("daemon %v %d", d.Role, d.SyncID))
	}
	for _, e := range p.Firewall.Untracked {
		lines = append(lines, fmt.Sprintf("untracked %v/%v", e.Protocol, e.Addr))
	}
	for _, v := range p.Tables {
		head := v.Key.String()
		line := head + " " + v.Scheduler
		if v.Persistence != 0 {
			line += fmt.Sprintf(" persistent %v", v.Persistence)
		}
		lines = append(lines, line)
		for _, r := range v.Servers {
			lines = append(lines, fmt.Sprintf("%s -> %v weight %d", head, r.Addr, r.Weight))
		}
	}
	for _, r := range p.Remarks {
		lines = append(lines, fmt.Sprintf("remark %s: %s", r.Service, r.Text))
	}
	return lines
}

// scriptService reads NAME VIP ADDR:PORT SERVER=WEIGHT,... and options. The
// servers are f1, f2 ... with the addresses 10.1.0.1, 10.1.0.2 ...
func scriptService(t *testing.T, words []string) VirtualService {
	t.Helper()
	addr := netip.MustParseAddrPort(words[3])
	s := VirtualService{
		Name: words[1], VIP: words[2], Director: true, Addr: addr.Addr(), Port: addr.Port(), Protocol: ipvs.TCP,
		Scheduler:   option(t, words, "scheduler", "wlc", func(s string) (string, error) { return s, nil }),
		Persistence: option(t, words, "persistence", 0, time.ParseDuration),
		SlowStart:   option(t, words, "slow_start", 0, time.ParseDuration),
		Quorum:      option(t, words, "quorum", 1, strconv.Atoi),
		Hysteresis:  option(t, words, "hysteresis", 0, strconv.Atoi),
		Inhibit:     option(t, words, "inhibit", false, strconv.ParseBool),
		Sorry:       option(t, words, "sorry", netip.Addr{}, netip.ParseAddr),
	}
	for server := range strings.SplitSeq(words[4], ",") {
		node, weight, _ := strings.Cut(server, "=")
		w, err := strconv.Atoi(weight)
		n, err2 := strconv.Atoi(strings.TrimPrefix(node, "f"))
		if err != nil || err2 != nil {
			t.Fatalf("%v: %v is no fN=WEIGHT", words, server)
		}
		address := netip.AddrFrom4([4]byte{10, 1, 0, byte(n)})
		if s.Addr.Is6() {
			address = netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(n)})
		}
		s.Servers = append(s.Servers, Server{Node: node, Addr: address, Weight: w})
	}
	return s
}

func option[T any](t *testing.T, words []string, name string, otherwise T, parse func(string) (T, error)) T {
	t.Helper()
	for _, w := range words {
		if text, ok := strings.CutPrefix(w, name+"="); ok {
			v, err := parse(text)
			if err != nil {
				t.Fatalf("%v: %v", words, err)
			}
			return v
		}
	}
	return otherwise
}
