package logrelay

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"holdfast/logrelay/journal"
	"holdfast/logrelay/syslog"
)

// Counts are lines of one host, program, severity or input.
type Counts struct {
	Lines      int64     `json:"lines"`
	Bytes      int64     `json:"bytes"` // as they were received
	Severities [8]int64  `json:"severities"`
	Last       time.Time `json:"last"` // the newest, when it was received
}

func (c *Counts) add(other *Counts) {
	c.Lines += other.Lines
	c.Bytes += other.Bytes
	for i, n := range other.Severities {
		c.Severities[i] += n
	}
	if other.Last.After(c.Last) {
		c.Last = other.Last
	}
}

// Summary is a node's lines, counted: its own, and for each other node those
// that are held for it.
type Summary struct {
	Node string                        `json:"node"`
	Own  map[string]*Counts            `json:"own"`
	Held map[string]map[string]*Counts `json:"held,omitempty"`
}

// Add counts several nodes' summaries together. Lines that are on two nodes
// count once: those held for a node count only if it gave no summary, from the
// node that holds most of them.
func Add(list []Summary) map[string]*Counts {
	sum, gave := map[string]*Counts{}, map[string]bool{}
	add := func(counts map[string]*Counts) {
		for name, c := range counts {
			if sum[name] == nil {
				sum[name] = &Counts{}
			}
			sum[name].add(c)
		}
	}
	for _, s := range list {
		gave[s.Node] = true
		add(s.Own)
	}
	best, most := map[string]map[string]*Counts{}, map[string]int64{}
	for _, s := range list {
		for node, counts := range s.Held {
			lines := int64(0)
			for _, c := range counts {
				lines += c.Lines
			}
			if !gave[node] && lines > most[node] {
				best[node], most[node] = counts, lines
			}
		}
	}
	for _, counts := range best {
		add(counts)
	}
	return sum
}

// countBy is what lines are counted by; nil: there is none of that name.
func countBy(name string) func(*filter) string {
	switch name {
	case "host":
		return func(f *filter) string { return f.line.host }
	case "app":
		return func(f *filter) string {
			app, _ := f.rules.app(&f.line)
			return string(app)
		}
	case "severity":
		return func(f *filter) string { return syslog.SeverityName(f.line.Severity()) }
	case "input":
		return func(f *filter) string { return inputName(f.line.record.Input) }
	}
	return nil
}

// maxSummed bounds the names that are counted one by one: a sender can invent
// as many as it likes. The others count as "others".
const maxSummed = 20_000

// summarize counts a journal's lines that fit.
func summarize(ctx context.Context, j *journal.Journal, node string, f *filter, by func(*filter) string) (Summary, error) {
	s := Summary{Node: node, Own: map[string]*Counts{}, Held: map[string]map[string]*Counts{}}
	end := j.End()
	reader := j.Glance(f.begin(j))
	defer reader.Close()
	for {
		block, ok, err := reader.TryNext()
		if err != nil || !ok || block.First >= end {
			return s, err
		}
		// Lines of another node stand before the mark that names it.
		held := map[string]*Counts{}
		err = block.Each(func(number uint64, r journal.Record) bool {
			if r.Input == viaMark {
				if node, _, ok := parseMark(r.Data); ok && len(held) > 0 {
					if s.Held[node] == nil {
						s.Held[node] = map[string]*Counts{}
					}
					for name, c := range held {
						countsOf(s.Held[node], name).add(c)
					}
					held = map[string]*Counts{}
				}
				return true
			}
			name, wanted := f.name(number, r, by)
			if !wanted {
				return true
			}
			into := s.Own
			if r.Input&viaOther != 0 {
				into = held
			}
			one := Counts{Lines: 1, Bytes: int64(len(r.Data)), Last: f.line.received}
			one.Severities[f.line.Severity()] = 1
			countsOf(into, name).add(&one)
			return true
		})
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return s, err
		}
	}
}

func countsOf(counts map[string]*Counts, name string) *Counts {
	c := counts[name]
	if c == nil && len(counts) >= maxSummed {
		name = overflow
		c = counts[name]
	}
	if c == nil {
		c = &Counts{}
		counts[name] = c
	}
	return c
}

// serveSummary counts the lines of a query.
func (s *Server) serveSummary(w http.ResponseWriter, r *http.Request) {
	values := r.URL.Query()
	f, err := s.parseFilter(values)
	by := countBy(values.Get("by"))
	if err == nil && by == nil {
		err = fmt.Errorf("by %q: want host, app, severity or input", values.Get("by"))
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	j := s.current.Load()
	if j == nil {
		http.Error(w, "the log relay is not running yet", http.StatusServiceUnavailable)
		return
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(queryWriteBy)) // a recorder has none
	found, err := summarize(r.Context(), j, s.config.Node, f, by)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(queryWriteBy)) // counting took a while, maybe
	_ = json.NewEncoder(w).Encode(found)                                             // the one who asked may be gone
}
