package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"holdfast/internal/admin"
	"holdfast/internal/health"
	"holdfast/internal/peer"
	"holdfast/internal/state"
)

// ClientConfig says which agent a Client asks, and as whom. Either Socket or
// URL is set.
type ClientConfig struct {
	Socket string      // admin socket of an agent on this machine
	URL    string      // "https://fbservice1:8501" or "http://127.0.0.1:8500"
	TLS    *tls.Config // for https: an admin's certificate, the cluster's authority
	Token  string      // "" none
}

// Client asks one agent. It is what the command line uses; other programs may
// as well use any client of Consul. Methods block until the agent has answered
// or ctx ends.
type Client struct {
	base  string
	token string
	http  *http.Client
}

// NewClient makes a client; it connects to nothing yet.
func NewClient(config ClientConfig) (*Client, error) {
	if (config.Socket == "") == (config.URL == "") {
		return nil, errors.New("api: give a socket or a URL")
	}
	if config.Socket != "" {
		return &Client{base: admin.BaseURL, token: config.Token, http: admin.Client(config.Socket)}, nil
	}
	base, err := url.Parse(config.URL)
	if err != nil || base.Host == "" || (base.Scheme != "https" && base.Scheme != "http") {
		return nil, fmt.Errorf("api: %q is no URL of an agent: want https://HOST:8501", config.URL)
	}
	if base.Scheme == "http" && !onLoopback(base.Hostname()) {
		return nil, fmt.Errorf("api: %s: plain HTTP is for loopback only: want https://HOST:8501", config.URL)
	}
	if base.Scheme == "https" && config.TLS == nil {
		return nil, fmt.Errorf("api: %s needs the cluster's authority to check who answers", config.URL)
	}
	dialer := &net.Dialer{Timeout: dialTimeout}
	transport := &http.Transport{
		DialContext:         dialer.DialContext,
		TLSClientConfig:     config.TLS,
		TLSHandshakeTimeout: 5 * time.Second,
		ForceAttemptHTTP2:   true,
		MaxIdleConns:        2,
		IdleConnTimeout:     30 * time.Second,
	}
	return &Client{base: strings.TrimSuffix(config.URL, "/"), token: config.Token, http: &http.Client{Transport: transport}}, nil
}

// dialTimeout bounds the wait for a host that does not even refuse.
const dialTimeout = 5 * time.Second

// onLoopback tells whether nobody listens on the way to host.
func onLoopback(host string) bool {
	address, err := netip.ParseAddr(host)
	return host == "localhost" || (err == nil && address.IsLoopback())
}

// Close drops the connections that are kept for the next request.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Error is an agent's refusal.
type Error struct {
	Status int // HTTP
	Text   string
}

// Error gives the agent's text, or the status where it gave none.
func (e *Error) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("the agent answered %d %s", e.Status, http.StatusText(e.Status))
	}
	return e.Text
}

// UnreachableError says that no agent answered: nothing listens there, or the
// two don't trust each other.
type UnreachableError struct{ Cause error }

// Error gives the cause.
func (e *UnreachableError) Error() string { return e.Cause.Error() }

// Unwrap gives the cause.
func (e *UnreachableError) Unwrap() error { return e.Cause }

// NoLeader tells whether an error is the agent's word that the cluster has no
// leader: the request was not carried out.
func NoLeader(err error) bool {
	var refused *Error
	return errors.As(err, &refused) && refused.Status == http.StatusInternalServerError && strings.HasPrefix(refused.Text, noLeader)
}

// NotFound tells whether an error is the agent's word that a thing doesn't exist.
func NotFound(err error) bool {
	var refused *Error
	return errors.As(err, &refused) && refused.Status == http.StatusNotFound
}

// maxErrorText bounds what is read of a refusal.
const maxErrorText = 1 << 20

// roundTrip makes a request; the answer may be a refusal.
func (c *Client) roundTrip(ctx context.Context, method, path string, args url.Values, body io.Reader) (*http.Response, error) {
	target := c.base + path
	if len(args) > 0 {
		target += "?" + args.Encode()
	}
	request, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if c.token != "" {
		request.Header.Set("X-Consul-Token", c.token)
	}
	response, err := c.http.Do(request)
	if err != nil {
		var transport *url.Error
		if errors.As(err, &transport) {
			err = transport.Err // without the URL, which says nothing of a socket
		}
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			return nil, fmt.Errorf("%s %s: the agent broke the connection off without an answer; whether it did what was asked is not known: %w", method, path, err)
		}
		return nil, &UnreachableError{peer.Explain(err)}
	}
	return response, nil
}

// refusalOf reads the error out of an answer that is none.
func refusalOf(response *http.Response, method, path string) error {
	text, err := io.ReadAll(io.LimitReader(response.Body, maxErrorText))
	if err != nil {
		return fmt.Errorf("%s %s: read the answer: %w", method, path, err)
	}
	return &Error{Status: response.StatusCode, Text: strings.TrimSpace(string(text))}
}

// send makes a request and hands over the body of a 200.
func (c *Client) send(ctx context.Context, method, path string, args url.Values, body io.Reader) (io.ReadCloser, error) {
	response, err := c.roundTrip(ctx, method, path, args, body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode == http.StatusOK {
		return response.Body, nil
	}
	defer response.Body.Close()
	return nil, refusalOf(response, method, path)
}

// ask makes a request and decodes the answer into v, unless v is nil.
func (c *Client) ask(ctx context.Context, method, path string, args url.Values, body io.Reader, v any) error {
	answer, err := c.send(ctx, method, path, args, body)
	if err != nil {
		return err
	}
	defer answer.Close()
	if v == nil {
		_, err = io.Copy(io.Discard, answer)
	} else {
		err = json.NewDecoder(answer).Decode(v)
	}
	if err != nil {
		return fmt.Errorf("%s %s: read the answer: %w", method, path, err)
	}
	return nil
}

// Status asks for everything that the one-screen status shows.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var found Status
	err := c.ask(ctx, "GET", "/v1/holdfast/status", nil, nil, &found)
	return found, err
}

// Members lists the gossip's members as the agent sees them.
func (c *Client) Members(ctx context.Context) ([]MemberStatus, error) {
	found, err := c.Status(ctx)
	return found.Members, err
}

// Services lists the services with their instances.
func (c *Client) Services(ctx context.Context) ([]ServiceStatus, error) {
	found, err := c.Status(ctx)
	return found.Services, err
}

// VIP asks the admin tree of the virtual addresses, on a net unit's socket or
// through the API, and decodes the answer into found; path is what follows
// /v1/holdfast/vip/.
func (c *Client) VIP(ctx context.Context, method, path string, args url.Values, found any) error {
	return c.ask(ctx, method, vipPath+path, args, nil, found)
}

// Logs asks the agent's log relay: path is below /v1/holdfast/logs/. The caller
// closes the answer, which goes on for ever where the query follows.
func (c *Client) Logs(ctx context.Context, method, path string, args url.Values) (io.ReadCloser, error) {
	return c.send(ctx, method, logsPath+path, args, nil)
}

// Explain tells why a service's name gives what it gives on the agent's node.
func (c *Client) Explain(ctx context.Context, service string) (Explanation, error) {
	var e Explanation
	err := c.ask(ctx, "GET", explainPath+url.PathEscape(service), nil, nil, &e)
	return e, err
}

// Conditions lists what is wrong with the agent itself.
func (c *Client) Conditions(ctx context.Context) ([]health.Condition, error) {
	var found []health.Condition
	err := c.ask(ctx, "GET", "/v1/holdfast/conditions", nil, nil, &found)
	return found, err
}

// KVEntry is a key with its value.
type KVEntry struct {
	Key         string `json:"key"`
	Value       []byte `json:"value"`
	Flags       uint64 `json:"flags"`
	CreateIndex uint64 `json:"create_index"`
	ModifyIndex uint64 `json:"modify_index"`
}

// ReadMode is how fresh a read must be.
type ReadMode string

// The modes; see the README for what each promises.
const (
	ReadDefault    ReadMode = ""
	ReadConsistent ReadMode = "consistent"
	ReadStale      ReadMode = "stale"
)

func (m ReadMode) args() url.Values {
	if m == ReadDefault {
		return url.Values{}
	}
	return url.Values{string(m): {""}}
}

// KVGet reads a key; one that is not there is an error that NotFound knows.
func (c *Client) KVGet(ctx context.Context, key string, mode ReadMode) (KVEntry, error) {
	found, err := c.kvRead(ctx, key, mode.args())
	if NotFound(err) || (err == nil && len(found) == 0) {
		return KVEntry{}, &Error{Status: http.StatusNotFound, Text: fmt.Sprintf("there is no key %q", key)}
	}
	if err != nil {
		return KVEntry{}, err
	}
	return found[0], nil
}

// KVList reads all keys with a prefix, sorted; none is no error.
func (c *Client) KVList(ctx context.Context, prefix string, mode ReadMode) ([]KVEntry, error) {
	args := mode.args()
	args.Set("recurse", "")
	found, err := c.kvRead(ctx, prefix, args)
	if NotFound(err) {
		return nil, nil
	}
	return found, err
}

func (c *Client) kvRead(ctx context.Context, key string, args url.Values) ([]KVEntry, error) {
	var answer []entryJSON
	if err := c.ask(ctx, "GET", KeyPath(key), args, nil, &answer); err != nil {
		return nil, err
	}
	found := make([]KVEntry, 0, len(answer))
	for _, e := range answer {
		found = append(found, KVEntry{Key: e.Key, Value: e.Value, Flags: e.Flags, CreateIndex: e.CreateIndex, ModifyIndex: e.ModifyIndex})
	}
	return found, nil
}

// KVWrite says how a write is guarded.
type KVWrite struct {
	Flags uint64
	// CAS, when not nil, is the ModifyIndex that the key must have (0: it
	// must not exist); otherwise nothing is written.
	CAS *uint64
}

// KVPut writes a key. done is false when a CAS found another entry.
func (c *Client) KVPut(ctx context.Context, key string, value []byte, write KVWrite) (done bool, err error) {
	args := url.Values{}
	if write.Flags != 0 {
		args.Set("flags", strconv.FormatUint(write.Flags, 10))
	}
	if write.CAS != nil {
		args.Set("cas", strconv.FormatUint(*write.CAS, 10))
	}
	err = c.ask(ctx, "PUT", KeyPath(key), args, bytes.NewReader(value), &done)
	return done, err
}

// KVDelete removes a key, or with recurse all keys with the prefix. With cas
// not nil, the key must have that ModifyIndex; done tells whether it had.
func (c *Client) KVDelete(ctx context.Context, key string, recurse bool, cas *uint64) (done bool, err error) {
	args := url.Values{}
	if recurse {
		args.Set("recurse", "")
	}
	if cas != nil {
		args.Set("cas", strconv.FormatUint(*cas, 10))
	}
	err = c.ask(ctx, "DELETE", KeyPath(key), args, nil, &done)
	return done, err
}

// KeyPath is the API's path of a key, which is escaped but for its slashes, as
// Consul's client does it.
func KeyPath(key string) string {
	return "/v1/kv/" + strings.ReplaceAll(url.PathEscape(key), "%2F", "/")
}

// RaftStatus is the consensus as the agent sees it: configuration, indexes
// and statistics, with or without a leader.
func (c *Client) RaftStatus(ctx context.Context) (state.RaftStatus, error) {
	var found state.RaftStatus
	err := c.ask(ctx, "GET", "/v1/holdfast/raft", nil, nil, &found)
	return found, err
}

// RemovePeer takes a server, by ID or name, out of Raft's configuration.
func (c *Client) RemovePeer(ctx context.Context, idOrName string) error {
	return c.ask(ctx, "DELETE", "/v1/operator/raft/peer", url.Values{"id": {idOrName}}, nil, nil)
}

// TransferLeader hands leadership to a server, by ID or name; "" any.
func (c *Client) TransferLeader(ctx context.Context, to string) error {
	args := url.Values{}
	if to != "" {
		args.Set("id", to)
	}
	return c.ask(ctx, "POST", "/v1/operator/raft/transfer-leader", args, nil, nil)
}

// Maintenance begins or ends the maintenance of the agent's node: while it
// lasts, none of its services is healthy. What is so already is no error.
func (c *Client) Maintenance(ctx context.Context, enable bool, reason string) error {
	args := url.Values{"enable": {strconv.FormatBool(enable)}}
	if reason != "" {
		args.Set("reason", reason)
	}
	return c.ask(ctx, "PUT", "/v1/agent/maintenance", args, nil, nil)
}

// StoreOperation has the store do something by its name (see
// raftstore.Store.Operation) and decodes the answer into found.
func (c *Client) StoreOperation(ctx context.Context, name string, args url.Values, write bool, found any) error {
	method := "GET"
	if write {
		method = "POST"
	}
	return c.ask(ctx, method, storePath+name, args, nil, found)
}

// SnapshotSave writes the whole state to w. With stale it is what the agent
// has, leader or not. After an error w holds nothing that is of use.
func (c *Client) SnapshotSave(ctx context.Context, w io.Writer, stale bool) error {
	mode := ReadDefault
	if stale {
		mode = ReadStale
	}
	answer, err := c.send(ctx, "GET", "/v1/snapshot", mode.args(), nil)
	if err != nil {
		return err
	}
	defer answer.Close()
	if _, err := io.Copy(w, answer); err != nil {
		return fmt.Errorf("read the snapshot: %w", err)
	}
	return nil
}

// SnapshotRestore replaces the whole state of the cluster by the snapshot that
// r holds. One that is truncated or corrupt is refused and changes nothing.
func (c *Client) SnapshotRestore(ctx context.Context, r io.Reader) error {
	return c.ask(ctx, "PUT", "/v1/snapshot", nil, r, nil)
}

// Join makes the agent speak with another member at address (host or host:port).
func (c *Client) Join(ctx context.Context, address string) error {
	return c.ask(ctx, "PUT", "/v1/agent/join/"+url.PathEscape(address), nil, nil, nil)
}

// Leave makes the agent leave the cluster gracefully; it ends afterwards.
func (c *Client) Leave(ctx context.Context) error {
	return c.ask(ctx, "PUT", "/v1/agent/leave", nil, nil, nil)
}

// ForceLeave makes a member that has failed one that left.
func (c *Client) ForceLeave(ctx context.Context, node string) error {
	return c.ask(ctx, "PUT", "/v1/agent/force-leave/"+url.PathEscape(node), nil, nil, nil)
}

// ConfigStatus tells which cluster file the agent runs, and which the others do.
func (c *Client) ConfigStatus(ctx context.Context) (ConfigReport, error) {
	var found ConfigReport
	err := c.ask(ctx, "GET", "/v1/holdfast/config", nil, nil, &found)
	return found, err
}

// ConfigReload makes the agent read its cluster file again. For a file that is
// wrong the error is an *Error with status 400 and every mistake on a line.
func (c *Client) ConfigReload(ctx context.Context) (ReloadReport, error) {
	var report ReloadReport
	err := c.ask(ctx, "POST", "/v1/holdfast/config/reload", nil, nil, &report)
	return report, err
}

// Metrics writes the agent's metrics in Prometheus's text format to w.
func (c *Client) Metrics(ctx context.Context, w io.Writer) error {
	answer, err := c.send(ctx, "GET", "/v1/agent/metrics", url.Values{"format": {"prometheus"}}, nil)
	if err != nil {
		return err
	}
	defer answer.Close()
	if _, err := io.Copy(w, answer); err != nil {
		return fmt.Errorf("read the metrics: %w", err)
	}
	return nil
}
