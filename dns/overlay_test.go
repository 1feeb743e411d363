package dns

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/state"
)

// whole gives all that a table has of a zone, names without data included.
func whole(t *table, origin name) map[string]string {
	all := map[string]string{}
	for _, shard := range t.cuts[origin].zone.names.shards {
		for n, at := range shard {
			text := ""
			for _, set := range at.sets {
				for _, r := range set.records {
					if rr, err := r.unpack(n, origin); err == nil && r.kind() != 6 { // SOA: its serial
						text += rr.String() + "\n"
					}
				}
			}
			all[n.String()] = text
		}
	}
	for n, c := range t.cuts {
		if c.delegation != nil {
			all["delegated "+n.String()] = fmt.Sprint(len(c.delegation.servers.records), c.route != nil)
		}
	}
	return all
}

// Records that come and go one by one must leave the zone as it is made
// afresh.
func TestRecordsLaidOneByOneGiveTheWholeZone(t *testing.T) {
	const file = "dns: {records: [\"a.b CNAME fbservice1\", \"c A 10.1.0.9\", \"deleg NS ns.deleg\"]}\n"
	for seed := range uint64(4) {
		r := rand.New(rand.NewPCG(seed, 0))
		f, _ := writing(t, file)
		pick := func(list ...string) string { return list[r.IntN(len(list))] }
		for step := range 150 {
			owner := pick("a", "b", "c", "a.b", "x.a.b", "fbservice1", "y.fbservice1", "@", "p.q.r", "q.r", "deleg", "ns.deleg", "sub", "ns.sub", "10.1.0.7")
			record := owner + " " + pick("A 10.1.0.1", "A 10.1.0.2", "CNAME c", "TXT x", "NS ns.sub", "PTR c", "MX 5 c")
			text, err := expandStatic(record, "hpc.example.com", uint32(60+r.IntN(2)))
			if err != nil {
				t.Fatal(err)
			}
			key := text[0].key()
			verb := []state.Verb{state.Set, state.Delete}[r.IntN(2)]
			f.apply(state.PutDocument{Verb: verb, Document: state.Document{Kind: kindRecord, Key: key, Value: []byte("60")}})
			if r.IntN(3) > 0 {
				f.server.refresh() // or several at once
			}
			if step%10 != 9 {
				continue
			}
			f.server.refresh()
			cluster := testCluster(t, file)
			fresh, err := newCompiler(cluster, must(decode(cluster, cluster.Section(Section))), "fbservice1")
			if err != nil {
				t.Fatal(err)
			}
			want := fresh.rebuild(f.store.Snapshot())
			for _, zone := range []string{"hpc.example.com", "0.1.10.in-addr.arpa"} {
				origin, _ := parseName(zone)
				if diff := cmp.Diff(whole(want, origin), whole(f.server.table.Load(), origin)); diff != "" {
					t.Fatalf("seed %d, step %d, after %s %s (-afresh +laid):\n%s", seed, step, verb, key, diff)
				}
			}
		}
		if n := metric(t, f, "holdfast_dns_compiles_total", "full"); n != 1 {
			t.Errorf("%v tables were made afresh, want the first alone", n)
		}
	}
}

func TestRecordsOfAnotherFileWaitForIt(t *testing.T) {
	f, _ := writing(t, "")
	if _, err := f.server.AddRecord(context.Background(), "www A 10.1.0.7"); err != nil {
		t.Fatal(err)
	}
	f.apply(state.PutDocument{Verb: state.Set, Document: state.Document{Kind: kindRecord, Key: "www.lab.example.com. A 10.1.0.8", Value: []byte("60")}})
	f.apply(state.PutDocument{Verb: state.Set, Document: state.Document{Kind: kindRecord, Key: strings.Repeat("x", 300), Value: []byte("nonsense")}})
	if m := f.ask("www.hpc.example.com", 1); len(m.Answer) != 1 {
		t.Errorf("%v", m)
	}
	f.server.SetFile(testCluster(t, "dns: {zones: [lab.example.com]}\n"))
	if m := f.ask("www.lab.example.com", 1); len(m.Answer) != 1 {
		t.Errorf("%v", m)
	}
}
