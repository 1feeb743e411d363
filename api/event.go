package api

import (
	"encoding/hex"
	"net/http"
	"strings"

	"holdfast/api/acl"
	"holdfast/internal/state"
)

// maxEventPayload is far above what the gossip takes, whose own refusal says
// how much that is.
const maxEventPayload = 16 << 10

type eventJSON struct {
	ID            string
	Name          string
	Payload       []byte
	NodeFilter    string
	ServiceFilter string
	TagFilter     string
	Version       int
	LTime         uint64
}

func eventOf(e state.UserEvent) eventJSON {
	out := eventJSON{
		ID: e.ID, Name: e.Name, Payload: e.Payload, NodeFilter: e.NodeFilter, ServiceFilter: e.ServiceFilter, TagFilter: e.TagFilter,
		Version: 1, LTime: e.LTime,
	}
	if len(e.Payload) == 0 {
		out.Payload = nil
	}
	return out
}

func (s *Server) eventFire(c *call) error {
	name, err := c.name("name")
	if err != nil {
		return err
	}
	payload, err := s.body(c, maxEventPayload)
	if err != nil {
		return err
	}
	fired, err := s.agent.FireEvent(c.Context(), state.UserEvent{
		Name: name, Payload: payload, NodeFilter: c.args.Get("node"), ServiceFilter: c.args.Get("service"), TagFilter: c.args.Get("tag"),
	})
	if err != nil {
		return err
	}
	return s.reply(c, eventOf(fired))
}

// eventList answers with the events that this node heard, at once or when
// there is another one of the name. Its index is Consul's: a number made of
// the last event's ID, which clients make of it, too.
func (s *Server) eventList(c *call) error {
	return s.wait(c, func() (answer, <-chan struct{}) {
		all, changed := s.agent.Events()
		found := []eventJSON{}
		for _, e := range all {
			if (c.args.Get("name") == "" || c.args.Get("name") == e.Name) && c.sees(acl.Event, e.Name) {
				found = append(found, eventOf(e))
			}
		}
		index := uint64(1)
		if len(found) > 0 {
			index = eventIndex(found[len(found)-1].ID)
		}
		return answer{value: found, index: index}, changed
	})
}

// eventIndex folds a UUID into a number: one half of it over the other.
func eventIndex(id string) uint64 {
	raw, err := hex.DecodeString(strings.ReplaceAll(id, "-", ""))
	if err != nil || len(raw) != 16 {
		return 1
	}
	var low, high uint64
	for i := range 8 {
		low, high = low<<8|uint64(raw[i]), high<<8|uint64(raw[8+i])
	}
	return low ^ high
}

// wait answers with what is found when its index is not the caller's, or when
// the wait is over. It is for what is not in the state.
func (s *Server) wait(c *call, find func() (answer, <-chan struct{})) error {
	found, changed := find()
	if c.read.index == 0 || found.index != c.read.index {
		return s.send(c, found)
	}
	if err := s.enter(c); err != nil {
		return err
	}
	c.place.wait()
	ctx, cancel := c.waitContext()
	defer cancel()
	reason := "changed"
	for found.index == c.read.index && reason == "changed" {
		select {
		case <-changed:
			if err := s.still(c, s.state.Snapshot(), nil); err != nil {
				return err
			}
			found, changed = find()
		case <-c.stop:
			reason = "stopped"
		case <-ctx.Done():
			reason = ended(c)
		}
	}
	c.place.leave(reason)
	if reason == "gone" {
		return errGone
	}
	return s.send(c, found)
}

// agentMonitor sends the lines of the log from now on, until the client goes.
func (s *Server) agentMonitor(c *call) error {
	if s.logs == nil {
		return fault(http.StatusNotFound, "this agent's log can't be followed: see journalctl -u holdfast")
	}
	level, err := logLevel(c.args.Get("loglevel"))
	if err != nil {
		return err
	}
	select {
	case s.monitors <- struct{}{}:
		defer func() { <-s.monitors }()
	default:
		return s.refuse(&refusal{http.StatusTooManyRequests, "monitor", "the log is followed by as many as may: try again later"})
	}
	lines, stop := s.logs.Follow(level, c.args.Has("logjson"))
	defer stop()
	c.blocked = true
	c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	c.w.Header().Set("X-Content-Type-Options", "nosniff")
	c.w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(c.w.ResponseWriter)
	for {
		if err := flush.Flush(); err != nil {
			return errGone
		}
		c.w.wait()
		select {
		case line := <-lines:
			c.w.extend(writeTimeout)
			if _, err := c.w.Write(line); err != nil {
				return errGone
			}
		case <-c.stop:
			return nil
		case <-c.Context().Done():
			return errGone
		}
	}
}
