package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/api"
	"holdfast/internal/state"
	"holdfast/raftstore"
)

type raftCmd struct {
	ListPeers      raftListCmd     `cmd:"" help:"List the servers in Raft's configuration; works without a leader."`
	AddPeer        raftAddCmd      `cmd:"" help:"Take a server into Raft's configuration, without a vote at first."`
	RemovePeer     raftRemoveCmd   `cmd:"" help:"Take a server out of Raft's configuration."`
	Demote         raftDemoteCmd   `cmd:"" help:"Take a server's vote, until it is promoted."`
	Promote        raftPromoteCmd  `cmd:"" help:"Give a server a vote."`
	TransferLeader raftTransferCmd `cmd:"" help:"Hand leadership to another server."`
	Verify         raftVerifyCmd   `cmd:"" help:"Compare the states of all servers, bit by bit."`
	Autopilot      pilotCmd        `cmd:"" help:"How the leader looks after the servers: look and change."`
	Inspect        raftInspectCmd  `cmd:"" help:"Look into the log and the snapshots of an agent that is down."`
	Recover        raftRecoverCmd  `cmd:"" help:"Begin anew with the freshest server after a majority was lost for good."`
	Stats          raftStatsCmd    `cmd:"" help:"Raft's state on this node."`
}

type raftListCmd struct{ connection }

func (*raftListCmd) Help() string {
	return "Example: holdfast raft list-peers\n\n" +
		"The node that is asked asks all servers itself, leader or not.\n" +
		"LAG is how many entries a server lacks of the longest log; HEARD how long ago it heard the leader that it follows;\n" +
		"LAST CONTACT, on the leader, how long ago a server last answered it;\n" +
		"LEVEL the highest feature level that its program reads (holdfast operator feature-level)."
}

func (c *raftListCmd) Run(con *console) error {
	return c.ask(func(client *api.Client) error {
		var peers []raftstore.Peer
		if err := client.StoreOperation(con.ctx, "peers", nil, false, &peers); err != nil {
			return err
		}
		if c.JSON {
			return con.json(peers)
		}
		rows := make([][]string, 0, len(peers))
		for _, p := range peers {
			role := raftRole(p.Name, []state.RaftServer{p.RaftServer})
			if p.Demoted {
				role += " (demoted)"
			}
			lag, heard := "-", "does not answer"
			if p.Reachable {
				lag, heard = strconv.FormatUint(p.Lag, 10), "never"
			}
			if p.Follows != "" {
				heard = p.Heard.Round(time.Millisecond).String() + " from " + p.Follows
			}
			level := "-"
			if p.Level > 0 {
				level = strconv.Itoa(p.Level)
			}
			rows = append(rows, []string{p.Name, p.ID, p.Address, role, lag, heard, contact(p.RaftServer), level})
		}
		return con.table([]string{"NODE", "ID", "ADDRESS", "ROLE", "LAG", "HEARD", "LAST CONTACT", "LEVEL"}, rows)
	})
}

func contact(s state.RaftServer) string {
	if !s.Known || s.LastContact == 0 {
		return "-"
	}
	return s.LastContact.Round(time.Millisecond).String()
}

type raftRemoveCmd struct {
	connection
	Peer string `arg:"" help:"Name or ID of the server."`
}

func (*raftRemoveCmd) Help() string {
	return "Example: holdfast raft remove-peer fbservice3\n\nA server that is alive and in the cluster file is added again by the leader."
}

func (c *raftRemoveCmd) Run(con *console) error {
	return c.ask(func(client *api.Client) error {
		if err := client.RemovePeer(con.ctx, c.Peer); err != nil {
			return err
		}
		return con.done(c.JSON, "removed "+c.Peer)
	})
}

// done reports an operation that has no other answer.
func (c *console) done(asJSON bool, sentence string) error {
	if asJSON {
		return c.json(map[string]bool{"done": true})
	}
	_, err := fmt.Fprintln(c.out, sentence)
	return err
}

type raftTransferCmd struct {
	connection
	To string `arg:"" optional:"" help:"Name or ID of the next leader; the most up to date voter unless said."`
}

func (*raftTransferCmd) Help() string { return "Example: holdfast raft transfer-leader fbservice2" }

func (c *raftTransferCmd) Run(con *console) error {
	return c.ask(func(client *api.Client) error {
		if err := client.TransferLeader(con.ctx, c.To); err != nil {
			return err
		}
		return con.done(c.JSON, "leadership was handed over")
	})
}

// shownElsewhere are the statistics of Raft's library that have a line of
// their own already, or a table: raft list-peers.
var shownElsewhere = map[string]bool{
	"state": true, "term": true, "last_log_index": true, "commit_index": true, "applied_index": true,
	"latest_configuration": true, "latest_configuration_index": true,
}

type raftStatsCmd struct{ connection }

func (*raftStatsCmd) Help() string { return "Example: holdfast raft stats --json" }

func (c *raftStatsCmd) Run(con *console) error {
	return c.ask(func(client *api.Client) error {
		status, err := client.RaftStatus(con.ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			return con.json(status)
		}
		rows := [][]string{
			{"state", strings.ToLower(status.State)},
			{"term", strconv.FormatUint(status.Term, 10)},
			{"last index", strconv.FormatUint(status.LastIndex, 10)},
			{"commit index", strconv.FormatUint(status.CommitIndex, 10)},
			{"applied index", strconv.FormatUint(status.AppliedIndex, 10)},
		}
		for _, key := range slices.Sorted(maps.Keys(status.Stats)) {
			if !shownElsewhere[key] {
				rows = append(rows, []string{strings.ReplaceAll(key, "_", " "), status.Stats[key]})
			}
		}
		return con.table([]string{"WHAT", "VALUE"}, rows)
	})
}
