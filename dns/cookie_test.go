package dns

import (
	"encoding/hex"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// RFC 9018, appendices A.1 and A.4.
func TestServerCookiesAreThoseOfTheRFC(t *testing.T) {
	for _, test := range []struct {
		secret, client, addr string
		at                   int64
		want                 string
	}{
		{"e5e973e5a6b2a43f48e7dc849e37bfcf", "2464c4abcf10c957", "198.51.100.100", 1559731985, "010000005cf79f111f8130c3eee29480"},
		{"dd3bdf9344b678b185a6f5cb60fca715", "22681ab97d52c298", "2001:db8:220:1:59de:d0f4:8769:82b8", 1559741817, "010000005cf7c57926556bd0934c72f8"},
		{"445536bcd2513298075a5d379663c962", "22681ab97d52c298", "2001:db8:220:1:59de:d0f4:8769:82b8", 1559741961, "010000005cf7c609a6bb79d16625507a"},
	} {
		j := cookieJar{secret: [16]byte(unhex(t, test.secret))}
		got := j.bake([clientCookieSize]byte(unhex(t, test.client)), netip.MustParseAddr(test.addr), time.Unix(test.at, 0))
		if hex.EncodeToString(got[:]) != test.want {
			t.Errorf("%s: %x, want %s", test.addr, got, test.want)
		}
	}
}

func TestOnlyOwnCookiesOfTheSameClientAndTimeAreKnown(t *testing.T) {
	j, now := newCookieJar(), time.Unix(1_600_000_000, 0)
	client, addr := [clientCookieSize]byte{1, 2, 3}, netip.MustParseAddr("10.1.0.9")
	cookie := j.bake(client, addr, now)
	change := func(at int) []byte { c := cookie; c[at] ^= 1; return c[:] }
	tests := map[string]struct {
		client [clientCookieSize]byte
		cookie []byte
		addr   netip.Addr
		at     time.Time
		want   verdict
	}{
		"as baked":               {client, cookie[:], addr, now, goodCookie},
		"mapped address":         {client, cookie[:], netip.MustParseAddr("::ffff:10.1.0.9"), now, goodCookie},
		"after half an hour":     {client, cookie[:], addr, now.Add(renewCookie + time.Second), agingCookie},
		"after an hour":          {client, cookie[:], addr, now.Add(maxCookieAge + time.Second), unknownCookie},
		"the clock stepped back": {client, cookie[:], addr, now.Add(-time.Hour), unknownCookie},
		"another address":        {client, cookie[:], netip.MustParseAddr("10.1.0.8"), now, unknownCookie},
		"another client":         {[clientCookieSize]byte{9}, cookie[:], addr, now, unknownCookie},
		"another version":        {client, change(0), addr, now, unknownCookie},
		"another time":           {client, change(7), addr, now, unknownCookie},
		"another hash":           {client, change(15), addr, now, unknownCookie},
		"shorter":                {client, cookie[:8], addr, now, unknownCookie},
		"none":                   {client, nil, addr, now, unknownCookie},
	}
	for name, test := range tests {
		if got := j.judge(test.client, test.cookie, test.addr, test.at); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
	other := newCookieJar()
	if got := other.judge(client, cookie[:], addr, now); got != unknownCookie {
		t.Errorf("another server's: %v", got)
	}
}

// withCookie adds a COOKIE option.
func withCookie(cookie string) func(*dns.Msg) {
	return func(m *dns.Msg) {
		if m.IsEdns0() == nil {
			m.SetEdns0(1232, false)
		}
		opt := m.IsEdns0()
		opt.Option = append(opt.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: cookie})
	}
}

func cookieOf(m *dns.Msg) string {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if c, ok := o.(*dns.EDNS0_COOKIE); ok {
				return c.Cookie
			}
		}
	}
	return ""
}

func TestCookiesAreExchanged(t *testing.T) {
	c := newCatalog(t)
	c.services4()
	f := newFixture(t, testCluster(t, ""), c)
	const client = "0123456789abcdef"
	first := cookieOf(f.ask("apt.service.virtual", dns.TypeA, withCookie(client)))
	if len(first) != 2*cookieSize || first[:16] != client {
		t.Fatalf("a client's first cookie was answered with %q", first)
	}
	if again := cookieOf(f.ask("apt.service.virtual", dns.TypeA, withCookie(first))); again != first {
		t.Errorf("a good cookie was answered with %q, want it back", again)
	}
	forged := client + "01000000000000000000000000000000"
	m := f.ask("apt.service.virtual", dns.TypeA, withCookie(forged))
	if got := cookieOf(m); len(m.Answer) != 4 || got == forged || len(got) != 2*cookieSize {
		t.Errorf("a forged cookie: %v", m)
	}
	// Of two the first counts (RFC 7873 §5.2).
	two := func(m *dns.Msg) { withCookie(client)(m); withCookie("00")(m) }
	if got := cookieOf(f.ask("nosuch.service.virtual", dns.TypeA, two)); got == "" || got[:16] != client {
		t.Errorf("of two cookies: %q", got)
	}
	for _, size := range []int{0, 1, 7, 9, 15, 41} {
		cookie := hex.EncodeToString(make([]byte, size))
		if m := f.ask("apt.service.virtual", dns.TypeA, withCookie(cookie)); m.Rcode != dns.RcodeFormatError {
			t.Errorf("a cookie of %d bytes: %v", size, m)
		}
	}
	if m := f.ask("apt.service.virtual", dns.TypeA, func(m *dns.Msg) { m.SetEdns0(1232, false) }); cookieOf(m) != "" {
		t.Errorf("a cookie that nobody asked for: %v", m)
	}
}

func TestCookieAloneIsAQuestion(t *testing.T) {
	f := newFixture(t, testCluster(t, ""), newCatalog(t))
	alone := func(m *dns.Msg) { m.Question = nil }
	m := f.ask("x", dns.TypeA, alone, withCookie("0123456789abcdef"))
	if m.Rcode != dns.RcodeSuccess || len(cookieOf(m)) != 2*cookieSize || len(m.Question) != 0 {
		t.Errorf("%v", m)
	}
	if m := f.ask("x", dns.TypeA, alone); m.Rcode != dns.RcodeFormatError {
		t.Errorf("without a cookie: %v", m)
	}
}

func TestWhoRunsAnInstanceIsGivenItFirst(t *testing.T) {
	c := newCatalog(t)
	c.services4()
	f := newFixture(t, testCluster(t, "dns: {services: {apt: {own_first: true}}}\n"), c)
	first := func(client, name string) map[string]int {
		w, seen := f.server.newWorker(overUDP), map[string]int{}
		for range 60 {
			wire, _ := w.handle(nil, packet(t, name, dns.TypeA), netip.MustParseAddr(client))
			seen[f.unpack(wire).Answer[0].(*dns.A).A.String()]++
		}
		return seen
	}
	for client, want := range map[string]string{
		"10.1.0.2": "10.1.0.2", "10.2.1.3": "10.1.0.3", "fd00:10::4": "10.1.0.4", // by any network
		"127.0.0.1": "10.1.0.1", "::1": "10.1.0.1", "::ffff:10.1.0.2": "10.1.0.2",
	} {
		if diff := cmp.Diff(map[string]int{want: 60}, first(client, "apt.service.virtual")); diff != "" {
			t.Errorf("for %s (-want +got):\n%s", client, diff)
		}
	}
	if seen := first("10.1.0.31", "apt.service.virtual"); len(seen) != 4 {
		t.Errorf("who runs none is sent to %v", seen)
	}
	if seen := first("10.1.0.2", "web-boot.service.virtual"); len(seen) != 2 {
		t.Errorf("where it was not asked for: %v", seen)
	}
}

func TestAnswersSayThatNoLeaderConfirmsThem(t *testing.T) {
	c := newCatalog(t)
	c.services4()
	f := newFixture(t, testCluster(t, ""), c)
	now := time.Now()
	f.server.now = func() time.Time { return now }
	f.store.Touch(now)
	why := func(name string) string {
		f.server.judgeAge()
		m := f.ask(name, dns.TypeA, func(m *dns.Msg) { m.SetEdns0(1232, false) })
		for _, o := range m.IsEdns0().Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok {
				return e.ExtraText
			}
		}
		return ""
	}
	if got := why("apt.service.virtual"); got != "" {
		t.Errorf("confirmed a moment ago: %q", got)
	}
	now = now.Add(35 * time.Second)
	if got := why("apt.service.virtual"); got != "no leader has confirmed this for 35s" {
		t.Errorf("35 s later: %q", got)
	}
	if got := why("fbservice1.hpc.example.com"); got != "" {
		t.Errorf("of the cluster file: %q", got)
	}
}
