package logrelay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/cluster"
	"holdfast/logrelay/journal"
)

// Entry is a line as a query gives it.
type Entry struct {
	Time     time.Time `json:"time"` // when it was received
	Host     string    `json:"host"` // whose line it is
	Source   string    `json:"source,omitempty"`
	Input    string    `json:"input"`
	Facility int       `json:"facility"`
	Severity int       `json:"severity"`
	App      string    `json:"app,omitempty"`
	Line     string    `json:"line"` // as it stands in the host's file
}

// Frame is a part of a query's answer: a line, or that nothing older than Upto
// follows but what comes late from another node. One with nothing says that
// the node is still looking. The answer to a query that does not follow ends
// with Done; without it, lines are missing.
type Frame struct {
	Entry *Entry     `json:"entry,omitempty"`
	Upto  *time.Time `json:"upto,omitempty"`
	Done  bool       `json:"done,omitempty"`
}

// Query is which lines are wanted. Zero values want all.
type Query struct {
	Nodes    string // a node set of the cluster file, of hosts
	Since    time.Time
	Until    time.Time
	Severity int    // the least severe that is wanted, 0 to 7; NoSeverity: all
	Text     string // a regular expression that the line has a match of
	If       string // a condition; see README.md
	Follow   bool   // go on with what comes in
}

// NoSeverity wants lines of all severities.
const NoSeverity = -1

// Values is the query as the relay's HTTP tree takes it.
func (q Query) Values() url.Values {
	v := url.Values{}
	set := func(key, value string) {
		if value != "" {
			v.Set(key, value)
		}
	}
	set("nodes", q.Nodes)
	set("match", q.Text)
	set("if", q.If)
	if !q.Since.IsZero() {
		set("since", q.Since.UTC().Format(time.RFC3339Nano))
	}
	if !q.Until.IsZero() {
		set("until", q.Until.UTC().Format(time.RFC3339Nano))
	}
	if q.Severity != NoSeverity {
		set("severity", strconv.Itoa(q.Severity))
	}
	if q.Follow {
		set("follow", "1")
	}
	return v
}

// filter is a query, understood. It belongs to one goroutine.
type filter struct {
	names        *names
	hosts        map[string]bool // nil: all
	since, until int64           // of the time of receipt; until is exclusive, 0: none
	severity     int
	text         *regexp.Regexp
	rules        rules // one, to judge by; none: every line
	bugs         *bugs
	written      *rules // those that change lines in the files; nil: none does
	line         line
	out          []byte
}

func (s *Server) parseFilter(v url.Values) (*filter, error) {
	f := &filter{names: s.names(), severity: 7, bugs: s.bugs}
	f.rules.secrets = s.newRules().secrets
	if slices.ContainsFunc(s.settings.rules, func(r rule) bool { return r.set != nil }) {
		f.written = &rules{list: s.settings.rules, boundless: true}
	}
	var err error
	instant := func(key string) (nanoseconds int64) {
		if text := v.Get(key); text != "" {
			at, failed := time.Parse(time.RFC3339, text)
			if failed != nil {
				err = errors.Join(err, fmt.Errorf("%s %q: want a time such as 2026-11-25T12:00:00Z", key, text))
			}
			return at.UnixNano()
		}
		return 0
	}
	f.since, f.until = instant("since"), instant("until")
	if text := v.Get("severity"); text != "" {
		n, failed := strconv.Atoi(text)
		if failed != nil || n < 0 || n > 7 {
			err = errors.Join(err, fmt.Errorf("severity %q: want 0 (emerg) to 7 (debug)", text))
		}
		f.severity = n
	}
	if text := v.Get("match"); text != "" {
		var failed error
		f.text, failed = regexp.Compile(text)
		err = errors.Join(err, failed)
	}
	if text := v.Get("if"); text != "" {
		program, failed := compile(text)
		if failed != nil {
			err = errors.Join(err, fmt.Errorf("--if: %w", failed))
		}
		f.rules.list = []rule{{program: program}}
	}
	if set := v.Get("nodes"); set != "" {
		hosts, failed := expandHosts(s.table.Load().file, set)
		err = errors.Join(err, failed)
		f.hosts = hosts
	}
	return f, err
}

// expandHosts makes the names of files of a node set.
func expandHosts(file *cluster.File, set string) (map[string]bool, error) {
	list, err := cluster.Expand(set, func(name string) ([]string, error) { return file.Expand("@" + name) })
	if err != nil {
		return nil, fmt.Errorf("node set %q: %w", set, err)
	}
	hosts := map[string]bool{}
	for _, name := range list {
		hosts[safeName(name)] = true
	}
	return hosts, nil
}

// aheadMost is how much the clock of another node, whose lines are here too,
// may be ahead of this one's.
const aheadMost = 10 * time.Minute

// begin is where to read a journal from: what was written before is too old.
func (f *filter) begin(j *journal.Journal) uint64 {
	if f.since == 0 {
		return 0
	}
	return j.Since(time.Unix(0, f.since).Add(-aheadMost))
}

// take judges a record; after true, line is it.
func (f *filter) take(r journal.Record) bool {
	if r.Input == viaMark || r.Time < f.since || f.until != 0 && r.Time >= f.until {
		return false
	}
	f.line.read(r, f.names)
	f.written.judge(&f.line, "files") // for what it makes of the line; one that is left out is here
	if f.hosts != nil && !f.hosts[f.line.host] || f.line.Severity() > f.severity {
		return false
	}
	if len(f.rules.list) > 0 {
		f.rules.facts = f.facts()
		if !f.rules.holds(f.rules.list[0].program) {
			return false
		}
	}
	if f.text == nil {
		return true
	}
	f.render()
	return f.text.Match(f.out)
}

// facts are what a condition can ask of the line: what may be written of it. Who
// could ask of all of it would find a secret letter by letter.
func (f *filter) facts() facts {
	if !f.rules.mayHide(&f.line) {
		return factsOf(&f.line)
	}
	said, host := f.line.Message, f.line.host
	f.rules.hide(&f.line)
	all := factsOf(&f.line)
	f.line.Message, f.line.host = said, host
	return all
}

// render writes the line as it stands in its file, without its end.
func (f *filter) render() {
	f.out = f.rules.redact(f.line.appendFile(f.out[:0]), 0)
}

func (f *filter) entry() *Entry {
	f.render()
	app, _ := f.rules.app(&f.line)
	e := &Entry{
		Time: f.line.received, Host: f.line.host, Input: inputName(f.line.record.Input),
		Facility: f.line.Facility(), Severity: f.line.Severity(), App: string(app), Line: strings.ToValidUTF8(string(f.out), "\uFFFD"),
	}
	if f.line.record.Source.IsValid() {
		e.Source = f.line.record.Source.String()
	}
	return e
}

// numbered is an entry with its number in the journal.
type numbered struct {
	*Entry
	number uint64
}

// byTime is entries with the oldest first, for container/heap.
type byTime []numbered

func (h byTime) Len() int { return len(h) }
func (h byTime) Less(i, j int) bool {
	if h[i].Time.Equal(h[j].Time) {
		return h[i].number < h[j].number
	}
	return h[i].Time.Before(h[j].Time)
}
func (h byTime) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *byTime) Push(x any)   { *h = append(*h, x.(numbered)) }
func (h *byTime) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// A journal is in order of what became durable, and lines of another node come
// behind younger ones of this. A query puts them in order as far as they are
// apart by no more than this many, and waits so long for those that are on
// their way.
const (
	reorderMost  = 8192
	reorderWait  = 300 * time.Millisecond
	reorderTell  = 250 * time.Millisecond
	queryWriteBy = 5 * time.Minute // for one who reads slowly; then he is dropped
)

// search reads a journal for one who asked. A slow reader holds nobody up: the
// journal waits for him, or goes on without him.
type search struct {
	filter  *filter
	journal *journal.Journal
	follow  bool
	send    func(Frame) error
	flush   func() error
	now     func() time.Time
	told    time.Time // when something was last sent
	waiting byTime
	bytes   int // of the lines in it
}

func (q *search) run(ctx context.Context) error {
	end := q.journal.End()
	from := end
	if !q.follow || q.filter.since != 0 {
		from = q.filter.begin(q.journal)
	}
	reader := q.journal.Glance(from)
	defer reader.Close()
	for {
		block, ok, err := reader.TryNext()
		if err != nil {
			return err
		}
		if ok && (q.follow || block.First < end) {
			if err := errors.Join(q.take(ctx, block, from), q.stillLooking()); err != nil {
				return err
			}
			continue
		}
		if !q.follow {
			if err := q.emit(time.Time{}); err != nil {
				return err
			}
			return errors.Join(q.send(Frame{Done: true}), q.flush())
		}
		if block, ok, err = q.idle(ctx, reader); err != nil {
			return err
		}
		if ok {
			if err := q.take(ctx, block, from); err != nil {
				return err
			}
		}
	}
}

func (q *search) take(ctx context.Context, block journal.Block, from uint64) (err error) {
	failed := block.Each(func(number uint64, r journal.Record) bool {
		if number < from {
			return true
		}
		entry := q.filter.look(number, r)
		if entry == nil {
			return true
		}
		q.wait(numbered{entry, number})
		for q.tooMany() && err == nil {
			err = q.send(Frame{Entry: q.oldest()})
		}
		return err == nil
	})
	return errors.Join(err, failed, ctx.Err())
}

// stillLooking tells one who follows, now and then, that a journal is being read
// though nothing in it fits: his lines of other nodes wait for that.
func (q *search) stillLooking() error {
	if !q.follow || q.now().Sub(q.told) < reorderTell {
		return nil
	}
	q.told = q.now()
	return errors.Join(q.send(Frame{}), q.flush())
}

// emit sends what waits and is older than a time; zero: all.
func (q *search) emit(before time.Time) error {
	for len(q.waiting) > 0 && (before.IsZero() || q.waiting[0].Time.Before(before)) {
		if err := q.send(Frame{Entry: q.oldest()}); err != nil {
			return err
		}
	}
	return nil
}

// idle sends what is old enough, says how far that is, and waits for more.
func (q *search) idle(ctx context.Context, reader *journal.Reader) (journal.Block, bool, error) {
	upto := q.now().Add(-reorderWait)
	if err := errors.Join(q.emit(upto), q.send(Frame{Upto: &upto}), q.flush()); err != nil {
		return journal.Block{}, false, err
	}
	waiting, cancel := context.WithTimeout(ctx, reorderTell)
	defer cancel()
	block, err := reader.Next(waiting)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return block, false, nil
	}
	return block, err == nil, err
}

// serveQuery answers a query with frames, one in a line of JSON.
func (s *Server) serveQuery(w http.ResponseWriter, r *http.Request) {
	values := r.URL.Query()
	f, err := s.parseFilter(values)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	j := s.current.Load()
	if j == nil {
		http.Error(w, "the log relay is not running yet", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	control := http.NewResponseController(w)
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	due := time.Time{}
	patience := func() { // at most ten times in it: it is asked at every line
		if now := time.Now(); !now.Before(due) {
			due = now.Add(queryWriteBy / 10)
			_ = control.SetWriteDeadline(now.Add(queryWriteBy)) // a recorder has none
		}
	}
	patience()
	if err := control.Flush(); err != nil {
		return
	}
	q := &search{
		filter: f, journal: j, follow: values.Get("follow") != "", now: time.Now,
		send:  func(frame Frame) error { patience(); return encoder.Encode(frame) },
		flush: func() error { patience(); return control.Flush() },
	}
	_ = q.run(r.Context()) // the one who asked may be gone; without Done he knows
}
