package dns

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// startPeer runs another server with a zone until the test ends.
func startPeer(t *testing.T, program, config string, args ...string) netip.AddrPort {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err, "(hack/deps installs it)")
		}
		t.Skip(err, "(hack/deps installs it)")
	}
	dir := t.TempDir()
	// Of the ports that the kernel gives to nobody who asks for any: one that
	// was free a moment ago may be another's by now.
	addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(10_000+os.Getpid()%10_000))
	file := filepath.Join(dir, "conf")
	config = strings.NewReplacer("PORT", fmt.Sprint(addr.Port()), "DIR", dir).Replace(config)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	peer := exec.CommandContext(ctx, program, append(args, "-c", file)...)
	var said lockedBuffer
	peer.Stdout, peer.Stderr = &said, &said
	if err := peer.Start(); err != nil {
		stop()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		_ = peer.Wait()
		if t.Failed() {
			t.Logf("%s said:\n%s", program, said.String())
		}
	})
	client := dns.Client{Timeout: time.Second}
	eventually(t, program+" answers", func() bool {
		m, _, err := client.Exchange(question("hpc.example.com", dns.TypeSOA), addr.String())
		return err == nil && len(m.Answer) == 1
	})
	return addr
}

const bindConfig = `options { directory "DIR"; pid-file none; session-keyfile none; listen-on port PORT { 127.0.0.1; }; listen-on-v6 { none; };
  recursion no; allow-query { any; }; minimal-responses yes; empty-zones-enable no; zero-no-soa-ttl no; max-udp-size 1232; edns-udp-size 1232; };
controls { };
zone "hpc.example.com" { type primary; file "ZONE"; };
`

const nsdConfig = `server:
  ip-address: 127.0.0.1@PORT
  server-count: 1
  username: ""
  zonesdir: "DIR"
  database: ""
  pidfile: "DIR/pid"
  xfrdfile: "DIR/xfrd"
  zonelistfile: "DIR/zones"
  xfrdir: "DIR"
  logfile: ""
  rrl-ratelimit: 0
  minimal-responses: yes
  ipv4-edns-size: 1232
remote-control:
  control-enable: no
zone:
  name: "hpc.example.com"
  zonefile: "ZONE"
`

// told is what a reply says, whatever the order of its records and the case
// of their owners. The SOA of what a CNAME leads to is left out.
func told(m *dns.Msg) []string {
	out := []string{fmt.Sprintf("%s aa=%v tc=%v rd=%v cd=%v opcode=%d questions=%v", dns.RcodeToString[m.Rcode], m.Authoritative, m.Truncated, m.RecursionDesired, m.CheckingDisabled, m.Opcode, m.Question)}
	if opt := m.IsEdns0(); opt != nil {
		out = append(out, fmt.Sprintf("edns version=%d do=%v size=%d", opt.Version(), opt.Do(), opt.UDPSize()))
	}
	authority := m.Ns
	if len(m.Answer) > 0 && m.Answer[0].Header().Rrtype == dns.TypeCNAME && len(authority) == 1 && authority[0].Header().Rrtype == dns.TypeSOA {
		authority = nil
	}
	for i, section := range [][]dns.RR{m.Answer, authority} {
		for _, line := range lines(section) {
			out = append(out, fmt.Sprintf("section %d: %s", i, strings.ToLower(line)))
		}
	}
	return out
}

// differs tells whether a question is answered in another way on purpose; the
// table in DESIGN.md says why.
func differs(q *dns.Msg, program string) bool {
	kind := q.Question[0].Qtype
	return kind == dns.TypeANY || program == "nsd" && q.CheckingDisabled // NSD clears CD
}

func TestBINDAndNSDAnswerTheSameFromTheSameZone(t *testing.T) {
	records := `"www CNAME fbservice1", "chain CNAME www", "out CNAME www.example.org.", "gone CNAME nosuch", "@ MX 10 mail", "mail A 10.1.0.25",` +
		`"@ TXT \"v=spf1 -all\" \"second\"", "_ldap._tcp SRV 0 5 389 mail", "@ CAA 0 issue \"ca.example.net\"", "a.b.c A 10.1.0.26", "sub NS ns.sub", "ns.sub A 10.1.0.53"`
	f, _ := writing(t, "dns: {rate_limit: 0, allow_recursion: [], records: ["+records+"]}\n")
	f.server.refresh()
	text, ok := f.server.ZoneText("hpc.example.com")
	zone := filepath.Join(t.TempDir(), "zone")
	if err := os.WriteFile(zone, []byte(text), 0o600); err != nil || !ok {
		t.Fatal(err, ok)
	}
	var asked []*dns.Msg
	for _, label := range []string{"", "fbservice1", "mgtfbservice3", "opafbservice2", "www", "chain", "gone", "mail", "_ldap._tcp", "_tcp", "a.b.c", "b.c", "c",
		"nosuch", "x.fbservice1", "x.www", "FBservice1", "sub", "x.sub", "ns.sub"} {
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeCNAME, dns.TypeMX, dns.TypeTXT, dns.TypeSRV, dns.TypeCAA, dns.TypeNS, dns.TypeSOA,
			dns.TypePTR, dns.TypeDS, dns.TypeHTTPS, dns.TypeANY, 65280} {
			for flags := range 8 {
				m := question(strings.TrimPrefix(label+".hpc.example.com", "."), kind)
				m.RecursionDesired = flags&1 != 0
				m.CheckingDisabled = flags&2 != 0
				if flags&4 != 0 {
					m.SetEdns0(1232, flags&1 != 0)
				}
				asked = append(asked, m)
			}
		}
	}
	for program, peer := range map[string]struct {
		config string
		args   []string
	}{"named": {bindConfig, []string{"-g", "-n", "1"}}, "nsd": {nsdConfig, []string{"-d"}}} {
		t.Run(program, func(t *testing.T) {
			theirs := startPeer(t, program, strings.ReplaceAll(peer.config, "ZONE", zone), peer.args...)
			compared := 0
			for _, q := range asked {
				if differs(q, program) {
					continue
				}
				wire, err := q.Pack()
				if err != nil {
					t.Fatal(err)
				}
				ours := f.unpack(f.raw(wire, netip.MustParseAddr("192.0.2.200"), overUDP))
				want := exchangeWith(t, "udp", theirs, q)
				compared++
				if diff := cmp.Diff(told(want), told(ours)); diff != "" {
					t.Errorf("%s %s (-%s +ours):\n%s", q.Question[0].Name, dns.Type(q.Question[0].Qtype), program, diff)
				}
			}
			if t.Logf("%d questions", compared); compared < 1000 {
				t.Error("that is not all of them")
			}
		})
	}
}
