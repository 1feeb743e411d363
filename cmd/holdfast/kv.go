package main

import (
	"errors"
	"fmt"
	"io"

	"holdfast/api"
)

type kvCmd struct {
	Get    kvGetCmd    `cmd:"" help:"Print a key's value."`
	Put    kvPutCmd    `cmd:"" help:"Write a key."`
	Delete kvDeleteCmd `cmd:"" help:"Remove a key, or all with a prefix."`
	List   kvListCmd   `cmd:"" help:"List keys with a prefix."`
}

// reading says how fresh a read must be.
type reading struct {
	Consistent bool `xor:"mode" help:"Ask the leader first: never an old value."`
	Stale      bool `xor:"mode" help:"From this node's replica, leader or not."`
}

func (r reading) mode() api.ReadMode {
	switch {
	case r.Consistent:
		return api.ReadConsistent
	case r.Stale:
		return api.ReadStale
	}
	return api.ReadDefault
}

type kvGetCmd struct {
	connection
	reading
	Key string `arg:"" help:"The key."`
}

func (*kvGetCmd) Help() string { return "Example: holdfast kv get site/motd" }

func (c *kvGetCmd) Run(con *console) error {
	return c.ask(func(client *api.Client) error {
		entry, err := client.KVGet(con.ctx, c.Key, c.mode())
		if api.NoLeader(err) {
			return fmt.Errorf("%w; --stale reads what this node has", err)
		}
		if err != nil {
			return err
		}
		if c.JSON {
			return con.json(entry)
		}
		_, err = con.out.Write(entry.Value)
		if err == nil && con.isTerm {
			_, err = fmt.Fprintln(con.out)
		}
		return err
	})
}

type kvPutCmd struct {
	connection
	Key   string  `arg:"" help:"The key."`
	Value string  `arg:"" optional:"" help:"The value; - reads it from standard input." default:"-"`
	CAS   *uint64 `name:"cas" help:"Write only if the key's modify index is this one (0: it must not exist)." placeholder:"INDEX"`
	Flags uint64  `help:"A number kept with the key."`
}

func (*kvPutCmd) Help() string {
	return "Examples:\n  holdfast kv put site/motd 'maintenance on Saturday'\n  holdfast kv put site/logo - < logo.png"
}

func (c *kvPutCmd) Run(con *console) error {
	value := []byte(c.Value)
	if c.Value == "-" {
		var err error
		if value, err = io.ReadAll(con.in); err != nil {
			return fmt.Errorf("standard input: %w", err)
		}
	}
	return c.ask(func(client *api.Client) error {
		done, err := client.KVPut(con.ctx, c.Key, value, api.KVWrite{Flags: c.Flags, CAS: c.CAS})
		return con.written(done, err, c.JSON)
	})
}

// written reports a write that may have been guarded.
func (c *console) written(done bool, err error, asJSON bool) error {
	switch {
	case err != nil:
		return err
	case !done:
		return &exitError{exitFailed, errors.New("nothing was written: the key has another modify index")}
	case asJSON:
		return c.json(map[string]bool{"done": true})
	}
	return nil
}

type kvDeleteCmd struct {
	connection
	Key     string  `arg:"" help:"The key, or the prefix."`
	Recurse bool    `help:"Remove every key with this prefix."`
	CAS     *uint64 `name:"cas" help:"Remove only if the key's modify index is this one." placeholder:"INDEX"`
}

func (*kvDeleteCmd) Help() string {
	return "Examples:\n  holdfast kv delete site/motd\n  holdfast kv delete --recurse site/"
}

func (c *kvDeleteCmd) Run(con *console) error {
	return c.ask(func(client *api.Client) error {
		done, err := client.KVDelete(con.ctx, c.Key, c.Recurse, c.CAS)
		return con.written(done, err, c.JSON)
	})
}

type kvListCmd struct {
	connection
	reading
	Prefix string `arg:"" optional:"" help:"Only keys that begin with this."`
	Values bool   `help:"Print values too."`
}

func (*kvListCmd) Help() string { return "Example: holdfast kv list site/ --values" }

func (c *kvListCmd) Run(con *console) error {
	return c.ask(func(client *api.Client) error {
		entries, err := client.KVList(con.ctx, c.Prefix, c.mode())
		if err != nil {
			return err
		}
		if c.JSON {
			if entries == nil {
				entries = []api.KVEntry{}
			}
			return con.json(entries)
		}
		for _, e := range entries {
			line := printable(e.Key)
			if c.Values {
				line += "\t" + oneLine(string(e.Value), 200)
			}
			if _, err := fmt.Fprintln(con.out, line); err != nil {
				return err
			}
		}
		return nil
	})
}
