package raftstore

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"holdfast/internal/durable"
	"holdfast/internal/state"
)

// Recovery says which of the servers that survived the loss of the majority is
// to begin anew, and what that costs.
type Recovery struct {
	// Survivors in the order of how much they have: by the term of the last
	// entry, then by its index, as Raft votes. Those that are damaged and given
	// up come last: nobody knows how much they had.
	Survivors []Inspection `json:"survivors"`
	// Lost are the servers of the freshest one's configuration that are not
	// among the survivors.
	Lost []state.RaftServer `json:"lost"`
}

// Freshest is the survivor that has everything that any sound one has.
func (r Recovery) Freshest() Inspection { return r.Survivors[0] }

// PlanRecovery compares the survivors. It refuses what would lose data without
// need: when a majority of the voters is sound among them, when they are of
// several stores, and when one is damaged that is not among givenUp, node IDs of
// servers whose data may be lost: what a damaged one has can't be told, and could
// be more than any other.
func PlanRecovery(survivors []Inspection, givenUp ...string) (Recovery, error) {
	r := Recovery{Survivors: slices.Clone(survivors)}
	if len(survivors) == 0 {
		return r, errors.New("recover: no survivor is named")
	}
	slices.SortStableFunc(r.Survivors, func(a, b Inspection) int {
		return cmp.Or(cmp.Compare(oneIf(a.Damage != ""), oneIf(b.Damage != "")), cmp.Compare(b.LastTerm, a.LastTerm), cmp.Compare(b.LastIndex, a.LastIndex))
	})
	best := r.Freshest()
	if err := r.belong(); err != nil {
		return r, err
	}
	if err := r.giveUp(givenUp); err != nil {
		return r, err
	}
	if best.Damage != "" {
		return r, fmt.Errorf("recover: no survivor is sound: %s is damaged: %s", best.Dir, best.Damage)
	}
	if best.self() == nil {
		return r, fmt.Errorf("recover: the configuration of %s does not hold itself", best.Dir)
	}
	sound := map[string]bool{}
	for _, s := range r.Survivors {
		sound[s.NodeID] = s.Damage == ""
	}
	voters, alive := 0, 0
	for _, s := range best.Servers {
		if _, here := sound[s.ID]; !here {
			r.Lost = append(r.Lost, s)
		}
		if s.Voter {
			voters++
			if sound[s.ID] { // one that is damaged does not start
				alive++
			}
		}
	}
	if 2*alive > voters {
		return r, fmt.Errorf("recover: %d of %d voters survive, a majority: start them, and nothing is lost", alive, voters)
	}
	for _, s := range r.Survivors {
		if s.Damage != "" && !slices.Contains(givenUp, s.NodeID) {
			return r, fmt.Errorf("recover: server %s (%s) is damaged, and may have acknowledged writes that no other survivor has: %s. If its disk can't be made to give them back, give it up (--give-up %s), and what it alone has is lost", s.NodeID, s.Dir, s.Damage, s.NodeID)
		}
	}
	return r, nil
}

// belong refuses survivors of several stores.
func (r Recovery) belong() error {
	best, seen := r.Freshest(), map[string]bool{}
	for _, s := range r.Survivors {
		switch {
		case s.NodeID == "" || s.StoreID == "":
			return fmt.Errorf("recover: %s belongs to no store", s.Dir)
		case s.StoreID != best.StoreID:
			return fmt.Errorf("recover: %s is of store %s, %s of store %s: they never had the same data", s.Dir, s.StoreID, best.Dir, best.StoreID)
		case seen[s.NodeID]:
			return fmt.Errorf("recover: server %s is named twice", s.NodeID)
		}
		seen[s.NodeID] = true
	}
	return nil
}

// giveUp refuses to give up what is not damaged.
func (r Recovery) giveUp(nodes []string) error {
	for _, id := range nodes {
		i := slices.IndexFunc(r.Survivors, func(s Inspection) bool { return s.NodeID == id })
		switch {
		case i < 0:
			return fmt.Errorf("recover: server %s is to be given up, and is not among the survivors", id)
		case r.Survivors[i].Damage == "":
			return fmt.Errorf("recover: server %s (%s) is to be given up, and is not damaged: it counts", id, r.Survivors[i].Dir)
		}
	}
	return nil
}

// self is the server in its own configuration; nil when it is not there.
func (in Inspection) self() *state.RaftServer {
	i := slices.IndexFunc(in.Servers, func(s state.RaftServer) bool { return s.ID == in.NodeID })
	if i < 0 {
		return nil
	}
	return &in.Servers[i]
}

// Recover makes the freshest survivor, whose agent is down, the only server of
// a new store with its data, and returns that store's ID. Entries that were
// written but not acknowledged become part of it. The new ID keeps out the
// servers that were lost, should they come back: they, and the other
// survivors, must be wiped; the new store then takes them in.
//
// The record and the log as they were are kept in raft/before-recovery-TIME.
func Recover(r Recovery, now time.Time) (storeID string, err error) {
	best := r.Freshest()
	defer func() {
		if err != nil {
			err = fmt.Errorf("recover %s: %w", best.Dir, err)
		}
	}()
	dir := filepath.Join(best.Dir, "raft")
	kept := filepath.Join(dir, "before-recovery-"+now.UTC().Format("20060102T150405Z"))
	bolt, err := openBolt(filepath.Join(dir, logName)) // its lock keeps an agent out
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, bolt.Close()) }()
	again, err := os.ReadFile(filepath.Join(best.Dir, recordName))
	if err != nil {
		return "", err
	}
	before := []string{filepath.Join(dir, logName), filepath.Join(best.Dir, recordName)}
	for _, path := range frontPaths(dir) { // a log of an earlier version has none
		if _, err := os.Stat(path); err == nil {
			before = append(before, path)
		}
	}
	if err := keepFiles(kept, before...); err != nil {
		return "", fmt.Errorf("keep what is there: %w", err)
	}
	rec, err := decodeRecord(again)
	if err != nil {
		return "", err
	}
	if rec.NodeID != best.NodeID || rec.ClusterID != best.StoreID {
		return "", fmt.Errorf("it is another than when it was inspected")
	}
	f, err := openRecord(best.Dir, rec.NodeID)
	if err != nil {
		return "", err
	}
	newest, err := openLogOver(dir, bolt)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(newest.Close(), err) }()
	// The ID first: with the new configuration and the old ID, servers that
	// were lost could come back and not notice.
	storeID = newUUID()
	err = f.update(func(r *record) bool {
		r.ClusterID, r.Forming = storeID, acceptor{}
		return true
	})
	if err != nil {
		return "", err
	}
	return storeID, recoverRaft(best, newest, bolt, dir)
}

// recoverRaft writes a snapshot with everything and this server alone, and
// empties the log.
func recoverRaft(best Inspection, log raft.LogStore, stable raft.StableStore, dir string) error {
	files, err := raft.NewFileSnapshotStoreWithLogger(dir, keepSnapshots, newRaftLog(slog.New(slog.DiscardHandler), new(atomic.Bool)))
	if err != nil {
		return err
	}
	self := best.self()
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(self.ID)
	c.Logger = newRaftLog(slog.New(slog.DiscardHandler), new(atomic.Bool))
	_, trans := raft.NewInmemTransport(raft.ServerAddress(self.Address))
	machine := &fsm{state: state.New(), log: slog.New(slog.DiscardHandler), halt: func(error) {}}
	err = raft.RecoverCluster(c, machine, &checkedLog{LogStore: log}, checkedStable{stable}, snapshotStore{files, filepath.Join(dir, snapshotsDir)}, trans, raft.Configuration{
		Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(self.ID), Address: raft.ServerAddress(self.Address)}},
	})
	if _, halted := machine.progress(); halted != nil {
		return halted
	}
	return err
}

// keepFiles copies files into a new directory, safe on the disk.
func keepFiles(dir string, paths ...string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for _, path := range paths {
		from, err := os.Open(path)
		if err != nil {
			return err
		}
		err = durable.ReplaceFunc(filepath.Join(dir, filepath.Base(path)), 0o600, func(w io.Writer) error {
			_, err := io.Copy(w, from)
			return err
		})
		if err := errors.Join(err, from.Close()); err != nil {
			return err
		}
	}
	return nil
}

// Sentence says what a recovery does, for who is to agree to it.
func (r Recovery) Sentence() string {
	names := func(list []string) string {
		if len(list) == 0 {
			return "nobody"
		}
		return strings.Join(list, ", ")
	}
	var lost, others, givenUp []string
	for _, s := range r.Lost {
		lost = append(lost, s.ID+" at "+s.Address)
	}
	for _, s := range r.Survivors[1:] {
		others = append(others, s.NodeID+" ("+s.Dir+")")
		if s.Damage != "" {
			givenUp = append(givenUp, s.NodeID+" ("+s.Dir+")")
		}
	}
	return fmt.Sprintf("%s becomes the only server of a new store with the data up to entry %d of term %d. "+
		"Lost, and never to be started with their old data: %s. To be wiped and started, they are taken in: %s. "+
		"Damaged and given up, with what they alone have: %s. "+
		"What was acknowledged and is on none of the sound survivors is gone.", r.Freshest().Dir, r.Freshest().LastIndex, r.Freshest().LastTerm, names(lost), names(others), names(givenUp))
}
