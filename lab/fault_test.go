package lab

import (
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// mailbox is a UDP socket in a host, at port 9.
type mailbox struct {
	host *Host
	conn net.PacketConn
}

func newMailbox(t *testing.T, h *Host) mailbox {
	t.Helper()
	conn, err := h.ListenPacket("udp4", h.Addr("adm").String()+":9")
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return mailbox{h, conn}
}

// gets says whether a packet from the other arrives. One that should has time
// for a machine that stands still; one that should not has as much as a packet
// takes.
func (m mailbox) gets(t *testing.T, from mailbox, should bool) bool {
	t.Helper()
	within := short
	if should {
		within = patience
	}
	return m.count(t, from, 1, within) == 1
}

// count sends n packets from the other and returns how many arrive, none of them
// longer after the one before than within, unless this process stood still
// meanwhile.
func (m mailbox) count(t *testing.T, from mailbox, n int, within time.Duration) int {
	t.Helper()
	for range n {
		_, err := from.conn.WriteTo([]byte(from.host.name), m.conn.LocalAddr())
		must(t, err)
	}
	buf := make([]byte, 64)
	arrived := 0
	for arrived < n {
		began := time.Now()
		must(t, m.conn.SetReadDeadline(began.Add(within)))
		length, _, err := m.conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if time.Since(began) > within+short {
				continue // nobody has looked whether one was there
			}
			break
		}
		must(t, err)
		if string(buf[:length]) == from.host.name {
			arrived++
		}
	}
	return arrived
}

// mailboxes are two that reach each other.
func mailboxes(t *testing.T, a, b *Host) (alpha, beta mailbox) {
	t.Helper()
	alpha, beta = newMailbox(t, a), newMailbox(t, b)
	if !alpha.gets(t, beta, true) || !beta.gets(t, alpha, true) {
		t.Fatal("before any fault not every packet arrives")
	}
	return alpha, beta
}

func TestDropOfOneDirectionLeavesTheOther(t *testing.T) {
	_, a, b := pair(t, Options{})
	alpha, beta := mailboxes(t, a, b)
	fault, err := a.Drop(Traffic{Direction: Sent, Peers: []*Host{b}})
	must(t, err)
	if beta.gets(t, alpha, false) {
		t.Error("what alpha sends arrives")
	}
	if !alpha.gets(t, beta, true) {
		t.Error("what beta sends doesn't arrive, though only the other way is cut")
	}
	if n, err := fault.Dropped(); err != nil || n == 0 {
		t.Errorf("Dropped = %d, %v; want the packet that was lost", n, err)
	}
	must(t, fault.Heal())
	must(t, fault.Heal())
	if !beta.gets(t, alpha, true) {
		t.Error("after Heal what alpha sends doesn't arrive")
	}
}

func TestDropMatchesWhatItSays(t *testing.T) {
	_, a, b := pair(t, Options{})
	alpha, beta := mailboxes(t, a, b)
	_, err := b.Drop(Traffic{Match: "udp dport 10"})
	must(t, err)
	if !beta.gets(t, alpha, true) {
		t.Error("a drop of UDP port 10 takes packets to port 9")
	}
	_, err = b.Drop(Traffic{Direction: Received, Match: "udp dport 9"})
	must(t, err)
	if beta.gets(t, alpha, false) || !alpha.gets(t, beta, true) {
		t.Error("a drop of what beta receives on UDP port 9 must take that and nothing else")
	}
	if _, err := a.Drop(Traffic{Match: "no such thing"}); err == nil {
		t.Error("an expression that nftables doesn't know is accepted")
	}
}

func TestDropOfAPercentageIsAbout(t *testing.T) {
	_, a, b := pair(t, Options{})
	alpha, beta := mailboxes(t, a, b)
	_, err := a.Drop(Traffic{Direction: Sent, Percent: 50, Match: "udp dport 9"})
	must(t, err)
	// Of 200 fair coins, fewer than 60 or more than 140 heads come once in 10⁸.
	if n := beta.count(t, alpha, 200, 10*short); n < 60 || n > 140 {
		t.Errorf("%d of 200 packets arrive through a loss of 50%%", n)
	}
}

func TestPartitionAndHeal(t *testing.T) {
	l, a, b := pair(t, Options{})
	c, err := l.AddHost("gamma", On("adm", "10.99.0.3/24"))
	must(t, err)
	alpha, beta, gamma := newMailbox(t, a), newMailbox(t, b), newMailbox(t, c)
	all := []mailbox{alpha, beta, gamma}
	check := func(when string, cut ...string) {
		t.Helper()
		for _, from := range all {
			for _, to := range all {
				way := from.host.name + ">" + to.host.name
				should := !slices.Contains(cut, way)
				if from != to && to.gets(t, from, should) != should {
					t.Errorf("%s: %s is open: %t, want %t", when, way, !should, should)
				}
			}
		}
	}
	check("before")
	_, err = l.Partition([]*Host{a}, []*Host{b, c})
	must(t, err)
	check("during", "alpha>beta", "beta>alpha", "alpha>gamma", "gamma>alpha")
	must(t, l.Heal())
	check("after")
	if _, err := l.Partition([]*Host{a}, []*Host{b, a}); err == nil {
		t.Error("a host on both sides is accepted")
	}
}

func TestUnpluggedHostHasNoCarrierAndOnlyThere(t *testing.T) {
	l := NewTest(t, Options{Networks: []string{"adm", "wan"}})
	a, err := l.AddHost("alpha", On("adm", "10.99.0.1/24"), On("wan", "10.98.0.1/24"))
	must(t, err)
	b, err := l.AddHost("beta", On("adm", "10.99.0.2/24"), On("wan", "10.98.0.2/24"))
	must(t, err)
	echo(t, b, "0.0.0.0:7")
	carrier := func(nic string) string {
		t.Helper()
		return run(t, a, "cat", "/sys/class/net/"+nic+"/carrier")
	}
	must(t, a.Unplug("adm"))
	if got := carrier("eth0") + carrier("eth1"); got != "01" {
		t.Errorf("the carriers of adm and wan are %s, want 01", got)
	}
	if reaches(t, a, "10.99.0.2:7", short) || !reaches(t, a, "10.98.0.2:7", patience) {
		t.Error("alpha must reach beta on wan, and not on adm")
	}
	must(t, a.PowerOff())
	must(t, a.PowerOn())
	if got := carrier("eth0") + carrier("eth1"); got != "01" {
		t.Errorf("after a power cycle the carriers are %s: a pulled cable stays pulled", got)
	}
	must(t, a.Plug("adm"))
	eventually(t, "alpha reaches beta on adm", func() bool { return reaches(t, a, "10.99.0.2:7", time.Second) })
	if err := a.Unplug("moon"); err == nil || !strings.Contains(err.Error(), `"moon"`) {
		t.Errorf("a network it isn't on: %v", err)
	}
}

func TestDelayDelaysOrSaysThatTheKernelCannot(t *testing.T) {
	_, a, b := pair(t, Options{})
	alpha, beta := mailboxes(t, a, b)
	const delay = 50 * time.Millisecond
	err := b.Delay("adm", delay)
	if errors.Is(err, ErrNoNetem) {
		must(t, b.Delay("adm", 0))
		if !beta.gets(t, alpha, true) {
			t.Error("a delay that the kernel refused loses packets")
		}
		return
	}
	must(t, err)
	start := time.Now()
	if !beta.gets(t, alpha, true) || time.Since(start) < delay {
		t.Errorf("a packet took %s, want at least %s", time.Since(start), delay)
	}
	must(t, b.Delay("adm", 0))
}

func TestLabRefusesMistakes(t *testing.T) {
	l := NewTest(t, Options{Networks: []string{"adm"}})
	for name, nic := range map[string]NIC{
		"no network":  On("wan", "10.99.0.1/24"),
		"bad name":    {Network: "adm", Name: "much-too-long-for-linux"},
		"-x":          On("adm"),
		"a.b":         On("adm"),
		"x/../../etc": On("adm"),
	} {
		if h, err := l.AddHost(name, nic); err == nil {
			t.Errorf("AddHost(%q, %v) gives %s", name, nic, h)
		}
	}
	if err := l.AddNetwork("adm"); err == nil {
		t.Error("a second network of the same name is accepted")
	}
	h, err := l.AddHost("alpha")
	must(t, err)
	if _, err := l.AddHost("alpha"); err == nil {
		t.Error("a second host of the same name is accepted")
	}
	if _, err := h.DialContext(t.Context(), "tcp", "localhost:1"); err == nil || !strings.Contains(err.Error(), "not an IP") {
		t.Errorf("a name to dial: %v", err)
	}
	must(t, l.Close())
	must(t, l.Close())
	if _, err := l.AddHost("beta"); !errors.Is(err, errClosed) {
		t.Errorf("a host for a closed lab: %v", err)
	}
}
