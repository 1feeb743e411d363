package raftstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/state"
	"holdfast/lab/stall"
)

func TestThreeServersFormOneStore(t *testing.T) {
	h := newHosts(t, 3, 3)
	start := time.Now()
	h.startAll()
	leader := h.leader()
	t.Logf("first leader after %v", time.Since(start))
	id := leader.store.ClusterID()
	eventually(t, "all announce it", func() error { // which a server does after it is of use
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, o := range h.all {
			if o.store.ClusterID() != id || o.clusterID != id {
				return fmt.Errorf("%s has store %q and announced %q, the leader has %s", o.name, o.store.ClusterID(), o.clusterID, id)
			}
		}
		return nil
	})
	h.settled("fb1 fb2 fb3", "")
	h.follower().put("k", "v")
	h.everywhere("k", "v")
	eventually(t, "the record of the store", func() error {
		if c := leader.state.Snapshot().Cluster(); c == nil || c.ID != id || c.Name != "foobar" {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
}

func TestSingleServerFormsAloneAtOnce(t *testing.T) {
	t.Parallel()
	machine := stall.Test(t, t.TempDir())
	for try := 1; ; try++ { // the best of three counts: the machine may be busy
		h := newHostsAlone(t, 1, 1)
		start := time.Now()
		o := h.all["fb1"].start(func(c *Config) { c.Servers, c.Voters = nil, 0 })
		h.leader()
		took := machine.Took(start, time.Now())
		o.put("k", "v")
		if o.get("k") != "v" {
			t.Error("a write that was acknowledged is not in the state")
		}
		if took <= 3*time.Second {
			return
		}
		if try == 3 {
			t.Fatalf("a single server took %v, without the time that the machine stood still", took)
		}
	}
}

func TestMinorityFormsNothing(t *testing.T) {
	h := newHosts(t, 4, 3)
	one, two := h.all["fb1"].start(), h.all["fb2"].start()
	eventually(t, "the condition that says why", func() error {
		for _, o := range []*host{one, two} {
			c := o.board.Conditions()
			if len(c) != 1 || c[0].Name != conditionNoLeader || !strings.Contains(c[0].Message, "a majority must be up; seen: fb1, fb2") {
				return fmt.Errorf("%s: %+v", o.name, c)
			}
		}
		return nil
	})
	if id := one.store.ClusterID() + two.store.ClusterID(); id != "" {
		t.Fatalf("two of four servers formed store %s", id)
	}
	h.all["fb4"].start()
	h.settled("fb1 fb2 fb4", "")
	eventually(t, "no condition is left", func() error { // it is cleared after the leader is known
		if c := one.board.Conditions(); len(c) != 0 {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
	h.all["fb3"].start() // late: the votes are given away
	h.settled("fb1 fb2 fb4", "fb3")
}

func TestServersWithDifferentFilesSayWhyTheyFormNothing(t *testing.T) {
	h := newHosts(t, 3, 1)
	one := h.all["fb1"].start()
	two := h.all["fb2"].start(func(c *Config) { c.Servers = []string{"fb1", "fb2"} })
	eventually(t, "the condition that says why", func() error {
		for o, want := range map[*host]string{
			one: "a majority is up, but does not agree; fb2: its cluster file lists the servers [fb1 fb2 fb3], ours lists [fb1 fb2]",
			two: "a majority is up, but does not agree; fb1: its cluster file lists the servers [fb1 fb2], ours lists [fb1 fb2 fb3]",
		} {
			c := o.board.Conditions()
			if len(c) != 1 || !strings.Contains(c[0].Message, want) {
				return fmt.Errorf("%s: %+v", o.name, c)
			}
		}
		return nil
	})
}

// A store that exists, though its servers are down, is not doubled.
func TestNoSecondStoreBesideOneThatIsDown(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.startAll()
	h.leader()
	for _, o := range h.running() {
		o.stop()
	}
	for _, name := range []string{"fb1", "fb2"} {
		h.all[name].wipe()
		h.all[name].start() // fb3 is down, but the gossip remembers its store
	}
	eventually(t, "the condition that says why", func() error {
		c := h.all["fb1"].board.Conditions()
		if len(c) != 1 || !strings.Contains(c[0].Message, "known to fb3) to take it in") {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
	if id := h.all["fb1"].store.ClusterID(); id != "" {
		t.Fatalf("formed a second store, %s", id)
	}
}

func TestNextLeaderAfterTheLeaderDies(t *testing.T) {
	h := newHosts(t, 3, 3)
	machine := stall.Test(t, t.TempDir())
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	old := h.leader()
	old.put("before", "1")
	h.everywhere("before", "1")
	old.kill()
	start := time.Now()
	survivor := h.running()[0]
	survivor.put("after", "2") // held across the election
	t.Logf("first write %v after the leader's death", time.Since(start))
	machine.Judge(t, "the first write", 10*time.Second, start, time.Now()) // chaos measures it
	h.everywhere("after", "2")
	old.start()
	h.everywhere("after", "2")
	h.settled("fb1 fb2 fb3", "")
}

// A leader that lost its power neither answers nor refuses: trying to reach it
// takes all the time that a write is held.
func TestWriteThatTriedADeadLeaderGoesToTheNext(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.timing = 4 // the election must be over by the end of the attempt, also on a machine that stands still for seconds
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	old := h.leader()
	survivor := h.besides(old)[0]
	old.store.engine.Load().net.stop()
	silent, err := net.Listen("tcp", old.address.String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	_, err = survivor.tryPut("k", "v")
	for errors.Is(err, state.ErrUnknownOutcome) { // sent over the connection that broke
		_, err = survivor.tryPut("k", "v")
	}
	if err != nil {
		t.Errorf("a write while the leader dies: %v", err)
	}
	old.kill()
}

func TestLeaderHandsOverBeforeItStops(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.timing = calm
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	for try := 1; ; try++ { // it may lose the office in the moment before
		old := h.leader()
		old.stop()
		if strings.Contains(old.log.String(), "leadership handed over before the stop") {
			break
		}
		if try == 3 {
			t.Fatal("the leader stopped without handing over")
		}
		old.start()
	}
	start := time.Now()
	h.running()[0].put("k", "v")
	t.Logf("first write %v after an orderly stop", time.Since(start))
}

func TestWritesFromAnyServerAreReadableThere(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.startAll()
	h.leader()
	for i := range 20 {
		for _, o := range h.running() {
			key, value := fmt.Sprint("k", i), o.name
			o.put(key, value)
			if got := o.get(key); got != value {
				t.Fatalf("%s reads %q after it wrote %q", o.name, got, value)
			}
		}
	}
}

func TestResultsOfCommandsSurviveForwarding(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.startAll()
	follower := h.follower()
	h.leader().put("k", "v")
	propose := func(cmd state.Command) error {
		return asked(func() error { _, err := follower.store.Propose(t.Context(), cmd); return err })
	}
	err := propose(state.KV{Verb: state.CAS, Entry: state.Entry{Key: "k", Value: []byte("w"), ModifyIndex: 0}})
	if !errors.Is(err, state.ErrConflict) {
		t.Fatalf("CAS of a key that exists: %v, want ErrConflict", err)
	}
	if follower.get("k") != "v" {
		t.Error("after a conflict the follower does not see what it lost against")
	}
	err = propose(state.KV{Verb: state.Set, Entry: state.Entry{}})
	if !errors.Is(err, state.ErrInvalid) {
		t.Errorf("a key without a name: %v, want ErrInvalid", err)
	}
}

func TestWritesAreRefusedWithoutAQuorum(t *testing.T) {
	h := newHosts(t, 4, 3)
	h.timing = 1
	machine := stall.Test(t, t.TempDir())
	h.startAll()
	h.settled("fb1 fb2 fb3", "fb4")
	h.all["fb1"].put("k", "v")
	h.everywhere("k", "v")
	for _, name := range []string{"fb1", "fb2", "fb4"} {
		h.all[name].kill()
	}
	last := h.all["fb3"]
	eventually(t, "fb3 notices", func() error {
		if _, _, ok := last.store.Leader(); ok {
			return errors.New("it still knows a leader")
		}
		return nil
	})
	for try := 1; ; try++ { // a machine that is busy is asked again
		start := time.Now()
		_, err := last.tryPut("k", "w")
		end := time.Now()
		took := machine.Took(start, end)
		if !errors.Is(err, state.ErrNoLeader) || !strings.Contains(err.Error(), "of the voters fb1, fb2, fb3 a majority must be up; down: fb1, fb2; start them (waited 2s)") {
			t.Errorf("write without a quorum: %v", err)
		}
		if end.Sub(start) < 1500*time.Millisecond || took > 4*time.Second && try == 3 {
			t.Errorf("refused after %v, %v without the time that the machine stood still, want about 2 s", end.Sub(start), took)
		}
		if took <= 4*time.Second || try == 3 {
			break
		}
	}
	if err := last.store.ReadBarrier(t.Context()); !errors.Is(err, state.ErrNoLeader) {
		t.Errorf("barrier without a quorum: %v", err)
	}
	if last.get("k") != "v" {
		t.Error("what was known is no longer readable")
	}
	if st := last.store.Status(); len(st.Servers) != 4 || st.Leader.ID != "" || st.Node != "fb3" {
		t.Errorf("status without a leader: %+v", st)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := last.store.Propose(ctx, state.KV{Verb: state.Set, Entry: state.Entry{Key: "k"}})
	if !errors.Is(err, state.ErrNoLeader) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("write with an impatient caller: %v", err)
	}
	h.all["fb2"].start()
	last.put("k", "x")
	h.everywhere("k", "x")
}

func TestAllServersRestartInAnyOrder(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	id := h.leader().store.ClusterID()
	for i := range 50 {
		h.follower().put(fmt.Sprint("k", i), "v")
	}
	for _, order := range [][]string{{"fb3", "fb1", "fb2"}, {"fb2", "fb3", "fb1"}} {
		for _, o := range h.running() {
			o.kill()
		}
		for _, name := range order {
			h.all[name].start()
		}
		h.settled("fb1 fb2 fb3", "")
		h.everywhere("k49", "v")
		if got := h.leader().store.ClusterID(); got != id {
			t.Fatalf("store %s became %s", id, got)
		}
	}
}

func TestFourthServerStaysWarmAndTakesAFreeVote(t *testing.T) {
	h := newHosts(t, 4, 3)
	h.startAll()
	h.settled("fb1 fb2 fb3", "fb4")
	h.all["fb2"].put("k", "v")
	h.everywhere("k", "v")
	h.all["fb4"].put("k", "w") // a non-voter forwards too
	h.everywhere("k", "w")
	gone := h.all["fb3"]
	gone.stop()
	gone.down(state.Left)
	h.settled("fb1 fb2 fb4", "")
	gone.start()
	h.settled("fb1 fb2 fb4", "fb3")
}

// changes are those of the membership that all servers tell of, in order: a
// stall may have given the cluster another leader between two of them.
func (h *hosts) changes() string {
	var lines []string
	for _, o := range h.all {
		for line := range strings.Lines(o.log.String()) {
			if strings.Contains(line, "membership changed") {
				lines = append(lines, line)
			}
		}
	}
	// They begin with the time; those of one server that have the same are in order.
	slices.SortStableFunc(lines, func(a, b string) int {
		a, _, _ = strings.Cut(a, " ")
		b, _, _ = strings.Cut(b, " ")
		return strings.Compare(a, b)
	})
	return strings.Join(lines, "")
}

func TestWipedServerIsTakenBackAndItsOldVoteIsGoneFirst(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	for i := range 20 {
		h.all["fb1"].put(fmt.Sprint("k", i), "v")
	}
	victim := h.follower()
	old := victim.id
	victim.kill()
	victim.wipe()
	victim.start()
	h.settled("fb1 fb2 fb3", "")
	h.everywhere("k19", "v")
	eventually(t, "the leaders' story", func() error {
		log := h.changes()
		removed := strings.Index(log, "change=remove server=\""+victim.name+" "+old)
		added := strings.Index(log, "change=add server=\""+victim.name+" "+victim.id)
		promoted := strings.Index(log, "change=promote server=\""+victim.name+" "+victim.id)
		if removed < 0 || added < removed || promoted < added {
			return fmt.Errorf("removed at %d, added at %d, promoted at %d of the log", removed, added, promoted)
		}
		return nil
	})
	if victim.store.ClusterID() != h.leader().store.ClusterID() {
		t.Error("the wiped server did not learn its store")
	}
	if n := len(h.leader().store.Status().Servers); n != 3 {
		t.Errorf("%d servers in the configuration", n)
	}
}

// The wiped server is the leader: the others elect one without its new self.
func TestWipedLeaderIsTakenBack(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	victim := h.leader()
	victim.put("k", "v")
	h.everywhere("k", "v")
	victim.kill()
	victim.wipe()
	victim.start()
	h.settled("fb1 fb2 fb3", "")
	h.everywhere("k", "v")
}

func TestServerThatMovedIsFollowed(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	moved := h.follower()
	moved.stop()
	moved.address = freePort(t)
	moved.start()
	eventually(t, "the new address in the configuration", func() error {
		for _, s := range h.leader().store.Status().Servers {
			if s.Name == moved.name && s.Address == moved.address.String() {
				return nil
			}
		}
		return errors.New("it is not there")
	})
	h.leader().put("k", "v")
	h.everywhere("k", "v")
}

// All servers get new addresses while they are down: no leader can write that
// down first, and still they find each other.
func TestAllServersMoved(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	h.leader().put("k", "v")
	for _, o := range h.running() {
		o.stop()
	}
	for _, name := range h.order {
		h.all[name].address = freePort(t)
		h.all[name].start()
	}
	h.settled("fb1 fb2 fb3", "")
	h.everywhere("k", "v")
}
