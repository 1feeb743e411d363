package main

import (
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/cluster"
	"holdfast/internal/health"
	"holdfast/internal/kernel/clock"
	"holdfast/ntpproxy"
)

// The section `ntp` is applied at once, but for the addresses that it listens
// on: who reloads is told of that key, and so is who looks at the conditions.
func TestReloadNamesTheKeyOfNTPThatWaitsForARestart(t *testing.T) {
	parse := func(listen string) *cluster.File {
		t.Helper()
		file, err := cluster.Parse("cluster.yaml", []byte(`schema: 1
cluster: c
domain: hpc.example.com
networks: {main: {prefix: 127.0.0.0/8}}
roles: {service: {voters: 1, run: [ntp]}}
nodes: {fb1: {role: service, addresses: {main: 127.9.8.1}}}
ntp: {stratum: 5, listen: ["`+listen+`"]}
`), sections())
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	first, changed := parse("127.9.8.21:11123"), parse("127.9.8.22:11123")
	board := health.NewBoard(time.Now, nil, nil)
	server, err := ntpproxy.New(ntpproxy.Config{Node: "fb1"}, ntpproxy.Deps{
		File: first, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
		Kernel: func() (clock.State, error) { return clock.State{}, nil }, Chrony: netip.MustParseAddrPort("127.0.0.1:1"),
	})
	if err != nil {
		t.Fatal(err)
	}
	runNTP(t, server)
	r := &reloader{started: first, board: board, clock: server}
	server.SetFile(changed)
	if parts := r.waiting(changed, nil, nil); !slices.Equal(parts, []string{"ntp.listen"}) {
		t.Errorf("waits for a restart: %v, want ntp.listen alone", parts)
	}
	if c := board.Conditions(); len(c) != 1 || c[0].Name != conditionRestart || !strings.Contains(c[0].Message, "ntp.listen") {
		t.Errorf("conditions %+v", c)
	}
	server.SetFile(first)
	if parts := r.waiting(first, nil, nil); len(parts) != 0 || len(board.Conditions()) != 0 {
		t.Errorf("changed back, and waiting: %v, %v", parts, board.Conditions())
	}
}
