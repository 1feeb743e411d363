package raftstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/state"
)

// survivor is what a server of a store of a, b and c has.
func survivor(id string, term, index uint64) Inspection {
	return Inspection{
		Dir: id, NodeID: id, StoreID: ourStore, LastTerm: term, LastIndex: index,
		Servers: []state.RaftServer{{ID: "a", Voter: true}, {ID: "b", Voter: true}, {ID: "c", Voter: true}, {ID: "d"}, {ID: "e", Voter: true}, {ID: "f", Voter: true}},
	}
}

func TestRecoveryBeginsWithTheFreshestSurvivor(t *testing.T) {
	r, err := PlanRecovery([]Inspection{survivor("a", 3, 900), survivor("d", 4, 100), survivor("b", 4, 90)})
	if err != nil {
		t.Fatal(err)
	}
	var order, lost []string
	for _, s := range r.Survivors {
		order = append(order, s.NodeID)
	}
	for _, s := range r.Lost {
		lost = append(lost, s.ID)
	}
	if got := strings.Join(order, " ") + "; " + strings.Join(lost, " "); got != "d b a; c e f" {
		t.Errorf("order and lost: %s", got)
	}
	if !strings.Contains(r.Sentence(), "d becomes the only server of a new store with the data up to entry 100 of term 4") {
		t.Error(r.Sentence())
	}
}

func TestRecoveryThatWouldLoseDataWithoutNeedIsRefused(t *testing.T) {
	other, damaged, stranger := survivor("b", 1, 1), survivor("b", 9, 9), survivor("x", 9, 9)
	other.StoreID, damaged.Damage = "22222222-2222-4222-8222-222222222222", "a bit"
	for name, c := range map[string]struct {
		survivors []Inspection
		want      string
	}{
		"nobody":                {nil, "no survivor"},
		"a majority":            {[]Inspection{survivor("a", 1, 1), survivor("b", 1, 1), survivor("c", 1, 1)}, "a majority: start them"},
		"two stores":            {[]Inspection{survivor("a", 1, 2), other}, "never had the same data"},
		"the freshest damaged":  {[]Inspection{survivor("a", 1, 2), damaged}, "may have acknowledged writes that no other survivor has: a bit"},
		"one twice":             {[]Inspection{survivor("a", 1, 2), survivor("a", 1, 1)}, "named twice"},
		"not in its own config": {[]Inspection{stranger}, "does not hold itself"},
		"no store":              {[]Inspection{{Dir: "empty"}}, "belongs to no store"},
	} {
		if _, err := PlanRecovery(c.survivors); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestStoreGoesOnAfterItsMajorityIsLostForGood(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	h.leader().put("k", "value")
	h.everywhere("k", "value")
	one := h.all["fb1"]
	if _, err := Inspect(one.dir, 0); err == nil || !strings.Contains(err.Error(), "an agent has it open") {
		t.Errorf("inspect while it runs: %v", err)
	}
	for _, o := range h.running() {
		o.stop()
	}
	in, err := Inspect(one.dir, 1000)
	if err != nil || in.Damage != "" || in.NodeID != one.id || len(in.Servers) != 3 {
		t.Fatalf("inspect: %+v, %v", in, err)
	}
	if kv := strings.Contains(fmt.Sprint(in.Tail), " KV "); !kv {
		t.Errorf("the write is not among the entries: %+v", in.Tail)
	}
	plan, err := PlanRecovery([]Inspection{in})
	if err != nil || len(plan.Lost) != 2 {
		t.Fatalf("%+v, %v", plan.Lost, err)
	}
	id, err := Recover(plan, time.Now())
	if err != nil || id == in.StoreID {
		t.Fatalf("recover: %s, %v", id, err)
	}
	if kept, err := filepath.Glob(filepath.Join(one.dir, "raft", "before-recovery-*", logName)); err != nil || len(kept) != 1 {
		t.Errorf("what was there is not kept: %v, %v", kept, err)
	}
	one.start()
	h.leader().put("after", "1")
	if got := one.get("k"); got != "value" {
		t.Errorf("after the recovery k is %q", got)
	}
	// A lost server that comes back with its old data stays out.
	back := h.all["fb3"].start()
	eventually(t, "the server of the old store is refused", func() error {
		if c := one.condition(conditionRefused); !strings.Contains(c, "fb3") || !strings.Contains(c, "it has another store") {
			return fmt.Errorf("%q", c)
		}
		return nil
	})
	if back.get("after") != "" {
		t.Error("two stores have mixed")
	}
	back.stop()
	for _, name := range []string{"fb2", "fb3"} {
		h.all[name].wipe()
		h.all[name].start()
	}
	h.settled("fb1 fb2 fb3", "")
	h.everywhere("k", "value")
	h.everywhere("after", "1")
	if got := h.all["fb2"].store.ClusterID(); got != id {
		t.Errorf("fb2 is of store %s, want %s", got, id)
	}
}

func TestInspectionNamesADamage(t *testing.T) {
	h := newHosts(t, 1, 1)
	o := h.all["fb1"].start()
	h.leader()
	o.put("k", "a value that is found on the disk")
	o.stop()
	flip(t, filepath.Join(o.dir, "raft", logName), "a value that is found")
	in, err := Inspect(o.dir, 0)
	if err != nil || !strings.Contains(in.Damage, "checksum") {
		t.Fatalf("%q, %v", in.Damage, err)
	}
	if _, err := PlanRecovery([]Inspection{in}); err == nil {
		t.Error("a damaged log can be recovered from")
	}
	if _, err := Inspect(t.TempDir(), 0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty directory: %v", err)
	}
}

func FuzzPlanRecovery(f *testing.F) {
	f.Add(mustJSON([]Inspection{survivor("a", 1, 2), survivor("b", 2, 1)}))
	f.Fuzz(func(t *testing.T, data []byte) {
		var list []Inspection
		if json.Unmarshal(data, &list) != nil {
			return
		}
		r, err := PlanRecovery(list)
		if err != nil {
			return
		}
		for _, s := range list {
			best := r.Freshest()
			if s.LastTerm > best.LastTerm || s.LastTerm == best.LastTerm && s.LastIndex > best.LastIndex {
				t.Fatalf("%+v has more than the freshest, %+v", s, best)
			}
		}
	})
}
