package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/cluster"
	"holdfast/internal/peer"
	"holdfast/internal/state"
	"holdfast/raftstore"
	"holdfast/vrrp"
)

// Both have a certificate of the authority, of the same role and made by the same
// command: which node it is decides.
func TestAComputeNodesCertificateDoesNotGetItTheState(t *testing.T) {
	n := newNode(t, "")
	near := strings.TrimSuffix(n.addr, "1")
	n.edit(t, "roles: {", "roles: {frontend: {}, compute: {agent: false}, ")
	n.edit(t, "nodes: {", fmt.Sprintf("nodes: {fbfront1: {role: frontend, addresses: {main: %s2}}, fbcn1: {role: compute, addresses: {main: %s3}}, ", near, near))
	for _, name := range []string{"fbfront1", "fbcn1"} {
		n.expect(t, exitOK, name, "pki", "issue", "--ca", filepath.Join(n.dir, "ca"), "--config", filepath.Join(n.dir, "cluster.yaml"),
			"--out", filepath.Join(n.dir, "issued"), "--nodes", name)
	}
	// It has come by the gossip's key, too.
	key, err := os.ReadFile(filepath.Join(n.dir, "issued", "fbfront1", "gossip.key"))
	if err == nil {
		err = os.WriteFile(filepath.Join(n.dir, "issued", "fbcn1", "gossip.key"), key, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	n.start(t, "fbservice1")
	n.until(t, "a leader", func() bool { out, _ := n.run(t, "", "status"); return strings.Contains(out, "Leader: fbservice1") })
	ask := func(name string) (int, string) {
		t.Helper()
		trust, err := peer.Load(filepath.Join(n.dir, "issued", name))
		if err != nil {
			t.Fatal(err)
		}
		if trust.Identity().Role != peer.RoleAgent {
			t.Fatalf("%s has a certificate of role %s", name, trust.Identity().Role)
		}
		f := raftstore.Follower{Cluster: "cli", Node: name, NodeID: "00000000-0000-4000-8000-000000000001", Trust: trust}
		web := &http.Client{Timeout: patience, Transport: &http.Transport{DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return f.Dial(ctx, address, "fbservice1")
		}}}
		defer web.CloseIdleConnections()
		response, err := web.Get("http://" + n.addr + ":8300/v1/stream/where?unit=node")
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(text)
	}
	if code, text := ask("fbfront1"); code != http.StatusOK {
		t.Errorf("a frontend: %d %s", code, text)
	}
	if code, text := ask("fbcn1"); code != http.StatusForbidden || !strings.Contains(text, "fbcn1 has role compute, which runs no agent") {
		t.Errorf("a compute node: %d %s", code, text)
	}
}

// A frontend leases the fenced addresses of which it is a member, and no others.
func TestANodeLeasesItsOwnFencedAddressesAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cluster.yaml")
	text := `schema: 1
cluster: c
domain: c.example.com
networks: {main: {prefix: 10.9.9.0/24}}
roles: {service: {voters: 1, run: [dns]}, frontend: {}}
nodes: {s1: {role: service, addresses: {main: 10.9.9.1}}, f1: {role: frontend, addresses: {main: 10.9.9.2}}, f2: {role: frontend, addresses: {main: 10.9.9.3}}}
vips:
  ours: {network: main, address: 10.9.9.100, vrid: 20, members: [f1, f2], vrrp: {fenced: true}}
  plain: {network: main, address: 10.9.9.101, vrid: 21, members: [f1, f2]}
  theirs: {network: main, address: 10.9.9.102, vrid: 22, members: [s1, f2], vrrp: {fenced: true}}
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := cluster.Load(path, sections())
	if err != nil {
		t.Fatal(err)
	}
	for router, want := range map[string]bool{"ours": true, "plain": false, "theirs": false, "f1": false, "none": false} {
		err := nodeWrites(file, "f1", state.PutDocument{Verb: state.CAS, Document: state.Document{Kind: vrrp.KindLease, Key: router}})
		if (err == nil) != want {
			t.Errorf("f1 leases %s: %v", router, err)
		}
	}
}
