package logrelay

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/kernel/sockopt"
)

// site is an authority that is not our cluster's, with what it issued: files
// NAME.crt and NAME.key beside ca.crt.
type site struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "site"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	s.cert, s.key = s.issue("ca", template)
	return s
}

// name issues for a name.
func (s *site) name(name string) {
	s.t.Helper()
	s.issue(name, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		NotBefore:   time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	})
}

func (s *site) issue(name string, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	s.t.Helper()
	must := func(err error) {
		s.t.Helper()
		if err != nil {
			s.t.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	parent, signer := s.cert, s.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	must(err)
	cert, err := x509.ParseCertificate(der)
	must(err)
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	must(err)
	must(os.WriteFile(s.path(name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(os.WriteFile(s.path(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600))
	return cert, key
}

func (s *site) path(file string) string { return filepath.Join(s.dir, file) }

// trust is what a relay is told to reach a target of the site by its name.
func (s *site) trust(name string) foreign {
	return foreign{ca: s.path("ca.crt"), name: name, cert: s.path("relay.example.com.crt"), key: s.path("relay.example.com.key")}
}

// Ports of a target, on an address of its own: no other process takes them.
const (
	targetRELP    = "20514"
	targetRELPTLS = "20515"
	targetTCP     = "10514"
	targetTLS     = "6514"
)

// siem is a real rsyslogd that takes lines on an address, and wants the
// certificate of relay.example.com where it speaks TLS.
type siem struct {
	t    *testing.T
	addr string
	dir  string
	cmd  *exec.Cmd
}

func newSiem(t *testing.T, s *site, addr string) *siem {
	t.Helper()
	r := &siem{t: t, addr: addr, dir: t.TempDir()}
	config := fmt.Sprintf(`global(workDirectory="%[1]s" net.permitACLWarning="off"
  defaultNetstreamDriverCAFile="%[2]s/ca.crt" defaultNetstreamDriverCertFile="%[2]s/siem.example.com.crt" defaultNetstreamDriverKeyFile="%[2]s/siem.example.com.key")
module(load="imrelp" tls.tlslib="gnutls")
module(load="imptcp")
module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1" streamDriver.authMode="x509/name" permittedPeer=["relay.example.com"])
template(name="line" type="string" string="%%timestamp:::date-rfc3339%% %%hostname%% %%syslogtag%%%%msg%% %%structured-data%%\n")
ruleset(name="in") { action(type="omfile" file="%[1]s/got.log" template="line") }
input(type="imrelp" address="%[3]s" port="%[4]s" ruleset="in")
input(type="imrelp" address="%[3]s" port="%[5]s" ruleset="in" tls="on" tls.authMode="name" tls.permittedPeer=["relay.example.com"]
  tls.caCert="%[2]s/ca.crt" tls.myCert="%[2]s/siem.example.com.crt" tls.myPrivKey="%[2]s/siem.example.com.key")
input(type="imptcp" address="%[3]s" port="%[6]s" ruleset="in")
input(type="imtcp" address="%[3]s" port="%[7]s" ruleset="in")
`, r.dir, s.dir, addr, targetRELP, targetRELPTLS, targetTCP, targetTLS)
	if err := os.WriteFile(filepath.Join(r.dir, "rsyslog.conf"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.end(syscall.SIGKILL) })
	r.start()
	return r
}

// start starts it and waits until its last input is there.
func (r *siem) start() {
	r.t.Helper()
	out, err := os.OpenFile(filepath.Join(r.dir, "stderr"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	defer out.Close()
	r.cmd = exec.Command("/usr/sbin/rsyslogd", "-n", "-f", filepath.Join(r.dir, "rsyslog.conf"), "-i", filepath.Join(r.dir, "pid"))
	r.cmd.Stdout, r.cmd.Stderr = out, out
	if err := r.cmd.Start(); err != nil {
		r.t.Fatalf("rsyslogd, run hack/deps: %v", err)
	}
	eventually(r.t, time.Minute, "rsyslogd listens", func() error {
		for _, port := range []string{targetRELP, targetRELPTLS, targetTCP, targetTLS} {
			conn, err := net.Dial("tcp", net.JoinHostPort(r.addr, port))
			if err != nil {
				b, _ := os.ReadFile(filepath.Join(r.dir, "stderr"))
				return fmt.Errorf("%w; %s", err, b)
			}
			_ = conn.Close()
		}
		return nil
	})
}

func (r *siem) end(signal syscall.Signal) {
	if r.cmd == nil {
		return
	}
	_ = r.cmd.Process.Signal(signal)
	_ = r.cmd.Wait()
	r.cmd = nil
}

func (r *siem) at(port string) []string { return []string{net.JoinHostPort(r.addr, port)} }

// got is what it has of a host, by sequence number.
func (r *siem) got(host string) (numbers []int, text string) {
	b, err := os.ReadFile(filepath.Join(r.dir, "got.log"))
	if err != nil && !os.IsNotExist(err) {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var n int
		if !strings.Contains(line, " "+host+" ") {
			continue
		}
		if m := sequence.FindStringSubmatch(line); m != nil {
			if _, err := fmt.Sscan(m[1], &n); err != nil {
				r.t.Fatal(err)
			}
			numbers, text = append(numbers, n), text+line
		}
	}
	return numbers, text
}

// TestAForeignRsyslogdGetsTheLines: by RELP and TCP, each also over TLS with
// certificates of another authority that both sides verify; each once, in order.
func TestAForeignRsyslogdGetsTheLines(t *testing.T) {
	s := newSite(t)
	s.name("siem.example.com")
	s.name("relay.example.com")
	r := newSiem(t, s, "127.9.4.1")
	for _, target := range []target{
		{name: "relp", via: viaRELP, addresses: r.at(targetRELP)},
		{name: "relp-tls", via: viaRELPTLS, addresses: r.at(targetRELPTLS), trust: s.trust("siem.example.com")},
		{name: "tcp", via: viaTCP, addresses: r.at(targetTCP)},
		{name: "tls", via: viaTLS, addresses: r.at(targetTLS), trust: s.trust("siem.example.com")},
		{name: "tls-rfc5424", via: viaTLS, addresses: r.at(targetTLS), trust: s.trust("siem.example.com"), format: format5424},
	} {
		t.Run(target.name, func(t *testing.T) {
			relay, _, _ := serve(t, func(set *settings) { set.forward = append(set.forward, target) })
			const count = 1000
			if err := numberedLines(relay, "by-"+target.name, count); err != nil {
				t.Fatal(err)
			}
			eventually(t, time.Minute, "all lines are there", func() error {
				got, text := r.got("by-" + target.name)
				if len(got) != count || !slices.IsSorted(got) || len(slices.Compact(got)) != count {
					return fmt.Errorf("%d of %d lines, in order %v; %v", len(got), count, slices.IsSorted(got), relay.Status().Outputs)
				}
				if first, _, _ := strings.Cut(text, "\n"); !strings.Contains(first, "by-"+target.name+" test") {
					t.Errorf("it reads %q", first)
				}
				return nil
			})
		})
	}
}

// TestAForeignTargetThatIsAnotherGetsNothing: one with a certificate of another
// authority, or of another name.
func TestAForeignTargetThatIsAnotherGetsNothing(t *testing.T) {
	s, other := newSite(t), newSite(t)
	for _, at := range []*site{s, other} {
		at.name("siem.example.com")
		at.name("relay.example.com")
	}
	r := newSiem(t, s, "127.9.4.2")
	unknown := s.trust("siem.example.com")
	unknown.ca = other.path("ca.crt")
	nameless := s.trust("siem.example.com")
	nameless.cert, nameless.key = "", ""
	gone := s.trust("siem.example.com")
	gone.ca = s.path("gone.crt")
	for name, test := range map[string]struct {
		trust foreign
		want  string
	}{
		"unknown": {unknown, "certificate signed by unknown authority"}, "name": {s.trust("soc.example.com"), "not soc.example.com"},
		"address": {s.trust(""), "127.9.4.2"}, "file": {gone, "no such file"},
		"nameless": {nameless, "127.9.4.2:6514"}, // it refuses us; TLS 1.3 has it behind the handshake, as an end
	} {
		t.Run(name, func(t *testing.T) {
			relay, _, board := prepare(t)
			relay.settings.forward = []target{{name: "siem", via: viaTLS, addresses: r.at(targetTLS), trust: test.trust}}
			run(t, relay)
			if err := numberedLines(relay, "by-"+name, 10); err != nil {
				t.Fatal(err)
			}
			eventually(t, time.Minute, "a condition says why", func() error {
				for _, c := range board.Conditions() {
					if c.Name == conditionOutput+"siem" && strings.Contains(c.Message, test.want) {
						return nil
					}
				}
				return fmt.Errorf("%v", board.Conditions())
			})
			if got, text := r.got("by-" + name); len(got) > 0 {
				t.Errorf("it got %s", text)
			}
		})
	}
}

// TestTheNextRsyslogdTakesOver: while the first of two targets is down the
// second gets the lines; then the first again. A copy goes to a third, which is
// dead, and holds nobody up.
func TestTheNextRsyslogdTakesOver(t *testing.T) {
	s := newSite(t)
	s.name("siem.example.com")
	s.name("relay.example.com")
	first, second := newSiem(t, s, "127.9.4.3"), newSiem(t, s, "127.9.4.4")
	relay, _, board := prepare(t)
	relay.returnAfter = 100 * time.Millisecond
	relay.settings.forward = []target{
		{name: "dead", via: viaRELP, addresses: []string{"127.9.4.5:1", "127.9.4.5:2"}},
		{name: "siem", via: viaRELPTLS, addresses: slices.Concat(first.at(targetRELPTLS), second.at(targetRELPTLS)), trust: s.trust("siem.example.com")},
	}
	run(t, relay)
	const count = 500
	arrive := func(host string, at *siem) {
		t.Helper()
		if err := numberedLines(relay, host, count); err != nil {
			t.Fatal(err)
		}
		eventually(t, time.Minute, host+"'s lines are there", func() error {
			if got, _ := at.got(host); len(missing(got, count)) > 0 {
				return fmt.Errorf("%d of %d; %v", len(got), count, board.Conditions())
			}
			return nil
		})
	}
	arrive("cn1", first)
	first.end(syscall.SIGTERM)
	arrive("cn2", second)
	raised(t, board, conditionFailover+"siem", true)
	first.start()
	raised(t, board, conditionFailover+"siem", false)
	arrive("cn3", first)
	raised(t, board, conditionOutput+"dead", true)
	raised(t, board, conditionOutput+"siem", false)
	if got, _ := second.got("cn3"); len(got) > 0 {
		t.Errorf("%d lines went to both", len(got))
	}
}

// TestWhatATargetsKernelDidNotTakeIsSentAgain: the receiver's end of a TCP
// connection reads nothing; what is behind what its kernel took waits in ours,
// and goes to the next connection.
func TestWhatATargetsKernelDidNotTakeIsSentAgain(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var end atomic.Uint64
	relay, _, board := prepare(t)
	relay.settings.forward = []target{{name: "slow", via: viaTCP, addresses: []string{l.Addr().String()}}}
	run(t, relay)
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	const count = 30_000
	if err := numberedLines(relay, "cn1", count); err != nil {
		t.Fatal(err)
	}
	cursor := func() uint64 {
		for _, o := range relay.Status().Outputs {
			if o.Name == "slow" {
				return o.Next
			}
		}
		return 0
	}
	// For longer than between two commits: what comes between the look at what the
	// kernel took and the end of the connection would else be committed, and lost.
	var had, since = 0, time.Now()
	eventually(t, time.Minute, "the cursor moves, and the target's kernel takes no more", func() error {
		at := cursor()
		has, err := sockopt.Unread(conn.(*net.TCPConn))
		if at != end.Swap(at) || has != had {
			had, since = has, time.Now()
		}
		if err == nil && (at == 0 || time.Since(since) < 2*commitEvery) {
			err = fmt.Errorf("it stands at %d, with %d bytes there", at, has)
		}
		return err
	})
	var taken string
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Read(func(fd uintptr) bool {
		room := make([]byte, 64<<20)
		n, _, err := syscall.Recvfrom(int(fd), room, syscall.MSG_PEEK)
		taken = string(room[:max(n, 0)])
		return err == nil
	}); err != nil {
		t.Fatal(err)
	}
	_ = conn.(*net.TCPConn).SetLinger(0)
	_ = conn.Close() // with all that was not read
	next, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	_ = next.SetReadDeadline(time.Now().Add(time.Minute))
	room := make([]byte, 1<<20)
	for !strings.Contains(taken, fmt.Sprintf("seq=%d.", count-1)) {
		n, err := next.Read(room)
		if err != nil {
			t.Fatalf("%v; %v", err, board.Conditions())
		}
		taken += string(room[:n])
	}
	var got []int
	for _, m := range sequence.FindAllStringSubmatch(taken, -1) {
		var n int
		if _, err := fmt.Sscan(m[1], &n); err != nil {
			t.Fatal(err)
		}
		got = append(got, n)
	}
	if lost := missing(got, count); len(lost) > 0 {
		t.Errorf("lines %v are lost", lost)
	}
	if len(got) == count {
		t.Log("none of them came twice")
	}
}
