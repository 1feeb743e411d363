package api

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/peer"
)

const goodToken = "0123456789abcdef-token"

func TestLoopbackRefusesBrowsersOfOtherSites(t *testing.T) {
	c := newCell(t)
	port := c.url[strings.LastIndex(c.url, ":")+1:]
	tests := map[string]struct {
		headers []string
		code    int
		reason  string
	}{
		"localhost":                      {[]string{"Host", "localhost:" + port}, 200, ""},
		"the node's name":                {[]string{"Host", "N1.hpc.example.com:8500"}, 200, ""},
		"a name with the root's dot":     {[]string{"Host", "localhost."}, 200, ""},
		"an IPv6 loopback address":       {[]string{"Host", "[::1]:8500"}, 200, ""},
		"another loopback address":       {[]string{"Host", "127.0.0.53"}, 200, ""},
		"a rebound name":                 {[]string{"Host", "evil.example:8500"}, 403, "host"},
		"a name that begins like ours":   {[]string{"Host", "localhost.evil.example"}, 403, "host"},
		"an address that is not ours":    {[]string{"Host", "192.0.2.1:8500"}, 403, "host"},
		"a page of this node":            {[]string{"Sec-Fetch-Site", "same-origin"}, 200, ""},
		"the address bar":                {[]string{"Sec-Fetch-Site", "none"}, 200, ""},
		"a page of another site":         {[]string{"Sec-Fetch-Site", "cross-site"}, 403, "cross-site"},
		"a page of a neighbour":          {[]string{"Sec-Fetch-Site", "same-site"}, 403, "cross-site"},
		"an old browser's page":          {[]string{"Origin", "https://evil.example"}, 403, "cross-site"},
		"a page in a sandbox":            {[]string{"Origin", "null"}, 403, "cross-site"},
		"an old browser's page of ours":  {[]string{"Host", "localhost:8500", "Origin", "http://localhost:8500"}, 200, ""},
		"our name, but another port":     {[]string{"Host", "localhost:8500", "Origin", "http://localhost:80"}, 403, "cross-site"},
		"no origin that can be read":     {[]string{"Origin", "http://%zz"}, 403, "cross-site"},
		"a client that is no browser":    {nil, 200, ""},
		"a wrong token with none agreed": {[]string{"X-Consul-Token", "anything"}, 200, ""},
	}
	for name, test := range tests {
		before := 0
		if test.reason != "" {
			before = c.counted(c.server.metrics.refused, test.reason)
		}
		code, _, text := c.get("/v1/catalog/datacenters", test.headers...)
		if code != test.code {
			t.Errorf("%s: %d %q, want %d", name, code, text, test.code)
		}
		if test.reason != "" && c.counted(c.server.metrics.refused, test.reason) != before+1 {
			t.Errorf("%s: not counted as %s", name, test.reason)
		}
	}
}

func TestLoopbackMayWriteButNotOperate(t *testing.T) {
	c := newCell(t)
	for _, r := range routes() {
		for method, e := range r.methods {
			if e.needs != Operate {
				continue
			}
			code, _, text := c.do(method, r.path, http.NoBody)
			if code != 403 || !strings.Contains(text, "needs the right to operate: ask over the admin socket, or show the token") {
				t.Errorf("%s %s: %d %q", method, r.path, code, text)
			}
		}
	}
	if c.agent.left != 0 || len(c.raft.removed) != 0 || c.file.sum != "aaaa" {
		t.Error("something was done before it was refused")
	}
	if code, _, _ := c.do("PUT", "/v1/kv/a", strings.NewReader("v")); code != 200 {
		t.Errorf("a write: %d", code)
	}
}

func TestLoopbackMayBeReadOnly(t *testing.T) {
	c := newCell(t, func(config *Config, _ *Deps) { config.Loopback, config.Token = Read, goodToken })
	if code, _, _ := c.get("/v1/catalog/nodes"); code != 200 {
		t.Errorf("a read: %d", code)
	}
	if code, _, text := c.do("PUT", "/v1/kv/a", strings.NewReader("v")); code != 403 || !strings.Contains(text, "needs the right to write") {
		t.Errorf("a write: %d %q", code, text)
	}
	if code, _, _ := c.do("PUT", "/v1/kv/a", strings.NewReader("v"), "X-Consul-Token", goodToken); code != 200 {
		t.Errorf("a write with the token: %d", code)
	}
}

func TestTokenGivesEveryRight(t *testing.T) {
	c := newCell(t, func(config *Config, _ *Deps) { config.Token = goodToken })
	const path = "/v1/agent/leave"
	tests := map[string]struct {
		path    string
		headers []string
		code    int
	}{
		"in Consul's header":  {path, []string{"X-Consul-Token", goodToken}, 200},
		"as a bearer":         {path, []string{"Authorization", "Bearer " + goodToken}, 200},
		"in the query":        {path + "?token=" + goodToken, nil, 200},
		"none":                {path, nil, 403},
		"an empty one":        {path, []string{"X-Consul-Token", ""}, 403},
		"another":             {path, []string{"X-Consul-Token", goodToken + "x"}, 403},
		"its beginning":       {path, []string{"X-Consul-Token", goodToken[:10]}, 403},
		"as a basic password": {path, []string{"Authorization", "Basic " + goodToken}, 403},
	}
	for name, test := range tests {
		if code, _, text := c.do("PUT", test.path, http.NoBody, test.headers...); code != test.code {
			t.Errorf("%s: %d %q, want %d", name, code, text, test.code)
		}
	}
	if code, _, text := c.get("/v1/catalog/datacenters", "X-Consul-Token", "wrong"); code != 403 || strings.Contains(text, goodToken) {
		t.Errorf("a read with a wrong token: %d %q", code, text)
	}
	if got := c.counted(c.server.metrics.refused, "token"); got != 3 {
		t.Errorf("%d wrong tokens counted, want 3", got)
	}
}

func TestPathsThatAreNotOfferedSaySo(t *testing.T) {
	c := newCell(t)
	for path, want := range map[string]string{
		"/v1/acl/roles":               "of ACLs, tokens and policies are offered",
		"/v1/connect/ca/roots":        "the service mesh is not offered",
		"/v1/agent/connect/ca/leaf/x": "the service mesh is not offered",
		"/v1/health/connect/web":      "the service mesh is not offered",
		"/v1/nothing":                 "Invalid URL path: not a recognized HTTP API endpoint",
		"/":                           "Invalid URL path",
		"/v1/kv":                      "Invalid URL path",
	} {
		if code, _, text := c.get(path); code != 404 || !strings.Contains(text, want) {
			t.Errorf("%s: %d %q, want 404 %q", path, code, text, want)
		}
	}
	for _, m := range notOffered() {
		for _, method := range []string{"GET", "PUT", "POST", "DELETE"} {
			if code, _, text := c.do(method, m.prefix, http.NoBody); code != 404 || !strings.HasSuffix(text, m.prefix+": "+m.why) {
				t.Errorf("%s %s: %d %q", method, m.prefix, code, text)
			}
		}
	}
	code, header, _ := c.do("PATCH", "/v1/catalog/nodes", http.NoBody)
	if code != 405 || header.Get("Allow") != "GET" {
		t.Errorf("PATCH: %d, Allow %q", code, header.Get("Allow"))
	}
}

func TestOversizedRequestsAreRefused(t *testing.T) {
	c := newCell(t, func(config *Config, _ *Deps) { config.MaxSnapshot, config.Token = 1000, goodToken })
	if code, _, text := c.get("/v1/kv/" + strings.Repeat("k", maxURL)); code != 414 || !strings.Contains(text, "at most 8192") {
		t.Errorf("a long URL: %d %q", code, text)
	}
	big := bytes.Repeat([]byte(" "), 1<<20+1)
	if code, text := c.push("PUT", "/v1/agent/service/register", bytes.NewReader(big)); code != 413 || !strings.Contains(text, "max size: 1048576 bytes") {
		t.Errorf("a large registration: %d %q", code, text)
	}
	for name, body := range map[string]io.Reader{
		"announced": bytes.NewReader(big[:1001]), "unannounced": struct{ io.Reader }{bytes.NewReader(big[:1001])},
	} {
		code, _, text := c.do("PUT", "/v1/snapshot", body, "X-Consul-Token", goodToken)
		if code != 413 || !strings.Contains(text, "larger than 1000 bytes: raise api.snapshot_limit_mib") {
			t.Errorf("a large snapshot, %s: %d %q", name, code, text)
		}
	}
	if code, _, _ := c.get("/v1/catalog/nodes", "X-Padding", strings.Repeat("x", maxHeader+8<<10)); code != 431 {
		t.Errorf("large headers: %d", code)
	}
	for reason, want := range map[string]int{"url": 1, "body": 1, "snapshot": 2} {
		if got := c.counted(c.server.metrics.refused, reason); got != want {
			t.Errorf("%d refused for their %s, want %d", got, reason, want)
		}
	}
}

func TestSilentConnectionsAreClosed(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for headerTimeout")
	}
	t.Parallel()
	c := newCell(t)
	conn, err := net.Dial("tcp", strings.TrimPrefix(c.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /v1/catalog/nodes HTTP/1.1\r\nHost: localhost\r\nX-Slow: "); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(3 * headerTimeout)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); err != nil {
		t.Errorf("the connection was kept: %v", err)
	}
}

func TestRunFailsWhollyWhenAPlaceIsTaken(t *testing.T) {
	first := newCell(t)
	taken := netip.MustParseAddrPort(strings.TrimPrefix(first.url, "http://"))
	for name, test := range map[string]struct {
		config Config
		want   string
	}{
		"the socket": {Config{Socket: first.socket, Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}}, "another agent answers on " + first.socket},
		"the port":   {Config{Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0"), taken}}, "api: listen on " + taken.String()},
	} {
		test.config.Node, test.config.Datacenter = "n1", "foobar"
		server, err := New(test.config, Deps{State: first.store, Metrics: prometheus.NewRegistry(), Log: discard()})
		if err != nil {
			t.Fatal(err)
		}
		task := server.Run
		if test.config.Socket != "" {
			task = server.Socket().Run
		}
		err = task(t.Context(), func() { t.Errorf("%s: ready", name) })
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		for _, address := range server.Addresses() {
			if conn, err := net.Dial("tcp", address.String()); err == nil && address.String() != taken.String() {
				conn.Close()
				t.Errorf("%s: still listening on %s", name, address)
			}
		}
	}
	if code, _, _ := first.get("/v1/status/leader"); code != 200 {
		t.Errorf("the first server: %d", code)
	}
}

func TestNewRefusesToLetStrangersIn(t *testing.T) {
	admin := func(*http.Request) bool { return false }
	any4 := []netip.AddrPort{netip.MustParseAddrPort("10.1.0.1:8501")}
	good := Config{Node: "n1", Datacenter: "foobar"}
	with := func(change func(*Config)) Config { c := good; change(&c); return c }
	tests := map[string]struct {
		config Config
		deps   Deps
		want   string // "" fine
	}{
		"nothing but loopback":   {with(func(c *Config) { c.Listen = []netip.AddrPort{netip.MustParseAddrPort("[::1]:8500")} }), Deps{}, ""},
		"plain on the network":   {with(func(c *Config) { c.Listen = any4 }), Deps{}, "plain HTTP only on a loopback address"},
		"plain on every address": {with(func(c *Config) { c.Listen = []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:8500")} }), Deps{}, "plain HTTP only on a loopback address"},
		"https, no certificate":  {with(func(c *Config) { c.HTTPS = any4 }), Deps{Admin: admin}, "HTTPS needs the node's certificate"},
		"https, nobody known":    {with(func(c *Config) { c.HTTPS = any4 }), Deps{TLS: &tls.Config{}}, "HTTPS needs admin certificates or a token"},
		"https with a token":     {with(func(c *Config) { c.HTTPS, c.Token = any4, goodToken }), Deps{TLS: &tls.Config{}}, ""},
		"https for admins":       {with(func(c *Config) { c.HTTPS = any4 }), Deps{TLS: &tls.Config{}, Admin: admin}, ""},
		"a short token":          {with(func(c *Config) { c.Token = "short" }), Deps{}, "the token has 5 bytes; at least 16"},
		"loopback may do all":    {with(func(c *Config) { c.Loopback = Operate }), Deps{}, "loopback may read or write"},
		"no name":                {Config{}, Deps{}, "the node's name and the cluster's name are needed"},
	}
	for name, test := range tests {
		test.deps.Metrics, test.deps.Log = prometheus.NewRegistry(), discard()
		_, err := New(test.config, test.deps)
		if (err == nil) != (test.want == "") || (err != nil && !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), "short") {
			t.Errorf("%s: the error shows the token: %v", name, err)
		}
	}
}

// trust makes the certificate of a member of a cluster.
func trust(t *testing.T, authority, cluster, name string, role peer.Role) *peer.Trust {
	t.Helper()
	if _, err := os.Stat(authority); err != nil {
		if err := peer.Init(authority, cluster); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	err := peer.Issue(authority, dir, peer.Request{Identity: peer.Identity{Name: name, Role: role}, IPs: []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}})
	if err != nil {
		t.Fatal(err)
	}
	trust, err := peer.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return trust
}

// withCertificate shows the other's certificate while it trusts the server of
// the first, as an intruder does.
func withCertificate(config, other *tls.Config) *tls.Config {
	config.GetClientCertificate = nil
	config.Certificates = nil
	if other != nil {
		show := other.GetClientCertificate
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return show(&tls.CertificateRequestInfo{Version: tls.VersionTLS13, SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}})
		}
	}
	return config
}

func TestHTTPSWantsAnAdminOrTheToken(t *testing.T) {
	ours, theirs := filepath.Join(t.TempDir(), "ca"), filepath.Join(t.TempDir(), "ca")
	server := trust(t, ours, "foobar", "n1", peer.RoleServer)
	c := newCell(t, func(config *Config, deps *Deps) {
		config.Token = goodToken
		config.HTTPS = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
		deps.TLS = server.ServerOptional()
		deps.Admin = func(r *http.Request) bool {
			identity, err := peer.PeerIdentity(*r.TLS)
			return err == nil && identity.Role == peer.RoleAdmin
		}
	})
	admin := trust(t, ours, "foobar", "fbadmin1", peer.RoleAdmin)
	node := trust(t, ours, "foobar", "n2", peer.RoleServer)
	intruder := trust(t, theirs, "foobar", "fbadmin1", peer.RoleAdmin)
	const refused = "403 Permission denied: show an admin certificate or a token"
	const anyError = "any" // an alert of TLS, or a write that came after it
	address := c.server.Addresses()[1].String()
	tests := map[string]struct {
		config *tls.Config
		token  string
		want   string // what Leave says
	}{
		"an admin":              {admin.Client(""), "", ""},
		"a node":                {node.Client(""), "", refused},
		"a node with the token": {node.Client(""), goodToken, ""},
		"nobody":                {withCertificate(admin.Client(""), nil), "", refused},
		"nobody with the token": {withCertificate(admin.Client(""), nil), goodToken, ""},
		"a wrong token":         {withCertificate(admin.Client(""), nil), "wrong", "403 ACL not found: the token is not this cluster"},
		"another cluster":       {withCertificate(admin.Client(""), intruder.Client("")), "", anyError},
		"to another cluster":    {intruder.Client(""), "", "that claims to be"},
		"to another node":       {admin.Client("n3"), "", "n3"},
	}
	for name, test := range tests {
		client, err := NewClient(ClientConfig{URL: "https://" + address, TLS: test.config, Token: test.token})
		if err != nil {
			t.Fatal(err)
		}
		got := errorText(client.Leave(t.Context()))
		if (test.want == "") != (got == "") || (test.want != anyError && !strings.Contains(got, test.want)) {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
		client.Close()
	}
	if c.agent.left != 3 {
		t.Errorf("left %d times, want 3", c.agent.left)
	}
	// A browser that holds an admin's certificate shows it to any page's request.
	browser := &http.Client{Transport: &http.Transport{TLSClientConfig: admin.Client("")}}
	request, err := http.NewRequestWithContext(t.Context(), "POST", "https://"+address+"/v1/holdfast/config/reload", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Sec-Fetch-Site", "cross-site")
	lured, err := browser.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	lured.Body.Close()
	browser.CloseIdleConnections()
	if lured.StatusCode != 403 || c.counted(c.server.metrics.refused, "cross-site") != 1 {
		t.Errorf("a page of another site used an admin's certificate: %s", lured.Status)
	}
	eventually(t, "failed handshakes are counted", func() bool { return c.counted(c.server.metrics.refused, "tls") >= 2 })
	response, err := http.Get("http://" + address + "/v1/status/leader")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != 400 {
		t.Errorf("plain HTTP to the HTTPS port: %d", response.StatusCode)
	}
}

func errorText(err error) string {
	refused, ok := err.(*Error)
	switch {
	case ok:
		return strconv.Itoa(refused.Status) + " " + refused.Text
	case err != nil:
		return err.Error()
	default:
		return ""
	}
}
