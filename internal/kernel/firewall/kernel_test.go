package firewall

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/kernel/ipvs"
	"holdfast/lab"
	"holdfast/lab/vm"
)

func TestMain(m *testing.M) {
	if lab.Init() {
		return
	}
	m.Run()
}

const virtual = "10.1.0.100:22"

// A director that is a real server too, behind the firewall of a site that
// drops what is not allowed and what conntrack calls invalid, on a kernel with
// IPVS.
func TestDirectorBehindAFirewall(t *testing.T) {
	vm.Inside(t, vm.Options{Modules: []string{"ip_vs_rr", "nf_conntrack", "nft_ct", "xt_CT", "xt_conntrack", "xt_comment", "iptable_raw", "iptable_filter"}}, func(t *testing.T) {
		for _, mode := range []Mode{IPTables, NFTables} {
			t.Run(string(mode), func(t *testing.T) { behindAFirewall(t, mode) })
		}
	})
}

// The site's firewalls. Both let SSH in, and out what is established.
const (
	siteIPTables = `*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT DROP [0:0]
:site - [0:0]
-A INPUT -m conntrack --ctstate INVALID -j DROP
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -j site
-A site -p tcp --dport 22 -m conntrack --ctstate NEW -j ACCEPT
-A OUTPUT -m conntrack --ctstate INVALID -j DROP
-A OUTPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
COMMIT
`
	siteNFT = `flush ruleset
table inet site {
	chain input {
		type filter hook input priority filter; policy drop;
		ct state invalid drop
		ct state established,related accept
		tcp dport 22 accept
	}
	chain output {
		type filter hook output priority filter; policy accept;
		ct state invalid drop
	}
}
`
)

// site loads the site's own rules as its start does, which throws away all
// others: what `shorewall restart` does, by iptables-restore too.
func site(t *testing.T, h *lab.Host, mode Mode) {
	t.Helper()
	path, args := "/etc/site", []string{"nft", "-f"}
	text := siteNFT
	if mode == IPTables {
		text, args = siteIPTables, []string{"iptables-restore"}
	}
	if err := h.Write(path, []byte(text)); err != nil {
		t.Fatal(err)
	}
	if out, err := h.Run(t.Context(), append(args, path)...); err != nil {
		t.Fatal(out, err)
	}
}

// bed is a director and a client.
type bed struct {
	client, director *lab.Host
	firewall         Firewall
	rules            Rules
	mode             Mode
}

func behindAFirewall(t *testing.T, mode Mode) {
	l := lab.NewTest(t, lab.Options{Networks: []string{"adm"}})
	b := &bed{mode: mode, rules: Rules{
		Untracked: []Endpoint{{TCP, netip.MustParseAddrPort(virtual)}},
		VRRP:      []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")},
		Probed:    []Endpoint{{TCP, netip.MustParseAddrPort("10.1.0.1:22")}},
		Directors: []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.1.0.2")},
		Sync:      true,
	}}
	b.client, b.director = addHost(t, l, "client", "10.1.0.9/24"), addHost(t, l, "f1", "10.1.0.1/24", "10.1.0.100/32")
	listen := b.serve(t)
	b.direct(t)
	b.open(t)
	site(t, b.director, mode)
	before := b.listing(t)

	if err := b.login(dropped); err == nil {
		t.Fatal("a log-in works without our rules: this firewall proves nothing")
	}
	if changes := b.set(t, b.rules); len(changes) != 1 {
		t.Errorf("changes %v", changes)
	}
	if err := b.login(passed); err != nil {
		t.Errorf("a log-in does not work with our rules: %v\n%s", err, b.listing(t))
	}
	if changes := b.set(t, b.rules); len(changes) != 0 {
		t.Errorf("the second time: %v", changes)
	}
	site(t, b.director, mode) // our rules are gone
	if err := b.login(dropped); err == nil {
		t.Error("a log-in works after the site's restart: our rules are not what lets it through")
	}
	b.set(t, b.rules)
	if err := b.login(passed); err != nil {
		t.Errorf("rules that were thrown away are not put back: %v", err)
	}
	b.spoil(t)
	if changes := b.set(t, b.rules); len(changes) != 1 {
		t.Errorf("a rule that somebody deleted is repaired by %v", changes)
	}
	if err := listen.Close(); err != nil {
		t.Fatal(err)
	}
	b.testOutgoing(t)
	b.set(t, Rules{})
	if after := b.listing(t); after != before {
		t.Errorf("left\n%s\nbefore it was\n%s", after, before)
	}
}

// testOutgoing connects from the address's port: no server does that.
func (b *bed) testOutgoing(t *testing.T) {
	l, err := b.client.Listen("tcp", "10.1.0.9:99")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = b.director.Do(func() error {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(virtual)), Timeout: 2 * time.Second}
		conn, err := d.Dial("tcp4", "10.1.0.9:99")
		if err == nil {
			conn.Close()
		}
		return err
	})
	if timeout, ok := errors.AsType[net.Error](err); !ok || !timeout.Timeout() {
		t.Errorf("a connection from the address's port to elsewhere: %v; its SYN must be dropped", err)
	}
}

func addHost(t *testing.T, l *lab.Lab, name string, addrs ...string) *lab.Host {
	t.Helper()
	h, err := l.AddHost(name, lab.On("adm", addrs...))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// serve answers with a line.
func (b *bed) serve(t *testing.T) net.Listener {
	t.Helper()
	l, err := b.director.Listen("tcp", "0.0.0.0:22")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed
			}
			_, _ = io.WriteString(conn, "SSH-2.0-there\r\n")
			conn.Close()
		}
	}()
	return l
}

// direct makes the director its own real server.
func (b *bed) direct(t *testing.T) {
	t.Helper()
	err := b.director.Do(func() error {
		h, err := ipvs.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		s := ipvs.Service{Key: ipvs.ByAddr(ipvs.TCP, netip.MustParseAddrPort(virtual)), Scheduler: "rr"}
		err = h.Apply(ipvs.Change{Kind: ipvs.AddService, Service: s})
		server := ipvs.Server{Addr: netip.MustParseAddrPort("10.1.0.1:22"), Method: ipvs.Route, Weight: 1}
		return errors.Join(err, h.Apply(ipvs.Change{Kind: ipvs.AddServer, Service: s, Server: server}))
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (b *bed) open(t *testing.T) {
	t.Helper()
	err := b.director.Do(func() (err error) {
		b.firewall, err = Open(b.mode, func(program string, args []string, input string) error {
			cmd := exec.Command(program, args...)
			cmd.Stdin = strings.NewReader(input)
			out, err := cmd.CombinedOutput()
			if err != nil {
				return errors.Join(err, errors.New(string(out)+input))
			}
			return nil
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (b *bed) set(t *testing.T, r Rules) (changes []string) {
	t.Helper()
	err := b.director.Do(func() (err error) { // iptables is started on this thread
		changes, err = b.firewall.Set(r)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return changes
}

// Time limits of a log-in: of one that the firewall should drop, and of one that
// should get through, also on a busy machine.
const (
	dropped = 2 * time.Second
	passed  = time.Minute
)

// login connects to the address and waits for the banner.
func (b *bed) login(limit time.Duration) error {
	return b.client.Do(func() error {
		conn, err := (&net.Dialer{Timeout: limit}).Dial("tcp4", virtual)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetReadDeadline(time.Now().Add(limit))
		_, err = conn.Read(make([]byte, 1))
		return err
	})
}

// spoil deletes one of our rules.
func (b *bed) spoil(t *testing.T) {
	t.Helper()
	command := "iptables -t raw -D HOLDFAST-OUT 1"
	if b.mode == NFTables {
		command = "nft flush chain inet holdfast output"
	}
	if out, err := b.director.Run(t.Context(), "sh", "-c", command); err != nil {
		t.Fatal(out, err)
	}
}

// listing is all rules, without counters.
func (b *bed) listing(t *testing.T) string {
	t.Helper()
	command := "iptables-save | grep -v '^#' | sed 's/\\[.*\\]//'"
	if b.mode == NFTables {
		command = "nft list ruleset"
	}
	out, err := b.director.Run(t.Context(), "sh", "-c", command)
	if err != nil {
		t.Fatal(out, err)
	}
	return out
}

// What `holdfast lb firewall` prints must be what the tools take.
func TestThePrintedRulesAreReadByNFT(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	h, err := l.AddHost("f1")
	if err != nil {
		t.Fatal(err)
	}
	text, err := Text(NFTables, everything())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("/etc", "holdfast.nft")
	if err := h.Write(path, []byte(text)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // also over itself
		if out, err := h.Run(t.Context(), "nft", "-f", path); err != nil {
			t.Fatalf("%v\n%s\n%s", err, out, text)
		}
	}
	// The rules that netlink makes are listed the same.
	listed, err := h.Run(t.Context(), "nft", "list", "table", "inet", "holdfast")
	if err != nil {
		t.Fatal(err)
	}
	err = h.Do(func() error {
		f, err := Open(NFTables, nil)
		if err != nil {
			return err
		}
		_, err = f.Set(everything())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if made, err := h.Run(t.Context(), "nft", "list", "table", "inet", "holdfast"); err != nil || plain(made) != plain(listed) {
		t.Errorf("netlink makes\n%s\nnft makes\n%s", made, listed)
	}
}

// plain drops the comments that stand for rules' user data, and spaces.
func plain(listing string) string {
	var lines []string
	for line := range strings.Lines(listing) {
		line, _, _ = strings.Cut(line, " comment ")
		lines = append(lines, strings.TrimSpace(line))
	}
	return strings.Join(lines, "\n")
}

func everything() Rules {
	return Rules{
		Untracked: []Endpoint{
			{TCP, netip.MustParseAddrPort(virtual)}, {UDP, netip.MustParseAddrPort("10.1.0.100:53")}, {TCP, netip.MustParseAddrPort("[fd00::100]:22")},
		},
		VRRP:      []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00::/64")},
		Probed:    []Endpoint{{TCP, netip.MustParseAddrPort("10.1.0.1:22")}, {TCP, netip.MustParseAddrPort("[fd00::1]:22")}},
		Directors: []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00::1")},
		Sync:      true,
	}
}

func TestThePrintedRulesAreReadByIPTables(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	h, err := l.AddHost("f1")
	if err != nil {
		t.Fatal(err)
	}
	for _, ipv6 := range []bool{false, true} {
		part := everything().family(ipv6)
		if err := h.Write("/etc/rules", []byte(restoreText(part, ipv6, nil))); err != nil {
			t.Fatal(err)
		}
		if out, err := h.Run(t.Context(), restorer(ipv6), "--noflush", "/etc/rules"); err != nil {
			t.Errorf("%s: %v\n%s", restorer(ipv6), err, out)
		}
	}
}
