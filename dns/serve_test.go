package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"holdfast/internal/kernel/command"
	"holdfast/internal/state"
)

var loopbackPort = netip.MustParseAddrPort("127.0.0.1:0")

// serve runs the fixture's server until the test ends, and fails the test
// unless Run returns nil then.
func serve(t testing.TB, f *fixture) netip.AddrPort {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- f.server.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("Run ended: %v", err)
	case <-time.After(patience):
		t.Fatal("it does not get ready")
	}
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
	})
	return f.server.Addrs()[0]
}

// serving returns a server on loopback with the four service nodes.
func serving(t testing.TB) (*fixture, netip.AddrPort) {
	t.Helper()
	c := newCatalog(t)
	c.services4()
	f := newFixtureListening(t, testCluster(t, ""), c, loopbackPort)
	f.standStill()
	return f, serve(t, f)
}

func exchangeWith(t testing.TB, network string, server netip.AddrPort, m *dns.Msg) *dns.Msg {
	t.Helper()
	client := dns.Client{Net: network, Timeout: patience}
	reply, _, err := client.Exchange(m, server.String())
	if err != nil {
		t.Fatalf("%s %s: %v", network, m.Question[0].Name, err)
	}
	return reply
}

func question(name string, kind uint16) *dns.Msg {
	return new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
}

// eventually polls until the condition holds.
func eventually(t testing.TB, what string, holds func() bool) time.Duration {
	t.Helper()
	started := time.Now()
	for !holds() {
		if time.Since(started) > patience {
			t.Fatalf("%s: not within %v", what, patience)
		}
		runtime.Gosched()
	}
	return time.Since(started)
}

func TestUDPAndTCPGiveTheSameAnswer(t *testing.T) {
	_, server := serving(t)
	for _, network := range []string{"udp", "tcp"} {
		reply := exchangeWith(t, network, server, question("apt.service.virtual", dns.TypeA))
		want := []string{"10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4"}
		if diff := cmp.Diff(want, addresses(reply)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", network, diff)
		}
	}
}

// atOnce makes changes in turn, again and again, and fails the test unless each
// is answered within 300 ms in the best round: the machine may stand still in
// others.
func atOnce(t *testing.T, server netip.AddrPort, changes []change) {
	t.Helper()
	best := make([]time.Duration, len(changes))
	for round := range 5 {
		for i, c := range changes {
			c.make()
			took := eventually(t, c.what, func() bool {
				return slices.Equal(c.want, addresses(exchangeWith(t, "udp", server, question("apt.service.virtual", dns.TypeA))))
			})
			if round == 0 || took < best[i] {
				best[i] = took
			}
		}
	}
	for i, c := range changes {
		t.Logf("%s: %v", c.what, best[i])
		if best[i] > 300*time.Millisecond {
			t.Errorf("%s: not within 300 ms, but after %v", c.what, best[i])
		}
	}
}

// change is one of the state, and the addresses of apt after it.
type change struct {
	what string
	make func()
	want []string
}

// A failed check must be out of every answer within 300 ms of when it was
// seen; what passes here is the part of it that is DNS's.
func TestFailedCheckIsOutOfTheAnswersAtOnce(t *testing.T) {
	f, server := serving(t)
	atOnce(t, server, []change{
		{"the check fails", func() { f.check("fbservice2", "service:apt", state.Critical) }, []string{"10.1.0.1", "10.1.0.3", "10.1.0.4"}},
		{"it passes", func() { f.check("fbservice2", "service:apt", state.Passing) }, []string{"10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4"}},
	})
}

func TestFailedNodeIsDroppedWithoutALeader(t *testing.T) {
	f, server := serving(t) // nothing is applied from here on: there is no leader
	atOnce(t, server, []change{
		{"fbservice2 is out", func() {
			f.gossip("fbservice1=alive", "fbservice2=failed", "fbservice3=alive", "fbservice4=alive")
		}, []string{"10.1.0.1", "10.1.0.3", "10.1.0.4"}},
		{"the catalog's answer stands when all have failed", func() {
			f.gossip("fbservice1=failed", "fbservice2=failed", "fbservice3=failed", "fbservice4=failed")
		}, []string{"10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4"}},
	})
}

func TestNewClusterFileAnswersAtOnce(t *testing.T) {
	f, server := serving(t)
	if reply := exchangeWith(t, "udp", server, question("new.hpc.example.com", dns.TypeA)); reply.Rcode != dns.RcodeNameError {
		t.Fatalf("before: %v", reply)
	}
	text, err := os.ReadFile("testdata/cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	f.server.SetFile(parseFile(t, strings.Replace(string(text), "nodes:\n", "nodes:\n  new: {role: compute, addresses: {administration: 10.1.0.99}}\n", 1)))
	reply := exchangeWith(t, "udp", server, question("new.hpc.example.com", dns.TypeA))
	if diff := cmp.Diff([]string{"10.1.0.99"}, addresses(reply)); diff != "" {
		t.Errorf("after (-want +got):\n%s", diff)
	}
	if reply := exchangeWith(t, "udp", server, question("apt.service.virtual", dns.TypeA)); len(reply.Answer) != 4 {
		t.Errorf("the catalog was lost: %v", reply)
	}
}

func TestReplyComesFromTheAddressThatWasAsked(t *testing.T) {
	for _, test := range []struct{ listen, ask string }{
		{"0.0.0.0:0", "127.0.0.53"}, // all addresses: IP_PKTINFO
		{"127.0.0.53:0", "127.0.0.53"},
		{"[::]:0", "::1"},
		{"[::1]:0", "::1"},
	} {
		listen, ask := netip.MustParseAddrPort(test.listen), netip.MustParseAddr(test.ask)
		if ask.Is6() && !hasIPv6() {
			t.Logf("listening on %s: this machine has no IPv6", test.listen)
			continue
		}
		server := serve(t, newFixtureListening(t, testCluster(t, ""), newCatalog(t), listen))
		asked := netip.AddrPortFrom(ask, server.Port())
		for _, network := range []string{"udp", "tcp"} {
			// miekg's client connects its socket: a reply from elsewhere is lost.
			if reply := exchangeWith(t, network, asked, question("fbservice1.hpc.example.com", dns.TypeA)); len(reply.Answer) != 1 {
				t.Errorf("listening on %s: %v", listen, reply)
			}
		}
	}
}

func hasIPv6() bool {
	conn, err := net.ListenPacket("udp6", "[::1]:0")
	if err == nil {
		_ = conn.Close()
	}
	return err == nil
}

func TestAddressThatComesLaterIsServed(t *testing.T) {
	c := newCatalog(t)
	f := newFixtureListening(t, testCluster(t, ""), c, netip.MustParseAddrPort("203.0.113.101:0"), loopbackPort)
	serve(t, f)
	if got := len(f.server.Addrs()); got != 2 {
		t.Errorf("serving %d addresses, want 2", got)
	}
}

func TestPortInUseIsAnError(t *testing.T) {
	_, taken := serving(t)
	f := newFixtureListening(t, testCluster(t, ""), newCatalog(t), loopbackPort, taken)
	err := f.server.Run(context.Background(), func() { t.Error("ready") })
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), taken.String()) || !strings.Contains(err.Error(), "dns.listen") {
		t.Errorf("Run = %v, want one that names %v and dns.listen, and is EADDRINUSE", err, taken)
	}
}

func TestRunCanBeRepeatedAndLeavesNothing(t *testing.T) {
	f := newFixtureListening(t, testCluster(t, ""), newCatalog(t), loopbackPort)
	before := runtime.NumGoroutine()
	for range 3 {
		ctx, cancel := context.WithCancel(context.Background())
		var idle net.Conn
		err := f.server.Run(ctx, func() {
			var err error
			if idle, err = net.Dial("tcp", f.server.Addrs()[0].String()); err != nil {
				t.Error(err)
			}
			cancel()
		})
		if err != nil {
			t.Fatal(err)
		}
		_ = idle.Close()
	}
	eventually(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= before })
	if addrs := f.server.Addrs(); len(addrs) != 0 {
		t.Errorf("still listening on %v", addrs)
	}
}

// dialTCP opens a connection for raw messages.
func dialTCP(t testing.TB, server netip.AddrPort) net.Conn {
	t.Helper()
	return dialFrom(t, server, "127.0.0.1")
}

func dialFrom(t testing.TB, server netip.AddrPort, from string) net.Conn {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := dialer.Dial("tcp", server.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return conn
}

func framed(message []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...)
}

func readFrame(t testing.TB, r io.Reader) *dns.Msg {
	t.Helper()
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		t.Fatal(err)
	}
	wire := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(r, wire); err != nil {
		t.Fatal(err)
	}
	m := new(dns.Msg)
	if err := m.Unpack(wire); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestPipelinedQueriesOfOneConnection(t *testing.T) {
	_, server := serving(t)
	conn := dialTCP(t, server)
	var all []byte
	for i := range 100 {
		all = append(all, framed(packet(t, "apt.service.virtual", dns.TypeA, func(m *dns.Msg) { m.Id = uint16(i) }))...)
	}
	for len(all) > 0 { // in pieces that cut messages apart
		n := min(97, len(all))
		if _, err := conn.Write(all[:n]); err != nil {
			t.Fatal(err)
		}
		all = all[n:]
	}
	for i := range 100 {
		if m := readFrame(t, conn); m.Id != uint16(i) || len(m.Answer) != 4 {
			t.Fatalf("answer %d: %v", i, m)
		}
	}
}

func TestConnectionThatSpeaksNoDNSIsClosed(t *testing.T) {
	_, server := serving(t)
	for name, bytes := range map[string][]byte{
		"no header": framed([]byte("short")),
		"empty":     {0, 0},
		"response":  framed(append([]byte{0, 1, 0x80, 0}, make([]byte, 8)...)),
	} {
		conn := dialTCP(t, server)
		if _, err := conn.Write(bytes); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%s: read %d bytes, error %v, want EOF", name, n, err)
		}
	}
}

// refused tells whether the server closes a connection from an address at once.
func refused(t *testing.T, server netip.AddrPort, from string) bool {
	conn := dialFrom(t, server, from)
	_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	_, err := conn.Read(make([]byte, 1))
	return err == io.EOF || errors.Is(err, syscall.ECONNRESET)
}

// served tells whether a connection from an address is answered on.
func served(t *testing.T, server netip.AddrPort, from string) bool {
	conn := dialFrom(t, server, from)
	if _, err := conn.Write(framed(packet(t, "apt.service.virtual", dns.TypeA))); err != nil {
		return false
	}
	_, err := io.ReadFull(conn, make([]byte, 2))
	return err == nil
}

func TestTooManyConnectionsAreClosedAndCounted(t *testing.T) {
	f, server := serving(t)
	for i := range maxConnections {
		dialFrom(t, server, fmt.Sprintf("127.0.1.%d", 1+i/maxPerClient))
	}
	eventually(t, "the last connection is refused", func() bool { return refused(t, server, "127.0.2.1") })
	if n := metric(t, f, "holdfast_dns_dropped_total", "connection"); n < 1 {
		t.Errorf("dropped connections: %v", n)
	}
	if reply := exchangeWith(t, "udp", server, question("apt.service.virtual", dns.TypeA)); len(reply.Answer) != 4 {
		t.Errorf("UDP goes on: %v", reply)
	}
}

func TestOneClientCannotTakeAllConnections(t *testing.T) {
	_, server := serving(t)
	var last net.Conn
	for range maxPerClient {
		last = dialFrom(t, server, "127.0.1.1")
	}
	eventually(t, "its next connection is refused", func() bool { return refused(t, server, "127.0.1.1") })
	if !served(t, server, "127.0.1.2") {
		t.Error("another client is refused too")
	}
	_ = last.Close()
	eventually(t, "it may have another once one is closed", func() bool { return served(t, server, "127.0.1.1") })
}

// dig runs Debian's dig; where it is not installed the test is skipped, but
// not in CI.
func dig(t *testing.T, server netip.AddrPort, args ...string) string {
	t.Helper()
	const path = "/usr/bin/dig"
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("dig is missing (package bind9-dnsutils)")
		}
		t.Skip("dig is missing (package bind9-dnsutils)")
	}
	runner, err := command.New(path)
	if err != nil {
		t.Fatal(err)
	}
	// It prints a line for each try that nobody answers.
	argv := append([]string{path, "@" + server.Addr().String(), "-p", strconv.Itoa(int(server.Port())), "+time=60"}, args...)
	result, err := runner.Run(context.Background(), command.Command{Argv: argv, Timeout: 2 * patience, Env: []string{"HOME=/nonexistent", "LC_ALL=C"}})
	if err != nil {
		t.Fatalf("dig %v: %v: %s", args, err, result.Stdout)
	}
	return string(result.Stdout)
}

// volatile is what differs between two runs of dig.
var volatile = regexp.MustCompile(`(?m), id: \d+$|^;; (Query time|WHEN|SERVER|MSG SIZE).*$|^; <<>> DiG .*$|^;; (global options|Got answer).*$`)

var bakedCookie = regexp.MustCompile(`(?m)^; COOKIE: [0-9a-f]{48} \(good\)$`)

// TestDig holds what a person sees to testdata/dig/*.golden: the first line is
// dig's arguments.
func TestDig(t *testing.T) {
	_, server := serving(t)
	paths, _ := filepath.Glob("testdata/dig/*.golden")
	if len(paths) == 0 {
		t.Fatal("no golden files")
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".golden"), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			args, _, _ := strings.Cut(string(text), "\n")
			got := args + "\n" + tidy(dig(t, server, strings.Fields(args)...))
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(strings.Split(string(text), "\n"), strings.Split(got, "\n")); diff != "" {
				t.Errorf("dig %s (-want +got):\n%s", args, diff)
			}
		})
	}
}

// tidy takes out of dig's output what changes, and sorts what is shuffled:
// lines of one section.
func tidy(out string) string {
	out = volatile.ReplaceAllString(out, "")
	out = bakedCookie.ReplaceAllString(out, "; COOKIE: ... (good)") // of which dig is the judge
	var sections []string
	for _, section := range strings.Split(out, "\n\n") {
		var kept, records []string
		for _, line := range strings.Split(section, "\n") {
			switch {
			case line == "":
			case line[0] == ';':
				kept = append(kept, line)
			default:
				records = append(records, strings.Join(strings.Fields(line), " "))
			}
		}
		slices.Sort(records)
		if kept = append(kept, records...); len(kept) > 0 {
			sections = append(sections, strings.Join(kept, "\n"))
		}
	}
	return strings.Join(sections, "\n\n") + "\n"
}
