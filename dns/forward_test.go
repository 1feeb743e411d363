package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"holdfast/internal/health"
)

func TestForwardersAreAskedInTurnUntilOneHasAnAnswer(t *testing.T) {
	tests := map[string]reply{
		"SERVFAIL": message(failing(dns.RcodeServerFailure)),
		"REFUSED":  message(failing(dns.RcodeRefused)),
		"silence":  silence,
		"malformed": func(p []byte, _ net.Addr, _ string) [][]byte {
			return [][]byte{append(made(p, answering(9, 1)), 1, 2, 3)[:40]}
		},
		"truncated over TCP too": message(func(m *dns.Msg) {
			m.Truncated = true
		}),
	}
	for name, bad := range tests {
		t.Run(name, func(t *testing.T) {
			first, second := newUpstream(t, bad), newUpstream(t, message(answering(7, 1)))
			f, server := relaying(t, first, second)
			// Who is silent is known to be quick, and waited for no longer than that.
			f.server.table.Load().cuts[root].route.upstreams[0].measured(time.Millisecond, true)
			reply := exchangeWith(t, "udp", server, question("www.example.com", dns.TypeA))
			if diff := cmp.Diff([]string{"198.51.100.7"}, addresses(reply)); diff != "" || reply.Rcode != dns.RcodeSuccess {
				t.Errorf("%v", reply)
			}
			eventually(t, "the first is asked", func() bool { return first.asked.Load() > 0 })
		})
	}
}

func TestUnreachableForwarderCostsNoTime(t *testing.T) {
	closed := newUpstream(t, silence)
	closed.addr = netip.MustParseAddrPort("127.0.0.1:1") // that nobody else is given meanwhile
	best := fastest(func() time.Duration {
		f, server := relaying(t, closed, newUpstream(t, message(answering(7, 1))))
		f.hedging(never)
		started := time.Now()
		exchangeWith(t, "udp", server, question("www.example.com", dns.TypeA))
		took := time.Since(started)
		if n := metric(t, f, "holdfast_dns_forwarded_total", closed.addr.String(), "unreachable"); n != 1 {
			t.Errorf("%v of its tries are counted as unreachable, want one", n)
		}
		return took
	}, time.Second)
	if best > time.Second {
		t.Errorf("took %v: a port that is closed says so", best)
	}
}

func TestForwarderThatDidNotAnswerIsAskedLastForAWhile(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	a, b := netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("192.0.2.2:53")
	r := newRoute(root, []netip.AddrPort{a, b}, time.Second)
	order := func(at time.Time) (list []netip.AddrPort) {
		for _, u := range r.tries(at) {
			list = append(list, u.addr)
		}
		return list
	}
	if got := order(now); !slices.Equal(got, []netip.AddrPort{a, b}) {
		t.Errorf("at first: %v", got)
	}
	r.upstreams[0].downUntil.Store(now.Add(holdDown).UnixNano())
	if got := order(now.Add(holdDown - 1)); !slices.Equal(got, []netip.AddrPort{b, a}) {
		t.Errorf("while held down: %v", got)
	}
	if got := order(now.Add(holdDown)); !slices.Equal(got, []netip.AddrPort{a, b}) {
		t.Errorf("afterwards: %v", got)
	}
}

func TestSingleForwarderIsAskedAgainWhenAPacketIsLost(t *testing.T) {
	t.Parallel() // it waits for silence
	var n atomic.Int64
	u := newUpstream(t, func(p []byte, from net.Addr, transport string) [][]byte {
		if n.Add(1) == 1 {
			return nil
		}
		return [][]byte{made(p, answering(7, 1))}
	})
	_, server := relayingWithin(t, short, u)
	if reply := exchangeWith(t, "udp", server, question("www.example.com", dns.TypeA)); len(reply.Answer) != 1 {
		t.Errorf("%v", reply)
	}
}

func TestForgedRepliesArePassedOver(t *testing.T) {
	u := newUpstream(t, func(p []byte, _ net.Addr, _ string) [][]byte {
		genuine := made(p, answering(7, 1))
		otherID := made(p, answering(66, 1))
		otherID[0]++
		otherName := made(p, func(m *dns.Msg) {
			m.Question[0].Name = "evil.example.com."
			answering(66, 1)(m)
		})
		otherType := made(p, func(m *dns.Msg) {
			answering(66, 1)(m)
			m.Question[0].Qtype = dns.TypeAAAA
		})
		noReply := made(p, answering(66, 1))
		noReply[2] &^= 0x80
		return [][]byte{otherID, otherName, otherType, noReply, []byte("rubbish"), {}, genuine}
	})
	_, server := relaying(t, u)
	reply := exchangeWith(t, "udp", server, question("www.example.com", dns.TypeA))
	if diff := cmp.Diff([]string{"198.51.100.7"}, addresses(reply)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// forging answers over UDP with guesses only, over TCP as answer does.
func forging(answer reply) reply {
	return func(p []byte, from net.Addr, transport string) [][]byte {
		if transport == overTCP {
			return answer(p, from, transport)
		}
		var all [][]byte
		for range maxStray {
			forged := made(p, answering(66, 1))
			forged[0]++
			all = append(all, forged)
		}
		return all
	}
}

func TestFloodOfForgedRepliesIsAnsweredOverTCP(t *testing.T) {
	for name, upstreams := range map[string][]*fakeUpstream{
		"it speaks TCP": {newUpstream(t, forging(message(answering(7, 1))))},
		"the next does": {newUpstream(t, forging(silence)), newUpstream(t, message(answering(7, 1)))},
	} {
		_, server := relaying(t, upstreams...)
		reply := exchangeWith(t, "udp", server, question("www.example.com", dns.TypeA))
		if diff := cmp.Diff([]string{"198.51.100.7"}, addresses(reply)); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", name, diff)
		}
	}
}

func TestEveryQuestionGoesOutFromAnotherPortWithAnotherID(t *testing.T) {
	var mu sync.Mutex
	ports, ids := map[string]bool{}, map[uint16]bool{}
	u := newUpstream(t, func(p []byte, from net.Addr, _ string) [][]byte {
		mu.Lock()
		defer mu.Unlock()
		ports[from.String()] = true
		ids[binary.BigEndian.Uint16(p)] = true
		return [][]byte{made(p, answering(7, 1))}
	})
	_, server := relaying(t, u)
	const n = 64
	for range n {
		m := question("www.example.com", dns.TypeA)
		m.Id = 1
		exchangeWith(t, "udp", server, m)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(ports) < n*3/4 || len(ids) < n*3/4 {
		t.Errorf("%d questions from %d ports with %d IDs", n, len(ports), len(ids))
	}
}

func TestTruncatedReplyIsFetchedOverTCPAndCutForTheClient(t *testing.T) {
	const many = 100
	u := newUpstream(t, func(p []byte, _ net.Addr, transport string) [][]byte {
		if transport == overUDP {
			return [][]byte{made(p, func(m *dns.Msg) { m.Truncated = true })}
		}
		return [][]byte{made(p, answering(1, many))}
	})
	_, server := relaying(t, u)
	reply := exchangeWith(t, "udp", server, question("www.example.com", dns.TypeA))
	if !reply.Truncated || len(reply.Answer) == 0 || len(reply.Answer) == many || reply.IsEdns0() != nil {
		t.Errorf("UDP: TC %v, %d records, EDNS %v", reply.Truncated, len(reply.Answer), reply.IsEdns0())
	}
	if reply.Compress = true; reply.Len() > minUDP {
		t.Errorf("UDP: %d bytes", reply.Len())
	}
	if reply = exchangeWith(t, "tcp", server, question("www.example.com", dns.TypeA)); reply.Truncated || len(reply.Answer) != many {
		t.Errorf("TCP: TC %v, %d records", reply.Truncated, len(reply.Answer))
	}
}

func TestServerOlderThanEDNSIsAskedWithout(t *testing.T) {
	for _, answer := range []reply{
		func(p []byte, _ net.Addr, _ string) [][]byte {
			if binary.BigEndian.Uint16(p[10:]) > 0 { // an OPT: header only, as old servers do
				return [][]byte{append(append(bytes.Clone(p[:2]), 0x80, dns.RcodeFormatError), make([]byte, 8)...)}
			}
			return [][]byte{made(p, answering(7, 1))}
		},
		func(p []byte, _ net.Addr, _ string) [][]byte {
			if binary.BigEndian.Uint16(p[10:]) > 0 {
				return [][]byte{made(p, func(m *dns.Msg) { m.Extra, m.Rcode = nil, dns.RcodeNotImplemented })}
			}
			return [][]byte{made(p, answering(7, 1))}
		},
	} {
		_, server := relaying(t, newUpstream(t, answer))
		m := question("www.example.com", dns.TypeA)
		m.SetEdns0(1232, false)
		if reply := exchangeWith(t, "udp", server, m); len(reply.Answer) != 1 || reply.IsEdns0() == nil {
			t.Errorf("%v", reply)
		}
	}
}

func TestRelayedReplyIsTheClients(t *testing.T) {
	var seen atomic.Pointer[dns.Msg]
	u := newUpstream(t, func(p []byte, _ net.Addr, _ string) [][]byte {
		q := new(dns.Msg)
		_ = q.Unpack(p)
		seen.Store(q)
		return [][]byte{made(p, func(m *dns.Msg) {
			answering(7, 1)(m)
			m.Authoritative, m.AuthenticatedData = true, true
			m.Question[0].Name = strings.ToLower(m.Question[0].Name) // some servers do
		})}
	})
	_, server := relaying(t, u)
	m := question("WwW.eXaMpLe.CoM", dns.TypeA)
	m.CheckingDisabled = true
	m.SetEdns0(4096, true)
	m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"}}
	reply := exchangeWith(t, "udp", server, m)
	if reply.Id != m.Id || reply.Question[0] != m.Question[0] {
		t.Errorf("ID %d, question %v", reply.Id, reply.Question[0])
	}
	if reply.Authoritative || !reply.AuthenticatedData || !reply.CheckingDisabled || !reply.RecursionAvailable {
		t.Errorf("flags %v", reply.MsgHdr)
	}
	if opt := reply.IsEdns0(); opt == nil || opt.UDPSize() != maxUDP || !opt.Do() || len(opt.Option) != 1 || cookieOf(reply)[:16] != "0123456789abcdef" {
		t.Errorf("OPT %v, want a cookie of ours in it", opt)
	}
	q := seen.Load()
	if opt := q.IsEdns0(); q.Id == m.Id || !q.CheckingDisabled || !opt.Do() || len(opt.Option) != 0 {
		t.Errorf("what the forwarder got: %v", q)
	}

	plain := exchangeWith(t, "udp", server, question("www.example.com", dns.TypeA))
	if plain.AuthenticatedData || plain.IsEdns0() != nil {
		t.Errorf("AD %v, OPT %v for a client that asked for neither", plain.AuthenticatedData, plain.IsEdns0())
	}
}

func TestConditionWhileNoForwarderAnswers(t *testing.T) {
	t.Parallel() // it waits for silence
	var mute atomic.Bool
	u := newUpstream(t, func(p []byte, from net.Addr, transport string) [][]byte {
		if mute.Load() {
			return nil
		}
		return [][]byte{made(p, failing(dns.RcodeServerFailure))}
	})
	f, server := relayingWithin(t, short, u)
	if reply := exchangeWith(t, "udp", server, question("www.example.com", dns.TypeA)); reply.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v", reply)
	}
	if got := f.board.Conditions(); len(got) != 0 {
		t.Errorf("SERVFAIL is a reply, and raised %v", got)
	}
	mute.Store(true)
	if reply := exchangeWith(t, "udp", server, question("www.example.com", dns.TypeA)); reply.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v", reply)
	}
	got := f.board.Conditions()
	if len(got) != 1 || got[0].Name != "dns.forwarders" || got[0].Severity != health.Error || !strings.Contains(got[0].Message, u.addr.String()) {
		t.Errorf("conditions %v", got)
	}
	mute.Store(false)
	exchangeWith(t, "udp", server, question("www.example.com", dns.TypeA))
	if got := f.board.Conditions(); len(got) != 0 {
		t.Errorf("it speaks again: %v", got)
	}
	mute.Store(true)
	exchangeWith(t, "udp", server, question("www.example.com", dns.TypeA))
	f.server.SetFile(testCluster(t, ""))
	if got := f.board.Conditions(); len(got) != 0 {
		t.Errorf("a file without forwarders: %v", got)
	}
}

func TestForwarderThatAnswersOthersIsNotSilent(t *testing.T) {
	t.Parallel() // it waits for silence
	u := newUpstream(t, func(p []byte, _ net.Addr, _ string) [][]byte {
		if bytes.Contains(bytes.ToLower(p), []byte("lame")) {
			return nil // those behind it don't answer
		}
		return [][]byte{made(p, answering(7, 1))}
	})
	f, server := relayingWithin(t, short, u)
	lame := make(chan *dns.Msg, 1)
	go func() {
		m, _, err := (&dns.Client{Timeout: patience}).Exchange(question("www.lame.example", dns.TypeA), server.String())
		if err != nil {
			t.Error(err)
		}
		lame <- m
	}()
	for {
		exchangeWith(t, "udp", server, question("www.example.com", dns.TypeA))
		select {
		case m := <-lame:
			if m != nil && m.Rcode != dns.RcodeServerFailure {
				t.Errorf("%v", m)
			}
			if got := f.board.Conditions(); len(got) != 0 {
				t.Errorf("%v", got)
			}
			if n := metric(t, f, "holdfast_dns_forwarded_total", u.addr.String(), "timeout"); n != 2 {
				t.Errorf("%v timeouts, want 2", n)
			}
			return
		default:
		}
	}
}

func TestForwarderWithoutTCPIsNotSilent(t *testing.T) {
	u := newUpstream(t, func(p []byte, _ net.Addr, transport string) [][]byte {
		if transport == overTCP {
			return nil
		}
		return [][]byte{made(p, func(m *dns.Msg) { m.Truncated = true })}
	})
	f, server := relaying(t, u)
	if reply := exchangeWith(t, "udp", server, question("www.example.com", dns.TypeA)); reply.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v", reply)
	}
	if got := f.board.Conditions(); len(got) != 0 {
		t.Errorf("%v", got)
	}
}

func TestFailureOfAReplacedRouteRaisesNothing(t *testing.T) {
	f := newFixture(t, testCluster(t, "dns: {forward: {\".\": [192.0.2.1]}}\n"), newCatalog(t))
	old := f.server.table.Load().cuts[root].route
	f.server.SetFile(testCluster(t, ""))
	f.server.forwarder.fellSilent(old, errors.New("no reply"))
	if got := f.board.Conditions(); len(got) != 0 {
		t.Errorf("nobody would ever clear %v", got)
	}
}

func TestLargeRepliesWaitForTheirTurnAndSmallOnesDont(t *testing.T) {
	t.Parallel() // it waits for silence
	u := newUpstream(t, func(p []byte, _ net.Addr, transport string) [][]byte {
		switch {
		case transport == overTCP:
			return [][]byte{made(p, answering(0, 1000))}
		case bytes.Contains(bytes.ToLower(p), []byte("large")):
			return [][]byte{made(p, func(m *dns.Msg) { m.Truncated = true })}
		}
		return [][]byte{made(p, answering(7, 1))}
	})
	f, server := relayingWithin(t, short, u)
	large := f.server.table.Load().cuts[root].route.large
	if err := large.take(context.Background()); err != nil {
		t.Fatal(err)
	}
	if m := exchangeWith(t, "tcp", server, question("large.example", dns.TypeA)); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("out of turn: %d records", len(m.Answer))
	}
	if m := exchangeWith(t, "tcp", server, question("small.example", dns.TypeA)); len(m.Answer) != 1 {
		t.Errorf("a small one: %v", m)
	}
	large.end()
	eventually(t, "a large one in its turn", func() bool { // a busy machine may need more than one
		return len(exchangeWith(t, "tcp", server, question("large.example", dns.TypeA)).Answer) == 1000
	})
	eventually(t, "the turn ends", func() bool { return len(large) == 0 })
}

func TestNoRoomToForwardIsSERVFAILAtOnce(t *testing.T) {
	f, server := relaying(t, newUpstream(t, message(answering(7, 1))))
	for f.server.forwarder.acquire() {
	}
	if reply := exchangeWith(t, "udp", server, question("www.example.com", dns.TypeA)); reply.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v", reply)
	}
	if reply := exchangeWith(t, "udp", server, question("fbservice1.hpc.example.com", dns.TypeA)); len(reply.Answer) != 1 {
		t.Errorf("own names go on: %v", reply)
	}
	for range maxForwarding {
		f.server.forwarder.release()
	}
	if reply := exchangeWith(t, "udp", server, question("www.example.com", dns.TypeA)); len(reply.Answer) != 1 {
		t.Errorf("room again: %v", reply)
	}
}

func TestSlowForwarderHoldsUpNobodyOnTheSameConnection(t *testing.T) {
	held := make(chan struct{})
	release := sync.OnceFunc(func() { close(held) })
	u := newUpstream(t, func(p []byte, _ net.Addr, _ string) [][]byte {
		<-held
		return [][]byte{made(p, answering(7, 1))}
	})
	defer release()
	_, server := relaying(t, u)
	conn := dialTCP(t, server)
	for _, n := range []string{"www.example.com", "fbservice1.hpc.example.com"} {
		if _, err := conn.Write(framed(packet(t, n, dns.TypeA))); err != nil {
			t.Fatal(err)
		}
	}
	if m := readFrame(t, conn); m.Question[0].Name != "fbservice1.hpc.example.com." {
		t.Errorf("first answer: %v", m)
	}
	release()
	if m := readFrame(t, conn); m.Question[0].Name != "www.example.com." || len(m.Answer) != 1 {
		t.Errorf("second answer: %v", m)
	}
}

func TestEndOfRunDoesNotWaitForForwarders(t *testing.T) {
	if took := fastest(func() time.Duration { return endWhileForwarding(t) }, time.Second); took > time.Second {
		t.Errorf("took %v", took)
	}
}

// endWhileForwarding ends a server while a forwarder is waited for, and tells how
// long that took.
func endWhileForwarding(t *testing.T) time.Duration {
	t.Helper()
	u := newUpstream(t, silence)
	f := newFixtureListening(t, testCluster(t, fmt.Sprintf("dns: {forward: {\".\": [%q]}, forward_timeout: 10s}\n", u.addr)), newCatalog(t), loopbackPort)
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- f.server.Run(ctx, func() { close(ready) }) }()
	<-ready
	conn := dialTCP(t, f.server.Addrs()[0])
	for i := range maxPipelined + 2 { // so many that the connection waits for room
		if _, err := conn.Write(framed(packet(t, fmt.Sprintf("w%d.example.com", i), dns.TypeA))); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the questions are under way", func() bool { return u.asked.Load() >= maxPipelined })
	started := time.Now()
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("Run does not end")
	}
	took := time.Since(started)
	if got := f.board.Conditions(); len(got) != 0 {
		t.Errorf("our own end is no forwarder's fault: %v", got)
	}
	return took
}

func TestResultsOfTriesHaveNames(t *testing.T) {
	for want, err := range map[string]error{
		"answered":    nil,
		"servfail":    &rcodeError{rcode: dns.RcodeServerFailure},
		"rcode":       &rcodeError{rcode: 15},
		"malformed":   fmt.Errorf("%w: x", errMalformed),
		"timeout":     fmt.Errorf("no reply: %w", context.DeadlineExceeded),
		"forged":      fmt.Errorf("64 datagrams: %w", errStray),
		"unreachable": errors.New("connection refused"),
	} {
		if got := resultOf(err); got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
}
