package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"

	"holdfast/cluster"
	"holdfast/internal/peer"
)

// TestOnlyAMemberOfAVirtualAddressMayHaveItTakenOver: every node of the file can
// have a certificate, a compute node that sends its logs over TLS for one. Root
// there must not be able to move the service nodes' addresses.
func TestOnlyAMemberOfAVirtualAddressMayHaveItTakenOver(t *testing.T) {
	dir := t.TempDir()
	file, err := cluster.Load("../../examples/scibian.yaml", sections())
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(dir, "ca")
	if err := peer.Init(ca, file.Name); err != nil {
		t.Fatal(err)
	}
	trustOf := func(identity peer.Identity) *peer.Trust {
		t.Helper()
		out := filepath.Join(dir, identity.Name+string(identity.Role))
		if err := peer.Issue(ca, out, peer.Request{Identity: identity}); err != nil {
			t.Fatal(err)
		}
		trust, err := peer.Load(out)
		if err != nil {
			t.Fatal(err)
		}
		return trust
	}
	here := trustOf(peer.Identity{Name: "fbservice1", Role: peer.RoleServer})
	var current atomic.Pointer[cluster.File]
	current.Store(file)
	may := fellowMember(here, current.Load)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, may(r, r.URL.Path[1:]))
	}))
	server.TLS = here.ServerOptional()
	server.StartTLS()
	defer server.Close()
	answer := func(client *http.Client, vip string) string {
		t.Helper()
		got, err := client.Get(server.URL + "/" + vip)
		if err != nil {
			t.Fatal(err)
		}
		defer got.Body.Close()
		var word string
		fmt.Fscan(got.Body, &word)
		return word
	}
	for _, test := range []struct {
		name string
		role peer.Role
		vip  string
		want string
	}{
		{"fbservice2", peer.RoleServer, "dns1", "true"},
		{"fbfront1", peer.RoleAgent, "front", "true"},
		{"fbfront1", peer.RoleAgent, "dns1", "false"},
		{"fbservice2", peer.RoleServer, "front", "false"},
		{"fbservice2", peer.RoleServer, "unknown", "false"},
		{"fbcn01", peer.RoleAgent, "dns1", "false"},
		{"fbgone1", peer.RoleServer, "dns1", "false"},   // no longer in the file
		{"fbservice3", peer.RoleAdmin, "dns1", "false"}, // an admin who is called like a node: let in as an admin or not at all
	} {
		trust := trustOf(peer.Identity{Name: test.name, Role: test.role})
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: trust.ClientOf(peer.RoleServer, "fbservice1")}}
		if got := answer(client, test.vip); got != test.want {
			t.Errorf("%s %s asks for %s: %s, want %s", test.role, test.name, test.vip, got, test.want)
		}
		client.CloseIdleConnections()
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: trustOf(peer.Identity{Name: "fbservice4", Role: peer.RoleServer}).ClientOf(peer.RoleServer, "fbservice1")}}
	defer client.CloseIdleConnections()
	before := answer(client, "dns1")
	without := *file
	without.VIPs = nil
	current.Store(&without)
	if after := answer(client, "dns1"); before != "true" || after != "false" {
		t.Errorf("a member before a reload: %s, and after it took the address out of the file: %s", before, after)
	}
}
