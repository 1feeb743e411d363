package check

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"holdfast/internal/state"
)

// nameServer answers on a port of loopback, UDP and TCP, until the test ends.
func nameServer(t *testing.T, answer dns.HandlerFunc) string {
	t.Helper()
	conn, listener := bothTransports(t)
	for _, server := range []*dns.Server{{PacketConn: conn, Handler: answer}, {Listener: listener, Handler: answer}} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		go func() { _ = server.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = server.Shutdown() })
	}
	return conn.LocalAddr().String()
}

// bothTransports listens on one port for UDP and TCP: one that is free for UDP
// may be taken for TCP, and then another is tried.
func bothTransports(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 {
		conn, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listener, err := net.Listen("tcp", conn.LocalAddr().String())
		if err == nil {
			return conn, listener
		}
		_ = conn.Close()
	}
	t.Fatal("no port is free for both UDP and TCP")
	return nil, nil
}

func TestDNSProbeCountsOnlyAnswersThatHelp(t *testing.T) {
	server := nameServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		reply := new(dns.Msg)
		switch q.Question[0].Name {
		case "here.":
			reply.SetReply(q)
		case "absent.":
			reply.SetRcode(q, dns.RcodeNameError)
		case "broken.":
			reply.SetRcode(q, dns.RcodeServerFailure)
		case "refused.":
			reply.SetRcode(q, dns.RcodeRefused)
		case "long.":
			reply.SetReply(q)
			if w.LocalAddr().Network() == "udp" {
				reply.Truncated = true
			} else {
				reply.Rcode = dns.RcodeNotImplemented
			}
		default:
			return // silence
		}
		_ = w.WriteMsg(reply)
	})
	for query, want := range map[string]struct {
		status state.Status
		output string
	}{
		"here SOA":     {state.Passing, "NOERROR"},
		"absent":       {state.Passing, "NXDOMAIN"},
		"broken A":     {state.Critical, "SERVFAIL"},
		"refused aaaa": {state.Critical, "REFUSED"},
		"long":         {state.Critical, "NOTIMP"}, // so it was asked over TCP
		"silent":       {state.Critical, "no answer within 100ms"},
	} {
		limit := time.Minute // a busy machine must not make silence of an answer
		if query == "silent" {
			limit = 100 * time.Millisecond
		}
		probe, err := NewProbe(Definition{ID: "x", DNS: server, Query: query, Timeout: limit}, nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		got := probe.Probe(ctx)
		cancel()
		if got.Status != want.status || !strings.Contains(got.Output, want.output) {
			t.Errorf("%s: %s %q, want %s %q", query, got.Status, got.Output, want.status, want.output)
		}
	}
}

func TestDNSCheckSaysWhatIsWrongWithIt(t *testing.T) {
	for want, d := range map[string]Definition{
		"":                     {DNS: "10.1.0.1:53", Query: "virtual SOA"},
		"is no address":        {DNS: "ns.example.com:53"},
		"is no type of record": {DNS: "[fd00::1]:53", Query: "a.b BOGUS"},
		"is no question":       {DNS: "10.1.0.1:53", Query: "a b c"},
		"belongs to a dns":     {TCP: "10.1.0.1:53", Query: "a"},
		"exactly one of":       {TCP: "10.1.0.1:53", DNS: "10.1.0.1:53"},
	} {
		d.ID = "x"
		err := d.Validate()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", d, err, want)
		}
	}
	if d := (Definition{ID: "x", DNS: "10.1.0.1:53"}).WithDefaults(); d.Query != ". NS" {
		t.Errorf("asks %q unless said", d.Query)
	}
}
