package logrelay

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/health"
	"holdfast/logrelay/journal"
)

// ages knows, of each moment, how far the journal reached, so that the age of
// what waits can be told without a look at the disk. Its methods may be called
// from any goroutine.
type ages struct {
	mu      sync.Mutex
	moments []moment      // the oldest first
	every   time.Duration // at least between two
}

// moment says that all lines before end had been received by then.
type moment struct {
	end uint64
	at  time.Time
}

// mostMoments bounds what is remembered: when there are more, every second one
// is forgotten, and ages are told less finely.
const mostMoments = 4096

// begin forgets all but these moments.
func (a *ages) begin(list []moment) {
	slices.SortFunc(list, func(x, y moment) int { return cmp.Compare(x.end, y.end) })
	a.mu.Lock()
	defer a.mu.Unlock()
	a.moments, a.every = list, watchEvery/2
}

// note says how far the journal reaches, and that nobody waits for lines before
// least.
func (a *ages) note(end, least uint64, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	passed := 0
	for passed < len(a.moments) && a.moments[passed].end <= least {
		passed++
	}
	a.moments = slices.Delete(a.moments, 0, passed)
	if n := len(a.moments); n > 0 {
		if last := a.moments[n-1]; end <= last.end || now.Sub(last.at) < a.every {
			return
		}
	} else if end <= least {
		a.every = watchEvery / 2
		return
	}
	a.moments = append(a.moments, moment{end, now})
	if len(a.moments) < mostMoments {
		return
	}
	half := a.moments[:0]
	for i := 0; i < len(a.moments); i += 2 { // the oldest stays: it is the one that is told
		half = append(half, a.moments[i])
	}
	a.moments, a.every = half, 2*a.every
}

// of is how long ago a line was received, at least; 0 if it is younger than what
// is known.
func (a *ages) of(number uint64, now time.Time) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	i, _ := slices.BinarySearchFunc(a.moments, number, func(m moment, number uint64) int {
		if m.end > number {
			return 1
		}
		return -1
	})
	if i == len(a.moments) {
		return 0
	}
	return max(0, now.Sub(a.moments[i].at))
}

// cursors are those of the outputs, by their names.
func (s *Server) cursors() map[string]*journal.Cursor {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := map[string]*journal.Cursor{}
	for name, o := range s.outputs {
		list[name] = o.cursor
	}
	return list
}

// beginAges looks up how old the lines are that waited when the relay began.
func (s *Server) beginAges() {
	end := s.journal.End()
	list := []moment{{end, time.Now()}}
	for _, c := range s.cursors() {
		next := c.Next()
		if next >= end {
			continue
		}
		if at, ok := timeOf(s.journal, next); ok {
			list = append(list, moment{next + 1, at})
		}
	}
	s.ages.begin(list)
}

func (s *Server) noteAges() {
	end := s.journal.End()
	least := end
	for _, c := range s.cursors() {
		least = min(least, c.Next())
	}
	s.ages.note(end, least, time.Now())
}

// tellDamage raises the condition of a disk that lost lines, which readers find
// when they come there.
func (s *Server) tellDamage(j *journal.Journal) {
	if n := j.Damaged(); n > 0 {
		s.board.Raise(conditionDamaged, health.Error, fmt.Sprintf(
			"%d bytes of stored lines below %s can't be read: the disk lost them, or they were removed; look at its health, and at what is called .damaged there", n, s.dir()))
	}
}

// stuckAfter is from when on a write to the disk is taken for one that does not end.
const stuckAfter = 10 * time.Second

// tellStuck says that the journal's disk stands still: it neither takes lines nor
// refuses them, and nobody else would say why no sender is answered. A write that took
// so long and has ended doesn't say that the next one is faster: the condition ends with
// one that is, or when none is under way for as long.
func (s *Server) tellStuck(now time.Time) {
	since := s.journal.Busy()
	took, ended := s.journal.LastWrite()
	if since.IsZero() || now.Sub(since) < stuckAfter {
		if took < stuckAfter || since.IsZero() && now.Sub(ended) >= stuckAfter {
			s.board.Clear(conditionStuck)
		}
		return
	}
	s.board.Raise(conditionStuck, health.Error, fmt.Sprintf(
		"the disk of %s has not ended a write since %s: RELP and TCP wait in their senders, what UDP and sockets bring beyond a few MiB is lost; look at the disk, or what it hangs on, and move the address to another node meanwhile",
		s.dir(), since.Format(time.RFC3339)))
}

// outlook is the metrics that are read off a relay when somebody asks.
type outlook struct{ s *Server }

var (
	waitingDesc  = prometheus.NewDesc("holdfast_logs_waiting_lines", "Lines that an output does not durably have yet, by output.", []string{"output"}, nil)
	lagDesc      = prometheus.NewDesc("holdfast_logs_lag_seconds", "How long ago the first of the lines was received that an output does not durably have yet, by output.", []string{"output"}, nil)
	overflowDesc = prometheus.NewDesc("holdfast_logs_udp_overflow_datagrams_total", "Datagrams that the kernel threw away at the sockets of the UDP input, mostly since these had no room; those with a wrong checksum are among them.", nil, nil)
	damagedDesc  = prometheus.NewDesc("holdfast_logs_damaged_bytes", "Bytes of stored lines that the disk lost, as far as somebody read.", nil, nil)
)

// Describe is prometheus.Collector's.
func (outlook) Describe(to chan<- *prometheus.Desc) {
	to <- waitingDesc
	to <- lagDesc
	to <- damagedDesc
	to <- overflowDesc
}

// Collect is prometheus.Collector's. A relay that does not run has no outputs.
func (o outlook) Collect(to chan<- prometheus.Metric) {
	j := o.s.current.Load()
	if j == nil {
		return
	}
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	gauge(damagedDesc, float64(j.Damaged()))
	if addrs := o.s.Addrs(inputName(viaUDP)); len(addrs) > 0 {
		n, err := overflowed(addrs)
		if err == nil {
			to <- prometheus.MustNewConstMetric(overflowDesc, prometheus.CounterValue, float64(n))
		}
		if blind := err != nil; o.s.blind.Swap(blind) != blind && blind {
			o.s.log.Error("what the sockets of UDP have no room for can't be seen, and is not among the metrics", "error", err)
		}
	}
	now, end := time.Now(), j.End()
	for name, c := range o.s.cursors() {
		next, waiting, lag := c.Next(), uint64(0), time.Duration(0)
		if next < end {
			waiting, lag = j.Lines(next, end), o.s.ages.of(next, now)
		}
		gauge(waitingDesc, float64(waiting), name)
		gauge(lagDesc, lag.Seconds(), name)
	}
}
