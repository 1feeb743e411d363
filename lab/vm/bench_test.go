package vm

import (
	"slices"
	"testing"
	"time"
)

// report gives the spread of what was measured, which is wide under emulation.
func report(b *testing.B, what string, times []time.Duration) {
	slices.Sort(times)
	b.ReportMetric(times[0].Seconds(), what+"-least-s")
	b.ReportMetric(times[len(times)/2].Seconds(), what+"-median-s")
	b.ReportMetric(times[len(times)-1].Seconds(), what+"-most-s")
}

// BenchmarkBoot measures one machine at a time: to get ready, to boot, to run a
// command, to load a module by modprobe, to lose its power.
func BenchmarkBoot(b *testing.B) {
	Require(b)
	times := make(map[string][]time.Duration)
	timed := func(what string, f func() error) {
		b.Helper()
		start := time.Now()
		if err := f(); err != nil {
			b.Fatal(err)
		}
		times[what] = append(times[what], time.Since(start))
	}
	for b.Loop() {
		var m *Machine
		timed("new", func() (err error) { m, err = New(b.Context(), Options{}); return err })
		timed("boot", func() error { return m.PowerOn(b.Context()) })
		timed("run", func() error { _, err := m.Run(b.Context(), "true"); return err })
		timed("modprobe", func() error { _, err := m.Run(b.Context(), "modprobe", "ip_vs"); return err })
		timed("off", m.PowerOff)
	}
	for what, t := range times {
		report(b, what, t)
	}
}

// BenchmarkBootOfThree measures three machines on a wire that boot together.
func BenchmarkBootOfThree(b *testing.B) {
	Require(b)
	var times []time.Duration
	for b.Loop() {
		w := NewWire()
		var machines []*Machine
		for _, name := range []string{"a", "b", "c"} {
			m, err := New(b.Context(), Options{Name: name, CPUs: 1, MemoryMB: 768, NICs: []NIC{On(w)}})
			if err != nil {
				b.Fatal(err)
			}
			machines = append(machines, m)
		}
		start := time.Now()
		if err := PowerOn(b.Context(), machines...); err != nil {
			b.Fatal(err)
		}
		times = append(times, time.Since(start))
		if err := PowerOff(machines...); err != nil {
			b.Fatal(err)
		}
	}
	report(b, "boot", times)
}
