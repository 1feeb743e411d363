package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"holdfast/api"
	"holdfast/internal/kernel/command"
)

type watchCmd struct {
	Key     watchKeyCmd     `cmd:"" help:"Follow a key."`
	Prefix  watchPrefixCmd  `cmd:"" help:"Follow all keys with a prefix."`
	Service watchServiceCmd `cmd:"" help:"Follow a service's instances and their health."`
	Checks  watchChecksCmd  `cmd:"" help:"Follow checks: all, those in a state, or those of a service."`
}

// watching is what every watch takes.
type watching struct {
	connection
	reading
	Once bool `help:"End after the first answer and its handler, with the handler's exit status."`
}

const watchHelp = "\n\nOptions stand before the name. What comes after it is run, without a shell, at the start and after each change, one at a time; changes that come meanwhile " +
	"are handed over together. It gets the value on its standard input and in HOLDFAST_WATCH_VALUE (when that has no more than 32 KiB and no NUL byte), " +
	"HOLDFAST_WATCH_KIND, HOLDFAST_WATCH_NAME, HOLDFAST_WATCH_INDEX and HOLDFAST_WATCH_MISSING (1: there is no such key). Without one, the value is printed, a line for each change. " +
	"While no agent answers, it is asked again.\n\n"

type watchKeyCmd struct {
	watching
	Name    string   `arg:"" help:"The key."`
	Command []string `arg:"" optional:"" passthrough:"" help:"-- PROGRAM ARGUMENTS..."`
}

func (*watchKeyCmd) Help() string {
	return "The value is the key's own." + watchHelp + "Example: holdfast watch key site/motd -- tee /etc/motd"
}

func (c *watchKeyCmd) Run(con *console) error {
	return c.run(con, watched{kind: "key", name: c.Name, path: api.KeyPath(c.Name), value: func(f api.Followed) ([]byte, error) {
		entry, err := api.FollowedKey(f)
		return entry.Value, err
	}}, c.Command)
}

type watchPrefixCmd struct {
	watching
	Name    string   `arg:"" help:"What the keys begin with."`
	Command []string `arg:"" optional:"" passthrough:"" help:"-- PROGRAM ARGUMENTS..."`
}

func (*watchPrefixCmd) Help() string {
	return "The value is JSON as of GET /v1/kv/PREFIX?recurse." + watchHelp + "Example: holdfast watch prefix site/ -- /usr/local/sbin/render"
}

func (c *watchPrefixCmd) Run(con *console) error {
	return c.run(con, watched{kind: "prefix", name: c.Name, path: api.KeyPath(c.Name), args: url.Values{"recurse": {""}}}, c.Command)
}

type watchServiceCmd struct {
	watching
	Passing bool     `help:"Only instances whose checks all pass."`
	Tag     string   `help:"Only instances with this tag." placeholder:"TAG"`
	Name    string   `arg:"" help:"The service."`
	Command []string `arg:"" optional:"" passthrough:"" help:"-- PROGRAM ARGUMENTS..."`
}

func (*watchServiceCmd) Help() string {
	return "The value is JSON as of GET /v1/health/service/NAME." + watchHelp + "Example: holdfast watch service --passing apt -- /usr/local/sbin/render"
}

func (c *watchServiceCmd) Run(con *console) error {
	args := url.Values{}
	if c.Passing {
		args.Set("passing", "1")
	}
	if c.Tag != "" {
		args.Set("tag", c.Tag)
	}
	return c.run(con, watched{kind: "service", name: c.Name, path: "/v1/health/service/" + url.PathEscape(c.Name), args: args}, c.Command)
}

type watchChecksCmd struct {
	watching
	Service string   `help:"Of this service, in any state." placeholder:"NAME"`
	State   string   `arg:"" enum:"any,passing,warning,critical" help:"any, passing, warning or critical."`
	Command []string `arg:"" optional:"" passthrough:"" help:"-- PROGRAM ARGUMENTS..."`
}

func (*watchChecksCmd) Help() string {
	return "The value is JSON as of GET /v1/health/state/STATE." + watchHelp + "Example: holdfast watch checks critical -- /usr/local/sbin/page"
}

func (c *watchChecksCmd) Run(con *console) error {
	w := watched{kind: "checks", name: c.State, path: "/v1/health/state/" + c.State}
	if c.Service != "" {
		if c.State != "any" {
			return &exitError{exitUsage, errors.New("watch checks: with --service the state is any")}
		}
		w.name, w.path = c.Service, "/v1/health/checks/"+url.PathEscape(c.Service)
	}
	return c.run(con, w, c.Command)
}

// watched is what is followed.
type watched struct {
	kind, name, path string
	args             url.Values
	value            func(api.Followed) ([]byte, error) // nil: the answer's body
}

// Between two tries while no agent answers, spread by a half.
const (
	watchRetry    = time.Second
	watchRetryMax = 30 * time.Second
	watchWait     = 5 * time.Minute
)

// maxWatchValue is what goes into the environment: the kernel takes no
// variable of more than 128 KiB.
const maxWatchValue = 32 << 10

// run follows until the command line is interrupted.
func (c *watching) run(con *console, w watched, argv []string) error {
	if len(argv) > 0 && argv[0] == "--" {
		argv = argv[1:]
	}
	args := url.Values{}
	if mode := c.mode(); mode != api.ReadDefault {
		args.Set(string(mode), "")
	}
	for name, values := range w.args {
		args[name] = values
	}
	w.args = args
	return c.ask(func(client *api.Client) error {
		err := w.follow(con, client, c.Once, argv)
		if con.ctx.Err() != nil {
			return nil
		}
		return err
	})
}

func (w *watched) follow(con *console, client *api.Client, once bool, argv []string) error {
	var index uint64
	var last *api.Followed
	retry := watchRetry
	for {
		found, err := client.Follow(con.ctx, w.path, w.args, index, watchWait)
		switch {
		case err != nil && (once || lasting(err)):
			return err
		case err != nil:
			fmt.Fprintf(con.err, "holdfast: watch %s %s: %v; trying again\n", w.kind, printable(w.name), err)
			if !pause(con.ctx, retry) {
				return nil
			}
			index, retry = 0, min(2*retry, watchRetryMax)
			continue
		}
		retry = watchRetry
		index = api.NextIndex(index, found.Index)
		// An index that went back, or the end of a wait, is no change yet.
		if last != nil && last.Missing == found.Missing && bytes.Equal(last.Body, found.Body) {
			continue
		}
		last = &found
		if err := w.hand(con, found, once, argv); err != nil || once {
			return err
		}
	}
}

// pause is false when ctx ended first.
func pause(ctx context.Context, about time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(about/2 + rand.N(about)):
		return true
	}
}

// lasting tells whether asking again is of no use.
func lasting(err error) bool {
	refused, ok := errors.AsType[*api.Error](err)
	return ok && refused.Status < http.StatusInternalServerError && refused.Status != http.StatusTooManyRequests
}

// hand gives an answer to the handler, or prints it.
func (w *watched) hand(con *console, found api.Followed, once bool, argv []string) error {
	value := bytes.TrimSpace(found.Body)
	if w.value != nil && !found.Missing {
		var err error
		if value, err = w.value(found); err != nil {
			return err
		}
	}
	if len(argv) == 0 {
		if con.isTerm {
			value = []byte(lines(string(value)))
		}
		_, err := con.out.Write(append(value[:len(value):len(value)], '\n'))
		return err
	}
	env := []string{
		"HOLDFAST_WATCH_KIND=" + w.kind, "HOLDFAST_WATCH_NAME=" + w.name,
		"HOLDFAST_WATCH_INDEX=" + strconv.FormatUint(found.Index, 10),
	}
	if found.Missing {
		env = append(env, "HOLDFAST_WATCH_MISSING=1")
	}
	if len(value) <= maxWatchValue && bytes.IndexByte(value, 0) < 0 {
		env = append(env, "HOLDFAST_WATCH_VALUE="+string(value))
	}
	code, err := command.Handle(con.ctx, env, value, con.out, con.err, argv...)
	switch {
	case err != nil: // it will not be there at the next change either
		return &exitError{exitKeeper, fmt.Errorf("watch %s %s: %w", w.kind, w.name, err)}
	case code == 0 || con.ctx.Err() != nil:
		return nil
	case once:
		return &exitError{code, fmt.Errorf("watch %s %s: %s ended with status %d", w.kind, w.name, argv[0], code)}
	}
	fmt.Fprintf(con.err, "holdfast: watch %s %s: %s ended with status %d\n", w.kind, printable(w.name), printable(strings.Join(argv, " ")), code)
	return nil
}
