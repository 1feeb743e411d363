package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"holdfast/raftstore"
)

type raftInspectCmd struct {
	DataDir string `type:"path" default:"/var/lib/holdfast" env:"HOLDFAST_DATA_DIR" help:"The data directory of an agent that is down."`
	Entries int    `default:"0" help:"List so many of the last entries of the log, at most 1000." placeholder:"N"`
	JSON    bool   `name:"json" help:"Print JSON, as holdfast raft recover --survivor reads it."`
}

func (*raftInspectCmd) Help() string {
	return "Examples:\n  holdfast raft inspect --entries 20\n  holdfast raft inspect --json > /root/fbservice2.json   # for holdfast raft recover\n\n" +
		"Reads the log, the votes and the snapshots with their checksums, and changes nothing. Exit status 6 when something is damaged."
}

func (c *raftInspectCmd) Run(con *console) error {
	in, err := raftstore.Inspect(c.DataDir, c.Entries)
	if err != nil {
		return err
	}
	if err := c.print(con, in); err != nil {
		return err
	}
	if in.Damage != "" {
		return &exitError{exitDegraded, fmt.Errorf("damaged: %s", in.Damage)}
	}
	return nil
}

func (c *raftInspectCmd) print(con *console, in raftstore.Inspection) error {
	if c.JSON {
		return con.json(in)
	}
	rows := [][]string{
		{"node", in.NodeID}, {"store", in.StoreID}, {"term", strconv.FormatUint(in.Term, 10)},
		{"log", fmt.Sprintf("entries %d to %d, the last of term %d", in.FirstIndex, in.LastIndex, in.LastTerm)},
	}
	for _, s := range in.Servers {
		role := "no vote"
		if s.Voter {
			role = "voter"
		}
		rows = append(rows, []string{"server", fmt.Sprintf("%s at %s, %s", s.ID, s.Address, role)})
	}
	for _, s := range in.Snapshots {
		state := "verified"
		if s.Problem != "" {
			state = s.Problem
		}
		rows = append(rows, []string{"snapshot", fmt.Sprintf("%s, up to entry %d of term %d, %d bytes: %s", s.ID, s.Index, s.Term, s.Bytes, state)})
	}
	if err := con.table([]string{"WHAT", "VALUE"}, rows); err != nil || len(in.Tail) == 0 {
		return err
	}
	tail := make([][]string, 0, len(in.Tail))
	for _, e := range in.Tail {
		tail = append(tail, []string{strconv.FormatUint(e.Index, 10), strconv.FormatUint(e.Term, 10), e.Type, e.Command, strconv.Itoa(e.Bytes)})
	}
	return con.table([]string{"INDEX", "TERM", "TYPE", "COMMAND", "BYTES"}, tail)
}

type raftRecoverCmd struct {
	DataDir  string   `type:"path" default:"/var/lib/holdfast" env:"HOLDFAST_DATA_DIR" help:"The data directory of this machine's agent, which must be down."`
	Survivor []string `type:"existingfile" help:"What holdfast raft inspect --json says on each other server whose disk survived." placeholder:"FILE"`
	GiveUp   []string `help:"The ID of a survivor that is damaged, whose data may be lost." placeholder:"NODE"`
	Yes      bool     `help:"Do it. Without this the command only tells what it would do."`
	JSON     bool     `name:"json" help:"Print JSON."`
}

func (*raftRecoverCmd) Help() string {
	return "Examples:\n" +
		"  holdfast raft recover --survivor fbservice2.json         # tell what would be done\n" +
		"  holdfast raft recover --survivor fbservice2.json --yes   # do it\n\n" +
		"For the day on which a majority of the voters is lost for good. Stop all agents, take holdfast raft inspect --json on each\n" +
		"server whose disk survived, and run this on the freshest: the command says which that is. It becomes the only server of a\n" +
		"new store with its data; the others are wiped, started, and taken in by it. Refused: while a majority survives, on any\n" +
		"other than the freshest, on damaged data, while a survivor is damaged that is not named by --give-up (it may have more than\n" +
		"the others), and while an agent runs."
}

func (c *raftRecoverCmd) Run(con *console) error {
	own, err := raftstore.Inspect(c.DataDir, 0)
	if err != nil {
		return err
	}
	survivors := []raftstore.Inspection{own}
	for _, path := range c.Survivor {
		in, err := readSurvivor(path)
		if err != nil {
			return &exitError{exitUsage, err}
		}
		survivors = append(survivors, in)
	}
	plan, err := raftstore.PlanRecovery(survivors, c.GiveUp...)
	if err != nil {
		return err
	}
	if !c.Yes {
		return c.preview(con, own, plan)
	}
	if best := plan.Freshest(); best.NodeID != own.NodeID {
		return fmt.Errorf("refused: server %s (%s) has more than this one: run the command there; nothing was changed", best.NodeID, best.Dir)
	}
	id, err := raftstore.Recover(plan, time.Now())
	if err != nil {
		return err
	}
	if c.JSON {
		return con.json(map[string]any{"store": id, "recovery": plan})
	}
	_, err = fmt.Fprintf(con.out, "recovered as store %s: start the agent here first, then wipe the data directories of the other servers and start them\n", id)
	return err
}

// readSurvivor reads what raft inspect --json printed on another server.
func readSurvivor(path string) (in raftstore.Inspection, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return in, err
	}
	if err := json.Unmarshal(data, &in); err != nil {
		return in, fmt.Errorf("%s is not what holdfast raft inspect --json prints: %w", path, err)
	}
	if in.NodeID == "" {
		return in, fmt.Errorf("%s is not what holdfast raft inspect --json prints: it names no node", path)
	}
	in.Dir = path
	return in, nil
}

// preview tells what --yes would do.
func (c *raftRecoverCmd) preview(con *console, own raftstore.Inspection, plan raftstore.Recovery) error {
	if c.JSON {
		return con.json(plan)
	}
	rows := make([][]string, 0, len(plan.Survivors))
	for i, s := range plan.Survivors {
		verdict := "to be wiped"
		switch {
		case i == 0:
			verdict = "freshest"
		case s.Damage != "":
			verdict = "damaged, given up, to be wiped: " + s.Damage
		}
		rows = append(rows, []string{s.NodeID, s.Dir, strconv.FormatUint(s.LastTerm, 10), strconv.FormatUint(s.LastIndex, 10), verdict})
	}
	err := con.table([]string{"SURVIVOR", "FROM", "LAST TERM", "LAST INDEX", ""}, rows)
	next := "Nothing was changed; --yes does it."
	if plan.Freshest().NodeID != own.NodeID {
		next = "Nothing was changed; run the command on the freshest."
	}
	_, printErr := fmt.Fprintln(con.out, strings.Join([]string{plan.Sentence(), next}, "\n"))
	return errors.Join(err, printErr)
}
