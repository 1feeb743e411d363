package check

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/cluster"
	"holdfast/internal/state"
)

// service reads a cluster file whose one service has the given check.
func service(t *testing.T, check string) cluster.Section {
	t.Helper()
	text := `schema: 1
cluster: test
domain: hpc.example.com
networks:
  main: {prefix: 10.1.0.0/24}
roles:
  service: {voters: 1, run: [dns]}
nodes:
  fbservice1: {role: service, addresses: {main: 10.1.0.1}}
services:
  apt: {on: fbservice1, port: 3142, check: ` + check + `}
`
	file, err := cluster.Parse("cluster.yaml", []byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	return file.Services[0].Check
}

var apt = Target{Service: "apt", Address: netip.MustParseAddr("10.1.0.1"), Port: 3142, Catalog: true}

func TestDecode(t *testing.T) {
	with := func(d Definition) Definition {
		d.ServiceID = "apt"
		return d.WithDefaults()
	}
	tests := []struct {
		check string
		want  []Definition
	}{
		{`{http: /, every: 5s, timeout: 1s}`, []Definition{with(Definition{
			Name: "apt http", HTTP: "http://10.1.0.1:3142/", Interval: 5 * time.Second, Timeout: time.Second,
		})}},
		{`{https: /health?x=1, ca_file: /etc/ca.pem, server_name: apt, skip_verify: true}`, []Definition{with(Definition{
			Name: "apt http", HTTP: "https://10.1.0.1:3142/health?x=1",
			TLS: TLS{CAFile: "/etc/ca.pem", ServerName: "apt", SkipVerify: true},
		})}},
		{`{http: "http://127.0.0.1:8080/status", method: POST, body: ping, header: {Host: apt, X-Two: ["a b", "c[1-2]"]}}`, []Definition{with(Definition{
			Name: "apt http", HTTP: "http://127.0.0.1:8080/status", Method: "POST", Body: "ping",
			Header: map[string][]string{"Host": {"apt"}, "X-Two": {"a b", "c[1-2]"}},
		})}},
		{`{tcp: true, send: "PING\r\n", expect: +PONG}`, []Definition{with(Definition{
			Name: "apt tcp", TCP: "10.1.0.1:3142", Send: "PING\r\n", Expect: "+PONG",
		})}},
		{`{udp: true, send: x, damp: 5m}`, []Definition{with(Definition{
			Name: "apt udp", UDP: "10.1.0.1:3142", Send: "x", Damp: 5 * time.Minute,
		})}},
		{`{grpc: true, service: some.Service}`, []Definition{with(Definition{
			Name: "apt grpc", GRPC: "10.1.0.1:3142/some.Service",
		})}},
		{`{grpcs: "h:1", ca_file: /ca}`, []Definition{with(Definition{
			Name: "apt grpc", GRPC: "h:1", GRPCTLS: true, TLS: TLS{CAFile: "/ca"},
		})}},
		{`{alias: db@fbservice2}`, []Definition{with(Definition{
			Name: "apt alias", Alias: &Alias{Service: "db", Node: "fbservice2"}, Interval: time.Second,
		})}},
		{`{script: /usr/lib/check, user: nobody}`, []Definition{with(Definition{
			Name: "apt script", Script: []string{"/usr/lib/check"}, User: "nobody",
		})}},
		{`{tcp: true, rise: 2, fall: 3, name: port, notes: why}`, []Definition{with(Definition{
			Name: "port", Notes: "why", TCP: "10.1.0.1:3142", Rise: 2, Fall: 3,
		})}},
		{`{ntp: true}`, []Definition{with(Definition{Name: "apt ntp", NTP: "10.1.0.1:3142"})}},
		{`{tcp: "127.0.0.1:22", initial: passing}`, []Definition{with(Definition{
			Name: "apt tcp", TCP: "127.0.0.1:22", Initial: state.Passing,
		})}},
		{`{script: [/usr/lib/check, "-H", "cn[1-2]"]}`, []Definition{with(Definition{
			Name: "apt script", Script: []string{"/usr/lib/check", "-H", "cn[1-2]"},
		})}},
		{`{script: /usr/lib/check}`, []Definition{with(Definition{Name: "apt script", Script: []string{"/usr/lib/check"}})}},
		{`{ttl: 30s}`, []Definition{with(Definition{Name: "apt ttl", TTL: 30 * time.Second})}},
		{`[{process: sshd, every: 30s}, {tcp: true}]`, []Definition{
			with(Definition{ID: "service:apt:1", Name: "apt process", Process: "sshd", Interval: 30 * time.Second}),
			with(Definition{ID: "service:apt:2", Name: "apt tcp", TCP: "10.1.0.1:3142"}),
		}},
	}
	for _, test := range tests {
		t.Run(test.check, func(t *testing.T) {
			got, err := Decode(service(t, test.check), apt)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("definitions (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecodeIPv6(t *testing.T) {
	target := Target{Service: "apt", Address: netip.MustParseAddr("2001:db8::1"), Port: 80}
	got, err := Decode(service(t, `[{http: /}, {tcp: true}]`), target)
	if err != nil {
		t.Fatal(err)
	}
	if got[0].HTTP != "http://[2001:db8::1]:80/" || got[1].TCP != "[2001:db8::1]:80" {
		t.Errorf("got %q and %q", got[0].HTTP, got[1].TCP)
	}
}

func TestNoCheckIsNoDefinition(t *testing.T) {
	if got, err := Decode(cluster.Section{}, apt); err != nil || got != nil {
		t.Errorf("got %v, %v", got, err)
	}
}

// Every mistake bears the position of its key in line 11 of the file, and all
// come at once.
func TestDecodeNamesEveryMistakeWithItsPosition(t *testing.T) {
	tests := []struct {
		check string
		want  []string // key | part of the message
	}{
		{`{}`, []string{"check|exactly one of"}},
		{`{htp: /}`, []string{"htp|unknown key"}},
		{`{http: /, tcp: true}`, []string{"check|exactly one of"}},
		{`{http: /, https: /}`, []string{"check.https|beside http"}},
		{`{http: "x"}`, []string{"check.http|does not begin with"}},
		{`{https: "ftp://x"}`, []string{"check.https|does not begin with"}},
		{`{http: /, every: 1ms, fall: 1000}`, []string{"check.every|1ms is not within 100ms to 24h", "check.fall|1000"}},
		{`{http: /, every: 10}`, []string{"check.every|"}},
		{`{tcp: false}`, []string{"check.tcp|leave the key out"}},
		{`{ntp: "x"}`, []string{"check.ntp|is not host:port"}},
		{`{tcp: "x"}`, []string{"check.tcp|is not host:port"}},
		{`{tcp: [1]}`, []string{"check.tcp|"}},
		{`{script: [check]}`, []string{"check.script|absolute path"}},
		{`{script: [[a]]}`, []string{"check.script|"}},
		{`{http: /, ca_file: /x}`, []string{"check.http|https"}},
		{`{http: /, header: {X: {a: b}}}`, []string{"check.header.X|"}},
		{`{http: /, initial: up}`, []string{"check.initial|no state"}},
		{`[{tcp: true}, {ttl: 1ms}, {nope: 1}]`, []string{"check[1].ttl|1ms", "check[2].nope|unknown key"}},
		{`7`, []string{"check|"}},
	}
	for _, test := range tests {
		t.Run(test.check, func(t *testing.T) {
			_, err := Decode(service(t, test.check), apt)
			wrong, ok := err.(cluster.Errors)
			if !ok || len(wrong) != len(test.want) {
				t.Fatalf("error %v, want %d mistakes", err, len(test.want))
			}
			for i, want := range test.want {
				key, part, _ := strings.Cut(want, "|")
				if e := wrong[i]; e.Line != 11 || e.Column < 30 || !strings.Contains(e.Message, key) || !strings.Contains(e.Message, part) {
					t.Errorf("%v, want line 11 and %q and %q", e, key, part)
				}
			}
		})
	}
}
