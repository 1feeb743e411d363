package check

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/kernel/command"
	"holdfast/internal/state"
)

// commanderFunc runs no program.
type commanderFunc func(context.Context, command.Command) (command.Result, error)

func (f commanderFunc) Run(ctx context.Context, c command.Command) (command.Result, error) {
	return f(ctx, c)
}

// echoes is a program that writes its arguments and ends with the status.
func echoes(code int) commanderFunc {
	return func(_ context.Context, c command.Command) (command.Result, error) {
		done := command.Result{Stdout: []byte(strings.Join(c.Argv, " ")), Code: code}
		if code != 0 {
			return done, &command.ExitError{Path: c.Argv[0], Code: code}
		}
		return done, nil
	}
}

// twoUnits are core and the unit scripts, in one process and without sockets.
type twoUnits struct {
	*Apart
	scripts *Scripts
	started atomic.Bool // the unit was, once
	down    atomic.Bool // its socket is there, nobody listens
	here    atomic.Int32
}

// RoundTrip is the socket between them.
func (u *twoUnits) RoundTrip(r *http.Request) (*http.Response, error) {
	if u.down.Load() {
		return nil, syscall.ECONNREFUSED
	}
	answer := httptest.NewRecorder()
	u.scripts.Handler().ServeHTTP(answer, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return answer.Result(), nil
}

// newTwoUnits has the unit started; commands are the unit's, file is what its
// cluster file says.
func newTwoUnits(t *testing.T, commands Commander, file ...Definition) *twoUnits {
	t.Helper()
	u := &twoUnits{scripts: NewScripts(ScriptsDeps{Commands: commands, Metrics: prometheus.NewRegistry()})}
	u.started.Store(true)
	u.Apart = NewApart(ApartConfig{
		Base: "http://unit", Web: &http.Client{Transport: u}, Here: u.started.Load, Log: slog.New(slog.DiscardHandler),
	})
	u.set(t, file...)
	return u
}

func (u *twoUnits) set(t *testing.T, file ...Definition) {
	t.Helper()
	if err := u.scripts.Set(file); err != nil {
		t.Fatal(err)
	}
}

// probe makes one probe as core's Runner does, of core's definition.
func (u *twoUnits) probe(ctx context.Context, d Definition) Result {
	d = d.WithDefaults()
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	return u.Probe(d, probeFunc(func(context.Context) Result {
		u.here.Add(1)
		return passing("run by core")
	})).Probe(ctx)
}

func portal(arguments ...string) Definition {
	return Definition{ID: "service:portal", Script: append([]string{"/usr/lib/checks/portal"}, arguments...), Timeout: 2 * time.Second}
}

func TestAScriptsResultIsTheSameFromItsUnit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // in virtual time a busy machine is not late
		for code, want := range map[int]state.Status{0: state.Passing, 1: state.Warning, 2: state.Critical, 9: state.Critical} {
			u := newTwoUnits(t, echoes(code), portal("--fast"))
			got := u.probe(t.Context(), portal("--fast"))
			local := probe(t, portal("--fast"), echoes(code))
			if got != local || got.Status != want || !strings.Contains(got.Output, "/usr/lib/checks/portal --fast") {
				t.Errorf("exit status %d: %+v from the unit, %+v here, want %s", code, got, local, want)
			}
			if n := u.here.Load(); n != 0 {
				t.Errorf("exit status %d: it ran %d times in core as well", code, n)
			}
		}
	})
}

func TestAScriptsOutputSurvivesTheWayWhateverItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wild := strings.Repeat("\x00\xff<", state.MaxOutput/3)
		u := newTwoUnits(t, commanderFunc(func(context.Context, command.Command) (command.Result, error) {
			return command.Result{Stdout: []byte(wild), Stderr: []byte(wild)}, nil
		}), portal())
		if got := u.probe(t.Context(), portal()); got.Status != state.Passing || got.Output != strings.ToValidUTF8(wild+wild, "\ufffd") {
			t.Errorf("%s with %d bytes", got.Status, len(got.Output))
		}
	})
}

func TestNothingRunsThatTheUnitsClusterFileDoesNotSay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ran := 0
		u := newTwoUnits(t, commanderFunc(func(context.Context, command.Command) (command.Result, error) {
			ran++
			return command.Result{}, nil
		}), portal(), Definition{ID: "tcp", TCP: "127.0.0.1:1"})
		sum := scriptSum(portal().WithDefaults())
		evil := portal()
		evil.Script = []string{"/bin/sh", "-c", "id"}
		asRoot := portal()
		asRoot.User = "root"
		longer := portal()
		longer.Timeout = time.Hour
		for name, query := range map[string]url.Values{
			"nothing":            {},
			"no sum":             {"check": {"service:portal"}},
			"another check":      {"check": {"service:other"}, "sum": {sum}},
			"a check, no script": {"check": {"tcp"}, "sum": {sum}},
			"another program":    {"check": {"service:portal"}, "sum": {scriptSum(evil.WithDefaults())}},
			"another user":       {"check": {"service:portal"}, "sum": {scriptSum(asRoot.WithDefaults())}},
			"another time limit": {"check": {"service:portal"}, "sum": {scriptSum(longer.WithDefaults())}},
		} {
			answer := httptest.NewRecorder()
			u.scripts.Handler().ServeHTTP(answer, httptest.NewRequest("POST", scriptPath+"?"+query.Encode(), strings.NewReader(`{"script": ["/bin/sh"]}`)))
			if answer.Code != http.StatusConflict || !strings.Contains(answer.Body.String(), "the cluster file has") {
				t.Errorf("%s: %d %s", name, answer.Code, answer.Body)
			}
		}
		if got := testutil.ToFloat64(u.scripts.refused); ran != 0 || got != 7 {
			t.Errorf("%d scripts ran; %v requests were counted as refused, want 7", ran, got)
		}
		for name, d := range map[string]Definition{"program": evil, "user": asRoot} {
			expect(t, u.probe(t.Context(), d), state.Critical, "does not run it", "another script, user or time limit")
			if ran != 0 || u.here.Load() != 0 {
				t.Errorf("a check with another %s ran", name)
			}
		}
		answer := httptest.NewRecorder()
		query := url.Values{"check": {"service:portal"}, "sum": {sum}, "script": {"/bin/sh"}, "user": {"root"}}
		u.scripts.Handler().ServeHTTP(answer, httptest.NewRequest("GET", scriptPath+"?"+query.Encode(), nil))
		if answer.Code != http.StatusMethodNotAllowed || ran != 0 {
			t.Errorf("a GET ran a script: %d %s", answer.Code, answer.Body)
		}
	})
}

func TestTheUnitRunsTheScriptAsTheFileSaysWhateverElseIsAsked(t *testing.T) {
	var ran command.Command
	u := newTwoUnits(t, commanderFunc(func(_ context.Context, c command.Command) (command.Result, error) {
		ran = c
		return command.Result{}, nil
	}), portal("a b"))
	query := url.Values{"check": {"service:portal"}, "sum": {scriptSum(portal("a b").WithDefaults())}, "script": {"/bin/sh"}, "user": {"root"}, "timeout": {"1h"}}
	answer := httptest.NewRecorder()
	u.scripts.Handler().ServeHTTP(answer, httptest.NewRequest("POST", scriptPath+"?"+query.Encode(), nil))
	if answer.Code != http.StatusOK || fmt.Sprint(ran.Argv) != "[/usr/lib/checks/portal a b]" || ran.Timeout != 2*time.Second || ran.User != nil || !ran.Unprivileged {
		t.Errorf("status %d, it ran %+v", answer.Code, ran)
	}
}

func TestAChangedScriptRunsOnceTheUnitHasReadItsFileAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newTwoUnits(t, echoes(0), portal())
		var failed error
		reads := 0
		file := portal()
		u.scripts.deps.Reload = func() error {
			reads++
			if failed != nil {
				return failed
			}
			return u.scripts.Set([]Definition{file})
		}
		u.probe(t.Context(), portal())
		if reads != 0 {
			t.Errorf("the file was read %d times for a check that had not changed", reads)
		}
		file = portal("--new")
		expect(t, u.probe(t.Context(), portal("--new")), state.Passing, "portal --new")
		if reads != 1 {
			t.Errorf("the file was read %d times, want once", reads)
		}
		expect(t, u.probe(t.Context(), portal()), state.Critical, "let the agent reload it") // core is behind
		failed = errors.New("cluster.yaml:3:1: bad")
		expect(t, u.probe(t.Context(), portal("--newer")), state.Critical, "can't be read again: cluster.yaml:3:1: bad")
		expect(t, u.probe(t.Context(), portal("--new")), state.Passing)
	})
}

func TestScriptsRunInCoreUntilThereIsAUnitAndNeverAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newTwoUnits(t, echoes(0), portal())
		u.started.Store(false)
		expect(t, u.probe(t.Context(), portal()), state.Passing, "run by core")
		u.started.Store(true)
		expect(t, u.probe(t.Context(), portal()), state.Passing, "/usr/lib/checks/portal")
		u.down.Store(true)
		began := time.Now()
		expect(t, u.probe(t.Context(), portal()), state.Critical, "the unit scripts does not answer: connection refused")
		if took := time.Since(began); took != 2*time.Second {
			t.Errorf("it gave up after %s, want the check's time limit", took)
		}
		u.started.Store(false) // whoever ended the unit took its socket away, too
		expect(t, u.probe(t.Context(), portal()), state.Critical, "does not answer")
		if n := u.here.Load(); n != 1 {
			t.Errorf("core ran %d scripts, want the one from before the unit", n)
		}
	})
}

func TestARestartOfTheUnitIsNoFailureOfTheService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newTwoUnits(t, echoes(0), portal())
		u.down.Store(true)
		time.AfterFunc(1500*time.Millisecond, func() { u.down.Store(false) })
		expect(t, u.probe(t.Context(), portal()), state.Passing, "/usr/lib/checks/portal")
	})
}

func TestAUnitThatEndsDuringAScriptIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runs := 0
		u := newTwoUnits(t, echoes(0), portal())
		u.Apart.config.Web = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			if runs++; runs == 1 {
				answer := httptest.NewRecorder()
				http.Error(answer, "the unit ends", http.StatusServiceUnavailable)
				return answer.Result(), nil
			}
			return u.RoundTrip(r)
		})}
		expect(t, u.probe(t.Context(), portal()), state.Passing)
		if runs != 2 {
			t.Errorf("it was asked %d times", runs)
		}
	})
}

// roundTrip is a transport made of a function.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// hangs is a program that is killed at its time limit, or with the request.
func hangs(after func(error)) commanderFunc {
	return func(ctx context.Context, c command.Command) (command.Result, error) {
		err := command.ErrTimeout
		select {
		case <-time.After(c.Timeout):
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		after(err)
		return command.Result{Stdout: []byte("so far")}, err
	}
}

func TestItIsTheUnitThatKeepsTheTimeLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var killed error
		u := newTwoUnits(t, hangs(func(err error) { killed = err }), portal())
		expect(t, u.probe(t.Context(), portal()), state.Critical, "not done within 2s, killed: so far")
		if !errors.Is(killed, command.ErrTimeout) {
			t.Errorf("the script ended by %v", killed)
		}
	})
}

func TestAUnitThatHangsIsCriticalBeforeTheProbeIsOverdue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newTwoUnits(t, commanderFunc(func(ctx context.Context, _ command.Command) (command.Result, error) {
			<-ctx.Done() // as a user database that does not answer
			return command.Result{}, ctx.Err()
		}), portal())
		began := time.Now()
		expect(t, u.probe(t.Context(), portal()), state.Critical, "the unit scripts does not answer: no answer within 2s")
		if took := time.Since(began); took >= 2*time.Second+overdue {
			t.Errorf("it took %s", took)
		}
	})
}

func TestTheEndOfACheckEndsItsScript(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var killed error
		u := newTwoUnits(t, hangs(func(err error) { killed = err }), portal())
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(100*time.Millisecond, cancel)
		began := time.Now()
		u.probe(ctx, portal())
		if took := time.Since(began); took != 100*time.Millisecond || !errors.Is(killed, context.Canceled) {
			t.Errorf("it ended after %s by %v", took, killed)
		}
	})
}

func TestACheckRunsOnceAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		running, most := 0, 0
		u := newTwoUnits(t, commanderFunc(func(context.Context, command.Command) (command.Result, error) {
			running++
			most = max(most, running)
			time.Sleep(500 * time.Millisecond) // virtual
			running--
			return command.Result{}, nil
		}), portal())
		results := make(chan Result)
		for range 3 { // a core that was killed may have left two behind
			go func() { results <- u.probe(t.Context(), portal()) }()
		}
		for range 3 {
			expect(t, <-results, state.Passing)
		}
		if most != 1 {
			t.Errorf("%d ran at once", most)
		}
	})
}

func FuzzDecodeAnswer(f *testing.F) {
	for _, seed := range []string{`{"status":"passing","output":"ok"}`, `{"status":"up"}`, `{}`, ``, `[`, `{"status":"critical","output":"\u0000"}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := decodeAnswer(body)
		switch r.Status {
		case state.Passing, state.Warning, state.Critical:
			if err != nil {
				t.Errorf("%q is both %s and %v", body, r.Status, err)
			}
		default:
			if _, ok := errors.AsType[refusal](err); !ok || r != (Result{}) {
				t.Errorf("%q: %+v, %v", body, r, err)
			}
		}
	})
}
