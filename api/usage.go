package api

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"

	"holdfast/internal/state"
)

// logLevel reads one of Consul's names; "" is info.
func logLevel(name string) (slog.Level, error) {
	switch strings.ToLower(name) {
	case "trace", "debug":
		return slog.LevelDebug, nil
	case "", "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "err", "error":
		return slog.LevelError, nil
	}
	return 0, fault(http.StatusBadRequest, "Unknown log level: %.20q; want debug, info, warn or error", name)
}

// operatorUsage counts what the catalog holds.
func (s *Server) operatorUsage(c *call) error {
	return s.query(c, func(snap *state.Snapshot, ws state.WatchSet) answer {
		nodes, index := snap.Nodes(ws)
		names, moved := snap.ServiceNames(ws)
		index = max(index, moved)
		instances := 0
		for name := range names {
			all, moved := snap.Instances(ws, name)
			index = max(index, moved)
			instances += len(all)
		}
		in := func(n int) map[string]map[string]int { return map[string]map[string]int{"default": {"default": n}} }
		return answer{index: index, value: map[string]any{"Usage": map[string]any{s.config.Datacenter: map[string]any{
			"Nodes": len(nodes), "Services": len(names), "ServiceInstances": instances, "BillableServiceInstances": 0,
			"ConnectServiceInstances":    map[string]int{},
			"PartitionNamespaceServices": in(len(names)), "PartitionNamespaceServiceInstances": in(instances),
		}}}}
	})
}

type keyringJSON struct {
	WAN         bool
	Datacenter  string
	Segment     string
	Messages    map[string]string `json:",omitempty"`
	Keys        map[string]int
	PrimaryKeys map[string]int
	NumNodes    int
}

// keyring answers all four methods of /v1/operator/keyring.
func (s *Server) keyring(c *call) error {
	status, err := s.changeKeyring(c)
	if err != nil {
		return err
	}
	if c.Method != http.MethodGet {
		return s.done(c)
	}
	return s.reply(c, []keyringJSON{{
		Datacenter: s.config.Datacenter, Messages: status.Failed, Keys: status.Keys, PrimaryKeys: status.Primary, NumNodes: status.Nodes,
	}})
}

func (s *Server) changeKeyring(c *call) (state.KeyringStatus, error) {
	ctx, cancel := c.carriedOut()
	defer cancel()
	if c.Method == http.MethodGet || c.Method == http.MethodHead {
		return s.agent.ListKeys(ctx)
	}
	var body struct{ Key string }
	if err := s.decode(c, &body); err != nil {
		return state.KeyringStatus{}, err
	}
	s.log.Info("changing the gossip's keys on an admin's request", "method", c.Method)
	switch c.Method {
	case http.MethodPost:
		return s.agent.InstallKey(ctx, body.Key)
	case http.MethodPut:
		return s.agent.UseKey(ctx, body.Key)
	default:
		return s.agent.RemoveKey(ctx, body.Key)
	}
}

// AutopilotConfig is how the leader looks after Raft's servers, in Consul's
// words and JSON.
type AutopilotConfig struct {
	CleanupDeadServers      bool
	LastContactThreshold    durationText
	MaxTrailingLogs         uint64
	MinQuorum               uint
	ServerStabilizationTime durationText
	CreateIndex             uint64
	ModifyIndex             uint64
}

// builtinAutopilot is what is shown of a store that can't be told.
func builtinAutopilot() AutopilotConfig {
	return AutopilotConfig{CleanupDeadServers: true, LastContactThreshold: "1s", MaxTrailingLogs: 1000, ServerStabilizationTime: "10s"}
}

// durationText is a duration as Consul writes it: "10s".
type durationText string

func (s *Server) autopilotConfig() AutopilotConfig {
	if s.autopilot == nil {
		return builtinAutopilot()
	}
	return s.autopilot.AutopilotConfig()
}

func (s *Server) autopilotConfiguration(c *call) error { return s.reply(c, s.autopilotConfig()) }

func (s *Server) autopilotConfigure(c *call) error {
	if s.autopilot == nil {
		return fault(http.StatusNotFound, "/v1/operator/autopilot/configuration: this store looks after its servers by itself; there is nothing to set")
	}
	wanted := s.autopilotConfig()
	if err := s.decode(c, &wanted); err != nil {
		return err
	}
	for _, d := range []durationText{wanted.LastContactThreshold, wanted.ServerStabilizationTime} {
		if _, err := parseWait(string(d)); err != nil {
			return fault(http.StatusBadRequest, "Error parsing autopilot config: duration %.40q: want a text such as \"10s\"", d)
		}
	}
	var cas *uint64
	if c.args.Has("cas") {
		index, err := strconv.ParseUint(c.args.Get("cas"), 10, 64)
		if err != nil {
			return fault(http.StatusBadRequest, "Error parsing cas value: want a number")
		}
		cas = &index
	}
	err := s.autopilot.SetAutopilotConfig(c.Context(), wanted, cas)
	switch {
	case errors.Is(err, state.ErrConflict):
		return s.reply(c, false)
	case err != nil:
		return fmt.Errorf("autopilot: %w", err)
	}
	return s.reply(c, true)
}
