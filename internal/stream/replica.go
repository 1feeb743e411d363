package stream

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/health"
	"holdfast/internal/state"
)

// Condition is raised while a unit serves a state that nobody confirms.
const Condition = "state.stale"

// Config says what a Replica follows.
type Config struct {
	Unit string       // "dns", "net" ...; NodeUnit on a node that is no server
	Base string       // URL of the source, such as admin.BaseURL
	Web  *http.Client // reaches it; without a timeout of its own
	Path string       // of the file with the last content

	// Optional: that there never was a source is nothing to tell anybody.
	Optional bool

	// Sources are the servers that can be followed, the preferred first; nil:
	// Base is the only source.
	Sources func() []Server
	// OwnGossip: the members come from this node's own gossip, by
	// Store().SetMembers, and not from the source.
	OwnGossip bool
}

// NodeUnit is the Unit of a node that follows servers.
const NodeUnit = "node"

// Server is a source on another node.
type Server struct {
	Name string // in the cluster file, and in the gossip
	Base string // URL
}

// Deps are what a Replica works with. Board may be nil.
type Deps struct {
	Log     *slog.Logger
	Metrics prometheus.Registerer
	Board   *health.Board
}

// Replica keeps a store equal to a source's, and the last content on the disk.
// It is a run.Task; its other methods may be called from any goroutine.
type Replica struct {
	config  Config
	deps    Deps
	store   *state.Store
	applied *prometheus.CounterVec

	mu      sync.Mutex
	status  Status
	arrived chan struct{} // closed when the position moves
	news    chan struct{} // closed when Connected or the leader changes
	have    mark
	heard   time.Time // the last frame
	saved   savedMark
}

// Status is how a unit that follows the state stands.
type Status struct {
	Unit      string        `json:"unit"`
	Connected bool          `json:"connected"` // a source streams
	Error     string        `json:"error,omitempty"`
	Since     time.Time     `json:"since"`     // of Connected, or of its end
	FromDisk  bool          `json:"from_disk"` // what is served was read from the disk, and nothing came since
	Confirmed bool          `json:"confirmed"` // a leader has confirmed it at some time
	Age       time.Duration `json:"age_ns"`    // since a leader did
	Position  uint64        `json:"position"`
	Source    string        `json:"source,omitempty"` // the server that streams, or did last; "": the core of this node
	Leader    string        `json:"leader,omitempty"`
}

const (
	silence     = 5 * time.Second         // of a source that says nothing, not even a beat
	silenceNode = 2500 * time.Millisecond // likewise, of one on another node
	retryFirst  = 100 * time.Millisecond
	retryMost   = 2 * time.Second
	staleAfter  = 10 * time.Second // before the condition is raised
	saveChanged = 5 * time.Second  // how soon a change is on the disk
	saveAnyway  = time.Minute      // how old the age on the disk may be
)

// New makes a replica and fills it from the disk: what it has is there when New
// returns. A file that can't be read is told to the log and left out.
func New(config Config, deps Deps) (*Replica, error) {
	r := &Replica{config: config, deps: deps, store: state.New(), arrived: make(chan struct{}), news: make(chan struct{})}
	r.deps.Log = deps.Log.With("service", "stream", "unit", config.Unit)
	r.status = Status{Unit: config.Unit, Since: time.Now()}
	r.applied = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "holdfast_stream_applied_total", Help: "What came from the source of the state and was applied, by kind: snapshot or command."}, []string{"kind"})
	age := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "holdfast_stream_age_seconds", Help: "Since a leader confirmed the state that this unit serves; -1: never."}, func() float64 {
		if s := r.Status(); s.Confirmed {
			return s.Age.Seconds()
		}
		return -1
	})
	for _, c := range []prometheus.Collector{r.applied, age} {
		if err := deps.Metrics.Register(c); err != nil {
			return nil, fmt.Errorf("stream: metrics: %w", err)
		}
	}
	r.load()
	return r, nil
}

// String is the task's name.
func (r *Replica) String() string { return "state of " + r.config.Unit }

// Store is what is kept equal.
func (r *Replica) Store() *state.Store { return r.store }

// Leader is the leader that the source knew last; "" when it is gone.
func (r *Replica) Leader() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.status.Connected {
		return ""
	}
	return r.status.Leader
}

// Status tells how it stands.
func (r *Replica) Status() Status {
	r.mu.Lock()
	s := r.status
	r.mu.Unlock()
	s.Age, s.Confirmed = r.store.Snapshot().Age(time.Now())
	return s
}

// Run follows until ctx ends. It is ready at once: with what the disk had.
func (r *Replica) Run(ctx context.Context, ready func()) error {
	var saving sync.WaitGroup
	saving.Go(func() { r.keepSaved(ctx) })
	defer saving.Wait()
	ready()
	pause := retryFirst
	for ctx.Err() == nil {
		began := time.Now()
		err := r.follow(ctx)
		if ctx.Err() != nil {
			break
		}
		if r.lost(err) || time.Since(began) > silence {
			pause = retryFirst
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, retryMost)
	}
	r.save()
	return nil
}

// lost notes that the stream ended, and tells whether there was one.
func (r *Replica) lost(err error) bool {
	r.mu.Lock()
	was := r.status.Connected
	if was {
		r.status.Since = time.Now()
	}
	r.status.Connected, r.status.Error = false, err.Error()
	if was {
		close(r.news)
		r.news = make(chan struct{})
	}
	r.mu.Unlock()
	if was {
		r.deps.Log.Warn("the state is no longer streamed: going on with what is here", "error", err)
	}
	return was
}

// follow takes one stream up to its end.
func (r *Replica) follow(ctx context.Context) error {
	if r.config.Sources == nil {
		return r.followFrom(ctx, Server{Base: r.config.Base}, silence)
	}
	server, err := r.choose(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { r.watchOver(ctx, server, cancel) })
	err = r.followFrom(ctx, server, silenceNode)
	cancel(nil)
	watch.Wait()
	return fmt.Errorf("%s: %w", server.Name, err)
}

// followFrom takes one stream of a source, up to its end.
func (r *Replica) followFrom(ctx context.Context, server Server, silence time.Duration) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(silence, func() { cancel(fmt.Errorf("nothing came for %s", silence)) })
	defer quiet.Stop()
	s := &session{server: server, asked: time.Now(), quiet: quiet, silence: silence}
	r.mu.Lock()
	r.status.Source = server.Name
	r.mu.Unlock()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url(server.Base, pathFollow), nil)
	if err != nil {
		return err
	}
	response, err := r.config.Web.Do(request)
	if err != nil {
		return causeOf(ctx, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return refusal(response)
	}
	var buffer []byte
	for {
		kind, body, err := readFrame(response.Body, buffer)
		if err != nil {
			return causeOf(ctx, err)
		}
		s.seen()
		r.mu.Lock()
		r.heard = time.Now()
		r.mu.Unlock()
		if err := r.take(s, kind, body, &snapshotReader{r: response.Body, seen: s.seen}); err != nil {
			return causeOf(ctx, err)
		}
		buffer = body
	}
}

// session is one stream of a source.
type session struct {
	server  Server
	asked   time.Time // before the source could say anything
	quiet   *time.Timer
	silence time.Duration
	where   bool // it has said which state comes
}

func (s *session) seen() { s.quiet.Reset(s.silence) }

// causeOf says why a stream was given up rather than that its context ended.
func causeOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

func refusal(response *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(response.Body, 1<<10)) // the status says enough
	return fmt.Errorf("%s: %s", response.Status, bytes.TrimSpace(text))
}

func (r *Replica) url(base, path string) string {
	return base + path + "?unit=" + url.QueryEscape(r.config.Unit)
}

// take carries out one frame; snapshot reads what follows a frameStart.
func (r *Replica) take(s *session, kind byte, body []byte, snapshot *snapshotReader) error {
	switch kind {
	case frameWhere:
		var w Where
		if err := json.Unmarshal(body, &w); err != nil {
			return fmt.Errorf("stream: where: %w", err)
		}
		if have := r.mark(); have.newerThan(w, s.asked) {
			return fmt.Errorf("it has entry %d and this node has shown entry %d: an older state is not taken", w.Index, have.index)
		}
		s.where = true
	case frameStart:
		if !s.where {
			return errors.New("stream: a snapshot of nobody knows when")
		}
		s.where = false
		if err := r.store.Restore(snapshot); err != nil {
			return err
		}
		r.moved(r.store.Snapshot().Index(), true)
		r.applied.WithLabelValues("snapshot").Inc()
	case frameCommand:
		return r.apply(body)
	case frameMembers:
		var members []state.Member
		if err := json.Unmarshal(body, &members); err != nil {
			return fmt.Errorf("stream: members: %w", err)
		}
		if !r.config.OwnGossip {
			r.store.SetMembers(members)
		}
	case frameBeat:
		var beat Beat
		if err := json.Unmarshal(body, &beat); err != nil {
			return fmt.Errorf("stream: beat: %w", err)
		}
		r.beat(beat)
	default:
		return fmt.Errorf("stream: frame of unknown type %q", kind)
	}
	return nil
}

func (r *Replica) apply(body []byte) error {
	if len(body) < 8 {
		return errors.New("stream: a command without an index")
	}
	index := binary.BigEndian.Uint64(body)
	cmd, err := state.Decode(body[8:])
	if err != nil {
		return err
	}
	if have := r.store.Snapshot().Index(); index <= have {
		return fmt.Errorf("stream: entry %d after entry %d", index, have)
	}
	if err := r.store.Apply(index, cmd); err != nil {
		return fmt.Errorf("stream: entry %d, which the core has applied: %w", index, err)
	}
	r.moved(index, false)
	r.applied.WithLabelValues("command").Inc()
	return nil
}

func (r *Replica) beat(b Beat) {
	if b.Confirmed {
		r.store.Touch(time.Now().Add(-b.Age))
	}
	if b.Position > 0 { // what is not here of the log up to there is not for us
		r.store.Advance(b.Position)
		r.moved(b.Position, false)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	told := false
	if !r.status.Connected {
		r.status.Connected, r.status.Error, r.status.Since = true, "", time.Now()
		r.deps.Log.Info("the state is streamed", "from", orElse(r.status.Source, "core"), "position", b.Position, "confirmed", b.Confirmed)
		told = true
	}
	if told = told || r.status.Leader != b.Leader; told {
		close(r.news)
		r.news = make(chan struct{})
	}
	if b.Confirmed {
		r.status.FromDisk = false
	}
	r.status.Leader = b.Leader
	r.status.Position = b.Position
	close(r.arrived)
	r.arrived = make(chan struct{})
}

// Propose implements state.Proposer by way of the source: documents of the
// unit's own kinds. It returns when the command is in this replica, too.
func (r *Replica) Propose(ctx context.Context, cmd state.Command) (uint64, error) {
	b, err := state.Encode(cmd)
	if err != nil {
		return 0, err
	}
	if r.config.Sources != nil && !r.Status().Connected {
		return 0, fmt.Errorf("%w: no server streams the state to this node: %s", state.ErrNoLeader, r.Status().Error)
	}
	var sent atomic.Bool
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }})
	request, err := http.NewRequestWithContext(traced, http.MethodPost, r.url(r.base(), pathPropose), bytes.NewReader(b))
	if err != nil {
		return 0, err
	}
	response, err := r.config.Web.Do(request)
	if err != nil {
		if sent.Load() { // it may have been taken before the source went
			return 0, fmt.Errorf("%w: %w", state.ErrUnknownOutcome, err)
		}
		return 0, fmt.Errorf("%w: %s does not answer: %w", state.ErrNoLeader, orElse(r.Status().Source, "the core"), err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%w: %w", state.ErrInvalid, refusal(response))
	}
	var o outcome
	if err := json.NewDecoder(io.LimitReader(response.Body, 64<<10)).Decode(&o); err != nil {
		return 0, fmt.Errorf("%w: %w", state.ErrUnknownOutcome, err)
	}
	if err := state.ErrorFrom(o.Code, o.Error); err != nil {
		return o.Index, err
	}
	return o.Index, r.reach(ctx, o.Index)
}

// reach waits until the replica is at an index.
func (r *Replica) reach(ctx context.Context, index uint64) error {
	for {
		r.mu.Lock()
		position, arrived := r.status.Position, r.arrived
		r.mu.Unlock()
		if position >= index {
			return nil
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			return fmt.Errorf("written as entry %d, which has not come back yet: %w", index, ctx.Err())
		}
	}
}
