package stream

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"reflect"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/state"
)

// Grants are what each unit may see, and write: documents of its kinds.
type Grants map[string]state.Part

// ownDocuments lets a unit write documents of the kinds that it sees.
func ownDocuments(part state.Part, cmd state.Command) error {
	if _, document := cmd.(state.PutDocument); !document || !part.Includes(cmd) {
		return fmt.Errorf("writes documents of the kinds %q, and this is a %T", part.Kinds, cmd)
	}
	return nil
}

// ownRows lets a node write what the catalog has of itself, but not what the
// leader says of it.
func ownRows(node string, cmd state.Command, documents func(string, state.PutDocument) error) error {
	own := func(name string) bool { return state.Fold(name) == state.Fold(node) }
	mine := true
	switch c := cmd.(type) {
	case state.Register:
		mine = own(c.Node.Name)
		for _, s := range c.Services {
			mine = mine && (s.Node == "" || own(s.Node))
		}
		for _, check := range c.Checks {
			mine = mine && (check.Node == "" || own(check.Node)) && check.ID != state.SerfHealth
		}
	case state.Deregister:
		mine = own(c.Node) && !slices.Contains(c.Checks, state.SerfHealth)
	case state.UpdateCheck:
		mine = own(c.Node)
		for _, u := range c.Updates {
			mine = mine && u.ID != state.SerfHealth
		}
	case state.PutDocument:
		return documents(node, c)
	default:
		mine = false
	}
	if !mine {
		return fmt.Errorf("writes its own services and checks, and this %T is not one of them", cmd)
	}
	return nil
}

// SourceDeps are what a Source works with. All are needed.
type SourceDeps struct {
	State    *state.Store
	Proposer state.Proposer
	Leader   func() string // the leader's node name; "" when none is known
	Grants   Grants
	Log      *slog.Logger
	Metrics  prometheus.Registerer
}

// Source streams the state. It is an http.Handler; who may ask is the
// business of the socket that it stands behind.
type Source struct {
	deps    SourceDeps
	streams *prometheus.GaugeVec
	refused *prometheus.CounterVec
	mux     *http.ServeMux
}

// Paths of a source.
const (
	pathFollow  = "/v1/stream/follow"
	pathWhere   = "/v1/stream/where"
	pathPropose = "/v1/stream/propose"
)

const (
	beatEvery    = time.Second            // on this machine
	beatNodes    = 500 * time.Millisecond // to other nodes
	writeTimeout = 10 * time.Second       // of a follower that takes nothing
	gather       = 2 * time.Millisecond   // changes of so long go together
	proposeLimit = state.MaxCommand       // bytes of a request
	proposeTime  = 30 * time.Second       // of a command that waits for a leader
	unconfirmed  = 50 * time.Millisecond  // how often a source that no leader has confirmed looks again
)

// NewSource makes a source.
func NewSource(deps SourceDeps) (*Source, error) {
	s := &Source{deps: deps,
		streams: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "holdfast_stream_followers", Help: "Who follows the state: each unit of this node by its name, and the nodes that are no servers."}, []string{"unit"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "holdfast_stream_refused_total", Help: "Requests for the state that were refused, by reason."}, []string{"reason"}),
	}
	for _, c := range []prometheus.Collector{s.streams, s.refused} {
		if err := deps.Metrics.Register(c); err != nil {
			return nil, fmt.Errorf("stream: metrics: %w", err)
		}
	}
	s.deps.Log = deps.Log.With("service", "stream")
	s.mux = s.tree(s.unit, beatEvery)
	return s, nil
}

// tree answers whom admit lets in.
func (s *Source) tree(admit admission, beat time.Duration) *http.ServeMux {
	mux := http.NewServeMux()
	on := func(pattern string, serve func(http.ResponseWriter, *http.Request, guest)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			g, err := admit(r)
			if err != nil {
				s.refused.WithLabelValues("who").Inc()
				http.Error(w, err.Error(), http.StatusForbidden)
				return
			}
			serve(w, r, g)
		})
	}
	on("GET "+pathFollow, func(w http.ResponseWriter, r *http.Request, g guest) { s.follow(w, r, g, beat) })
	on("GET "+pathWhere, s.where)
	on("POST "+pathPropose, s.propose)
	return mux
}

// guest is who may follow.
type guest struct {
	name, label string
	part        state.Part
	writes      func(state.Command) error // nil: what it may propose
}

// admission tells who asks, or why he is refused.
type admission func(*http.Request) (guest, error)

// unit admits the units of this node.
func (s *Source) unit(r *http.Request) (guest, error) {
	unit := r.URL.Query().Get("unit")
	part, ok := s.deps.Grants[unit]
	if !ok {
		return guest{}, fmt.Errorf("no unit %.64q follows the state", unit)
	}
	return guest{"unit " + unit, unit, part, func(cmd state.Command) error { return ownDocuments(part, cmd) }}, nil
}

// ForNodes answers nodes that are no servers: who tells which node asks, by its
// certificate, or why it may not. A node sees part, and writes its own rows of
// the catalog and the documents that writes allows.
func (s *Source) ForNodes(part state.Part, who func(*http.Request) (node string, err error), writes func(node string, d state.PutDocument) error) http.Handler {
	return s.tree(func(r *http.Request) (guest, error) {
		node, err := who(r)
		return guest{"node " + node, "nodes", part, func(cmd state.Command) error { return ownRows(node, cmd, writes) }}, err
	}, beatNodes)
}

// where tells how far this source is.
func (s *Source) where(w http.ResponseWriter, _ *http.Request, _ guest) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(whereOf(s.deps.State.Snapshot(), s.deps.Leader())) // who asked is gone: nobody to tell
}

func (s *Source) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

func (s *Source) follow(w http.ResponseWriter, r *http.Request, g guest, beat time.Duration) {
	s.streams.WithLabelValues(g.label).Inc()
	defer s.streams.WithLabelValues(g.label).Dec()
	f := &follower{source: s, part: g.part, every: beat, w: bufio.NewWriterSize(w, pieceSize), control: http.NewResponseController(w)}
	err := f.run(r.Context())
	if r.Context().Err() == nil {
		s.deps.Log.Info("one no longer follows the state", "who", g.name, "error", err)
	}
}

// follower is one stream.
type follower struct {
	source  *Source
	part    state.Part
	every   time.Duration // a beat
	w       *bufio.Writer
	control *http.ResponseController

	at      state.Position
	members []state.Member
	told    bool      // of the members
	news    bool      // since the last beat
	beat    time.Time // the last
}

func (f *follower) run(ctx context.Context) error {
	beat := time.NewTicker(f.every)
	defer beat.Stop()
	for {
		changed := f.source.deps.State.Changed()
		if err := f.send(); err != nil {
			return err
		}
		wait := changed
		var again <-chan time.Time
		if _, ok := f.source.deps.State.Snapshot().Age(time.Now()); !ok {
			again = time.After(unconfirmed) // that a leader confirms is no change
		}
		select {
		case <-ctx.Done():
			return nil
		case <-again:
		case <-beat.C:
		case <-wait:
			select { // what follows at once goes with it
			case <-ctx.Done():
				return nil
			case <-time.After(gather):
			}
		}
	}
}

// send brings the follower to the source's state.
func (f *follower) send() error {
	if err := f.control.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	snap := f.source.deps.State.Snapshot()
	age, confirmed := snap.Age(time.Now())
	if members := snap.Members(); !f.told || !reflect.DeepEqual(members, f.members) {
		if err := f.json(frameMembers, members); err != nil {
			return err
		}
		f.members, f.told, f.news = members, true, true
	}
	// Of a source that no leader has confirmed the tables may be empty or
	// of long ago: the follower's own may be newer.
	if confirmed {
		if err := f.tables(); err != nil {
			return err
		}
	}
	if !f.news && time.Since(f.beat) < f.every*9/10 {
		return nil // what changed is none of the unit's
	}
	f.news, f.beat = false, time.Now()
	if err := f.json(frameBeat, Beat{f.at.Index(), confirmed, age, f.source.deps.Leader()}); err != nil {
		return err
	}
	if err := f.w.Flush(); err != nil {
		return err
	}
	return f.control.Flush()
}

func (f *follower) json(kind byte, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeFrame(f.w, kind, body)
}

func (f *follower) tables() error {
	commands, next, ok := f.source.deps.State.Committed(f.at, f.part)
	if !ok {
		f.news = true
		return f.whole()
	}
	f.news = f.news || len(commands) > 0
	for _, c := range commands {
		b, err := state.Encode(c.Cmd)
		if err != nil {
			return err
		}
		if err := writeFrame(f.w, frameCommand, append(binary.BigEndian.AppendUint64(nil, c.Index), b...)); err != nil {
			return err
		}
	}
	f.at = next
	return nil
}

func (f *follower) whole() error {
	snap, at := f.source.deps.State.Whole()
	if err := f.json(frameWhere, whereOf(snap, f.source.deps.Leader())); err != nil {
		return err
	}
	if err := writeFrame(f.w, frameStart, nil); err != nil {
		return err
	}
	if err := snap.WritePart(pieces{f.w}, f.part); err != nil {
		return err
	}
	f.at = at
	return writeFrame(f.w, frameEnd, nil)
}

// outcome is the answer to a command that was proposed.
type outcome struct {
	Index uint64 `json:"index"`
	Code  string `json:"code,omitempty"`
	Error string `json:"error,omitempty"`
}

func (s *Source) propose(w http.ResponseWriter, r *http.Request, g guest) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, proposeLimit))
	if err != nil {
		s.refused.WithLabelValues("command").Inc()
		http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	cmd, err := state.Decode(b)
	if err != nil {
		s.refused.WithLabelValues("command").Inc()
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if err := g.writes(cmd); err != nil {
		s.refused.WithLabelValues("grant").Inc()
		http.Error(w, g.name+" "+err.Error(), http.StatusForbidden)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), proposeTime)
	defer cancel()
	var o outcome
	o.Index, err = s.deps.Proposer.Propose(ctx, cmd)
	o.Code, o.Error = state.ErrorCode(err)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(o) // who asked is gone: nobody to tell
}
