package main

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/internal/admin"
	"holdfast/vrrp"
)

func TestExplainTellsWhichCheckTookAnInstanceOut(t *testing.T) {
	n := startNode(t, "web: {on: fbservice1, port: 80, check: {ttl: 1h}}")
	n.until(t, "the service is explained, with what the node remembers of it", func() bool {
		out, status := n.run(t, "", "explain", "web", "--json")
		return status == exitDegraded && strings.Contains(out, `"since"`) // its check was not reported yet
	})
	out := n.expect(t, exitDegraded, "none of 1 instances is answered", "explain", "web")
	for _, words := range []string{"as fbservice1 answers it", "The copy of the catalog here was confirmed", n.addr + ":80", "service:web", "critical"} {
		if !strings.Contains(out, words) {
			t.Errorf("it does not say %q:\n%s", words, out)
		}
	}
	request, err := http.NewRequestWithContext(t.Context(), "PUT", admin.BaseURL+"/v1/agent/check/pass/service:web?note="+url.QueryEscape("all\x1b[2J is well"), http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	response, err := admin.Client(filepath.Join(n.dir, "run", "core.sock")).Do(request)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("the check was not reported: %v %v", response, err)
	}
	response.Body.Close()
	n.until(t, "it is answered, with what was before", func() bool {
		out, status := n.run(t, "", "explain", "web.service.virtual.")
		return status == exitOK && strings.Contains(out, "1 of 1 instances are answered") && strings.Contains(out, "critical → passing")
	})
	if out = n.expect(t, exitOK, "is well", "explain", "web"); strings.ContainsRune(out, '\x1b') {
		t.Errorf("a check's output steers the terminal: %q", out)
	}
	var e api.Explanation
	if err := json.Unmarshal([]byte(n.expect(t, exitOK, "", "explain", "web", "--json")), &e); err != nil || e.Service != "web" || len(e.Instances) != 1 || !e.Instances[0].Answers {
		t.Errorf("as JSON: %+v %v", e, err)
	}
	n.expect(t, exitNotFound, `no service "nothing"`, "explain", "nothing")
}

// An address by its name, on the socket of the unit that holds it.
func TestExplainTellsWhoHoldsAnAddress(t *testing.T) {
	socket := netUnit(t, &oneRouter{state: vrrp.Active})
	run := func(args ...string) (string, int) {
		var out bytes.Buffer
		status := execute(t.Context(), append([]string{"explain", "--socket", socket}, args...), strings.NewReader(""), &out, &out)
		return out.String(), status
	}
	if out, status := run("dns1"); status != exitOK || !strings.Contains(out, "dns1 10.1.0.101") || !strings.Contains(out, "fbservice1 holds it, for 1m") || strings.ContainsRune(out, '\x1b') {
		t.Errorf("status %d: %q", status, out)
	}
	var e vrrp.Explanation
	if out, status := run("dns1", "--json"); status != exitOK || json.Unmarshal([]byte(out), &e) != nil || e.View.Name != "dns1" || len(e.Story) == 0 {
		t.Errorf("status %d: %s", status, out)
	}
	if out, status := run("dns9"); status != exitNotFound {
		t.Errorf("status %d: %s", status, out)
	}
}

// What DNS tells of a name is a service's or an address's story, or why there is none.
func TestDNSTellsOfAddressesAndSaysWhenNobodyCan(t *testing.T) {
	ask := askCore(netUnit(t, &oneRouter{state: vrrp.Active}), patience)
	if lines, _ := ask("dns1"); len(lines) < 2 || lines[0] != "dns1 10.1.0.101" || !strings.Contains(lines[1], "fbservice1 holds it") {
		t.Errorf("of an address it tells %q", lines)
	}
	if lines, _ := ask("dns9"); lines != nil {
		t.Errorf("of nothing it tells %q", lines)
	}
	hung, err := net.Listen("unix", filepath.Join(t.TempDir(), "hung.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Close()
	tell := tellByCore(hung.Addr().String())
	for _, want := range []string{"Nobody can explain it now: ", "Nobody can explain it now: core did not answer a moment ago"} {
		began := time.Now()
		if lines := tell("dns1"); len(lines) != 1 || !strings.HasPrefix(lines[0], want) {
			t.Errorf("of a core that hangs: %q, want %q", lines, want)
		}
		t.Logf("%q took %v", want, time.Since(began))
	}
	if lines := tellByCore(filepath.Join(t.TempDir(), "none.sock"))("dns1"); len(lines) != 1 || !strings.HasPrefix(lines[0], "Nobody can explain it now: ") {
		t.Errorf("without core it tells %q", lines)
	}
}
