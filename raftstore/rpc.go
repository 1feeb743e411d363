package raftstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"holdfast/internal/run"
	"holdfast/internal/state"
)

// Between servers, requests travel as HTTP/2 over the connections of network:
// POST, a body, and a JSON answer. The paths:
const (
	pathPropose     = "/v1/propose"      // body: an encoded command
	pathProposeMany = "/v1/propose-many" // body: see encodeBatch; the answer is one for each
	pathReadIndex   = "/v1/read-index"   // no body
	pathProgress    = "/v1/progress"     // no body; the answer is a progress
	pathRemove      = "/v1/remove"       // body: a target
	pathTransfer    = "/v1/transfer"     // body: a target
	pathRestore     = "/v1/restore"      // body: a snapshot
	pathDigest      = "/v1/digest"       // body: a digest of which only the index counts; the answer a digest
	pathRebuild     = "/v1/rebuild"      // body: see rebuildHere
	pathOperate     = "/v1/operate"      // body: an operation; the answer has data
	pathForm        = "/v1/form"         // body: a formRequest; the answer a formReply
)

const (
	maxMessage = 1 << 20 // bytes of a JSON body or answer
	maxStreams = 4096    // requests at once on one connection
)

// answer is what most requests give back.
type answer struct {
	Index   uint64 `json:"index,omitempty"`
	Code    string `json:"code,omitempty"` // state.ErrorCode of the error, if there was one
	Message string `json:"message,omitempty"`
	// Untouched: the request was refused and nothing has happened; another
	// server, or a later try, may take it.
	Untouched bool            `json:"untouched,omitempty"`
	Data      json.RawMessage `json:"data,omitempty"` // what an operation gave
}

// target names a server, by ID, name or address.
type target struct {
	Server string `json:"server"`
}

// progress is how far a server is.
type progress struct {
	ID        string `json:"id"`
	Term      uint64 `json:"term"`
	LastIndex uint64 `json:"last_index"`
	Applied   uint64 `json:"applied"`
	Leader    string `json:"leader"` // ID of the leader it follows; "" none

	Heard time.Duration `json:"heard_ns,omitempty"` // how long ago it heard the leader
	Disk  fitness       `json:"disk,omitempty"`
	Run   string        `json:"run,omitempty"`   // another after every start
	Level int           `json:"level,omitempty"` // highest feature level it reads; 0: it does not tell, and reads the first
	Trust *Trusted      `json:"trust,omitempty"` // nil: plain text, or a program that does not tell
}

// untouchedError wraps an error of a request that surely had no effect.
type untouchedError struct{ err error }

func (e *untouchedError) Error() string { return e.err.Error() }
func (e *untouchedError) Unwrap() error { return e.err }

func untouched(err error) bool {
	_, ok := errors.AsType[*untouchedError](err)
	if !ok {
		_, ok = errors.AsType[*dialError](err)
	}
	return ok
}

func answerOf(index uint64, err error) answer {
	a := answer{Index: index, Untouched: err != nil && untouched(err)}
	a.Code, a.Message = state.ErrorCode(err)
	return a
}

// error is the inverse of answerOf.
func (a answer) error() error {
	err := state.ErrorFrom(a.Code, a.Message)
	if err != nil && a.Untouched {
		return &untouchedError{err}
	}
	return err
}

// handler is what a server does for others. Every method may block until ctx
// ends.
type handler interface {
	proposeHere(ctx context.Context, command []byte) (uint64, error)
	readIndexHere(ctx context.Context) (uint64, error)
	progressHere() progress
	removeHere(ctx context.Context, server string) (uint64, error)
	transferHere(ctx context.Context, to string) error
	restoreHere(ctx context.Context, r io.Reader) (uint64, error)
	formHere(req formRequest) (formReply, error)
	digestHere(ctx context.Context, index uint64) digest
	rebuildHere(ctx context.Context, body io.Reader) error
	operateHere(ctx context.Context, o operation) (json.RawMessage, error)
}

// rpcServer answers requests of other servers.
type rpcServer struct {
	http    *http.Server
	active  run.Gate
	expects *expectant
}

type peerKey struct{}

// withPeer notes who is at the other end of a connection.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	if s, ok := conn.(*stream); ok {
		return context.WithValue(ctx, peerKey{}, s.peer.ID)
	}
	return ctx
}

// expects is told of the servers that wait for an answer.
func newRPCServer(h handler, maxSnapshot int64, expects *expectant, log *slog.Logger) *rpcServer {
	s := &rpcServer{expects: expects}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true) // network has encrypted it already
	s.http = &http.Server{
		Handler:           s.counted(routes(h, maxSnapshot)),
		Protocols:         protocols,
		ConnContext:       withPeer,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    8 << 10,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return s
}

// counted lets stop wait for the requests under way.
func (s *rpcServer) counted(next http.Handler) http.Handler {
	return s.active.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if id, ok := r.Context().Value(peerKey{}).(string); ok {
			s.expects.begin(id)
			defer s.expects.end(id)
		}
		next.ServeHTTP(w, r)
	}))
}

func (s *rpcServer) serve(l net.Listener) error {
	err := s.http.Serve(l)
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (s *rpcServer) stop() {
	s.http.Close()
	s.active.Close()
}

func routes(h handler, maxSnapshot int64) http.Handler {
	mux := http.NewServeMux()
	on := func(path string, limit int64, serve func(ctx context.Context, body io.Reader) any) {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			respond(w, serve(r.Context(), http.MaxBytesReader(w, r.Body, limit)))
		})
	}
	on(pathPropose, state.MaxCommand, func(ctx context.Context, body io.Reader) any {
		command, err := io.ReadAll(body)
		if err != nil {
			return answerOf(0, &untouchedError{fmt.Errorf("read the command: %w", err)})
		}
		return answerOf(h.proposeHere(ctx, command))
	})
	on(pathProposeMany, state.MaxCommand, func(ctx context.Context, body io.Reader) any { return proposeManyHere(ctx, h, body) })
	on(pathReadIndex, 0, func(ctx context.Context, _ io.Reader) any { return answerOf(h.readIndexHere(ctx)) })
	on(pathProgress, 0, func(context.Context, io.Reader) any { return h.progressHere() })
	on(pathRemove, maxMessage, withTarget(h.removeHere))
	on(pathTransfer, maxMessage, withTarget(func(ctx context.Context, to string) (uint64, error) {
		return 0, h.transferHere(ctx, to)
	}))
	on(pathRestore, maxSnapshot+2, func(ctx context.Context, body io.Reader) any {
		return answerOf(h.restoreHere(ctx, body))
	})
	on(pathDigest, maxMessage, func(ctx context.Context, body io.Reader) any {
		var d digest
		if err := decodeJSON(body, &d); err != nil {
			return digest{}
		}
		return h.digestHere(ctx, d.Index)
	})
	on(pathRebuild, maxSnapshot+maxRebuildHead, func(ctx context.Context, body io.Reader) any {
		return answerOf(0, h.rebuildHere(ctx, body))
	})
	on(pathOperate, maxMessage, func(ctx context.Context, body io.Reader) any {
		var o operation
		if err := decodeJSON(body, &o); err != nil {
			return answerOf(0, &untouchedError{err})
		}
		data, err := h.operateHere(ctx, o)
		a := answerOf(0, err)
		a.Data = data
		return a
	})
	on(pathForm, maxMessage, func(_ context.Context, body io.Reader) any {
		var req formRequest
		if err := decodeJSON(body, &req); err != nil {
			return formReply{Reason: err.Error()}
		}
		reply, err := h.formHere(req)
		if err != nil {
			return formReply{Reason: err.Error()}
		}
		return reply
	})
	return mux
}

func withTarget(do func(context.Context, string) (uint64, error)) func(context.Context, io.Reader) any {
	return func(ctx context.Context, body io.Reader) any {
		var t target
		if err := decodeJSON(body, &t); err != nil {
			return answerOf(0, &untouchedError{err})
		}
		return answerOf(do(ctx, t.Server))
	}
}

// decodeJSON reads exactly one value; body is bounded already.
func decodeJSON(body io.Reader, into any) error {
	data, err := io.ReadAll(body)
	if err != nil {
		return fmt.Errorf("read the message: %w", err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("decode the message: %w", err)
	}
	return nil
}

func respond(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	data, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Write(data) // who is gone is gone
}

// errNoSuchPath: the server is of a version that does not know the request.
var errNoSuchPath = errors.New("its version does not know the request")

// rpcClient asks other servers.
type rpcClient struct {
	make func() *http.Transport
	via  atomic.Pointer[http.Transport]
	wire wire
}

// newRPCClient keeps one connection a server, made by dial.
func newRPCClient(dial func(ctx context.Context, address string) (net.Conn, error), times timings) *rpcClient {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	c := &rpcClient{make: func() *http.Transport {
		return &http.Transport{
			Protocols:       protocols,
			DialContext:     func(ctx context.Context, _, address string) (net.Conn, error) { return dial(ctx, address) },
			IdleConnTimeout: time.Minute,
			HTTP2: &http.HTTP2Config{ // a server that lost its power sends no reset
				SendPingTimeout: times.transport / 2,
				PingTimeout:     times.transport / 2,
			},
		}
	}}
	c.via.Store(c.make())
	return c
}

func (c *rpcClient) stop() { c.via.Load().CloseIdleConnections() }

// renew has requests from now on go over new connections. What is under way on
// the old ones ends there; they are closed when they are idle.
func (c *rpcClient) renew(ctx context.Context) {
	old := c.via.Swap(c.make())
	for range 600 { // no request takes longer than a minute
		old.CloseIdleConnections()
		if !sleep(ctx, 100*time.Millisecond) {
			break
		}
	}
	old.CloseIdleConnections()
}

// post sends a request and decodes its answer. An error that is untouched
// says that the server can't have acted upon it.
func (c *rpcClient) post(ctx context.Context, address, path string, body io.Reader, into any) error {
	return c.wire.carry(address, func() error { return c.send(ctx, address, path, body, into) })
}

func (c *rpcClient) send(ctx context.Context, address, path string, body io.Reader, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+path, body)
	if err != nil {
		return &untouchedError{err}
	}
	resp, err := (&http.Client{Transport: c.via.Load()}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxMessage))
	if err != nil {
		return fmt.Errorf("read the answer of %s: %w", address, err)
	}
	if resp.StatusCode == http.StatusNotFound {
		return fmt.Errorf("%s answers %s: %w", address, resp.Status, errNoSuchPath)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", address, resp.Status)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("decode the answer of %s: %w", address, err)
	}
	return nil
}

// ask posts and returns what the answer says.
func (c *rpcClient) ask(ctx context.Context, address, path string, body io.Reader) (uint64, error) {
	a, err := c.inquire(ctx, address, path, body)
	return a.Index, err
}

// inquire is ask for who needs all of the answer; its error is returned.
func (c *rpcClient) inquire(ctx context.Context, address, path string, body io.Reader) (a answer, err error) {
	if err := c.post(ctx, address, path, body, &a); err != nil {
		return answer{}, err
	}
	return a, a.error()
}

func jsonBody(v any) io.Reader { return bytes.NewReader(mustJSON(v)) }

// mustJSON encodes one of our own messages, which cannot fail.
func mustJSON(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("raftstore: encode %T: %v", v, err))
	}
	return data
}
