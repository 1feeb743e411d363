package state

import (
	"bytes"
	"reflect"
	"sync"
	"testing"
)

// Coders are used again by whoever comes next: what one leaves behind must not
// show in another's bytes, also after an error.
func TestCodersUsedAgainKeepNothing(t *testing.T) {
	long := KV{Verb: Set, Entry: Entry{Key: "long", Value: bytes.Repeat([]byte("a"), 3*maxKept)}}
	short := KV{Verb: CAS, Entry: Entry{Key: "short", Value: []byte("b"), ModifyIndex: 7}}
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			var all [][]byte
			for range 50 {
				for _, cmd := range []Command{long, short} {
					data, err := Encode(cmd)
					if err != nil {
						t.Error(err)
						return
					}
					all = append(all, data)
					if _, err := Decode(data[:len(data)-1]); err == nil {
						t.Error("half a command was decoded")
					}
				}
				if len(all) > 20 {
					all = all[2:]
				}
			}
			for i, data := range all { // those of before are whole still
				got, err := Decode(data)
				if want := []Command{long, short}[i%2]; err != nil || !reflect.DeepEqual(got, want) {
					t.Errorf("%d: %T %v, want the command that was encoded", i, got, err)
				}
				clear(data)
				if again := got.(KV); len(again.Entry.Value) > 0 && again.Entry.Value[0] == 0 {
					t.Error("a command keeps the bytes that it was decoded from")
				}
			}
		})
	}
	group.Wait()
}

func BenchmarkEncode(b *testing.B) {
	cmd := KV{Verb: Set, Entry: Entry{Key: "bench/1/2", Value: bytes.Repeat([]byte("v"), 256)}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Encode(cmd); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	data, err := Encode(KV{Verb: Set, Entry: Entry{Key: "bench/1/2", Value: bytes.Repeat([]byte("v"), 256)}})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(data); err != nil {
			b.Fatal(err)
		}
	}
}
