package state

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestCommandsSurviveEncodingAndRestore(t *testing.T) {
	s := New()
	cmds := []Command{
		SetCluster{Cluster{ID: "c1", Name: "x"}},
		Register{Node: Node{ID: "u1", Name: "N1", Address: netip.MustParseAddr("10.0.0.1"), Meta: map[string]string{"b": "2", "a": "1"}},
			Services: []Service{{Name: "apt", Tags: []string{"v1"}, Port: 3142}}, Checks: []Check{{ID: SerfHealth, Status: Passing}, {ID: "c", ServiceID: "apt", Status: Passing}}},
		UpdateCheck{Node: "n1", Updates: []CheckState{{ID: "c", Status: Critical, Output: "no"}}},
		KV{Verb: Set, Entry: Entry{Key: "a/b", Value: []byte("hello")}},
		KV{Verb: Delete, Entry: Entry{Key: "a/b"}},
		PutDocument{Verb: CAS, Document: Document{Kind: "k", Key: "d", Value: []byte{1}}},
		Deregister{Node: "n1", Services: []string{"apt"}},
	}
	for i, c := range cmds {
		b, err := Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c, got, cmpopts.EquateComparable(netip.Addr{})); d != "" {
			t.Error(d)
		}
		for i := range b {
			b[i] = 0xff
		}
		if err := s.Apply(uint64(i+1), got); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if _, err := s.Snapshot().WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	r := New()
	if err := r.Restore(bytes.NewReader(b.Bytes())); err != nil {
		t.Fatal(err)
	}
	var b2 bytes.Buffer
	if _, err := r.Snapshot().WriteTo(&b2); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), b2.Bytes()) {
		t.Error("differs")
	}
	info, err := Inspect(&b)
	if err != nil || info.Index != 7 || info.Cluster == nil || info.Cluster.ID != "c1" {
		t.Errorf("Inspect = %+v, %v", info, err)
	}
}
