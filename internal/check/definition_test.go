package check

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/state"
)

func TestValidateSaysWhatIsWrongAndWhatWouldBeRight(t *testing.T) {
	http := Definition{ID: "a", HTTP: "http://192.0.2.1:80/"}
	with := func(change func(*Definition)) Definition {
		d := http
		change(&d)
		return d
	}
	tests := []struct {
		name       string
		definition Definition
		want       string // "": valid
	}{
		{"http", http, ""},
		{"https", Definition{ID: "a", HTTP: "https://[2001:db8::1]:8443/health", TLS: TLS{ServerName: "x", SkipVerify: true}}, ""},
		{"tcp", Definition{ServiceID: "apt", TCP: "apt.example.com:3142"}, ""},
		{"script", Definition{ID: "a", Script: []string{"/usr/lib/holdfast/check", "-v"}}, ""},
		{"process", Definition{ID: "a", Process: "in.tftpd"}, ""},
		{"ttl", Definition{ID: "a", TTL: 30 * time.Second, Initial: state.Passing}, ""},
		{"nothing", Definition{ID: "a"}, "check: needs exactly one of http, tcp, udp, ssh, grpc, dns, ntp, script, process, alias and ttl"},
		{"two", with(func(d *Definition) { d.TCP = "a:1" }), "exactly one of"},
		{"no id", Definition{TCP: "a:1"}, "id: a check that belongs to no service needs one"},
		{"long id", with(func(d *Definition) { d.ID = strings.Repeat("x", 257) }), "has 257 bytes, more than 256"},
		{"odd id", with(func(d *Definition) { d.ID = "a\nb" }), "control characters"},
		{"the cluster's own", with(func(d *Definition) { d.ID = state.SerfHealth }), "kept by the cluster itself"},
		{"ntp", Definition{ServiceID: "ntp", NTP: "ntp.example.com:123"}, ""},
		{"ntp without port", Definition{ID: "a", NTP: "192.0.2.1"}, "ntp: \"192.0.2.1\" is not host:port"},
		{"tcp without port", Definition{ID: "a", TCP: "192.0.2.1"}, "tcp: \"192.0.2.1\" is not host:port"},
		{"tcp without host", Definition{ID: "a", TCP: ":80"}, "has no host"},
		{"tcp with port 0", Definition{ID: "a", TCP: "h:0"}, "has port 0, not 1 to 65535"},
		{"http of another scheme", Definition{ID: "a", HTTP: "ftp://h/"}, "does not begin with http:// or https://"},
		{"http without host", Definition{ID: "a", HTTP: "http:///x"}, "has no host"},
		{"http with a bad port", Definition{ID: "a", HTTP: "http://h:70000/"}, "has port 70000"},
		{"TLS without https", with(func(d *Definition) { d.TLS.CAFile = "/ca" }), "need an https URL"},
		{"odd method", with(func(d *Definition) { d.Method = "GE T" }), `method: "GE T"`},
		{"odd header name", with(func(d *Definition) { d.Header = map[string][]string{"a b": nil} }), `header: "a b"`},
		{"split header", with(func(d *Definition) { d.Header = map[string][]string{"X": {"a\r\nY: b"}} }), "control characters"},
		{"large body", with(func(d *Definition) { d.Body = strings.Repeat("x", 70000) }), "more than 65536"},
		{"a method for tcp", Definition{ID: "a", TCP: "h:1", Method: "GET"}, "belong to an http check"},
		{"udp", Definition{ID: "a", UDP: "h:514", Send: "x", Expect: "y"}, ""},
		{"udp without port", Definition{ID: "a", UDP: "h"}, `udp: "h" is not host:port`},
		{"grpc", Definition{ID: "a", GRPC: "h:1/some.Service"}, ""},
		{"grpc with TLS", Definition{ID: "a", GRPC: "h:1", GRPCTLS: true, TLS: TLS{CAFile: "/ca"}}, ""},
		{"grpc without TLS", Definition{ID: "a", GRPC: "h:1", TLS: TLS{CAFile: "/ca"}}, "a grpc check with TLS"},
		{"grpc with an odd name", Definition{ID: "a", GRPC: "h:1/a\nb"}, "control characters"},
		{"an answer of http", with(func(d *Definition) { d.Expect = "x" }), "belong to a tcp or udp check"},
		{"much to send", Definition{ID: "a", TCP: "h:1", Send: strings.Repeat("x", 5000)}, "more than 4096"},
		{"much to expect", Definition{ID: "a", TCP: "h:1", Expect: strings.Repeat("x", 300)}, "more than 256"},
		{"a user of http", with(func(d *Definition) { d.User = "nobody" }), "belongs to a script check"},
		{"alias", Definition{ServiceID: "a", Alias: &Alias{Service: "b"}}, ""},
		{"alias of nothing", Definition{ServiceID: "a", Alias: &Alias{}}, "names neither a service nor a node"},
		{"alias of itself", Definition{ServiceID: "a", Alias: &Alias{Service: "a"}}, "names its own service"},
		{"alias of itself elsewhere", Definition{ServiceID: "a", Alias: &Alias{Service: "a", Node: "b"}}, ""},
		{"damp", with(func(d *Definition) { d.Damp = time.Millisecond }), "damp: 1ms is not within 1s to 24h0m0s"},
		{"damped ttl", Definition{ID: "a", TTL: time.Second, Damp: time.Minute}, "nothing is probed"},
		{"relative script", Definition{ID: "a", Script: []string{"check"}}, "is not an absolute path"},
		{"process path", Definition{ID: "a", Process: "/usr/sbin/ntpd"}, "without its directory"},
		{"short ttl", Definition{ID: "a", TTL: time.Millisecond}, "ttl: 1ms is not within 100ms to 720h0m0s"},
		{"negative ttl", Definition{ID: "a", TTL: -time.Second}, "ttl: -1s is not within"},
		{"ttl with interval", Definition{ID: "a", TTL: time.Second, Interval: time.Second}, "nothing is probed"},
		{"short interval", with(func(d *Definition) { d.Interval = time.Millisecond }), "interval: 1ms is not within 100ms to 24h0m0s"},
		{"short timeout", with(func(d *Definition) { d.Timeout = 1 }), "timeout: 1ns is not within 10ms to 1h0m0s"},
		{"rise", with(func(d *Definition) { d.Rise = 101 }), "rise: 101 is not within 1 to 100"},
		{"fall", with(func(d *Definition) { d.Fall = -1 }), "fall: -1 is not within 1 to 100"},
		{"initial", with(func(d *Definition) { d.Initial = "up" }), `initial: "up" is no state`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := test.definition.Validate()
			switch {
			case test.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("error %v, want one with %q", err, test.want)
			}
			// What was filled in must never make a valid definition invalid.
			if err == nil {
				if err := test.definition.WithDefaults().Validate(); err != nil {
					t.Errorf("with its defaults: %v", err)
				}
			}
		})
	}
}

func TestValidateNamesEveryMistake(t *testing.T) {
	err := Definition{ID: "a", TCP: "h", Rise: -1, Interval: 1, Initial: "x"}.Validate()
	for _, want := range []string{"tcp", "rise", "interval", "initial"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
}

func TestPasswordInURLIsNotShown(t *testing.T) {
	err := Definition{ID: "a", HTTP: "http://u:hunter2@h:99999/"}.Validate()
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("error: %v", err)
	}
}

func TestDefaults(t *testing.T) {
	got := Definition{ServiceID: "apt", HTTP: "http://h/", Interval: 5 * time.Second, DeregisterAfter: time.Second}.WithDefaults()
	want := Definition{
		ID: "service:apt", Name: "service:apt", ServiceID: "apt", HTTP: "http://h/", Method: "GET",
		Interval: 5 * time.Second, Timeout: 5 * time.Second, Rise: 1, Fall: 1,
		Initial: state.Critical, DeregisterAfter: time.Minute,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
	if got := (Definition{ID: "a", TCP: "h:1", Interval: time.Minute}).WithDefaults().Timeout; got != 10*time.Second {
		t.Errorf("timeout of a slow check: %s, want 10s", got)
	}
}
