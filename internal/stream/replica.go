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
	"net/url"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/health"
	"holdfast/internal/state"
)

// Condition is raised while a unit serves a state that nobody confirms.
const Condition = "state.stale"

// Config says what a Replica follows.
type Config struct {
	Unit string       // "dns", "net" ...
	Base string       // URL of the source, such as admin.BaseURL
	Web  *http.Client // reaches it; without a timeout of its own
	Path string       // of the file with the last content
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
	Leader    string        `json:"leader,omitempty"`
}

const (
	silence     = 5 * time.Second // of a source that says nothing, not even a beat
	retryFirst  = 100 * time.Millisecond
	retryMost   = 2 * time.Second
	staleAfter  = 10 * time.Second // before the condition is raised
	saveChanged = 5 * time.Second  // how soon a change is on the disk
	saveAnyway  = time.Minute      // how old the age on the disk may be
)

// New makes a replica and fills it from the disk: what it has is there when New
// returns. A file that can't be read is told to the log and left out.
func New(config Config, deps Deps) (*Replica, error) {
	r := &Replica{config: config, deps: deps, store: state.New(), arrived: make(chan struct{})}
	r.deps.Log = deps.Log.With("service", "stream", "unit", config.Unit)
	r.status = Status{Unit: config.Unit, Since: time.Now()}
	r.applied = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "holdfast_stream_applied_total", Help: "What came from the core and was applied, by kind: snapshot or command."}, []string{"kind"})
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
		r.lost(err)
		if time.Since(began) > silence {
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

// lost notes that the stream ended.
func (r *Replica) lost(err error) {
	r.mu.Lock()
	was := r.status.Connected
	if was {
		r.status.Since = time.Now()
	}
	r.status.Connected, r.status.Error = false, err.Error()
	r.mu.Unlock()
	if was {
		r.deps.Log.Warn("the core no longer streams the state: going on with what is here", "error", err)
	}
}

// follow takes one stream up to its end.
func (r *Replica) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(silence, func() { cancel(fmt.Errorf("nothing came for %s", silence)) })
	defer quiet.Stop()
	seen := func() { quiet.Reset(silence) }
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url(pathFollow), nil)
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
		seen()
		if err := r.take(kind, body, &snapshotReader{r: response.Body, seen: seen}); err != nil {
			return causeOf(ctx, err)
		}
		buffer = body
	}
}

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

func (r *Replica) url(path string) string {
	return r.config.Base + path + "?unit=" + url.QueryEscape(r.config.Unit)
}

// take carries out one frame; snapshot reads what follows a frameStart.
func (r *Replica) take(kind byte, body []byte, snapshot *snapshotReader) error {
	switch kind {
	case frameStart:
		if err := r.store.Restore(snapshot); err != nil {
			return err
		}
		r.applied.WithLabelValues("snapshot").Inc()
	case frameCommand:
		return r.apply(body)
	case frameMembers:
		var members []state.Member
		if err := json.Unmarshal(body, &members); err != nil {
			return fmt.Errorf("stream: members: %w", err)
		}
		r.store.SetMembers(members)
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
	r.applied.WithLabelValues("command").Inc()
	return nil
}

func (r *Replica) beat(b Beat) {
	if b.Confirmed {
		r.store.Touch(time.Now().Add(-b.Age))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.status.Connected {
		r.status.Connected, r.status.Error, r.status.Since = true, "", time.Now()
		r.deps.Log.Info("the core streams the state", "position", b.Position, "confirmed", b.Confirmed)
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
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url(pathPropose), bytes.NewReader(b))
	if err != nil {
		return 0, err
	}
	response, err := r.config.Web.Do(request)
	if err != nil {
		// The core may have taken it before it went.
		if r.Status().Connected {
			return 0, fmt.Errorf("%w: %w", state.ErrUnknownOutcome, err)
		}
		return 0, fmt.Errorf("%w: the core does not answer: %w", state.ErrNoLeader, err)
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
