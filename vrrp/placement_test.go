package vrrp

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func nodeNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("fbservice%d", i+1)
	}
	return names
}

func all(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	return list
}

// dnsAddresses are n addresses over n nodes, each preferring its own.
func dnsAddresses(n int) []candidate {
	list := make([]candidate, n)
	for i := range list {
		list[i] = candidate{name: fmt.Sprintf("dns%d", i+1), weight: 1, members: all(n), prefer: i}
	}
	return list
}

func unbound(count, nodes int) []candidate {
	list := make([]candidate, count)
	for i := range list {
		list[i] = candidate{name: fmt.Sprintf("vip%d", i+1), weight: 1, members: all(nodes), prefer: -1}
	}
	return list
}

// held counts what each survivor holds.
func held(list []candidate, orders [][]int, nodes int, dead []int) []int {
	loads := make([]int, nodes)
	for i, order := range orders {
		for _, node := range order {
			if !slices.Contains(dead, node) {
				loads[node] += list[i].weight
				break
			}
		}
	}
	return loads
}

// spread is the difference of what the survivors hold.
func spread(loads, dead []int) int {
	least, most := -1, 0
	for node, load := range loads {
		if slices.Contains(dead, node) {
			continue
		}
		if least < 0 || load < least {
			least = load
		}
		most = max(most, load)
	}
	return most - max(least, 0)
}

// subsets calls f with every set of nodes that leaves one alive.
func subsets(n int, f func(dead []int)) {
	for mask := range 1<<n - 1 {
		var dead []int
		for node := range n {
			if mask&(1<<node) != 0 {
				dead = append(dead, node)
			}
		}
		f(dead)
	}
}

// worstSpread is the largest spread by the number of dead nodes.
func worstSpread(list []candidate, nodes int) []int {
	orders := place(list, nodeNames(nodes))
	worst := make([]int, nodes)
	subsets(nodes, func(dead []int) {
		worst[len(dead)] = max(worst[len(dead)], spread(held(list, orders, nodes, dead), dead))
	})
	return worst
}

func TestEachNodeHoldsItsOwnAndOneDeathNeverDoublesABurden(t *testing.T) {
	for n := 2; n <= 9; n++ {
		list := dnsAddresses(n)
		for i, order := range place(list, nodeNames(n)) {
			if order[0] != i {
				t.Errorf("%d nodes: %s is held by %d", n, list[i].name, order[0])
			}
			if got := slices.Sorted(slices.Values(order)); !slices.Equal(got, all(n)) {
				t.Errorf("%d nodes: the order of %s is %v", n, list[i].name, order)
			}
		}
		worst := worstSpread(list, n)
		t.Logf("%d nodes, %d addresses: spread by deaths %v", n, n, worst)
		if worst[0] > 0 || worst[1] > 1 || n > 2 && worst[2] > 1 {
			t.Errorf("%d nodes, %d addresses: spread by deaths %v", n, n, worst)
		}
	}
}

func TestAnyNumberOfAddressesIsSpreadEvenly(t *testing.T) {
	for n := 2; n <= 9; n++ {
		for _, m := range []int{1, 2, 3, 5, 8, 13, 21, 40, 100} {
			worst := worstSpread(unbound(m, n), n)
			t.Logf("%d nodes, %d addresses: %v", n, m, worst)
			if worst[0] > 1 || worst[1] > 1 || n > 2 && worst[2] > 2 {
				t.Errorf("%d nodes, %d addresses: spread by deaths %v", n, m, worst)
			}
		}
	}
}

// random candidates: some prefer, some have few members, some move together.
func randomCandidates(r *rand.Rand, nodes int) []candidate {
	list := unbound(1+r.IntN(3*nodes), nodes)
	for i := range list {
		c := &list[i]
		if r.IntN(3) == 0 {
			r.Shuffle(len(c.members), func(a, b int) { c.members[a], c.members[b] = c.members[b], c.members[a] })
			c.members = c.members[:1+r.IntN(nodes)]
			slices.Sort(c.members)
		}
		if r.IntN(2) == 0 {
			c.prefer = c.members[r.IntN(len(c.members))]
		}
		if r.IntN(8) == 0 {
			c.weight = 2
		}
	}
	return list
}

func TestWhatADeadNodeHeldGoesToWhoHasLeast(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 1))
	for range 300 {
		nodes := 2 + r.IntN(8)
		list := randomCandidates(r, nodes)
		orders := place(list, nodeNames(nodes))
		for died := range nodes {
			loads := held(list, orders, nodes, []int{died})
			for i, order := range orders {
				if order[0] != died || len(order) < 2 {
					continue
				}
				for _, other := range order[2:] {
					if loads[order[1]]-list[i].weight > loads[other]+1 {
						t.Fatalf("%d died: %s went to %d, which holds %d now, and not to %d with %d", died, list[i].name, order[1], loads[order[1]], other, loads[other])
					}
				}
			}
		}
	}
}

func TestPlacementIsOfTheFileAlone(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 1))
	for range 100 {
		nodes := 2 + r.IntN(8)
		list := randomCandidates(r, nodes)
		want := map[string][]int{}
		for i, order := range place(list, nodeNames(nodes)) {
			want[list[i].name] = order
		}
		r.Shuffle(len(list), func(a, b int) { list[a], list[b] = list[b], list[a] })
		got := map[string][]int{}
		for i, order := range place(list, nodeNames(nodes)) {
			got[list[i].name] = order
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("the same addresses in another order (-want +got):\n%s", diff)
		}
	}
}

// firsts is who holds what when all are well: the beginning of place.
func firsts(list []candidate, nodes int) [][]int {
	p := newPlacement(list, nodeNames(nodes))
	return p.first()
}

func TestAnotherAddressInTheFileMovesFewOthers(t *testing.T) {
	moved, changes := 0, 0
	for n := 2; n <= 9; n++ {
		for m := 2; m <= 30; m++ {
			with := unbound(m, n)
			orders := firsts(with, n)
			for gone := range with {
				without := slices.Delete(slices.Clone(with), gone, gone+1)
				for i, order := range firsts(without, n) {
					j := i
					if i >= gone {
						j++
					}
					if order[0] != orders[j][0] {
						moved++
					}
				}
				changes++
			}
		}
	}
	t.Logf("%d changes of one address moved %d others", changes, moved)
	if moved > changes {
		t.Errorf("%d changes of one address moved %d others", changes, moved)
	}
	// What prefers a node never moves.
	list := dnsAddresses(5)
	for gone := range list {
		for _, order := range place(slices.Delete(slices.Clone(list), gone, gone+1), nodeNames(5)) {
			if order[0] == gone {
				t.Errorf("dns%d is gone and another took its place", gone+1)
			}
		}
	}
}

func TestPinnedNodesHaveTheirPlace(t *testing.T) {
	list := dnsAddresses(4)
	list[0].prefer = -1
	list[0].pinned = map[int]int{0: 3, 3: 1}
	order := place(list, nodeNames(4))[0]
	if order[0] != 3 || order[3] != 1 || len(order) != 4 {
		t.Errorf("order %v", order)
	}
}

func TestPrioritiesKeepBackupsApart(t *testing.T) {
	for _, test := range []struct {
		version  uint8
		interval time.Duration
		step     int
	}{
		{3, time.Second, 3}, {3, 2 * time.Second, 2}, {3, 100 * time.Millisecond, 21}, {3, 10 * time.Millisecond, 205},
		{3, 40950 * time.Millisecond, 1}, {2, time.Second, 3}, {2, 255 * time.Second, 3},
	} {
		if got := priorityStep(test.version, test.interval); got != test.step {
			t.Errorf("version %d, %v: step %d, want %d", test.version, test.interval, got, test.step)
		}
	}
	for _, test := range []struct {
		n     int
		given map[string]uint8
		step  int
		want  []uint8
	}{
		{4, nil, 3, []uint8{253, 250, 247, 244}},
		{4, nil, 205, []uint8{253, 169, 85, 1}},
		{1, nil, 205, []uint8{253}},
		{3, map[string]uint8{"a": 255}, 3, []uint8{255, 253, 250}},
		{3, map[string]uint8{"a": 253, "b": 1}, 3, []uint8{253, 252, 1}},
		{3, map[string]uint8{"a": 100, "b": 90, "c": 80}, 3, []uint8{100, 90, 80}},
	} {
		if got := ranks(test.n, test.given, test.step); !slices.Equal(got, test.want) {
			t.Errorf("%+v: %v", test, got)
		}
	}
	for n := 1; n <= 253; n++ {
		list := ranks(n, nil, 205)
		if len(list) != n || list[n-1] < 1 || len(slices.Compact(slices.Clone(list))) != n {
			t.Fatalf("%d members: %v", n, list)
		}
	}
}
