package check

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"holdfast/internal/state"
)

const (
	// retryUnit is how often a unit that does not answer is asked again.
	retryUnit = 200 * time.Millisecond
	// answerGrace is how much longer than the check's time limit, which the unit
	// keeps, its answer is waited for. It is less than overdue.
	answerGrace = 500 * time.Millisecond
	// maxScriptAnswer holds twice state.MaxOutput, each byte of it escaped.
	maxScriptAnswer = 128 << 10
)

// ApartConfig says where the unit that runs scripts is asked. All is needed.
type ApartConfig struct {
	Base string       // scheme and host of its URLs
	Web  *http.Client // reaches it
	// Here tells whether the unit has been started on this node.
	Here func() bool
	Log  *slog.Logger
}

// Apart has script checks run by a unit of their own (Scripts), once there is
// one; until then they run in this process. There is no way back: were the unit
// killed, scripts would run with this process's rights.
type Apart struct {
	config ApartConfig
	seen   atomic.Bool
}

// NewApart asks nobody yet.
func NewApart(config ApartConfig) *Apart { return &Apart{config: config} }

// Probe makes the probe of a script check out of the one that runs it in this
// process. d has its defaults.
func (a *Apart) Probe(d Definition, here Probe) Probe {
	target := url.URL{Path: scriptPath, RawQuery: url.Values{"check": {d.ID}, "sum": {scriptSum(d)}}.Encode()}
	return apartProbe{apart: a, here: here, url: a.config.Base + target.String(), program: d.Script[0], limit: d.Timeout}
}

// there tells whether the unit runs the scripts.
func (a *Apart) there() bool {
	if a.seen.Load() {
		return true
	}
	if !a.config.Here() {
		return false
	}
	if !a.seen.Swap(true) {
		a.config.Log.Info("script checks run in the unit scripts from now on")
	}
	return true
}

type apartProbe struct {
	apart   *Apart
	here    Probe
	url     string
	program string
	limit   time.Duration
}

// Probe waits, within the check's time limit, for a unit that is restarted.
func (p apartProbe) Probe(ctx context.Context) Result {
	if !p.apart.there() {
		return p.here.Probe(ctx)
	}
	asked, cancel := outlasting(ctx, p.limit+answerGrace)
	defer cancel()
	for {
		result, err := p.ask(asked)
		if err == nil {
			return result
		}
		if no, ok := errors.AsType[refusal](err); ok {
			return critical("%s: the unit scripts does not run it: %s", p.program, string(no))
		}
		select {
		case <-ctx.Done():
			return critical("%s: the unit scripts does not answer: %s", p.program, unreached(err, p.limit))
		case <-time.After(retryUnit):
		}
	}
}

// outlasting ends when ctx is broken off, but not at its deadline: at its own.
func outlasting(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	stop := context.AfterFunc(ctx, func() {
		if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			cancel()
		}
	})
	return longer, func() { stop(); cancel() }
}

// refusal is an answer that asking again would not change.
type refusal string

func (r refusal) Error() string { return string(r) }

// ask has the unit run the script once. An error that is no refusal may be over
// soon.
func (p apartProbe) ask(ctx context.Context) (Result, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, nil)
	if err != nil {
		return Result{}, refusal(err.Error())
	}
	response, err := p.apart.config.Web.Do(request)
	if err != nil {
		return Result{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxScriptAnswer))
	switch {
	case err != nil:
		return Result{}, err
	case response.StatusCode == http.StatusServiceUnavailable:
		return Result{}, errors.New(strings.TrimSpace(string(body)))
	case response.StatusCode != http.StatusOK:
		return Result{}, refusal(strings.TrimSpace(string(body)))
	}
	return decodeAnswer(body)
}

// decodeAnswer reads what the unit said of a run.
func decodeAnswer(body []byte) (Result, error) {
	var answer scriptAnswer
	if err := json.Unmarshal(body, &answer); err != nil {
		return Result{}, refusal("its answer is broken: " + err.Error())
	}
	switch answer.Status {
	case state.Passing, state.Warning, state.Critical:
		return Result{Status: answer.Status, Output: answer.Output}, nil
	}
	return Result{}, refusal(fmt.Sprintf("its answer is broken: status %.20q", answer.Status))
}

// unreached says why the unit could not be asked, the same way every time.
func unreached(err error, limit time.Duration) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	if outer, ok := errors.AsType[*url.Error](err); ok {
		err = outer.Err
	}
	return reason(err, limit)
}
