package aptproxy

import (
	"net/netip"
	"net/url"
	"strings"
	"testing"
)

func TestTargetsOfAllClients(t *testing.T) {
	for text, want := range map[string]string{
		"http://deb.debian.org/debian/dists/x/InRelease": "http://deb.debian.org/debian/dists/x/InRelease",
		"http://DEB.debian.org:80/a":                     "http://deb.debian.org/a",
		"http://deb.debian.org:8080/a":                   "http://deb.debian.org:8080/a",
		"/deb.debian.org/debian/pool/a_1%2b2.deb":        "http://deb.debian.org/debian/pool/a_1+2.deb",
		"/deb.debian.org:8080/a":                         "http://deb.debian.org:8080/a",
		"/HTTPS///download.docker.com/linux/a":           "https://download.docker.com/linux/a",
		"http://HTTPS///download.docker.com/linux/a":     "https://download.docker.com/linux/a",
		"https://example.com:443/a":                      "https://example.com/a",
		"http://example.com//a/./b":                      "http://example.com/a/b",
		"http://example.com/a/?q=1":                      "http://example.com/a/?q=1",
		"http://[2001:db8::1]/a":                         "http://[2001:db8::1]/a",
		"http://[2001:db8::1]:81/a":                      "http://[2001:db8::1]:81/a",
		"http://example.com/a~b":                         "http://example.com/a~b",
		"/debian/dists/x/InRelease":                      "http://debian/dists/x/InRelease",
		// Refused:
		"http://user:pass@example.com/a":        "",
		"http://example.com/a/../../b":          "",
		"http://example.com/a/%2e%2e/b":         "",
		"/example.com/..%2f..%2fetc/passwd":     "",
		"/example.com/%5c..%5cetc":              "",
		"http://example.com/a%00b":              "",
		"http://example.com/a%0d%0aX:y":         "",
		"ftp://example.com/a":                   "",
		"http:///a":                             "",
		"/":                                     "",
		"http://exa mple.com/":                  "",
		"http://-example.com/":                  "",
		"http://example.com:0/":                 "",
		"http://example.com:99999/":             "",
		"http://[fe80::1%25eth0]/a":             "",
		"http://example.com/#frag":              "",
		"/" + strings.Repeat("a", 300) + "/b":   "",
		"http://x/" + strings.Repeat("a", 5000): "",
	} {
		u, err := url.Parse(text)
		var got target
		if err == nil {
			got, err = parseTarget(u)
		}
		switch {
		case want == "" && err == nil:
			t.Errorf("%q was accepted as %s", text, got.url())
		case want != "" && err != nil:
			t.Errorf("%q: %v", text, err)
		case want != "" && got.url().String() != want:
			t.Errorf("%q means %s, want %s", text, got.url(), want)
		}
	}
}

func TestAddressesOfOurOwnAreNotAskedForStrangers(t *testing.T) {
	set := settings{
		cluster: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")},
		private: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")},
	}
	for address, want := range map[string]bool{
		"151.101.2.132:80": true, "[2a04:4e42::644]:80": true,
		"10.9.1.1:80": true, // listed in apt.origins
		"10.1.0.1:80": false, "192.168.0.1:80": false, "172.16.0.1:80": false, "[fd00::1]:80": false,
		"127.0.0.1:8500": false, "[::1]:80": false, "0.0.0.0:80": false, "[::]:80": false,
		"169.254.169.254:80": false, "[fe80::1]:80": false, // a cloud's metadata
		"203.0.113.7:80":          false, // the cluster's
		"[::ffff:169.254.1.1]:80": false,
		"[::ffff:127.0.0.1]:80":   false,
		"[64:ff9b::a9fe:a9fe]:80": false,
		"[2002:7f00:1::]:80":      false,
		"224.0.0.1:80":            false,
		"255.255.255.255:80":      false,
		"100.64.0.1:80":           false,
		"0.1.2.3:80":              false,
		"nonsense":                false,
	} {
		if err := mayAsk(set, address); (err == nil) != want {
			t.Errorf("%s: %v, want allowed: %v", address, err, want)
		}
	}
}

func FuzzTarget(f *testing.F) {
	f.Add("http://deb.debian.org/debian/dists/x/InRelease")
	f.Add("/HTTPS///download.docker.com/linux/a?x")
	f.Add("/debian/../%2e%2e/b")
	f.Add("http://[::1%25lo]:80/\\x")
	f.Fuzz(func(t *testing.T, text string) {
		u, err := url.ParseRequestURI(text)
		if err != nil {
			return
		}
		got, err := parseTarget(u)
		if err != nil {
			return
		}
		if !strings.HasPrefix(got.path, "/") || strings.Contains(got.path+"/", "/../") || got.host == "" || strings.ContainsAny(got.host, "/@ ?#\\") {
			t.Errorf("%q became %+v", text, got)
		}
		// What is asked of the server means the same once more.
		again, err := parseTarget(got.url())
		if err != nil || again != got {
			t.Errorf("%q became %+v, and that %+v, %v", text, got, again, err)
		}
	})
}
