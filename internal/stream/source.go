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
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/state"
)

// Grants are what each unit may see, and write: documents of its kinds.
type Grants map[string]state.Part

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
	pathPropose = "/v1/stream/propose"
)

const (
	beatEvery    = time.Second
	writeTimeout = 10 * time.Second      // of a follower that takes nothing
	gather       = 2 * time.Millisecond  // changes of so long go together
	proposeLimit = state.MaxCommand      // bytes of a request
	proposeTime  = 30 * time.Second      // of a command that waits for a leader
	unconfirmed  = 50 * time.Millisecond // how often a source that no leader has confirmed looks again
)

// NewSource makes a source.
func NewSource(deps SourceDeps) (*Source, error) {
	s := &Source{deps: deps, mux: http.NewServeMux(),
		streams: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "holdfast_stream_followers", Help: "Units that follow the state, by unit."}, []string{"unit"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "holdfast_stream_refused_total", Help: "Requests for the state that were refused, by reason."}, []string{"reason"}),
	}
	for _, c := range []prometheus.Collector{s.streams, s.refused} {
		if err := deps.Metrics.Register(c); err != nil {
			return nil, fmt.Errorf("stream: metrics: %w", err)
		}
	}
	s.deps.Log = deps.Log.With("service", "stream")
	s.mux.HandleFunc("GET "+pathFollow, s.follow)
	s.mux.HandleFunc("POST "+pathPropose, s.propose)
	return s, nil
}

func (s *Source) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// grant is the part of the unit that asks.
func (s *Source) grant(w http.ResponseWriter, r *http.Request) (unit string, part state.Part, ok bool) {
	unit = r.URL.Query().Get("unit")
	part, ok = s.deps.Grants[unit]
	if !ok {
		s.refused.WithLabelValues("unit").Inc()
		http.Error(w, fmt.Sprintf("no unit %.64q follows the state", unit), http.StatusForbidden)
	}
	return unit, part, ok
}

func (s *Source) follow(w http.ResponseWriter, r *http.Request) {
	unit, part, ok := s.grant(w, r)
	if !ok {
		return
	}
	s.streams.WithLabelValues(unit).Inc()
	defer s.streams.WithLabelValues(unit).Dec()
	f := &follower{source: s, part: part, w: bufio.NewWriterSize(w, pieceSize), control: http.NewResponseController(w)}
	err := f.run(r.Context())
	if r.Context().Err() == nil {
		s.deps.Log.Info("a unit no longer follows the state", "unit", unit, "error", err)
	}
}

// follower is one stream.
type follower struct {
	source  *Source
	part    state.Part
	w       *bufio.Writer
	control *http.ResponseController

	at      state.Position
	members []state.Member
	told    bool      // of the members
	news    bool      // since the last beat
	beat    time.Time // the last
}

func (f *follower) run(ctx context.Context) error {
	beat := time.NewTicker(beatEvery)
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
	if !f.news && time.Since(f.beat) < beatEvery*9/10 {
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

func (s *Source) propose(w http.ResponseWriter, r *http.Request) {
	unit, part, ok := s.grant(w, r)
	if !ok {
		return
	}
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
	if _, document := cmd.(state.PutDocument); !document || !part.Includes(cmd) {
		s.refused.WithLabelValues("grant").Inc()
		http.Error(w, fmt.Sprintf("unit %s writes documents of the kinds %q, and this is a %T", unit, part.Kinds, cmd), http.StatusForbidden)
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
