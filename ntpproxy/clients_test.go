package ntpproxy

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"holdfast/internal/ntp"
)

// stamped is a request of a client whose clock is ahead.
func stamped(c *core, ahead time.Duration) []byte {
	return request(func(p *ntp.Packet) { p.Transmit = ntp.FromTime(c.now.Add(ahead)) })
}

func TestClientWhoseClockIsOffIsSeenInItsRequests(t *testing.T) {
	c := newCore(t)
	for range 4 {
		c.after(time.Second)
		c.send("10.1.0.9", stamped(c, 40*time.Millisecond))
		c.send("10.1.0.10", stamped(c, -10*time.Microsecond))
		c.send("10.1.0.11", stamped(c, -56*365*24*time.Hour)) // woke up in 1970
		c.send("10.1.0.12", request(func(p *ntp.Packet) { p.Transmit = ntp.Timestamp(rand.Uint64()) }))
		c.send("192.0.2.1", stamped(c, time.Hour)) // a stranger
	}
	c.send("10.1.0.13", stamped(c, time.Minute)) // once: it might be a random number
	want := []struct {
		addr  string
		tells bool
		ahead time.Duration
	}{
		{"10.1.0.11", true, -56 * 365 * 24 * time.Hour}, {"10.1.0.9", true, 40 * time.Millisecond},
		{"10.1.0.10", true, -10 * time.Microsecond}, {"10.1.0.12", false, 0}, {"10.1.0.13", false, 0},
	}
	got := c.clients.list(c.elapsed)
	if len(got) != len(want) {
		t.Fatalf("%d clients, want %d: %+v", len(got), len(want), got)
	}
	for i, w := range want {
		g := got[i]
		if g.addr.String() != w.addr || g.tells() != w.tells || w.tells && (g.ahead-w.ahead).Abs() > time.Microsecond {
			t.Errorf("place %d: %v tells %v, is ahead by %v; want %+v", i, g.addr, g.tells(), g.ahead, w)
		}
	}
	if got := c.clients.list(c.elapsed + forgottenAfter + 1); len(got) != 0 {
		t.Errorf("an hour later %d clients are still spoken of", len(got))
	}
}

func TestClientThatIsSteppedIsSeenAnew(t *testing.T) {
	c := newCore(t)
	for _, ahead := range []time.Duration{time.Hour, time.Hour, 0, time.Millisecond} {
		c.after(64 * time.Second)
		c.send("10.1.0.9", stamped(c, ahead))
	}
	if got := c.clients.list(c.elapsed)[0]; (got.ahead - time.Millisecond).Abs() > time.Microsecond {
		t.Errorf("still %v ahead", got.ahead)
	}
}

func TestClientsThatHideTheirTimeAreNeverTakenForOff(t *testing.T) {
	c := newCore(t)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 100_000 {
		c.after(64 * time.Second)
		c.send("10.1.0.9", request(func(p *ntp.Packet) { p.Transmit = ntp.Timestamp(random.Uint64()) }))
		if i%50 != 49 { // more often than what was told is forgotten
			continue
		}
		if one := c.clients.list(c.elapsed)[0]; one.tells() {
			t.Fatalf("request %d: taken for %v ahead", i, one.ahead)
		}
	}
}

func TestTableOfClientsForgetsTheQuietAndNeverGrows(t *testing.T) {
	var table clients
	const most = clientShards * clientSets * clientWays
	loud := netip.MustParseAddr("10.1.0.9")
	for i := range 3 * most {
		at := time.Duration(i) * time.Microsecond
		table.see(netip.AddrFrom4([4]byte{10, byte(2 + i>>16), byte(i >> 8), byte(i)}), 1, 2, 4, at)
		table.see(loud, 1, 2, 4, at)
	}
	list := table.list(time.Duration(3*most) * time.Microsecond)
	found := false
	for _, c := range list {
		found = found || c.addr == loud && c.requests == 3*most
	}
	if !found || len(list) > most || len(list) < most*9/10 {
		t.Errorf("%d clients of %d, the loud one among them: %v", len(list), most, found)
	}
}
