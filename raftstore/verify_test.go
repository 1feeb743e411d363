package raftstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/state"
)

// parseDigests reads servers and what they answered, one a word: NAME, + for a
// vote, = and the state unless it did not answer, @ and its program's version.
func parseDigests(text string) (servers []member, digests []digest) {
	for _, word := range strings.Fields(text) {
		word, version, _ := strings.Cut(word, "@")
		head, sum, answered := strings.Cut(word, "=")
		name := strings.TrimSuffix(head, "+")
		servers = append(servers, member{ID: name, Name: name, Voter: name != head})
		if answered {
			digests = append(digests, digest{ID: name, Index: 7, Sum: sum, Version: version})
		}
	}
	return servers, digests
}

func TestOnlyAMajorityOfAllVotersProvesAState(t *testing.T) {
	for name, c := range map[string]struct{ answers, majority, differ, unknown string }{
		"all agree":                           {"a+=x b+=x c+=x d=x", "x", "", ""},
		"one voter differs":                   {"a+=x b+=y c+=x", "x", "b", ""},
		"a server without a vote differs":     {"a+=x b+=x c+=x d=y", "x", "d", ""},
		"two that agree are enough of three":  {"a+=x b+=x c+", "x", "", "c"},
		"the rest may be no majority":         {"a+=x b+ c+", "", "", "b c"},
		"two that differ, one is away":        {"a+=x b+=y c+", "", "a b", "c"},
		"all differ":                          {"a+=x b+=y c+=z", "", "a b c", ""},
		"those without a vote don't count":    {"a+=x b+=y c=y d=y", "", "a b c d", ""},
		"four: half is no majority":           {"a+=x b+=x c+=y d+=y", "", "a b c d", ""},
		"another version is not compared":     {"a+=x b+=x c+=y@2", "x", "", "c"},
		"nor counted with the same state":     {"a+=x b+=x@2 c+=y@3", "", "", ""},
		"nobody answered":                     {"a+ b+ c+", "", "", "a b c"},
		"a store of one agrees with itself":   {"a+=x", "x", "", ""},
		"the majority is of the new version":  {"a+=x@1 b+=y@2 c+=y@2", "y", "", "a"},
		"and one of it differs from the rest": {"a+=x@1 b+=y@2 c+=z@2 d+=y@2 e+=y@2", "y", "c", "a"},
	} {
		servers, digests := parseDigests(c.answers)
		v := compare(7, servers, digests)
		of := func(verdict string) string {
			var names []string
			for _, s := range v.Servers {
				if s.Verdict == verdict {
					names = append(names, s.Name)
				}
			}
			return strings.Join(names, " ")
		}
		if v.Majority != c.majority || of(Differs) != c.differ || of(Unknown) != c.unknown {
			t.Errorf("%s: majority %q, differ %q, unknown %q; want %q, %q, %q", name, v.Majority, of(Differs), of(Unknown), c.majority, c.differ, c.unknown)
		}
		if (v.Problem() == "") != (c.differ == "") {
			t.Errorf("%s: problem %q", name, v.Problem())
		}
	}
}

func TestDigestOfAnotherEntryProvesNothing(t *testing.T) {
	servers, digests := parseDigests("a+=x b+=x c+=x")
	digests[1].Index, digests[2].Index = 6, 8
	if v := compare(7, servers, digests); v.Majority != "" || v.of("b") != Unknown || v.of("c") != Unknown {
		t.Errorf("%+v", v)
	}
}

// flip changes one bit of a value in a server's memory, while nothing is applied
// and no digest is taken.
func (o *host) flip(key string) {
	o.hosts.t.Helper()
	o.store.fsm.applying.Lock()
	defer o.store.fsm.applying.Unlock()
	ctx, cancel := context.WithTimeout(o.hosts.t.Context(), soon)
	defer cancel()
	if _, err := o.store.verifier.at(ctx, o.marked.Load()); err != nil {
		o.hosts.t.Fatalf("%s: the digest at mark %d: %v", o.name, o.marked.Load(), err)
	}
	entry, _ := o.state.Snapshot().Entry(nil, key)
	if entry == nil {
		o.hosts.t.Fatalf("%s has no key %s", o.name, key)
	}
	entry.Value[0] ^= 1
}

// onlyCondition waits until a server has this one condition. Others may come and
// go: on a machine that stands still there is no leader for a while.
func (o *host) onlyCondition(name string) {
	o.hosts.t.Helper()
	eventually(o.hosts.t, o.name+" has the condition "+name+" alone", func() error {
		if c := o.board.Conditions(); len(c) != 1 || c[0].Name != name {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
}

func (o *host) condition(name string) string {
	for _, c := range o.board.Conditions() {
		if c.Name == name {
			return c.Message
		}
	}
	return ""
}

func (o *host) operation(name string, args ...string) (string, error) {
	values := map[string][]string{}
	for _, a := range args {
		key, value, _ := strings.Cut(a, "=")
		values[key] = []string{value}
	}
	var answer any
	err := asked(func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		defer cancel()
		answer, err = o.store.Operation(ctx, name, values, true)
		return err
	})
	raw, _ := answer.(json.RawMessage)
	return string(raw), err
}

func TestServerWithAFlippedBitIsNamedAndRebuilt(t *testing.T) {
	h := newHosts(t, 3, 3)
	for _, o := range h.all {
		o.verify = 200 * time.Millisecond
	}
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	h.leader().put("k", "value")
	h.everywhere("k", "value")
	sick := h.follower()
	sick.flip("k")
	eventually(t, "the flipped bit is back", func() error {
		sick.hosts.leader().put("more", "x") // entries after the mark are applied again
		if got := sick.get("k"); got != "value" || sick.condition(conditionRebuilt) == "" {
			return fmt.Errorf("%s reads %q; conditions %v", sick.name, got, sick.board.Conditions())
		}
		return nil
	})
	h.everywhere("more", "x")
	eventually(t, "the condition ends", func() error {
		if c := h.leader().condition(conditionDisagree); c != "" {
			return errors.New(c)
		}
		return nil
	})
	named := false // by who led then
	for _, o := range h.running() {
		named = named || strings.Contains(o.log.String(), "the state of "+sick.name+" is another than that of the majority")
	}
	if !named {
		t.Error("the leader did not name the server")
	}
	// What is on the disk must be whole too: begin from it alone.
	eventually(t, "a snapshot of the state that is whole", func() error {
		sick.store.verifier.mu.Lock()
		defer sick.store.verifier.mu.Unlock()
		if sick.store.verifier.persist {
			return errors.New("none yet")
		}
		return nil
	})
	sick.stop()
	sick.start()
	h.everywhere("k", "value")
}

func TestLeaderWithAFlippedBitStepsDownFirst(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.timing = calm // it gives the office away for its state, and does not lose it before
	for _, o := range h.all {
		o.verify = 300 * time.Millisecond
	}
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	for try := 1; ; try++ { // it may lose the office before it gives it away
		sick := h.leader()
		sick.put("k", "value")
		h.everywhere("k", "value")
		before := testutil.ToFloat64(sick.store.metrics.rebuilds)
		from := len(sick.log.String())
		sick.flip("k")
		eventually(t, "another led and the bit is back", func() error { // a leader's state is not replaced
			if sick.get("k") != "value" || testutil.ToFloat64(sick.store.metrics.rebuilds) == before || sick.condition(conditionRebuilt) == "" {
				return fmt.Errorf("leads: %v, reads %q", sick.store.IsLeader(), sick.get("k"))
			}
			return nil
		})
		log := func() string { return sick.log.String()[from:] }
		// Only an office that was lost before a comparison is no fault: who led and
		// was told that it differs says what came of it.
		if foundWrong(log()) {
			eventually(t, "the leader says why it stepped down", func() error {
				if !strings.Contains(log(), "state is not that of the majority") {
					return fmt.Errorf("its log since the bit was flipped:\n%s", log())
				}
				return nil
			})
		}
		if strings.Contains(log(), "leadership handed over: this server's state is not that of the majority") {
			break
		}
		if try == 3 {
			t.Fatal("the leader did not hand over the office because of its state")
		}
		eventually(t, "a snapshot of the state that is whole", func() error { // before its next bit is flipped
			sick.store.verifier.mu.Lock()
			defer sick.store.verifier.mu.Unlock()
			if sick.store.verifier.persist {
				return errors.New("none yet")
			}
			return nil
		})
	}
	h.everywhere("k", "value")
}

// statesDiffer is what a leader's log has, once, of a verdict that it acts on.
const statesDiffer = `msg="the servers' states differ"`

// foundWrong tells whether a leader's log has a verdict with a majority, which a
// leader whose state is wrong must act on.
func foundWrong(log string) bool {
	for line := range strings.Lines(log) {
		if strings.Contains(line, statesDiffer) && !strings.Contains(line, `majority=""`) {
			return true
		}
	}
	return false
}

func TestWithoutAMajorityNoStateIsTouched(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.timing = calm // and no comparison comes between those that are asked for
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	leader := h.leader()
	leader.put("k", "value")
	leader.put("l", "value")
	h.everywhere("l", "value")
	wrong := h.besides(leader)
	wrong[0].flip("k")
	wrong[1].flip("l")
	said := func() int { return strings.Count(leader.log.String(), statesDiffer) }
	for range 2 {
		before := said()
		answer, err := leader.operation(opVerify)
		var v Verdict
		if err != nil || json.Unmarshal([]byte(answer), &v) != nil {
			t.Fatalf("verify: %q, %v", answer, err)
		}
		if v.Majority != "" || len(v.differing()) != 3 {
			t.Fatalf("verdict %+v", v)
		}
		// The answer only tells of it. Who asks starts what is done about it, and
		// nothing else does in this test: the next comparison is minutes away.
		eventually(t, "the leader acts on the verdict", func() error {
			if n := said(); n <= before {
				return fmt.Errorf("it said %d times that the states differ, want more", n)
			}
			return nil
		})
	}
	eventually(t, "the condition", func() error {
		if c := leader.condition(conditionDisagree); !strings.Contains(c, "nothing was touched") {
			return fmt.Errorf("%q", c)
		}
		return nil
	})
	if wrong[0].get("k") == "value" || wrong[1].get("l") == "value" || strings.Contains(leader.log.String(), "state is not that of the majority") {
		t.Error("something was changed although nobody can tell who is right")
	}
}

func TestAStateThatIsNotWhatWasPromisedReplacesNothing(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.timing = calm
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	leader := h.leader()
	o := h.besides(leader)[0]
	leader.put("k", "value")
	h.everywhere("k", "value")
	if _, err := leader.operation(opVerify); err != nil {
		t.Fatal(err)
	}
	m, err := o.store.verifier.at(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	if _, err := state.New().Snapshot().WriteTo(&stream); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		head digest
		want string
	}{
		"another sum":    {digest{ID: o.id, Index: m.index, Sum: strings.Repeat("0", 64)}, "was promised"},
		"another server": {digest{ID: leader.id, Index: m.index, Sum: m.sum}, "the state is for"},
	} {
		body := slices.Concat(mustJSON(c.head), []byte("\n"), stream.Bytes())
		if err := o.store.rebuildHere(t.Context(), bytes.NewReader(body)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if err := leader.store.rebuildHere(t.Context(), &stream); !errors.Is(err, state.ErrInvalid) {
		t.Errorf("a leader let its state be replaced: %v", err)
	}
	if o.get("k") != "value" {
		t.Error("the state is another")
	}
}

func TestOperationsSayWhyTheyAreRefused(t *testing.T) {
	h := newHosts(t, 4, 3)
	h.timing = calm
	h.startAll()
	h.settled("fb1 fb2 fb3", "fb4")
	leader := h.leader()
	follower := h.besides(leader)[0]
	refused := func(want, name string, args ...string) {
		t.Helper()
		if _, err := follower.operation(name, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s %v: %v, want %q", name, args, err, want)
		}
	}
	refused("is the leader: transfer the leadership first", opDemote, "server="+leader.name)
	refused("as many as the cluster file asks for", opPromote, "server=fb4")
	refused("has a vote", opPromote, "server="+follower.name)
	refused("is in the store already", opAdd, "server=fb4")
	refused("no server in the gossip", opAdd, "server=nobody")
	refused("no server of the store", opDemote, "server=nobody")
	refused("which server?", opDemote)
	refused("no operation", "dance")
	refused("must be 10s to", opPilot, "dead-after=1s")
	refused("min-quorum", opPilot, "min-quorum=many")

	if _, err := follower.operation(opDemote, "server="+follower.name); err != nil {
		t.Fatal(err)
	}
	var voters []string
	for _, o := range h.running() {
		if o != follower {
			voters = append(voters, o.name)
		}
	}
	h.settled(strings.Join(voters, " "), follower.name) // the warm one has its vote
	if got, err := follower.operation(opPromote, "server="+follower.name); err != nil || !strings.Contains(got, "may have a vote again") {
		t.Errorf("promote while no vote is free: %s, %v", got, err)
	}
	refused("as many as the cluster file asks for", opPromote, "server="+follower.name)
	eventually(t, "the autopilot finds all well", func() error { // a server may not answer in time
		st, err := follower.pilot()
		if err == nil && (st.Voters != 3 || st.Tolerate != 1 || !st.Healthy) {
			err = fmt.Errorf("%+v", st)
		}
		return err
	})
}

func (o *host) pilot() (st PilotState, err error) {
	answer, err := o.store.Operation(o.hosts.t.Context(), opPilot, nil, false)
	if err == nil {
		err = json.Unmarshal(answer.(json.RawMessage), &st)
	}
	return st, err
}

func TestPeersAreListedWithoutALeader(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	h.leader().put("k", "v")
	h.everywhere("k", "v")
	last := h.follower()
	for _, o := range h.running() {
		if o != last {
			o.kill()
		}
	}
	peers, err := last.store.Peers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, p := range peers {
		got[p.Name] = p.Reachable
	}
	want := map[string]bool{"fb1": false, "fb2": false, "fb3": false}
	want[last.name] = true
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("who is reachable (-want +got):\n%s", diff)
	}
}
