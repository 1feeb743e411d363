package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"holdfast/api"
	"holdfast/internal/kernel/command"
)

// lockPrefix is where the keys of locks are.
const lockPrefix = "holdfast/lock/"

type lockCmd struct {
	connection
	Name    string        `arg:"" help:"The lock's name."`
	Command []string      `arg:"" passthrough:"" help:"-- PROGRAM ARGUMENTS..."`
	TTL     time.Duration `name:"ttl" default:"15s" help:"How long the command may run without a word from the cluster; another gets the lock after at most three times as long. 10s to 60s."`
	Try     bool          `help:"Don't wait: exit status 1 when another has it."`
	Wait    time.Duration `help:"Wait at most so long for the lock; for ever unless said." placeholder:"TIME"`
	Grace   time.Duration `default:"10s" help:"After SIGTERM or SIGINT the command gets a SIGTERM and so much time to end."`
}

func (*lockCmd) Help() string {
	return "Examples:\n" +
		"  holdfast lock nightly -- /usr/local/sbin/backup-home\n" +
		"  holdfast lock --try reindex -- sh -c 'reindex --token $HOLDFAST_LOCK_TOKEN'\n\n" +
		"Runs the command while holding the lock, and ends with its exit status. The command and all it started are killed before " +
		"anybody else can have the lock: when the cluster can't be reached for the TTL, when this process is killed or stopped. " +
		"Exit status 7: the lock was lost and the command was killed.\n\n" +
		"The command finds HOLDFAST_LOCK_NAME, HOLDFAST_LOCK_SESSION and HOLDFAST_LOCK_TOKEN in its environment. The token grows from " +
		"holder to holder: storage that refuses a smaller one than it has seen is safe even from a command that can't be killed."
}

// holder is one attempt to run a command under a lock.
type holder struct {
	cmd     *lockCmd
	con     *console
	client  *api.Client
	key     string
	session string
	renewed time.Duration // Uptime before the last renewal that succeeded was asked for
}

func (c *lockCmd) Run(con *console) error {
	argv := c.Command
	if len(argv) > 0 && argv[0] == "--" {
		argv = argv[1:]
	}
	switch {
	case len(argv) == 0:
		return &exitError{exitUsage, errors.New("lock: give a command after --")}
	case c.TTL <= 0 || c.TTL > time.Minute:
		return &exitError{exitUsage, fmt.Errorf("--ttl %s: at most 1m", c.TTL)}
	}
	ctx := con.ctx // ends with SIGTERM or SIGINT
	return c.ask(func(client *api.Client) error {
		h := &holder{cmd: c, con: con, client: client, key: lockPrefix + c.Name}
		if err := h.open(ctx); err != nil {
			return fmt.Errorf("lock %s: %w", c.Name, err)
		}
		defer h.close()
		if err := h.acquire(ctx); err != nil {
			return fmt.Errorf("lock %s: %w", c.Name, err)
		}
		return h.run(ctx, argv)
	})
}

// open makes the session. Its lock-delay is its TTL: when the session ends
// early, because the node is thought dead, the command still lives for up to
// one TTL.
func (h *holder) open(ctx context.Context) error {
	h.renewed = command.Uptime()
	var err error
	h.session, err = h.client.SessionCreate(ctx, api.SessionOptions{Name: "lock " + h.cmd.Name, TTL: h.cmd.TTL, LockDelay: h.cmd.TTL})
	return err
}

// close frees the lock and ends the session; what can't be done here the
// cluster does when the TTL is over.
func (h *holder) close() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(h.con.ctx), 5*time.Second)
	defer cancel()
	_, _ = h.client.Release(ctx, h.key, h.session)
	_ = h.client.SessionDestroy(ctx, h.session)
}

// renew renews the session when a third of the TTL has passed.
func (h *holder) renew(ctx context.Context) error {
	if command.Uptime()-h.renewed < h.cmd.TTL/3 {
		return nil
	}
	asked := command.Uptime()
	if err := h.client.SessionRenew(ctx, h.session); err != nil {
		return err
	}
	h.renewed = asked
	return nil
}

// acquire waits for the lock.
func (h *holder) acquire(ctx context.Context) error {
	if h.cmd.Wait > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, h.cmd.Wait)
		defer cancel()
	}
	host, _ := os.Hostname() // for people only
	value, err := json.Marshal(map[string]any{"node": host, "pid": os.Getpid(), "since": time.Now().UTC().Format(time.RFC3339)})
	if err != nil {
		return err
	}
	seen := "the lock was not looked at in time"
	if err = h.contend(ctx, value, &seen); err != nil && ctx.Err() != nil { // also within a request
		return &exitError{exitFailed, fmt.Errorf("waiting: %w; %s", ctx.Err(), seen)}
	}
	return err
}

// contend tries again and again, until the lock is had or ctx ends. seen says who
// has it.
func (h *holder) contend(ctx context.Context, value []byte, seen *string) error {
	for {
		if err := h.renew(ctx); err != nil {
			return err
		}
		done, err := h.client.Acquire(ctx, h.key, h.session, value)
		if err != nil || done {
			return err
		}
		held, err := h.client.Holder(ctx, h.key, 0, 0)
		if err != nil {
			return err
		}
		*seen = "it has " + describeHolder(held)
		if h.cmd.Try {
			return &exitError{exitFailed, fmt.Errorf("another has it: %s", describeHolder(held))}
		}
		if err := h.await(ctx, held); err != nil {
			return err
		}
	}
}

// await returns when it is worth trying again.
func (h *holder) await(ctx context.Context, held api.Holding) error {
	if held.Session != "" {
		_, err := h.client.Holder(ctx, h.key, held.Index, h.cmd.TTL/4)
		return err
	}
	// Free, but under a lock-delay, whose end nobody announces.
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(100*time.Millisecond + rand.N(200*time.Millisecond)):
		return nil
	}
}

func describeHolder(held api.Holding) string {
	if held.Session == "" {
		return "nobody, but its last holder's lock-delay is not over"
	}
	return "session " + held.Session + " " + oneLine(string(held.Value), 200)
}

// run runs the command while the lock is held.
func (h *holder) run(ctx context.Context, argv []string) error {
	held, err := h.client.Holder(ctx, h.key, 0, 0)
	if err != nil {
		return fmt.Errorf("lock %s: %w", h.cmd.Name, err)
	}
	if held.Session != h.session {
		return h.lost("it was taken away at once")
	}
	leash, err := command.StartLeash([]string{
		"HOLDFAST_LOCK_NAME=" + h.cmd.Name, "HOLDFAST_LOCK_SESSION=" + h.session,
		"HOLDFAST_LOCK_TOKEN=" + strconv.FormatUint(held.Index, 10),
	}, append([]string{"lock-keeper", "--"}, argv...)...)
	if err != nil {
		return err
	}
	defer leash.Kill()
	watching, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	taken := make(chan struct{})
	go h.watch(watching, held.Index, taken)
	if why := h.hold(ctx, leash, taken); why != "" {
		leash.Kill()
		return h.lost(why)
	}
	if code := leash.Code(); code != 0 {
		return &exitError{code, fmt.Errorf("lock %s: the command ended with status %d", h.cmd.Name, code)}
	}
	return nil
}

func (h *holder) lost(why string) error {
	return &exitError{exitLost, fmt.Errorf("lock %s: lost, and the command was killed: %s", h.cmd.Name, why)}
}

// hold renews until the command has ended, and returns why it must end before.
func (h *holder) hold(ctx context.Context, leash *command.Leash, taken <-chan struct{}) (why string) {
	interrupted := ctx.Done()
	tick := time.NewTicker(h.cmd.TTL / 20)
	defer tick.Stop()
	var last error
	var granted, end time.Duration // Uptimes; end: of the grace after a signal
	for {
		until := h.renewed + h.cmd.TTL
		if until != granted {
			if err := leash.Extend(until); err != nil {
				select {
				case <-leash.Done():
					return overdue(leash, until)
				case <-time.After(time.Second):
					return fmt.Sprintf("the command's keeper does not listen: %v", err)
				}
			}
			granted = until
		}
		switch now := command.Uptime(); {
		case now >= until:
			return fmt.Sprintf("the session was not renewed for %s: %v", h.cmd.TTL, last)
		case end != 0 && now >= end:
			leash.Kill()
			return ""
		}
		select {
		case <-leash.Done():
			return overdue(leash, until)
		case <-taken:
			return "the session has ended, or the key was taken away"
		case <-interrupted:
			interrupted, end = nil, command.Uptime()+h.cmd.Grace
			leash.Signal(syscall.SIGTERM)
		case <-tick.C:
			last = h.tryRenew(until, last)
			if api.NotFound(last) {
				return "the session has ended"
			}
		}
	}
}

// overdue says, of a command that has ended, when that was by its keeper: this
// process was stopped, or starved.
func overdue(leash *command.Leash, until time.Duration) string {
	if command.Uptime() >= until && leash.Code() == 128+int(syscall.SIGKILL) {
		return "this process could not renew the session in time"
	}
	return ""
}

// tryRenew asks for a renewal, at most until the lease is over.
func (h *holder) tryRenew(until time.Duration, last error) error {
	left := until - command.Uptime()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(h.con.ctx), min(left, h.cmd.TTL/3))
	defer cancel()
	if err := h.renew(ctx); err != nil {
		return err
	}
	return last
}

// watch closes taken when the key is no longer ours.
func (h *holder) watch(ctx context.Context, index uint64, taken chan<- struct{}) {
	for ctx.Err() == nil {
		held, err := h.client.Holder(ctx, h.key, index, time.Minute)
		switch {
		case err != nil:
			select {
			case <-ctx.Done():
			case <-time.After(h.cmd.TTL / 20):
			}
		case held.Session != h.session:
			close(taken)
			return
		default:
			index = held.Index
		}
	}
}

// lockKeeperCmd is the second process that lock starts.
type lockKeeperCmd struct {
	Command []string `arg:"" passthrough:""`
}

func (c *lockKeeperCmd) Run(*console) error {
	argv := c.Command
	if len(argv) > 0 && argv[0] == "--" {
		argv = argv[1:]
	}
	// The command's signals are not the keeper's to die of. Caught, not
	// ignored: what is ignored stays so in the command.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt, syscall.SIGTERM)
	code, err := command.Keep(argv)
	if err != nil {
		return &exitError{exitKeeper, err}
	}
	if code != 0 {
		os.Exit(code) // the command has said what was to say
	}
	return nil
}
