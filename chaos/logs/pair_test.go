package logs

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/cluster"
	"holdfast/internal/peer"
	"holdfast/logrelay"
)

// pairFile is a cluster of two nodes on loopback that hold each other's lines,
// and acknowledge none that one disk has alone.
const pairFile = `schema: 1
cluster: pair
domain: pair.example.com
networks: {main: {prefix: 127.0.0.0/8}}
roles: {service: {voters: 1, run: [logs]}}
nodes:
  fb1: {role: service, addresses: {main: 127.0.1.1}}
  fb2: {role: service, addresses: {main: 127.0.1.2}}
logs: {replicas: 2, replica_policy: wait}
`

var pairAddrs = map[string]netip.Addr{"fb1": netip.MustParseAddr("127.0.1.1"), "fb2": netip.MustParseAddr("127.0.1.2")}

// loadPair runs two relays, and clients of the first.
func loadPair(what string) error {
	words := strings.Fields(what)
	file, err := cluster.Parse("pair.yaml", []byte(pairFile), map[string]cluster.SectionValidator{logrelay.Section: logrelay.ValidateSection})
	if err != nil {
		return err
	}
	addr := ""
	for i, name := range []string{"fb1", "fb2"} {
		trust, err := peer.Load(filepath.Join(words[2], name))
		if err != nil {
			return err
		}
		config := configOf(name, words[i], netip.AddrPortFrom(pairAddrs[name], 20514))
		config.Listen["replica"] = []netip.AddrPort{netip.AddrPortFrom(pairAddrs[name], 20515)}
		other := map[string]string{"fb1": "fb2", "fb2": "fb1"}[name]
		at, _, _, err := start(config, logrelay.Deps{
			File: file, ReplicaTLS: trust.Server(peer.RoleServer), PeerTLS: trust.Client,
			Others: func() []logrelay.Other { return []logrelay.Other{{Name: other, Addr: pairAddrs[other]}} },
		})
		if err != nil {
			return err
		}
		if addr == "" {
			addr = at
		}
	}
	return offer(addr, words[3])
}

// TestAPowerCutOfBothNodesLeavesEveryAcknowledgedLineOnEachDisk: two relays hold
// each other's lines, each on a disk of its own that forgets what was not
// flushed. The power of both goes at the same time, and what was acknowledged is
// on the first disk alone, and on the second alone.
func TestAPowerCutOfBothNodesLeavesEveryAcknowledgedLineOnEachDisk(t *testing.T) {
	dir := t.TempDir()
	authority, pki := filepath.Join(dir, "ca"), filepath.Join(dir, "pki")
	if err := peer.Init(authority, "pair"); err != nil {
		t.Fatal(err)
	}
	for name := range pairAddrs {
		if err := peer.Issue(authority, filepath.Join(pki, name), peer.Request{Identity: peer.Identity{Name: name, Role: peer.RoleServer}}); err != nil {
			t.Fatal(err)
		}
	}
	cutPower(t, 1, dir, []string{"/srv/data", "/srv/other"}, func(cut int) string {
		return fmt.Sprintf("%s=/srv/data /srv/other %s %d", pairEnv, pki, cut)
	})
}
