package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Followed is an answer that may change.
type Followed struct {
	Index   uint64 // to wait on; not always larger than the one before
	Missing bool   // there is no such thing; Body is empty
	Body    []byte // JSON
}

// maxFollowed bounds an answer that is followed.
const maxFollowed = 256 << 20

// Follow asks for path as it is when index is 0, and otherwise waits, for at
// most wait and a sixteenth, until the answer's index is another. See
// NextIndex.
func (c *Client) Follow(ctx context.Context, path string, args url.Values, index uint64, wait time.Duration) (Followed, error) {
	with := url.Values{}
	for name, values := range args {
		with[name] = values
	}
	if index > 0 {
		with.Set("index", strconv.FormatUint(index, 10))
		with.Set("wait", wait.String())
	}
	response, err := c.roundTrip(ctx, "GET", path, with, nil)
	if err != nil {
		return Followed{}, err
	}
	defer response.Body.Close()
	// A 404 without an index is a path that is not offered.
	found := Followed{Missing: response.StatusCode == http.StatusNotFound}
	found.Index, err = strconv.ParseUint(response.Header.Get("X-Consul-Index"), 10, 64)
	if response.StatusCode != http.StatusOK && (!found.Missing || err != nil) {
		return Followed{}, refusalOf(response, "GET", path)
	}
	if err != nil {
		return Followed{}, fmt.Errorf("GET %s: the answer has no index to wait on: %w", path, err)
	}
	if found.Missing {
		return found, nil
	}
	if found.Body, err = io.ReadAll(io.LimitReader(response.Body, maxFollowed+1)); err != nil {
		return Followed{}, fmt.Errorf("GET %s: read the answer: %w", path, err)
	}
	if len(found.Body) > maxFollowed {
		return Followed{}, fmt.Errorf("GET %s: the answer has more than %d MiB", path, maxFollowed>>20)
	}
	return found, nil
}

// NextIndex is the index to ask with after an answer of index now to one of
// last: 0, to begin anew, when it went back (a restored store, a gossip that
// the catalog caught up with).
func NextIndex(last, now uint64) uint64 {
	if now < last {
		return 0
	}
	return now
}

// FollowedKey takes the value out of an answer of /v1/kv/KEY.
func FollowedKey(f Followed) (KVEntry, error) {
	var found []entryJSON
	if err := json.Unmarshal(f.Body, &found); err != nil {
		return KVEntry{}, fmt.Errorf("a key's answer: %w", err)
	}
	if len(found) != 1 {
		return KVEntry{}, fmt.Errorf("a key's answer has %d entries", len(found))
	}
	e := found[0]
	return KVEntry{Key: e.Key, Value: e.Value, Flags: e.Flags, CreateIndex: e.CreateIndex, ModifyIndex: e.ModifyIndex}, nil
}

// Event is something that was told to the members by gossip.
type Event struct {
	ID            string
	Name          string
	Payload       []byte
	NodeFilter    string `json:",omitempty"` // regular expressions, as are the next two
	ServiceFilter string `json:",omitempty"`
	TagFilter     string `json:",omitempty"`
	LTime         uint64 // events of one node come in the order of this
}

// FireEvent tells the members of something, with a payload of up to about
// 700 bytes.
func (c *Client) FireEvent(ctx context.Context, event Event) (fired Event, err error) {
	args := url.Values{}
	for name, value := range map[string]string{"node": event.NodeFilter, "service": event.ServiceFilter, "tag": event.TagFilter} {
		if value != "" {
			args.Set(name, value)
		}
	}
	err = c.ask(ctx, "PUT", "/v1/event/fire/"+url.PathEscape(event.Name), args, bytes.NewReader(event.Payload), &fired)
	return fired, err
}

// Events lists what the agent's node heard, the oldest first; name "" is all.
func (c *Client) Events(ctx context.Context, name string) ([]Event, error) {
	args := url.Values{}
	if name != "" {
		args.Set("name", name)
	}
	var found []Event
	err := c.ask(ctx, "GET", "/v1/event/list", args, nil, &found)
	return found, err
}

// Monitor copies the agent's log from now on, of at least a level (debug,
// info, warn, error), to w until ctx or the agent ends.
func (c *Client) Monitor(ctx context.Context, level string, asJSON bool, w io.Writer) error {
	args := url.Values{"loglevel": {level}}
	if asJSON {
		args.Set("logjson", "")
	}
	return c.stream(ctx, "/v1/agent/monitor", args, w)
}

// RecentLog writes the log's last lines to w.
func (c *Client) RecentLog(ctx context.Context, w io.Writer) error {
	return c.stream(ctx, recentLogPath, nil, w)
}

// Profile writes a profile of the agent to w: goroutine, heap, allocs, block,
// mutex, threadcreate; or profile or trace, which takes so many seconds. debug
// 0 is for go tool pprof, 1 and 2 are text.
func (c *Client) Profile(ctx context.Context, name string, seconds, debug int, w io.Writer) error {
	args := url.Values{}
	if seconds > 0 {
		args.Set("seconds", strconv.Itoa(seconds))
	}
	if debug > 0 {
		args.Set("debug", strconv.Itoa(debug))
	}
	return c.stream(ctx, pprofPath+name, args, w)
}

// stream copies the answer of a GET to w, until it ends or ctx does.
func (c *Client) stream(ctx context.Context, path string, args url.Values, w io.Writer) error {
	answer, err := c.send(ctx, "GET", path, args, nil)
	if err != nil {
		return err
	}
	defer answer.Close()
	if _, err := io.Copy(w, answer); err != nil {
		return fmt.Errorf("GET %s: read the answer: %w", path, err)
	}
	return nil
}
