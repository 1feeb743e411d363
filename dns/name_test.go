package dns

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func mustName(t *testing.T, s string) name {
	t.Helper()
	n, err := parseName(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestNamesBelow(t *testing.T) {
	for _, test := range []struct {
		n, origin string
		want      bool
	}{
		{"virtual", "virtual", true},
		{"apt.service.Virtual", "service.VIRTUAL.", true},
		{"xvirtual", "virtual", false},
		{"virtual", "service.virtual", false},
		{"virtual", ".", true},
		{".", "virtual", false},
	} {
		if got := mustName(t, test.n).below(mustName(t, test.origin)); got != test.want {
			t.Errorf("%s below %s: %v", test.n, test.origin, got)
		}
	}
	// A label may hold the bytes of another name's labels.
	if n, _ := root.child("a\x07virtual"); n.below("\x07virtual\x00") {
		t.Errorf("%s is taken for a name below virtual", n)
	}
}

func TestNamesThatDNSCannotHold(t *testing.T) {
	long := strings.Repeat("a", 63)
	for s, ok := range map[string]bool{
		"": false, ".": true, "..": false, "a..b": false, ".a": false, "a.": true,
		long: true, long + "a": false,
		strings.Join([]string{long, long, long, long[:61]}, "."): true,
		strings.Join([]string{long, long, long, long[:62]}, "."): false,
	} {
		if _, err := parseName(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestOddBytesOfANameAreEscaped(t *testing.T) {
	n, _ := root.child("a.b", "c\\d\x00é")
	if got, want := n.String(), `a\.b.c\\d\000\195\169.`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestReverseZonesOfAPrefix(t *testing.T) {
	for prefix, want := range map[string][]string{
		"10.1.0.0/24":      {"0.1.10.in-addr.arpa."},
		"10.1.0.0/16":      {"1.10.in-addr.arpa."},
		"10.0.0.0/8":       {"10.in-addr.arpa."},
		"10.1.4.0/22":      {"4.1.10.in-addr.arpa.", "5.1.10.in-addr.arpa.", "6.1.10.in-addr.arpa.", "7.1.10.in-addr.arpa."},
		"10.254.0.0/15":    {"254.10.in-addr.arpa.", "255.10.in-addr.arpa."},
		"255.255.254.0/23": {"254.255.255.in-addr.arpa.", "255.255.255.in-addr.arpa."},
		"192.0.2.64/26":    {"2.0.192.in-addr.arpa. partial"},
		"192.0.2.7/32":     {"2.0.192.in-addr.arpa. partial"},
		"fd00:10::/32":     {"0.1.0.0.0.0.d.f.ip6.arpa."},
		"fd00:10::/63":     {"0.0.0.0.0.0.0.0.0.1.0.0.0.0.d.f.ip6.arpa.", "1.0.0.0.0.0.0.0.0.1.0.0.0.0.d.f.ip6.arpa."},
		"2001:db8::1/128":  {strings.Repeat("0.", 23) + "8.b.d.0.1.0.0.2.ip6.arpa. partial"},
	} {
		var got []string
		for _, z := range reverseZones(netip.MustParsePrefix(prefix)) {
			s := z.origin.String()
			if z.partial {
				s += " partial"
			}
			got = append(got, s)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", prefix, diff)
		}
	}
}

func TestReverseNamesAreReadBack(t *testing.T) {
	for _, s := range []string{"10.1.0.1", "255.255.255.255", "0.0.0.0", "2001:db8::1", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"} {
		addr := netip.MustParseAddr(s)
		n := reverseName(addr, addr.BitLen())
		p, ok := parseReverse(n)
		if !ok || p.Addr() != addr || p.Bits() != addr.BitLen() {
			t.Errorf("%s is named %s and read as %v, %v", s, n, p, ok)
		}
	}
	for s, want := range map[string]string{
		"1.10.in-addr.arpa":           "10.1.0.0/16",
		"x.1.0.1.10.in-addr.arpa":     "10.1.0.1/32",
		"256.1.10.in-addr.arpa":       "10.1.0.0/16",
		"01.1.10.in-addr.arpa":        "10.1.0.0/16",
		"0-63.2.0.192.in-addr.arpa":   "192.0.2.0/24",
		"9.9.1.0.1.10.in-addr.arpa":   "10.1.0.1/32",
		"in-addr.arpa":                "0.0.0.0/0",
		"10.8.b.d.0.1.0.0.2.ip6.arpa": "2001:db8::/32",
	} {
		if p, ok := parseReverse(mustName(t, s)); !ok || p.String() != want {
			t.Errorf("%s is read as %v, %v, want %s", s, p, ok, want)
		}
	}
	if p, ok := parseReverse(mustName(t, "1.10.in-addr.example")); ok {
		t.Errorf("no reverse name is read as %v", p)
	}
}

func TestNameTableIsChangedInACopy(t *testing.T) {
	t0 := newNameTable(4)
	e := t0.edit()
	var all []name
	for _, l := range strings.Split("abcdefghijklmnopqrstuvwxyz", "") {
		n, _ := root.child(l)
		all = append(all, n)
		e.set(n, &emptyNonTerminal)
	}
	t1 := e.table
	e = t1.edit()
	e.remove(all[0])
	t2 := e.table
	if t0.size() != 0 || t1.size() != 26 || t2.size() != 25 {
		t.Errorf("sizes %d, %d, %d", t0.size(), t1.size(), t2.size())
	}
	if t1.get([]byte(all[0])) == nil || t2.get([]byte(all[0])) != nil {
		t.Error("the name is gone from the old table, or still in the new one")
	}
	if slices.ContainsFunc(all[1:], func(n name) bool { return t2.get([]byte(n)) == nil }) {
		t.Error("another name is gone")
	}
}
