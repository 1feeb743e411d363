package raftstore

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// BenchmarkLogWriteAfterABurst shows what a write of the log takes when the
// log has been large and was cut again, with bolt's defaults and as it is
// opened here. HOLDFAST_BURST_MB is the size of the burst, 256 unless said.
func BenchmarkLogWriteAfterABurst(b *testing.B) {
	burst := 256
	if given := os.Getenv("HOLDFAST_BURST_MB"); given != "" {
		var err error
		if burst, err = strconv.Atoi(given); err != nil {
			b.Fatalf("HOLDFAST_BURST_MB: %v", err)
		}
	}
	for _, c := range []struct {
		name    string
		options bbolt.Options
	}{
		{"defaults", bbolt.Options{}},
		{"ours", *boltOptions()},
	} {
		b.Run(c.name, func(b *testing.B) {
			bolt, err := openBoltWith(filepath.Join(b.TempDir(), logName), &c.options, once)
			if err != nil {
				b.Fatal(err)
			}
			defer bolt.Close()
			last := uint64(burst * 64) // 16 KiB each
			for first := uint64(1); first <= last; first += 64 {
				var entries []*raft.Log
				for i := first; i < first+64; i++ {
					entries = append(entries, &raft.Log{Index: i, Term: 1, Data: make([]byte, 16<<10)})
				}
				if err := bolt.StoreLogs(entries); err != nil {
					b.Fatal(err)
				}
			}
			if err := bolt.DeleteRange(1, last-64); err != nil {
				b.Fatal(err)
			}
			var took []time.Duration
			for i := uint64(1); b.Loop(); i++ {
				start := time.Now()
				if err := bolt.StoreLog(&raft.Log{Index: last + i, Term: 1, Data: make([]byte, 256)}); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func TestLogIsOpenedSoThatItsFreeListCostsNothing(t *testing.T) {
	o := boltOptions()
	if !o.NoFreelistSync || o.FreelistType != bbolt.FreelistMapType {
		t.Errorf("bolt is opened with a synchronised free list or an array for it: %+v", o)
	}
}
