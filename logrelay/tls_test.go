package logrelay

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/cluster"
	"holdfast/internal/peer"
)

// certificates makes a cluster's authority and issues for a server, an agent
// and, by another authority, a stranger. It returns their directories.
func certificates(t *testing.T) (server, agent, stranger string) {
	t.Helper()
	dir := t.TempDir()
	issue := func(authority, name string, role peer.Role) string {
		out := filepath.Join(dir, name)
		if err := peer.Issue(filepath.Join(dir, authority), out, peer.Request{Identity: peer.Identity{Name: name, Role: role}}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, authority := range []string{"ca", "other"} {
		if err := peer.Init(filepath.Join(dir, authority), "foobar"); err != nil {
			t.Fatal(err)
		}
	}
	return issue("ca", "fb1", peer.RoleServer), issue("ca", "cn01", peer.RoleAgent), issue("other", "stranger", peer.RoleAgent)
}

// serveTLS runs a relay whose inputs are TLS alone.
func serveTLS(t *testing.T, certificate string) (s *Server, dir string) {
	t.Helper()
	trust, err := peer.Load(certificate)
	if err != nil {
		t.Fatal(err)
	}
	free := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	dir = t.TempDir()
	s, err = New(Config{
		Node: "fb1", DataDir: dir, Dir: filepath.Join(dir, "hosts"),
		Listen: map[string][]netip.AddrPort{"relp": {}, "relp-tls": free, "tls": free},
	}, Deps{
		File: cluster.Single("fb1", netip.MustParseAddr("127.0.0.1")), Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
		ServerTLS: trust.Server(peer.RoleServer, peer.RoleAgent), ClientTLS: trust.Client(""),
	})
	if err != nil {
		t.Fatal(err)
	}
	settled(s)
	s.tap = tapInto(dir)
	run(t, s)
	return s, dir
}

// relpTLS is rsyslog's action for RELP over TLS with a client's certificate.
func relpTLS(addr, certificate string) string {
	host, port, _ := net.SplitHostPort(addr)
	return fmt.Sprintf(`module(load="omrelp" tls.tlslib="gnutls")
action(type="omrelp" target="%s" port="%s" template="RSYSLOG_ForwardFormat" tls="on" tls.authMode="name"
  tls.permittedPeer=["server.holdfast.internal"] tls.caCert="%[3]s/ca.crt" tls.myCert="%[3]s/node.crt" tls.myPrivKey="%[3]s/node.key"
  action.resumeRetryCount="-1" action.resumeInterval="1" queue.type="LinkedList")`, host, port, certificate)
}

// syslogTLS is rsyslog's output by RFC 5425 with a client's certificate.
func syslogTLS(addr, certificate string) (global, output string) {
	host, port, _ := net.SplitHostPort(addr)
	return fmt.Sprintf(`defaultNetstreamDriverCAFile="%[1]s/ca.crt" defaultNetstreamDriverCertFile="%[1]s/node.crt" defaultNetstreamDriverKeyFile="%[1]s/node.key"`, certificate),
		fmt.Sprintf(`action(type="omfwd" target="%s" port="%s" protocol="tcp" template="RSYSLOG_SyslogProtocol23Format" TCP_Framing="octet-counted"
  streamDriver="gtls" streamDriverMode="1" streamDriverAuthMode="x509/name" streamDriverPermittedPeers="server.holdfast.internal"
  action.resumeRetryCount="-1" action.resumeInterval="1" queue.type="LinkedList")`, host, port)
}

// TestRsyslogSendsOverTLS: RELP over TLS, and RFC 5425, from Debian's rsyslog
// with GnuTLS. It shows its node's certificate and wants a server's of ours.
func TestRsyslogSendsOverTLS(t *testing.T) {
	server, agent, stranger := certificates(t)
	s, dir := serveTLS(t, server)
	const count = 3000
	arrives := func(t *testing.T, r *rsyslog) {
		r.log(0, count)
		eventually(t, time.Minute, "all lines arrive", func() error {
			p := process{t: t, dir: dir}
			got := p.numbers("cn01")
			lost, err := unsent(came(t, dir), got, count)
			if err != nil {
				err = fmt.Errorf("%d of %d: %w; rsyslogd: %q", len(got), count, err, r.complaints())
			}
			if len(lost) > 0 {
				t.Logf("rsyslogd never sent lines %v", lost)
			}
			return err
		})
		if err := os.Truncate(filepath.Join(dir, "hosts", "cn01.log"), 0); err != nil {
			t.Fatal(err)
		}
		names, _ := filepath.Glob(filepath.Join(dir, "tap*"))
		for _, name := range names {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Run("RELP", func(t *testing.T) {
		arrives(t, startRsyslog(t, "", relpTLS(s.Addrs("relp-tls")[0].String(), agent)))
	})
	t.Run("RFC 5425", func(t *testing.T) {
		global, output := syslogTLS(s.Addrs("tls")[0].String(), agent)
		r := startRsyslog(t, global, output)
		r.log(0, count)
		p := process{t: t, dir: dir}
		eventually(t, time.Minute, "the last line arrives", func() error {
			if got := p.numbers("cn01"); len(got) == 0 || got[len(got)-1] != count-1 {
				return fmt.Errorf("%d lines; rsyslogd: %q", len(got), r.complaints())
			}
			return nil
		})
		// Nothing is acknowledged here, and on a busy machine rsyslogd passes a
		// few lines over, all of which are in its own file.
		eventually(t, time.Minute, "all lines that rsyslogd sent arrive", func() error {
			lost, err := unsent(came(t, dir), p.numbers("cn01"), count)
			if err == nil && len(lost) > 0 {
				t.Logf("rsyslogd never sent lines %v", lost)
			}
			return err
		})
		if got := p.numbers("cn01"); !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(got) {
			t.Errorf("%d lines, in order %v", len(got), slices.IsSorted(got))
		}
	})
	refused := func(t *testing.T, r *rsyslog) {
		before := s.Status().End
		r.log(0, 10)
		eventually(t, time.Minute, "rsyslogd is refused", func() error {
			if len(r.complaints()) == 0 {
				return fmt.Errorf("it says nothing of an error")
			}
			return nil
		})
		if end := s.Status().End; end != before {
			t.Errorf("%d lines of a stranger are stored", end-before)
		}
	}
	t.Run("RELP of a stranger", func(t *testing.T) {
		refused(t, startRsyslog(t, "", relpTLS(s.Addrs("relp-tls")[0].String(), stranger)))
	})
	t.Run("RFC 5425 of a stranger", func(t *testing.T) {
		global, output := syslogTLS(s.Addrs("tls")[0].String(), stranger)
		refused(t, startRsyslog(t, global, output))
	})
}

// TestWithoutACertificateNothingIsTaken: a client that trusts anybody, and has
// no certificate of its own, is refused by both inputs.
func TestWithoutACertificateNothingIsTaken(t *testing.T) {
	server, _, _ := certificates(t)
	s, _ := serveTLS(t, server)
	for input, text := range map[string]string{"tls": "11 <13>a: line", "relp-tls": "1 open 14 relp_version=0\n2 syslog 4 line\n"} {
		conn, err := tls.Dial("tcp", s.Addrs(input)[0].String(), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // the client is the attacker
		if err == nil {
			_, _ = conn.Write([]byte(text)) // TLS 1.3: the refusal comes behind the client's handshake
			_, err = conn.Read(make([]byte, 1))
			_ = conn.Close()
		}
		if err == nil {
			t.Errorf("%s answers a client without a certificate", input)
		}
	}
	if end := s.Status().End; end != 0 {
		t.Errorf("%d lines are stored", end)
	}
}

// complaints are the errors that rsyslogd reports of its outputs.
func (r *rsyslog) complaints() (list []string) {
	for line := range strings.Lines(r.said()) {
		if strings.Contains(line, "rsyslogd") && !strings.Contains(line, "[origin") {
			list = append(list, line)
		}
	}
	return list
}

// TestNoLineOfATLSStreamIsLost: whatever pieces counted lines come in.
func TestNoLineOfATLSStreamIsLost(t *testing.T) {
	server, agent, _ := certificates(t)
	s, dir := serveTLS(t, server)
	trust, err := peer.Load(agent)
	if err != nil {
		t.Fatal(err)
	}
	const rounds, count = 10, 3000
	for round := range rounds {
		var b []byte
		for n := range count {
			line := fmt.Sprintf("<13>1 2026-11-25T12:00:00+00:00 cn01 test - - - seq=%d", round*count+n)
			b = fmt.Appendf(b, "%d %s", len(line), line)
		}
		conn, err := tls.Dial("tcp", s.Addrs("tls")[0].String(), trust.Client(""))
		if err != nil {
			t.Fatal(err)
		}
		for size := 1 + 997*round; len(b) > 0; size = min(size, len(b)) {
			if _, err := conn.Write(b[:min(size, len(b))]); err != nil {
				t.Fatal(err)
			}
			b = b[min(size, len(b)):]
			if round == 0 {
				size = 61
			}
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
	p := process{t: t, dir: dir}
	eventually(t, time.Minute, "all lines arrive", func() error {
		got := p.numbers("cn01")
		if len(got) != rounds*count {
			return fmt.Errorf("%d of %d, missing %v", len(got), rounds*count, missing(got, rounds*count))
		}
		return nil
	})
}
