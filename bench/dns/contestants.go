package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"holdfast/internal/admin"
)

// contestant is a server with what it takes to start it.
type contestant struct {
	name     string
	forwards bool
	prepare  func(dir, zone string, addr netip.AddrPort) (argv []string, err error)
	started  func(ctx context.Context, dir string, o options) error
}

// tools names what is missing, and how to install it.
func tools() error {
	var missing []string
	for _, program := range []struct{ path, pkg string }{
		{"dnsperf", "dnsperf"}, {"named", "bind9"}, {"unbound", "unbound"}, {"knotd", "knot"}, {"nsd", "nsd"},
	} {
		if _, err := exec.LookPath(program.path); err != nil {
			missing = append(missing, program.pkg)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("missing: %s. Install them so that none starts:\n"+
		"  printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d\n"+
		"  apt-get install --no-install-recommends %[1]s; rm /usr/sbin/policy-rc.d", strings.Join(missing, " "))
}

// contestants are all servers, each with as many threads as there are
// processors and without a log of queries.
func contestants(o options) []contestant {
	return []contestant{
		{name: oursName, forwards: true, prepare: prepareOurs(o.holdfast), started: register},
		{name: version("BIND", "named", "-v"), forwards: true, prepare: prepareBIND},
		{name: version("Unbound", "unbound", "-V"), forwards: true, prepare: prepareUnbound},
		{name: version("Knot", "knotd", "--version"), prepare: prepareKnot},
		{name: version("NSD", "nsd", "-v"), prepare: prepareNSD},
		{name: echoName, prepare: func(_, _ string, addr netip.AddrPort) ([]string, error) {
			self, err := os.Executable()
			return []string{"/usr/bin/env", "ECHO_LISTEN=" + addr.String(), self, "echo"}, err
		}},
	}
}

// version is a server's name with its version: the first word with two dots.
func version(name, program, flag string) string {
	out, _ := exec.Command(program, flag).CombinedOutput()
	for _, word := range strings.Fields(string(out)) {
		if word[0] >= '0' && word[0] <= '9' && strings.Count(word, ".") >= 2 {
			word, _, _ = strings.Cut(word, "-")
			return name + " " + strings.TrimSuffix(word, ",")
		}
	}
	return name
}

// zoneText is what our server answers, as a zone file.
func zoneText(names int) string {
	var b strings.Builder
	b.WriteString("$ORIGIN virtual.\n@ 300 IN SOA fbservice1.node hostmaster 1 3600 600 1209600 0\n@ 300 IN NS fbservice1.node\nfbservice1.node 0 IN A 10.1.0.1\n")
	for i := range 4 {
		fmt.Fprintf(&b, "apt.service 0 IN A 10.1.0.%d\n", i+1)
	}
	for i := range names {
		fmt.Fprintf(&b, "svc%d.service 0 IN A 10.1.%d.%d\n", i, i/250, i%250)
	}
	return b.String()
}

func save(dir, name, text string) (string, error) {
	path := filepath.Join(dir, name)
	return path, os.WriteFile(path, []byte(text), 0o644)
}

func prepareOurs(program string) func(dir, zone string, addr netip.AddrPort) ([]string, error) {
	return func(dir, _ string, addr netip.AddrPort) ([]string, error) {
		file, err := save(dir, "cluster.yaml", fmt.Sprintf("schema: 1\ncluster: bench\ndomain: bench.example.com\n"+
			"networks: {lan: {prefix: 127.0.0.0/8}}\nroles: {service: {voters: 1, run: [dns]}}\n"+
			"nodes: {fbservice0: {role: service, addresses: {lan: 127.0.0.1}}}\ndns: {forward: {\".\": [%q]}}\n", upstreamAddr))
		return []string{program, "agent", "--config", file, "--node", "fbservice0", "--insecure", "--data-dir", filepath.Join(dir, "data"),
			"--run-dir", dir, "--rpc-port", "5381", "--gossip-port", "5382", "--dns-listen", addr.String(), "--http-listen", "127.0.0.1:5383"}, err
	}
}

// register fills our catalog with what the others have in a zone file.
func register(ctx context.Context, dir string, o options) error {
	client := admin.Client(filepath.Join(dir, "core.sock"))
	for i := range 4 {
		node := fmt.Sprintf("fbservice%d", i+1)
		if err := put(ctx, client, map[string]any{"Node": node, "Address": fmt.Sprintf("10.1.0.%d", i+1),
			"Service": map[string]any{"Service": "apt", "Port": 3142}}); err != nil {
			return err
		}
	}
	for i := range o.names {
		if err := put(ctx, client, map[string]any{"Node": fmt.Sprintf("fbservice%d", i%4+1), "Address": fmt.Sprintf("10.1.0.%d", i%4+1),
			"Service": map[string]any{"Service": fmt.Sprintf("svc%d", i), "Port": 80, "Address": fmt.Sprintf("10.1.%d.%d", i/250, i%250)}}); err != nil {
			return err
		}
	}
	return nil
}

// put registers, and tries again while the agent is starting.
func put(ctx context.Context, client *http.Client, registration map[string]any) error {
	body, err := json.Marshal(registration)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		request, err := http.NewRequestWithContext(ctx, "PUT", admin.BaseURL+"/v1/catalog/register", bytes.NewReader(body))
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err == nil {
			text, _ := io.ReadAll(response.Body)
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("registering: %s", text)
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func prepareBIND(dir, zone string, addr netip.AddrPort) ([]string, error) {
	file, err := save(dir, "named.conf", fmt.Sprintf(`options {
	directory %q; pid-file none; session-keyfile none; listen-on port %d { 127.0.0.1; }; listen-on-v6 { none; };
	recursion yes; allow-query { any; }; forward only; forwarders { 127.0.0.1 port %d; };
	dnssec-validation no; minimal-responses yes; empty-zones-enable no;
};
controls { };
zone "virtual" { type primary; file %q; };
`, dir, addr.Port(), upstreamAddr.Port(), zone))
	return []string{"named", "-g", "-c", file, "-n", fmt.Sprint(runtime.NumCPU())}, err
}

func prepareUnbound(dir, zone string, addr netip.AddrPort) ([]string, error) {
	file, err := save(dir, "unbound.conf", fmt.Sprintf(`server:
  directory: %q
  username: ""
  chroot: ""
  pidfile: ""
  use-syslog: no
  interface: %s@%d
  num-threads: %d
  so-reuseport: yes
  do-not-query-localhost: no
  module-config: "iterator"
  minimal-responses: yes
  access-control: 127.0.0.0/8 allow
auth-zone:
  name: "virtual"
  zonefile: %q
  for-upstream: yes
  for-downstream: yes
  fallback-enabled: no
forward-zone:
  name: "."
  forward-addr: %s@%d
remote-control:
  control-enable: no
`, dir, addr.Addr(), addr.Port(), runtime.NumCPU(), zone, upstreamAddr.Addr(), upstreamAddr.Port()))
	return []string{"unbound", "-d", "-c", file}, err
}

func prepareKnot(dir, zone string, addr netip.AddrPort) ([]string, error) {
	file, err := save(dir, "knot.conf", fmt.Sprintf(`server:
  rundir: %q
  listen: %s@%d
  udp-workers: %d
  automatic-acl: off
database:
  storage: %q
zone:
  - domain: virtual
    file: %q
    zonefile-sync: -1
    journal-content: none
`, dir, addr.Addr(), addr.Port(), runtime.NumCPU(), dir, zone))
	return []string{"knotd", "-c", file}, err
}

func prepareNSD(dir, zone string, addr netip.AddrPort) ([]string, error) {
	file, err := save(dir, "nsd.conf", fmt.Sprintf(`server:
  ip-address: %s@%d
  server-count: %d
  reuseport: yes
  username: ""
  zonesdir: %q
  database: ""
  pidfile: %q
  xfrdfile: %q
  zonelistfile: %q
  xfrdir: %q
  logfile: ""
  rrl-ratelimit: 0
  minimal-responses: yes
remote-control:
  control-enable: no
zone:
  name: "virtual"
  zonefile: %q
`, addr.Addr(), addr.Port(), runtime.NumCPU(), dir, dir+"/pid", dir+"/xfrd", dir+"/zones", dir, zone))
	return []string{"nsd", "-d", "-c", file}, err
}
