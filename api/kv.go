package api

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"holdfast/api/acl"
	"holdfast/internal/state"
)

// entryJSON is a key as Consul shows it: the value in base64.
type entryJSON struct {
	LockIndex   uint64
	Key         string
	Flags       uint64
	Value       []byte
	Session     string `json:",omitempty"`
	CreateIndex uint64
	ModifyIndex uint64
}

func entryOf(e *state.Entry) entryJSON {
	found := entryJSON{
		LockIndex: e.LockIndex, Key: e.Key, Flags: e.Flags, Value: e.Value, Session: e.Session,
		CreateIndex: e.CreateIndex, ModifyIndex: e.ModifyIndex,
	}
	if len(e.Value) == 0 {
		found.Value = nil // null, as Consul shows an empty value
	}
	return found
}

func (s *Server) kvGet(c *call) error {
	switch {
	case c.args.Has("keys"):
		return s.kvKeys(c)
	case c.args.Has("recurse"):
		return s.kvList(c)
	case c.rest == "":
		return fault(http.StatusBadRequest, "Missing key name")
	}
	if err := s.permit(c, acl.Key, c.rest, acl.Read); err != nil {
		return err
	}
	c.rule = on(acl.Key, acl.Read) // once more after a wait
	raw := c.args.Has("raw")
	return s.query(c, func(snap *state.Snapshot, ws state.WatchSet) answer {
		entry, index := snap.Entry(ws, c.rest)
		switch {
		case entry == nil:
			return answer{index: index, missing: true}
		case raw:
			return answer{index: index, value: entry.Value, raw: true}
		default:
			return answer{index: index, value: []entryJSON{entryOf(entry)}}
		}
	})
}

func (c *call) seesEntry(e *state.Entry) bool { return c.sees(acl.Key, e.Key) }

// permitKV asks for the right that an operation on keys needs.
func (s *Server) permitKV(c *call, command state.KV) error {
	level := acl.Write
	switch command.Verb {
	case state.DeleteTree:
		if c.who.rights != nil && !c.who.rights.MayTree(acl.Key, command.Entry.Key, acl.Write) {
			return s.deny(acl.Key, command.Entry.Key, acl.Write)
		}
		return nil
	case state.GetTree:
		if c.who.rights != nil && !c.who.rights.MayTree(acl.Key, command.Entry.Key, acl.Read) {
			return s.deny(acl.Key, command.Entry.Key, acl.Read)
		}
		return nil
	case state.Get, state.GetOrEmpty, state.CheckIndex, state.CheckSession, state.CheckNotExists:
		level = acl.Read
	}
	return s.permit(c, acl.Key, command.Entry.Key, level)
}

func (s *Server) kvList(c *call) error {
	return s.query(c, func(snap *state.Snapshot, ws state.WatchSet) answer {
		entries, index := snap.Entries(ws, c.rest)
		entries = visible(entries, c.seesEntry)
		found := make([]entryJSON, 0, len(entries))
		for _, e := range entries {
			found = append(found, entryOf(e))
		}
		return answer{value: found, index: index, missing: len(found) == 0}
	})
}

func (s *Server) kvKeys(c *call) error {
	separator := c.args.Get("separator")
	if separator == "" {
		separator = c.args.Get("seperator") // Consul's old spelling
	}
	return s.query(c, func(snap *state.Snapshot, ws state.WatchSet) answer {
		entries, index := snap.Entries(ws, c.rest)
		entries = visible(entries, c.seesEntry)
		keys := keysUpTo(entries, len(c.rest), separator)
		return answer{value: keys, index: index, missing: len(keys) == 0 && c.rest != ""}
	})
}

// keysUpTo lists the keys, each cut after the first separator behind the
// prefix, and once.
func keysUpTo(entries []*state.Entry, prefix int, separator string) []string {
	keys := []string{}
	for _, e := range entries {
		key := e.Key
		if separator != "" {
			if at := strings.Index(key[prefix:], separator); at >= 0 {
				key = key[:prefix+at+len(separator)]
			}
		}
		if len(keys) == 0 || keys[len(keys)-1] != key {
			keys = append(keys, key)
		}
	}
	return keys
}

// kvPutOf reads the parameters of a PUT.
func kvPutOf(key string, args url.Values) (state.KV, error) {
	command := state.KV{Verb: state.Set, Entry: state.Entry{Key: key}}
	if key == "" {
		return command, fault(http.StatusBadRequest, "Missing key name")
	}
	if err := noConflict(args, "cas", "acquire", "release"); err != nil {
		return command, err
	}
	for name, verb := range map[string]state.Verb{"acquire": state.Acquire, "release": state.Release} {
		if args.Has(name) {
			command.Verb, command.Entry.Session = verb, args.Get(name)
		}
	}
	var err error
	if args.Has("flags") {
		if command.Entry.Flags, err = number(args, "flags"); err != nil {
			return command, err
		}
	}
	if args.Has("cas") {
		command.Verb = state.CAS
		command.Entry.ModifyIndex, err = number(args, "cas")
	}
	return command, err
}

// kvDeleteOf reads the parameters of a DELETE.
func kvDeleteOf(key string, args url.Values) (state.KV, error) {
	command := state.KV{Verb: state.Delete, Entry: state.Entry{Key: key}}
	if err := noConflict(args, "recurse", "cas"); err != nil {
		return command, err
	}
	if args.Has("recurse") {
		command.Verb = state.DeleteTree
		return command, nil
	}
	if key == "" {
		return command, fault(http.StatusBadRequest, "Missing key name")
	}
	var err error
	if args.Has("cas") {
		command.Verb = state.DeleteCAS
		command.Entry.ModifyIndex, err = number(args, "cas")
	}
	return command, err
}

func number(args url.Values, name string) (uint64, error) {
	value, err := strconv.ParseUint(args.Get(name), 10, 64)
	if err != nil {
		return 0, fault(http.StatusBadRequest, "Invalid %s value %q: want a number", name, args.Get(name))
	}
	return value, nil
}

// noConflict refuses more than one of the parameters.
func noConflict(args url.Values, names ...string) error {
	given := 0
	for _, name := range names {
		if args.Has(name) {
			given++
		}
	}
	if given > 1 {
		return fault(http.StatusBadRequest, "Conflicting flags: %s", args.Encode())
	}
	return nil
}

func (s *Server) kvPut(c *call) error {
	command, err := kvPutOf(c.rest, c.args)
	if err != nil {
		return err
	}
	if command.Entry.Value, err = s.body(c, s.config.MaxValue); err != nil {
		return err
	}
	return s.proposeKV(c, command)
}

func (s *Server) kvDelete(c *call) error {
	command, err := kvDeleteOf(c.rest, c.args)
	if err != nil {
		return err
	}
	if err := s.permitKV(c, command); err != nil {
		return err
	}
	return s.proposeKV(c, command)
}

// proposeKV answers true, or false when a compare-and-set found another entry
// or somebody else holds the key.
func (s *Server) proposeKV(c *call, command state.KV) error {
	_, err := s.propose(c, command)
	if errors.Is(err, state.ErrConflict) { // plain writes have none
		return s.reply(c, false)
	}
	if command.Verb == state.Acquire && errors.Is(err, state.ErrInvalid) && strings.Contains(err.Error(), "invalid session ") {
		// Clients look for this beginning, and at the status.
		return fault(http.StatusInternalServerError, "invalid session %q", command.Entry.Session)
	}
	if err != nil {
		return err
	}
	return s.reply(c, true)
}
