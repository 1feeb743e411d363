package main

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/ntp"
	"holdfast/ntpproxy"
)

// timeServer answers every request with a packet, its times and origin filled in.
func timeServer(t *testing.T, p ntp.Packet) string {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			request, err := ntp.Parse(buf[:n])
			if err != nil {
				continue
			}
			now := ntp.FromTime(time.Now().Add(40 * time.Millisecond))
			p.Version, p.Mode, p.Origin, p.Receive, p.Transmit = ntp.Version, ntp.ModeServer, request.Transmit, now, now
			var out [ntp.Size]byte
			p.Put(&out)
			_, _ = conn.WriteTo(out[:], from) // the test may be over
		}
	}()
	return conn.LocalAddr().String()
}

func TestNTPStatusShowsWhatClientsSee(t *testing.T) {
	good := timeServer(t, ntp.Packet{Stratum: 3, ReferenceID: ntp.Reference{192, 0, 2, 1}, RootDispersion: ntp.FromDuration(time.Millisecond)})
	lost := timeServer(t, ntp.Packet{Leap: ntp.LeapUnknown, ReferenceID: ntp.KissInit})
	status := func(args ...string) (string, int) {
		var out bytes.Buffer
		status := execute(t.Context(), append([]string{"ntp", "status", "--timeout", "1m"}, args...), strings.NewReader(""), &out, &out)
		return out.String(), status
	}
	if out, code := status(good); code != exitOK || !strings.Contains(out, "192.0.2.1") || !strings.Contains(out, "synchronised") {
		t.Errorf("exit status %d: %s", code, out)
	}
	if out, code := status(good, lost); code != exitDegraded || !strings.Contains(out, "not synchronised") {
		t.Errorf("exit status %d: %s", code, out)
	}
	if out, code := status("127.0.0.1:1"); code != exitDegraded || !strings.Contains(out, "refused") {
		t.Errorf("exit status %d: %s", code, out)
	}
	out, code := status("--json", good)
	var reports []ntpReport
	if err := json.Unmarshal([]byte(out), &reports); err != nil || code != exitOK {
		t.Fatalf("exit status %d, %v: %s", code, err, out)
	}
	// On a busy machine the reply may wait longer than the request: no offset can be
	// told better than to half of the delay.
	r := reports[0]
	wrong := (r.Offset - 40*time.Millisecond).Abs()
	if r.Stratum != 3 || r.MaxError < time.Millisecond || r.Delay < 0 || wrong > r.Delay/2+time.Microsecond {
		t.Errorf("%+v", r)
	}
}

func TestNTPStatusAsksTheNodesOfTheFileThatServeTheTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cluster.yaml")
	write := func(units string) ntpStatusCmd {
		t.Helper()
		text := strings.ReplaceAll(`schema: 1
cluster: c
domain: hpc.example.com
networks: {main: {prefix: 192.0.2.0/24}}
roles: {service: {voters: 1, run: [UNITS]}, compute: {}}
nodes:
  fb[1-2]: {role: service, addresses: {main: "192.0.2.[1-2]"}}
  cn1: {role: compute, addresses: {main: 192.0.2.9}}
`, "UNITS", units)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return ntpStatusCmd{ClusterFile: path}
	}
	c := write("dns, ntp")
	targets, err := c.targets()
	if err != nil || len(targets) != 2 || targets[1] != (ntpTarget{"fb2", "192.0.2.2:123"}) {
		t.Errorf("%v, %v", targets, err)
	}
	c = write("dns")
	if _, err := c.targets(); err == nil || !strings.Contains(err.Error(), "serves the time") {
		t.Errorf("no node serves: %v", err)
	}
}

func TestNTPAdminCommandsShowWhatTheNodeSays(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "ntp.sock")
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/ntp/tracking", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(ntpproxy.Tracking{Steering: true, Stratum: 3, Source: "ntp1:123", Frequency: -12.5, Phase: "orphan leader"})
	})
	mux.HandleFunc("GET /v1/ntp/sources", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode([]ntpproxy.Source{{Name: "ntp1:123", State: "leading"}, {Name: "ntp2:123", State: "falseticker"}})
	})
	mux.HandleFunc("GET /v1/ntp/clients", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode([]ntpproxy.Client{
			{Address: netip.MustParseAddr("192.0.2.123"), Name: "cn0123", Tells: true, Offset: 40 * time.Millisecond, Requests: 7, Version: 4},
			{Address: netip.MustParseAddr("192.0.2.124"), Name: "cn0124", Tells: true, Offset: time.Millisecond},
			{Address: netip.MustParseAddr("192.0.2.125")},
		})
	})
	mux.HandleFunc("GET /v1/ntp/peers", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode([]ntpproxy.Peer{{Node: "fb2", Address: "192.0.2.2:123", State: "differs", Offset: 12 * time.Millisecond}})
	})
	mux.HandleFunc("POST /v1/ntp/step", func(w http.ResponseWriter, r *http.Request) {
		said := "this node does not steer its clock"
		if r.URL.Query().Has("force") {
			said = "forced: " + said
		}
		http.Error(w, said, http.StatusConflict)
	})
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(mux)
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	for _, test := range []struct {
		command string
		want    []string
		not     string
		code    int
	}{
		{"tracking", []string{"this node", "ntp1:123", "-12.500 ppm"}, "", exitOK},
		{"tracking --json", []string{`"frequency_ppm": -12.5`}, "", exitOK},
		{"sources", []string{"falseticker", "leading"}, "", exitOK},
		{"sources --json", []string{`"state": "falseticker"`}, "", exitOK},
		{"clients", []string{"cn0123", "40ms", "cn0124", "192.0.2.125"}, "", exitOK},
		{"clients --over 10ms", []string{"cn0123"}, "cn0124", exitOK},
		{"clients --json", []string{`"name": "cn0123"`, `"offset_ns": 40000000`}, "", exitOK},
		{"peers", []string{"fb2", "differs", "12ms"}, "", exitOK},
		{"peers --json", []string{`"state": "differs"`}, "", exitOK},
		{"orphan", []string{"orphan leader", "unknown", "stratum"}, "", exitOK},
		{"orphan --json", []string{`"phase": "orphan leader"`}, "", exitOK},
		{"step", []string{"does not steer"}, "", exitFailed},
		{"step --force", []string{"forced"}, "", exitFailed},
	} {
		var out bytes.Buffer
		args := append([]string{"ntp"}, strings.Fields(test.command)...)
		code := execute(t.Context(), append(args, "--socket", path), strings.NewReader(""), &out, &out)
		for _, text := range test.want {
			if !strings.Contains(out.String(), text) {
				t.Errorf("%s: no %q in %q", test.command, text, out.String())
			}
		}
		if test.not != "" && strings.Contains(out.String(), test.not) {
			t.Errorf("%s: %q in %q", test.command, test.not, out.String())
		}
		if code == exitOK != (test.code == exitOK) {
			t.Errorf("%s: exit status %d", test.command, code)
		}
	}
}
