package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/state"
)

// call is one request on its way through the API.
type call struct {
	*http.Request
	w    *recorder
	from origin
	who  caller
	rule rule       // of the endpoint
	rest string     // of the path, after the route's
	args url.Values // the query
	read readOptions

	filter *filter
	hidden bool // something was left out that the token may not see

	hurried time.Time // when the client was last given time for its body

	stop    <-chan struct{} // the server ends
	blocked bool            // it waited for a change: its duration says nothing
	place   *place          // of a blocking query
	lot     *lot            // where it may wait; nil: in its handler alone
	parked  bool            // its connection is there, and is no longer this call's
}

// statusError is an error with its HTTP status. The text goes to the client as it is.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string { return e.text }

func fault(status int, format string, args ...any) error {
	return &statusError{status: status, text: fmt.Sprintf(format, args...)}
}

// errGone: there is no answer to give, since the client left, the server stops
// or half an answer is out. The connection is broken off, for an empty 200
// would be a promise.
var errGone = errors.New("no answer")

// consistency is how fresh a read must be.
type consistency string

// The modes, in the words of X-Consul-Effective-Consistency.
const (
	byLeader   consistency = "leader"
	consistent consistency = "consistent"
	stale      consistency = "stale"
)

// readOptions are the parameters that reads share.
type readOptions struct {
	index    uint64        // wait until the answer's differs; 0 doesn't wait
	wait     time.Duration // 0 the default
	mode     consistency
	maxStale time.Duration     // for stale: an older replica asks the leader first; 0 any age
	nodeMeta map[string]string // the node must have these
}

// Consul's limits of a blocking query (agent/consul/rpc.go).
const (
	defaultWait = 5 * time.Minute
	maxWait     = 10 * time.Minute
	waitJitter  = 16 // a wait gets up to 1/16 more, so that clients don't come back together
)

// parse reads the parameters that endpoints share.
func (c *call) parse(datacenter string) error {
	args, err := url.ParseQuery(c.URL.RawQuery)
	if err != nil {
		return fault(http.StatusBadRequest, "Invalid query: %v", err)
	}
	c.args = args
	if err := checkScope(args, datacenter); err != nil {
		return err
	}
	c.read, err = parseRead(args)
	return err
}

// checkScope refuses what points outside this cluster.
func checkScope(args url.Values, datacenter string) error {
	if dc := args.Get("dc"); dc != "" && !strings.EqualFold(dc, datacenter) {
		return fault(http.StatusInternalServerError, "No path to datacenter")
	}
	for _, name := range []string{"ns", "partition"} {
		if value := args.Get(name); value != "" && value != "default" {
			return fault(http.StatusBadRequest, "Invalid query parameter: %q - there is only the default one", name)
		}
	}
	for _, name := range []string{"hash", "peer", "sg", "sameness-group"} {
		if args.Get(name) != "" {
			return fault(http.StatusBadRequest, "Invalid query parameter: %q is not offered", name)
		}
	}
	return nil
}

func parseRead(args url.Values) (readOptions, error) {
	options := readOptions{mode: byLeader}
	var err error
	if index := args.Get("index"); index != "" {
		if options.index, err = strconv.ParseUint(index, 10, 64); err != nil {
			return options, fault(http.StatusBadRequest, "Invalid index")
		}
	}
	if wait := args.Get("wait"); wait != "" {
		if options.wait, err = parseWait(wait); err != nil {
			return options, fault(http.StatusBadRequest, "Invalid wait time")
		}
	}
	if args.Has("consistent") {
		options.mode = consistent
	}
	if args.Has("stale") || args.Has("max_stale") {
		if options.mode == consistent {
			return options, fault(http.StatusBadRequest, "Cannot specify ?stale with ?consistent, conflicting semantics.")
		}
		options.mode = stale
	}
	if limit := args.Get("max_stale"); limit != "" {
		options.maxStale, err = time.ParseDuration(limit)
		if err != nil || options.maxStale < 0 {
			return options, fault(http.StatusBadRequest, "Invalid max_stale value %q", limit)
		}
	}
	for _, pair := range args["node-meta"] {
		if options.nodeMeta == nil {
			options.nodeMeta = map[string]string{}
		}
		key, value, _ := strings.Cut(pair, ":")
		options.nodeMeta[key] = value
	}
	return options, nil
}

// parseWait takes Go's durations and, as Consul does, bare milliseconds with
// no sign. The result is at most maxWait.
func parseWait(text string) (time.Duration, error) {
	wait, err := time.ParseDuration(text)
	if err != nil {
		ms, numeric := strconv.ParseUint(text, 10, 32)
		if numeric != nil {
			return 0, err
		}
		wait = time.Duration(ms) * time.Millisecond
	}
	if wait < 0 {
		return 0, fmt.Errorf("negative wait %s", wait)
	}
	return min(wait, maxWait), nil
}

// flag reads a parameter that is true when it stands alone.
func (c *call) flag(name string) (bool, error) {
	if !c.args.Has(name) {
		return false, nil
	}
	value := c.args.Get(name)
	if value == "" {
		return true, nil
	}
	on, err := strconv.ParseBool(value)
	if err != nil {
		return false, fault(http.StatusBadRequest, "Invalid value for ?%s: %q", name, value)
	}
	return on, nil
}

// name is what follows the route's path; what it is called is for the error.
func (c *call) name(what string) (string, error) {
	if c.rest == "" {
		return "", fault(http.StatusBadRequest, "Missing %s", what)
	}
	return c.rest, nil
}

// body reads the request's body, at most limit bytes of it, in bounded time.
func (s *Server) body(c *call, limit int64) ([]byte, error) {
	tooLarge := func(size string) error {
		return s.refuse(&refusal{http.StatusRequestEntityTooLarge, "body",
			fmt.Sprintf("Request body(%s bytes) too large, max size: %d bytes.", size, limit)})
	}
	if c.ContentLength > limit {
		return nil, tooLarge(strconv.FormatInt(c.ContentLength, 10))
	}
	c.hurry(bodyTimeout)
	data, err := io.ReadAll(http.MaxBytesReader(c.w, c.Body, limit))
	c.bodyRead(err)
	var oversize *http.MaxBytesError
	switch {
	case errors.As(err, &oversize):
		return nil, tooLarge(fmt.Sprintf("more than %d", limit))
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, s.refuse(&refusal{http.StatusRequestTimeout, "slow", fmt.Sprintf("Request body: it did not come within %s", bodyTimeout)})
	case err != nil:
		return nil, fault(http.StatusBadRequest, "Request body: %v", err)
	}
	return data, nil
}

// hurry gives the client time for what is next of its body; 0 is for ever. A
// test's recorder has no deadlines.
func (c *call) hurry(d time.Duration) {
	var at time.Time
	if d > 0 {
		now := time.Now()
		if c.w.streams && d == bodyTimeout && now.Sub(c.hurried) < slack {
			return
		}
		c.hurried, at = now, now.Add(d)
	}
	_ = http.NewResponseController(c.w.ResponseWriter).SetReadDeadline(at)
}

// bodyRead is called when the body was read, or can't be. What is left of it
// then, net/http reads before it sends the answer, without a limit of its own:
// it gets a short one, or who sends nothing would hold the connection. In HTTP/2
// the limit is the stream's, and nothing is left to which it could come.
func (c *call) bodyRead(err error) {
	switch {
	case err != nil:
		c.w.Header().Set("Connection", "close")
		c.hurry(leftoverTimeout)
	case !c.w.streams:
		c.hurry(0)
	}
}

// decode reads a JSON body into v.
func (s *Server) decode(c *call, v any) error {
	data, err := s.body(c, s.config.MaxBody)
	if err != nil {
		return err
	}
	if err := decodeStrict(data, v); err != nil {
		return fault(http.StatusBadRequest, "Request decode failed: %v", err)
	}
	return nil
}

// decodeStrict wants exactly one JSON value.
func decodeStrict(data []byte, v any) error {
	if len(bytes.TrimSpace(data)) == 0 {
		return io.EOF
	}
	return json.Unmarshal(data, v)
}

// reply answers with JSON.
func (s *Server) reply(c *call, v any) error { return s.replyWith(c, http.StatusOK, v) }

// conflict answers with 409 and JSON.
func (s *Server) conflict(c *call, v any) error { return s.replyWith(c, http.StatusConflict, v) }

func (s *Server) replyWith(c *call, status int, v any) error {
	data, err := encode(v, c.args.Has("pretty"))
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.w.Header().Set("X-Content-Type-Options", "nosniff")
	c.w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	c.w.extend(writeTimeout)
	c.w.WriteHeader(status)
	if _, err = c.w.Write(data); err != nil {
		return errGone
	}
	return nil
}

func encode(v any, pretty bool) ([]byte, error) {
	if !pretty {
		return json.Marshal(v)
	}
	data, err := json.MarshalIndent(v, "", "    ")
	return append(data, '\n'), err
}

// done answers with 200 and nothing more.
func (s *Server) done(c *call) error {
	c.w.WriteHeader(http.StatusOK)
	return nil
}

// unanswerable tells whether an error leaves nothing to answer.
func (c *call) unanswerable(err error) bool {
	var own *statusError
	if errors.As(err, &own) && own.status == http.StatusRequestTimeout {
		return false // its context has ended with the reading, but it is there
	}
	return err != nil && (errors.Is(err, errGone) || c.w.code != 0 || c.Context().Err() != nil)
}

// fail answers with an error.
func (s *Server) fail(c *call, err error) {
	answer := statusOf(err)
	if answer.status >= http.StatusInternalServerError {
		level := slog.LevelWarn
		if errors.Is(err, state.ErrNoLeader) {
			level = slog.LevelDebug // said once, as a condition, not for each who asks
		}
		s.log.Log(c.Context(), level, "a request failed", "method", c.Method, "path", c.URL.Path, "status", answer.status, "error", err)
	}
	c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	c.w.Header().Set("X-Content-Type-Options", "nosniff")
	c.w.Header().Set("Content-Length", strconv.Itoa(len(answer.text)))
	c.w.extend(writeTimeout)
	c.w.WriteHeader(answer.status)
	_, _ = io.WriteString(c.w, answer.text) // a client that left needs no answer
}

// noLeader is the text that Consul's clients look for.
const noLeader = "No cluster leader"

// withoutLeader begins with that text and goes on with what the store knows:
// who is down.
func withoutLeader(err error) string {
	text, plain := err.Error(), state.ErrNoLeader.Error()
	detail := text[max(0, strings.LastIndex(text, plain)):]
	detail = strings.TrimPrefix(strings.TrimPrefix(detail, plain), ": ")
	if detail == "" {
		return noLeader
	}
	return noLeader + ": " + detail
}

// statusOf gives an error its HTTP status. Clients retry 500s.
func statusOf(err error) *statusError {
	var own *statusError
	switch {
	case errors.As(err, &own):
		return own
	case errors.Is(err, state.ErrNoLeader):
		return &statusError{http.StatusInternalServerError, withoutLeader(err)}
	case errors.Is(err, state.ErrInvalid):
		return &statusError{http.StatusBadRequest, err.Error()}
	case errors.Is(err, state.ErrNotFound):
		return &statusError{http.StatusNotFound, err.Error()}
	case errors.Is(err, state.ErrConflict):
		return &statusError{http.StatusConflict, err.Error()}
	default:
		return &statusError{http.StatusInternalServerError, err.Error()}
	}
}

// propose puts a write in order and waits until this node's replica has it.
func (s *Server) propose(c *call, command state.Command) (uint64, error) {
	ctx, cancel := context.WithTimeout(c.Context(), proposeTimeout)
	defer cancel()
	return s.proposer.Propose(ctx, command)
}

// carriedOut is for what must not stop half-way because the admin who asked
// for it hung up.
func (c *call) carriedOut() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(c.Context()), operateTimeout)
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
