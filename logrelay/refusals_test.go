package logrelay

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"holdfast/cluster"
	"holdfast/internal/health"
	"holdfast/internal/peer"
)

// TestARefusedNodeIsNamedWhereItIsRefused: the condition says which node it is by
// its address, and why: another authority, no server, another's name, another
// version; or that it is the node that does not believe this one. It ends when the
// node is let in. It fails where a refusal is one of many connections that ended
// with an error, and where the other's alert counts as a refusal by us.
func TestARefusedNodeIsNamedWhereItIsRefused(t *testing.T) {
	n := nodes(t, "fb1")[0]
	n.start(t)
	defer n.end()
	from := netip.MustParseAddr("127.0.7.9")
	table := *n.table.Load()
	table.nodes, table.logs = map[netip.Addr]string{from: "fb9"}, map[string]bool{"fb9": true}
	n.table.Store(&table)

	dir := t.TempDir()
	ours := filepath.Join(n.dir, "..", "ca")
	theirs := filepath.Join(dir, "ca")
	if err := peer.Init(theirs, "foobar"); err != nil {
		t.Fatal(err)
	}
	trust := func(ca string, role peer.Role) *tls.Config {
		pki := filepath.Join(dir, fmt.Sprint(role, filepath.Base(filepath.Dir(ca))))
		if err := peer.Issue(ca, pki, peer.Request{Identity: peer.Identity{Name: "fb9", Role: role}}); err != nil {
			t.Fatal(err)
		}
		loaded, err := peer.Load(pki)
		if err != nil {
			t.Fatal(err)
		}
		return loaded.Client("fb1")
	}
	stranger := trust(theirs, peer.RoleServer)
	stranger.InsecureSkipVerify, stranger.VerifyConnection, stranger.VerifyPeerCertificate = true, nil, nil // else it is the one to refuse
	distrustful, server := trust(theirs, peer.RoleServer), trust(ours, peer.RoleServer)
	hello := greeting{journal: [16]byte{9}, node: "fb9"}.append(nil)
	for _, test := range []struct {
		name   string
		config *tls.Config
		says   []byte
		want   []string // in the condition; nil: there is none
	}{
		{"authority", stranger, hello, []string{"fb9: ", "server fb9 of cluster foobar", "unknown authority"}},
		{"role", trust(ours, peer.RoleAgent), hello, []string{"fb9: ", "agent fb9 of cluster foobar", "for servers only"}},
		{"let in", server, hello, nil},
		{"name", server, greeting{node: "fb8"}.append(nil), []string{"fb9: ", "says that it is fb8"}},
		{"let in again", server, hello, nil},
		{"distrust", distrustful, hello, []string{"fb9 does not believe this node's certificate"}},
		{"let in once more", server, hello, nil},
		{"version", server, bytes.Replace(hello, []byte("HOLDREP1"), []byte("HOLDREP2"), 1), []string{"fb9: ", `"HOLDREP2"`, `"HOLDREP1"`}},
	} {
		dialer := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}, Config: test.config}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		conn, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(n.addr, testReplica).String())
		cancel()
		if err != nil && test.config != distrustful {
			t.Fatalf("%s: %v", test.name, err)
		}
		var answer [8]byte
		if err == nil {
			_ = conn.SetDeadline(time.Now().Add(time.Minute))
			_, err = conn.Write(test.says)
			if _, failed := io.ReadFull(conn, answer[:]); failed != nil {
				err = errors.Join(err, failed)
			}
			_ = conn.Close()
		}
		if (err == nil) != (test.want == nil) {
			t.Errorf("%s: %v, answer %d", test.name, err, binary.LittleEndian.Uint64(answer[:]))
		}
		eventually(t, time.Minute, test.name, func() error {
			said := ""
			for _, c := range n.board.Conditions() {
				if c.Name == conditionRefused {
					said = c.Message
				}
			}
			if test.want == nil && said != "" {
				return fmt.Errorf("it still says: %s", said)
			}
			for _, want := range test.want {
				if !strings.Contains(said, want) {
					return fmt.Errorf("no %q in %q", want, said)
				}
			}
			return nil
		})
		n.refusals.mu.Lock() // the next is news: no minute has passed
		for _, one := range n.refusals.nodes {
			one.told = time.Time{}
		}
		n.refusals.mu.Unlock()
	}
}

// TestARefusedNodeIsLoggedOnceAMinute, in virtual time, though it comes once a
// second; the condition goes five minutes after it stopped. A stranger is logged
// as often, and has no condition: anybody can come.
func TestARefusedNodeIsLoggedOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		board := health.NewBoard(time.Now, nil, nil)
		r := refusals{board: board, log: slog.New(slog.NewTextHandler(&out, nil))}
		known, stranger := netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("192.0.2.7")
		for range 150 {
			r.note("", stranger, errors.New("no TLS"), time.Now())
			r.note("fb2", known, errors.New("expired at\nsome time"), time.Now())
			r.expire(time.Now())
			<-time.After(time.Second)
		}
		if got := strings.Count(out.String(), "node=fb2 address=10.1.0.2 "); got != 3 || !strings.Contains(out.String(), "times=60") {
			t.Errorf("in two and a half minutes it is logged %d times: %s", got, out.String())
		}
		if got := strings.Count(out.String(), "address=192.0.2.7 "); got != 3 {
			t.Errorf("strangers are logged %d times", got)
		}
		c := board.Conditions()
		if len(c) != 1 || c[0].Name != conditionRefused || !strings.Contains(c[0].Message, "refused: fb2: expired at; some time") || strings.Contains(c[0].Message, "no TLS") {
			t.Errorf("conditions: %v", c)
		}
		<-time.After(refusalsFor - 2*time.Second)
		if r.expire(time.Now()); len(board.Conditions()) != 1 {
			t.Error("the condition went too early")
		}
		<-time.After(2 * time.Second)
		if r.expire(time.Now()); len(board.Conditions()) != 0 || len(r.nodes)+len(r.strangers) != 0 {
			t.Errorf("it stays: %v", board.Conditions())
		}
	})
}

// TestOnlyARefusalIsOne: a handshake that ended because the network did, or because
// this relay stops, is nobody's fault, and what shows no certificate may be any
// program. It fails where all is a refusal that is not known to be something else.
func TestOnlyARefusalIsOne(t *testing.T) {
	dir := t.TempDir()
	trusts := map[string]*peer.Trust{}
	for _, name := range []string{"ours", "theirs"} {
		ca, pki := filepath.Join(dir, name, "ca"), filepath.Join(dir, name, "pki")
		if err := errors.Join(peer.Init(ca, "foobar"), peer.Issue(ca, pki, peer.Request{Identity: peer.Identity{Name: "fb2", Role: peer.RoleServer}})); err != nil {
			t.Fatal(err)
		}
		loaded, err := peer.Load(pki)
		if err != nil {
			t.Fatal(err)
		}
		trusts[name] = loaded
	}
	anyServer := &tls.Config{InsecureSkipVerify: true}
	believing := trusts["theirs"].Client("")
	believing.VerifyConnection = nil
	stopped, stop := context.WithCancel(t.Context())
	stop()
	talks := func(config *tls.Config) func(net.Conn) {
		return func(conn net.Conn) {
			secure := tls.Client(conn, config)
			if secure.Handshake() == nil {
				_, _ = secure.Read(make([]byte, 1)) // by TLS 1.3 the server's answer comes behind
			}
		}
	}
	const refused, probed, theirs, other = "refused", "probed", "theirs", "other"
	for _, test := range []struct {
		name string
		ctx  context.Context
		err  error          // of the handshake
		by   func(net.Conn) // or what the client does
		want string
	}{
		{"another authority", t.Context(), nil, talks(believing), refused},
		{"another role", t.Context(), &peer.RefusedError{Reason: "this port is for servers only"}, nil, refused},
		{"it does not believe us", t.Context(), nil, talks(trusts["theirs"].Client("")), theirs},
		{"its version of TLS", t.Context(), &net.OpError{Op: "remote error", Err: errors.New("tls: protocol version not supported")}, nil, theirs},
		{"no certificate", t.Context(), nil, talks(anyServer), probed},
		{"an old TLS", t.Context(), nil, talks(&tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}), probed},
		{"no TLS", t.Context(), nil, func(conn net.Conn) {
			_, _ = conn.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
			_, _ = io.Copy(io.Discard, conn)
		}, probed},
		{"it breaks off", t.Context(), nil, func(net.Conn) {}, other},
		{"its own trouble", t.Context(), &net.OpError{Op: "remote error", Err: errors.New("tls: internal error")}, nil, other},
		{"a pipe that broke", t.Context(), &net.OpError{Op: "write", Err: os.NewSyscallError("write", syscall.EPIPE)}, nil, other},
		{"no way there", t.Context(), &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.EHOSTUNREACH)}, nil, other},
		{"too slow", t.Context(), context.DeadlineExceeded, nil, other},
		{"our own stop", stopped, nil, talks(believing), other},
	} {
		err := test.err
		if test.by != nil {
			here, there := net.Pipe()
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				test.by(there)
				_ = there.Close()
			}()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			err = tls.Server(here, trusts["ours"].Server(peer.RoleServer)).HandshakeContext(ctx)
			cancel()
			_ = here.Close()
			<-ended
		}
		if err == nil {
			t.Errorf("%s: the handshake went well", test.name)
			continue
		}
		got, said := other, refusedHandshake(test.ctx, err)
		switch {
		case errors.As(said, new(refusedError)):
			got = refused
		case errors.As(said, new(probedError)):
			got = probed
		case errors.As(said, new(theirsError)):
			got = theirs
		}
		if got != test.want {
			t.Errorf("%s: it counts as %s, want %s: %v", test.name, got, test.want, err)
		}
	}
}

// TestNoProbeChoosesWhatTheConditionSays: something on a node that runs logs opens
// the port without TLS, before and after the relay there is refused. The reason is
// that of the relay, which is news at once. It fails where the first refusal of a
// minute stands, or the last one.
func TestNoProbeChoosesWhatTheConditionSays(t *testing.T) {
	board := health.NewBoard(time.Now, nil, nil)
	r := refusals{board: board, log: slog.New(slog.DiscardHandler)}
	addr, now := netip.MustParseAddr("10.1.0.2"), time.Unix(0, 0)
	probe, ours, real := probedError{errors.New("no TLS")}, theirsError{errors.New("does not believe us")}, refusedError{errors.New("expired")}
	step := func(err error, after time.Duration, want string) {
		t.Helper()
		now = now.Add(after)
		r.expire(now)
		if err != nil {
			r.note("fb2", addr, err, now)
		}
		said := ""
		if c := board.Conditions(); len(c) > 0 {
			said = c[0].Message
		}
		if !strings.HasSuffix(said, want) || (want == "") != (said == "") {
			t.Errorf("after %v, %v: %q, want %q", now.Sub(time.Unix(0, 0)), err, said, want)
		}
	}
	step(probe, 0, ": fb2: no TLS")
	step(ours, time.Second, ": fb2 does not believe us")
	step(real, time.Second, ": fb2: expired")
	for range 4 {
		step(probe, time.Minute, ": fb2: expired")
		step(ours, time.Second, ": fb2: expired")
	}
	step(real, time.Second, ": fb2: expired")
	step(probe, refusalsFor-time.Second, ": fb2: expired")
	step(probe, time.Second, ": fb2: no TLS") // the relay has not come for five minutes
	step(nil, refusalsFor, "")
}

// TestWhatRefusalsSayIsBounded: who is refused chooses a certificate's name, and
// there may be thousands. A condition that says all is logged whole at each change.
func TestWhatRefusalsSayIsBounded(t *testing.T) {
	var out bytes.Buffer
	board := health.NewBoard(time.Now, nil, nil)
	r := refusals{board: board, log: slog.New(slog.NewTextHandler(&out, nil))}
	for i := range 200 {
		r.note(fmt.Sprintf("fb%03d", i), netip.MustParseAddr("10.1.0.2"), refusedError{errors.New(strings.Repeat("\u00e4", 8000))}, time.Now())
	}
	c := board.Conditions()
	if len(c) != 1 || len(c[0].Message) > 4000 || !utf8.ValidString(c[0].Message) {
		t.Fatalf("%d conditions; the first has %d bytes", len(c), len(c[0].Message))
	}
	for _, want := range []string{"fb000: \u00e4", "fb009: \u00e4", "...; and 190 more"} {
		if !strings.Contains(c[0].Message, want) {
			t.Errorf("no %q in it", want)
		}
	}
	if strings.Contains(c[0].Message, "fb010") || out.Len() > 200*1000 {
		t.Errorf("it names the eleventh, or the log has %d bytes", out.Len())
	}
}

// TestOnlyWhoRunsLogsRaisesTheCondition: any program on any machine of the cluster
// can open the port.
func TestOnlyWhoRunsLogsRaisesTheCondition(t *testing.T) {
	file, err := cluster.Parse("cluster.yaml", []byte(`schema: 1
cluster: foobar
domain: foobar.internal
networks:
  main: {prefix: 10.1.0.0/16}
roles:
  service: {voters: 1, run: [logs]}
  compute: {run: []}
nodes:
  fb1: {role: service, addresses: {main: 10.1.0.1}}
  cn1: {role: compute, addresses: {main: 10.1.0.2}}
`), nil)
	if err != nil {
		t.Fatal(err)
	}
	board := health.NewBoard(time.Now, nil, nil)
	s := &Server{board: board, refusals: refusals{board: board, log: slog.New(slog.DiscardHandler)}}
	s.table.Store(newTable(file, "fb1"))
	for addr, want := range map[string]int{"10.1.0.2:7": 0, "10.1.9.9:7": 0, "10.1.0.1:7": 1} {
		if !s.refused(comesFrom{addr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))}, refusedError{errors.New("expired")}) {
			t.Errorf("%s: it counts as another error", addr)
		}
		if got := board.Conditions(); len(got) != want {
			t.Errorf("%s is refused, and it says %v", addr, got)
		}
		s.refusals.expire(time.Now().Add(refusalsFor))
	}
}

// comesFrom is a connection from an address.
type comesFrom struct {
	net.Conn
	addr net.Addr
}

func (c comesFrom) RemoteAddr() net.Addr { return c.addr }

// TestStrangersAreToldApart: each has a line of log a minute, up to sixteen, and the
// rest of a scan have one together; one that is let in takes no other's with it. It
// fails where the first stranger hides all others, and where each address of a scan
// has a line and a place in memory.
func TestStrangersAreToldApart(t *testing.T) {
	var out bytes.Buffer
	r := refusals{board: health.NewBoard(time.Now, nil, nil), log: slog.New(slog.NewTextHandler(&out, nil))}
	addr, now := netip.MustParseAddr("192.0.2.1"), time.Unix(0, 0)
	note := func(addr netip.Addr) (lines int) {
		out.Reset()
		r.note("", addr, probedError{errors.New("no TLS")}, now)
		return strings.Count(out.String(), "address="+addr.String()+" ")
	}
	told := 0
	for at, n := addr, 0; n < 1000; at, n = at.Next(), n+1 {
		told += note(at)
	}
	if told != mostStrangers+1 || len(r.strangers) != mostStrangers+1 {
		t.Errorf("of 1000 strangers %d are logged, and %d kept; want %d", told, len(r.strangers), mostStrangers+1)
	}
	r.accepted("", addr.Next()) // of no name in the cluster file, but with a certificate
	if note(addr) != 0 {
		t.Error("the first stranger is logged again, since another one was let in")
	}
	if note(addr.Next()) != 1 {
		t.Error("who is refused after it was let in is no news")
	}
	now = now.Add(refusalsAgain)
	if note(addr) != 1 || note(addr.Next().Next()) != 1 {
		t.Error("after a minute two strangers are not logged once more")
	}
	if r.expire(now.Add(refusalsFor)); len(r.strangers) != 0 {
		t.Errorf("%d strangers stay", len(r.strangers))
	}
}

// TestANodeThatSaysNothingDoesNotHoldTheStop, in virtual time: it has connected, and
// its greeting does not come. It fails where only the twenty seconds of its silence
// end the wait.
func TestANodeThatSaysNothingDoesNotHoldTheStop(t *testing.T) {
	ca, pki := filepath.Join(t.TempDir(), "ca"), filepath.Join(t.TempDir(), "pki")
	if err := errors.Join(peer.Init(ca, "foobar"), peer.Issue(ca, pki, peer.Request{Identity: peer.Identity{Name: "fb2", Role: peer.RoleServer}})); err != nil {
		t.Fatal(err)
	}
	trust, err := peer.Load(pki)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		defer there.Close()
		client, server := tls.Client(there, trust.Client("fb2")), tls.Server(here, trust.Server(peer.RoleServer))
		shaken := make(chan error, 1)
		go func() { shaken <- client.Handshake() }()
		if err := errors.Join(server.Handshake(), <-shaken); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error, 1)
		began := time.Now()
		go func() { served <- (&Server{}).serveReplica(ctx, server) }()
		<-time.After(time.Second)
		stop()
		if err := <-served; err != nil {
			t.Errorf("a planned end is an error: %v", err)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("the stop took %v", took)
		}
	})
}
