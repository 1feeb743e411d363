package dns

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"holdfast/internal/scripttest"
	"holdfast/internal/state"
)

var update = flag.Bool("update", false, "rewrite testdata/*.txt with what the server answers")

// TestScripts plays testdata/*.txt: commands, a line of dashes, and what they
// give, up to a blank line. The commands are those of script.run.
func TestScripts(t *testing.T) {
	scripttest.Files(t, "testdata/*.txt", *update, func(t *testing.T) scripttest.Block { return (&script{t: t}).block })
}

// script is a server with the state that a script gives it.
type script struct {
	t *testing.T
	f *fixture
}

func (s *script) block(commands string, checked bool) string {
	var out strings.Builder
	out.WriteString(commands)
	if checked {
		out.WriteString("\n----")
	}
	scripttest.Commands(commands, func(words []string) {
		if result := s.run(words); result != "" {
			out.WriteString("\n" + result)
		}
	})
	return out.String()
}

func (s *script) run(words []string) string {
	s.t.Helper()
	args := words[1:]
	switch words[0] {
	case "cluster": // FILE [confirmed]: a new server with an empty catalog
		text, err := os.ReadFile(filepath.Join("testdata", args[0]))
		if err != nil {
			s.t.Fatal(err)
		}
		c := &catalog{t: s.t, store: state.New()}
		if len(args) > 1 {
			c.store.Touch(time.Now())
		}
		s.f = newFixture(s.t, parseFile(s.t, string(text)), c)
	case "confirm": // a leader is heard of
		s.f.store.Touch(time.Now())
	case "node": // NAME ADDRESS SERVICE:PORT[:TAGS] ...
		s.f.node(args[0], args[1], args[2:]...)
	case "service": // NODE SERVICE:PORT[:TAGS] ID ADDRESS WEIGHT: one with an address of its own
		svc := service(s.t, args[1])
		svc.ID, svc.Address = args[2], netip.MustParseAddr(args[3])
		weight, _ := strconv.ParseUint(args[4], 10, 16)
		svc.Weights.Passing = uint16(weight)
		node, _ := s.f.store.Snapshot().Node(nil, args[0])
		s.f.apply(state.Register{Node: *node, Services: []state.Service{svc}})
	case "check": // NODE CHECK STATUS
		s.f.check(args[0], args[1], state.Status(args[2]))
	case "gossip": // NODE=LIVENESS ...
		s.f.gossip(args...)
	case "deregister": // NODE [SERVICE ...]
		s.f.apply(state.Deregister{Node: args[0], Services: args[1:]})
	case "record": // OWNER TYPE|TTL DATA ...: one in the store
		kind, ttl, _ := strings.Cut(args[1], "|")
		key := strings.Join(append([]string{args[0], kind}, args[2:]...), " ")
		s.f.apply(state.PutDocument{Verb: state.Set, Document: state.Document{Kind: kindRecord, Key: key, Value: []byte(ttl)}})
	case "unrecord": // OWNER TYPE DATA ...
		s.f.apply(state.PutDocument{Verb: state.Delete, Document: state.Document{Kind: kindRecord, Key: strings.Join(args, " ")}})
	case "query": // NAME TYPE [edns=SIZE] [do] [cd] [norec] [tcp] [from=ADDRESS] [class=CLASS]
		return s.query(args)
	default:
		s.t.Fatalf("unknown command %q", words[0])
	}
	return ""
}

func (s *script) query(args []string) string {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(args[0]), dns.StringToType[args[1]])
	m.Id = 4711
	transport, client := overUDP, loopback
	for _, arg := range args[2:] {
		key, value, _ := strings.Cut(arg, "=")
		switch key {
		case "edns":
			size, _ := strconv.ParseUint(value, 10, 16)
			m.SetEdns0(uint16(size), slices.Contains(args, "do"))
		case "do":
		case "cd":
			m.CheckingDisabled = true
		case "norec":
			m.RecursionDesired = false
		case "tcp":
			transport = overTCP
		case "from":
			client = netip.MustParseAddr(value)
		case "class":
			m.Question[0].Qclass = dns.StringToClass[value]
		default:
			s.t.Fatalf("unknown argument %q", arg)
		}
	}
	wire, err := m.Pack()
	if err != nil {
		s.t.Fatal(err)
	}
	s.f.server.refresh()
	w := s.f.server.newWorker(transport)
	reply, forward := w.handle(nil, wire, client)
	if forward != nil && w.onward != nil {
		return "forward " + forward.label + " for " + w.onward.target.String() + " after\n" + show(s.f.unpack(w.onward.prefix), 0)
	}
	if forward != nil {
		return "forward " + forward.label
	}
	return show(s.f.unpack(reply), len(reply))
}

// show gives a message as text, its records sorted.
func show(m *dns.Msg, size int) string {
	var out strings.Builder
	flags := []string{}
	for name, set := range map[string]bool{"aa": m.Authoritative, "tc": m.Truncated, "rd": m.RecursionDesired,
		"ra": m.RecursionAvailable, "ad": m.AuthenticatedData, "cd": m.CheckingDisabled} {
		if set {
			flags = append(flags, name)
		}
	}
	slices.Sort(flags)
	fmt.Fprintf(&out, "%s %s %s", dns.RcodeToString[m.Rcode], strings.Join(flags, " "), m.Question[0].Name)
	if opt := m.IsEdns0(); opt != nil {
		fmt.Fprintf(&out, " edns=%d do=%v", opt.UDPSize(), opt.Do())
		for _, option := range opt.Option {
			if why, ok := option.(*dns.EDNS0_EDE); ok {
				fmt.Fprintf(&out, " why=%d %q", why.InfoCode, why.ExtraText)
			}
		}
	}
	if m.Truncated {
		fmt.Fprintf(&out, " bytes=%d", size)
	}
	for _, section := range []struct {
		name string
		rrs  []dns.RR
	}{{"answer", m.Answer}, {"authority", m.Ns}, {"additional", m.Extra}} {
		for _, line := range lines(section.rrs) {
			fmt.Fprintf(&out, "\n  %s: %s", section.name, line)
		}
	}
	return out.String()
}
