package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/cluster"
	"holdfast/internal/peer"
	"holdfast/logrelay"
)

const both = "holdfast, durable on two nodes"

// pairFile is a cluster of two nodes on loopback that hold each other's lines.
const pairFile = `schema: 1
cluster: bench
domain: bench.example.com
networks: {main: {prefix: 127.0.0.0/8}}
roles: {service: {voters: 1, run: [logs]}}
nodes:
  fb1: {role: service, addresses: {main: 127.0.0.1}}
  fb2: {role: service, addresses: {main: 127.0.0.2}}
logs: {replicas: 2, replica_policy: wait}
`

// pairMain is both nodes, in one process: its CPU and memory are those of two.
func pairMain(ctx context.Context, dir string) error {
	file, err := cluster.Parse("bench.yaml", []byte(pairFile), map[string]cluster.SectionValidator{logrelay.Section: logrelay.ValidateSection})
	if err != nil {
		return err
	}
	if err := peer.Init(filepath.Join(dir, "ca"), "bench"); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 2)
	addrs := map[string]netip.Addr{"fb1": netip.MustParseAddr("127.0.0.1"), "fb2": netip.MustParseAddr("127.0.0.2")}
	for name, other := range map[string]string{"fb1": "fb2", "fb2": "fb1"} {
		pki := filepath.Join(dir, "pki-"+name)
		if err := peer.Issue(filepath.Join(dir, "ca"), pki, peer.Request{Identity: peer.Identity{Name: name, Role: peer.RoleServer}}); err != nil {
			return err
		}
		trust, err := peer.Load(pki)
		if err != nil {
			return err
		}
		at := func(port string) []netip.AddrPort {
			return []netip.AddrPort{netip.MustParseAddrPort(addrs[name].String() + ":" + port)}
		}
		hosts := "hosts"
		if name != "fb1" {
			hosts = "other"
		}
		s, err := logrelay.New(logrelay.Config{
			Node: name, DataDir: filepath.Join(dir, name), Dir: filepath.Join(dir, hosts),
			Listen: map[string][]netip.AddrPort{"relp": at(port), "tcp": at(tcpPort), "udp": at(udpPort), "replica": at("20515")},
		}, logrelay.Deps{
			File: file, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
			ReplicaTLS: trust.Server(peer.RoleServer), PeerTLS: trust.Client,
			Others: func() []logrelay.Other { return []logrelay.Other{{Name: other, Addr: addrs[other]}} },
		})
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		go func() { ended <- s.Run(ctx, func() {}) }()
	}
	err = <-ended
	cancel()
	if other := <-ended; err == nil {
		err = other
	}
	return err
}
