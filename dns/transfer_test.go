package dns

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"holdfast/internal/state"
)

const tsigSecret = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="

// startPrimary serves zones that may be transferred.
func startPrimary(t testing.TB, transfer string, records ...string) (*fixture, netip.AddrPort) {
	t.Helper()
	f := newPrimary(t, transfer, records...)
	return f, serve(t, f)
}

// newPrimary makes a server with `transfer:` and records; SECRET is a file.
func newPrimary(t testing.TB, transfer string, records ...string) *fixture {
	t.Helper()
	secret := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(secret, []byte(tsigSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	transfer = strings.ReplaceAll(transfer, "SECRET", secret)
	quoted := make([]string, 0, len(records))
	for _, r := range records {
		quoted = append(quoted, fmt.Sprintf("%q", r))
	}
	file := testCluster(t, fmt.Sprintf("dns: {transfer: {%s}, records: [%s]}\n", transfer, strings.Join(quoted, ", ")))
	c := newCatalog(t)
	c.services4()
	return newFixtureListening(t, file, c, loopbackPort)
}

// fetchZone transfers a zone as a secondary does.
func fetchZone(server netip.AddrPort, m *dns.Msg, secrets map[string]string) (records []dns.RR, err error) {
	conn, err := (&net.Dialer{Timeout: patience}).Dial("tcp", server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	tr := &dns.Transfer{Conn: &dns.Conn{Conn: conn}, TsigSecret: secrets, ReadTimeout: patience}
	envelopes, err := tr.In(m, server.String())
	if err != nil {
		return nil, err
	}
	for e := range envelopes {
		if e.Error != nil {
			return nil, e.Error
		}
		records = append(records, e.RR...)
	}
	return records, nil
}

func axfr(zone string) *dns.Msg { return new(dns.Msg).SetAxfr(dns.Fqdn(zone)) }

func TestSecondaryGetsTheWholeZone(t *testing.T) {
	f, server := startPrimary(t, "allow: [127.0.0.1]", "cn[0001-3000] 60 A 10.9.0.1", "www CNAME fbservice1", "@ MX 10 mail", "sub NS ns.sub", "ns.sub A 10.1.0.53")
	for _, zone := range []string{"hpc.example.com", "0.1.10.in-addr.arpa", "virtual"} {
		got, err := fetchZone(server, axfr(zone), nil)
		if err != nil {
			t.Fatalf("%s: %v", zone, err)
		}
		want, _ := f.server.zoneRecords(zone)
		if len(got) != len(want)+1 || got[0].String() != got[len(got)-1].String() {
			t.Fatalf("%s: %d records, want %d and the SOA again", zone, len(got), len(want))
		}
		if diff := cmp.Diff(lines(want), lines(got[:len(got)-1])); diff != "" {
			t.Errorf("%s (-want +got):\n%s", zone, diff)
		}
	}
	// A transfer is counted after its last message was sent.
	eventually(t, "it is counted once", func() bool {
		return metric(t, f, "holdfast_dns_transfers_total", "hpc.example.com.", "sent") == 1
	})
	if _, err := fetchZone(server, axfr("example.org"), nil); err == nil {
		t.Error("a zone that is not ours was transferred")
	}
	for _, test := range []struct {
		behind uint32
		want   int
	}{{0, 1}, {1, 4}} {
		f.apply(state.PutDocument{Verb: state.Set, Document: state.Document{Kind: kindFile, Key: "sum", Value: []byte{byte(test.behind)}}})
		f.server.refresh()
		soa := f.server.table.Load().cuts["\x03hpc\x07example\x03com\x00"].zone.serial
		m := new(dns.Msg).SetIxfr("hpc.example.com.", soa-test.behind, "a.", "b.")
		got, err := fetchZone(server, m, nil)
		if err != nil || len(got) < test.want || test.want == 1 && len(got) != 1 {
			t.Errorf("IXFR from %d behind: %d records, %v", test.behind, len(got), err)
		}
	}
}

func TestTransfersAreForThoseAllowed(t *testing.T) {
	const key = "keys: {backup: {secret: {file: SECRET}}}"
	good, bad := map[string]string{"backup.": tsigSecret}, map[string]string{"backup.": base64.StdEncoding.EncodeToString(make([]byte, 32))}
	sign := func(name string) func(*dns.Msg) {
		return func(m *dns.Msg) { m.SetTsig(name, dns.HmacSHA256, 300, time.Now().Unix()) }
	}
	none := func(*dns.Msg) {}
	for name, test := range map[string]struct {
		transfer string
		change   func(*dns.Msg)
		secrets  map[string]string
		ok       bool
	}{
		"nobody is":                    {"", none, nil, false},
		"another address":              {"allow: [127.0.0.2]", none, nil, false},
		"the network":                  {"allow: [127.0.0.0/8]", none, nil, true},
		"signed":                       {key, sign("backup."), good, true},
		"signed, from another":         {"allow: [127.0.0.2], " + key, sign("backup."), good, false},
		"signed, from there":           {"allow: [127.0.0.1], " + key, sign("backup."), good, true},
		"from there, unsigned":         {"allow: [127.0.0.1], " + key, none, nil, false},
		"signed with another secret":   {key, sign("backup."), bad, false},
		"signed with an unknown key":   {key, sign("other."), map[string]string{"other.": tsigSecret}, false},
		"signed, at another time":      {key, func(m *dns.Msg) { m.SetTsig("backup.", dns.HmacSHA256, 300, time.Now().Unix()-3600) }, good, false},
		"signed, by another algorithm": {key, func(m *dns.Msg) { m.SetTsig("backup.", dns.HmacSHA512, 300, time.Now().Unix()) }, good, false},
	} {
		_, server := startPrimary(t, test.transfer, "cn[0001-1500] 60 A 10.9.0.1") // several messages
		m := axfr("hpc.example.com")
		test.change(m)
		records, err := fetchZone(server, m, test.secrets)
		if ok := err == nil && len(records) > 1500; ok != test.ok {
			t.Errorf("%s: %d records, %v", name, len(records), err)
		}
	}
}

// A secondary asks for the serial with its key, over UDP, and believes only an
// answer that is signed.
func TestSignedQuestionsHaveSignedAnswers(t *testing.T) {
	_, server := startPrimary(t, "keys: {backup: {secret: {file: SECRET}}}")
	ask := func(key, secret string) (*dns.Msg, error) {
		m := question("hpc.example.com", dns.TypeSOA).SetEdns0(1232, false)
		m.SetTsig(key, dns.HmacSHA256, 300, time.Now().Unix())
		client := dns.Client{Timeout: patience, TsigSecret: map[string]string{key: secret}}
		reply, _, err := client.Exchange(m, server.String())
		return reply, err
	}
	if m, err := ask("backup.", tsigSecret); err != nil || len(m.Answer) != 1 || m.IsTsig() == nil {
		t.Errorf("%v: %v", err, m)
	}
	for key, want := range map[string]uint16{"backup.": dns.RcodeBadSig, "other.": dns.RcodeBadKey} {
		m, _ := ask(key, base64.StdEncoding.EncodeToString(make([]byte, 32)))
		if m == nil || m.Rcode != dns.RcodeNotAuth || len(m.Answer) != 0 || m.IsTsig() == nil || m.IsTsig().Error != want {
			t.Errorf("%s: %v", key, m)
		}
	}
}

func TestDigTransfersAZone(t *testing.T) {
	_, server := startPrimary(t, "keys: {backup: {secret: {file: SECRET}}}", "cn[0001-0003] 60 A 10.9.0.1")
	out := dig(t, server, "+noall", "+answer", "+onesoa", "-y", "hmac-sha256:backup:"+tsigSecret, "hpc.example.com", "AXFR")
	if !strings.Contains(out, "cn0003.hpc.example.com.") || strings.Contains(out, "failed") {
		t.Errorf("%s", out)
	}
	if out := dig(t, server, "hpc.example.com", "AXFR"); !strings.Contains(out, "Transfer failed") {
		t.Errorf("unsigned: %s", out)
	}
}

func TestSecretsThatCannotBeReadAreErrors(t *testing.T) {
	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, []byte("c2hvcnQ=\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/nonexistent/key", short} {
		set := transferSettings{keys: map[string]tsigKey{"backup.": {file: path}}}
		if err := set.loadKeys(); err == nil || !strings.Contains(err.Error(), "backup.") || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// fakeSecondary counts what it is notified of.
type fakeSecondary struct {
	addr netip.AddrPort
	mu   sync.Mutex
	told []string
	deaf bool
}

func newSecondary(t testing.TB) *fakeSecondary {
	s := &fakeSecondary{}
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = conn.LocalAddr().(*net.UDPAddr).AddrPort()
	server := &dns.Server{PacketConn: conn, TsigSecret: map[string]string{"backup.": tsigSecret}, MsgAcceptFunc: func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept }}
	server.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if m.Opcode != dns.OpcodeNotify || !m.Authoritative || m.Question[0].Qtype != dns.TypeSOA {
			t.Errorf("no NOTIFY: %v", m)
		}
		signed := ""
		if m.IsTsig() != nil && w.TsigStatus() == nil {
			signed = " signed"
		}
		s.told = append(s.told, m.Question[0].Name+signed)
		if !s.deaf {
			r := new(dns.Msg).SetReply(m)
			if signed != "" {
				r.SetTsig("backup.", dns.HmacSHA256, 300, time.Now().Unix())
			}
			_ = w.WriteMsg(r)
		}
	})
	go func() { _ = server.ActivateAndServe() }()
	t.Cleanup(func() { _ = server.Shutdown() })
	return s
}

// about gives what the secondary was told of a zone.
func (s *fakeSecondary) about(zone string) (list []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, told := range s.told {
		if strings.HasPrefix(told, zone) {
			list = append(list, told)
		}
	}
	return list
}

func TestLeaderTellsSecondariesOfNewSerials(t *testing.T) {
	plain, keyed := newSecondary(t), newSecondary(t)
	f := newPrimary(t, fmt.Sprintf("notify: [%q, \"%v backup\"], keys: {backup: {secret: {file: SECRET}}}", plain.addr, keyed.addr))
	leads := true
	p := &proposing{catalog: f.catalog}
	f.server.proposer, f.server.leads = p, func() bool { return leads }
	// Nobody is told again for having been slow, but when the test says so.
	now := time.Now()
	f.server.now = func() time.Time { return now }
	tick := func() {
		f.server.refresh()
		if f.server.leads() {
			f.server.noteFile(context.Background())
			f.server.refresh()
			f.server.notifySecondaries(context.Background())
		}
	}
	const zone = "hpc.example.com."
	hears := func(what string, times int) {
		t.Helper()
		eventually(t, what, func() bool { return len(plain.about(zone)) >= times && len(keyed.about(zone)) > 0 })
		if n := len(plain.about(zone)); n != times {
			t.Errorf("%s: told %d times, want %d", what, n, times)
		}
	}
	tick()
	hears("at first", 1)
	tick() // nothing is new
	if diff := cmp.Diff([]string{zone}, plain.about(zone)); diff != "" {
		t.Errorf("at first: %s", diff)
	}
	if diff := cmp.Diff([]string{zone + " signed"}, keyed.about(zone)); diff != "" {
		t.Errorf("with a key: %s", diff)
	}
	if told := plain.about("virtual."); len(told) != 0 {
		t.Errorf("of the virtual zone: %v", told)
	}
	if _, err := f.server.AddRecord(context.Background(), "www A 10.1.0.7"); err != nil {
		t.Fatal(err)
	}
	tick()
	hears("after a change", 2)
	leads = false
	if _, err := f.server.AddRecord(context.Background(), "www A 10.1.0.8"); err != nil {
		t.Fatal(err)
	}
	tick()
	if n := len(plain.about(zone)); n != 2 {
		t.Errorf("who does not lead: told %d times", n)
	}
	leads = true
	plain.mu.Lock()
	plain.deaf = true
	plain.mu.Unlock()
	tick()
	hears("a deaf one", 3)
	for key, n := range f.server.notices {
		if key.secondary.addr == plain.addr {
			if n.heard || n.attempts != 1 {
				t.Errorf("a deaf secondary: %+v", n)
			}
		}
	}
	tick()
	hears("a deaf one, too soon after", 3)
	now = now.Add(time.Second << 1)
	tick()
	hears("a deaf one, again", 4)
	if !slices.Contains(keyed.about(zone), zone+" signed") || metric(t, f, "holdfast_dns_notifies_total", plain.addr.String(), "silent") == 0 {
		t.Error("not counted")
	}
}
