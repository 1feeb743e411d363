package vrrp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"holdfast/internal/check"
	"holdfast/internal/kernel/command"
)

// maxQueued is how many states of a router wait for their hooks. When there
// are more the oldest are left out: the last one is what counts.
const maxQueued = 16

const (
	defaultHookTimeout = 30 * time.Second
	maxHookOutput      = 4 << 10
)

// hooks run programs at transitions: one at a time for a router or a sync
// group, in the order of the states. Nobody waits for them.
type hooks struct {
	commands check.Commander
	log      *slog.Logger
	metrics  *metrics

	mu      sync.Mutex
	queues  map[string]*hookQueue // by kind and name
	ctx     context.Context       // of the programs
	running sync.WaitGroup
}

// hookRun is one state to tell.
type hookRun struct {
	kind     string // "INSTANCE" or "GROUP", as keepalived says
	name     string
	state    string // MASTER, BACKUP, FAULT, STOP
	priority uint8
	hooks    []Hooks
}

// hookQueue is what waits for one router or group.
type hookQueue struct {
	waiting []hookRun
	busy    bool // a goroutine works on it
}

func newHooks(ctx context.Context, commands check.Commander, log *slog.Logger, m *metrics) *hooks {
	return &hooks{commands: commands, log: log, metrics: m, queues: map[string]*hookQueue{}, ctx: ctx}
}

// changed queues a router's new state.
func (h *hooks) changed(in *instance, now State, priority uint8, everywhere Hooks) {
	h.queue(hookRun{kind: "INSTANCE", name: in.settings.Name, state: hookState(now), priority: priority,
		hooks: []Hooks{everywhere, in.settings.Hooks}})
}

// groupChanged queues the state that all routers of a sync group came to.
// Its priority is 0, as keepalived has it.
func (h *hooks) groupChanged(in *instance, now State, everywhere Hooks) {
	h.queue(hookRun{kind: "GROUP", name: in.settings.Group, state: hookState(now),
		hooks: []Hooks{everywhere, in.settings.Hooks}})
}

// hookState is keepalived's word for a state.
func hookState(s State) string {
	return [...]string{Initialize: "STOP", Backup: "BACKUP", Active: "MASTER", Fault: "FAULT"}[s]
}

func (h *hooks) queue(run hookRun) {
	run.hooks = slices.DeleteFunc(run.hooks, func(of Hooks) bool { return len(of.Notify) == 0 && len(of.Dirs) == 0 })
	if len(run.hooks) == 0 || h.commands == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	key := run.kind + " " + run.name
	q := h.queues[key]
	if q == nil {
		q = &hookQueue{}
		h.queues[key] = q
	}
	if len(q.waiting) == maxQueued {
		h.log.Warn("hooks are too slow: a state is left out, later ones are told", "router", run.name, "state", q.waiting[0].state)
		h.metrics.hooks.WithLabelValues("coalesced").Inc()
		q.waiting = slices.Delete(q.waiting, 0, 1)
	}
	q.waiting = append(q.waiting, run)
	if !q.busy {
		q.busy = true
		h.running.Go(func() { h.work(key, q) })
	}
}

// work empties a queue.
func (h *hooks) work(key string, q *hookQueue) {
	for {
		h.mu.Lock()
		if len(q.waiting) == 0 {
			q.busy = false
			delete(h.queues, key)
			h.mu.Unlock()
			return
		}
		run := q.waiting[0]
		q.waiting = slices.Delete(q.waiting, 0, 1)
		h.mu.Unlock()
		for i := range run.hooks {
			h.tell(&run, &run.hooks[i])
		}
	}
}

// close waits for what is queued, until ctx ends; then programs are killed.
func (h *hooks) close(ctx context.Context, kill context.CancelFunc) {
	done := make(chan struct{})
	go func() { h.running.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		h.log.Warn("hooks did not end in time and are killed")
	}
	kill()
	<-done
}

// dirOf maps keepalived's words to the keys of Hooks.Dirs.
var dirOf = map[string]string{"MASTER": "master", "BACKUP": "backup", "FAULT": "fault", "STOP": "stop"}

// tell runs the programs of one set of hooks: those of the state's directory in
// the order of their names, then the one that hears of everything.
func (h *hooks) tell(run *hookRun, of *Hooks) {
	who, err := lookUpUser(of.User)
	if err != nil {
		h.metrics.hooks.WithLabelValues("refused").Inc()
		h.log.Error("hooks are not run", "router", run.name, "error", err)
		return
	}
	args := []string{run.kind, run.name, run.state, strconv.Itoa(int(run.priority))}
	if dir := of.Dirs[dirOf[run.state]]; dir != "" {
		programs, err := runParts(dir)
		if err != nil {
			h.log.Error("hooks are not run", "router", run.name, "error", err)
		}
		for _, program := range programs {
			h.execute(append([]string{program}, args...), of.Timeout, who)
		}
	}
	if len(of.Notify) > 0 {
		h.execute(append(slices.Clone(of.Notify), args...), of.Timeout, who)
	}
}

func (h *hooks) execute(argv []string, limit time.Duration, who *command.User) {
	if limit <= 0 {
		limit = defaultHookTimeout
	}
	result, err := h.commands.Run(h.ctx, command.Command{
		Argv: argv, Timeout: limit, MaxOutput: maxHookOutput, User: who,
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"},
	})
	label := "ok"
	switch {
	case errors.Is(err, command.ErrNotAllowed):
		label = "refused"
	case errors.Is(err, command.ErrTimeout):
		label = "timeout"
	case err != nil:
		label = "failed"
	}
	h.metrics.hooks.WithLabelValues(label).Inc()
	if err != nil {
		h.log.Error("a hook failed", "argv", argv, "took", result.Took, "error", err)
		return
	}
	h.log.Info("a hook ran", "argv", argv, "took", result.Took)
}

// runParts lists the programs of a directory as Debian's run-parts does:
// names of letters, digits, hyphens and underscores, that can be executed,
// sorted. A directory that is missing has none.
func runParts(dir string) (programs []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		info, err := os.Stat(path) // of what a link points to
		if err != nil || !runPartsName(entry.Name()) || !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
			continue
		}
		programs = append(programs, path)
	}
	return programs, nil
}

func runPartsName(name string) bool {
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return name != ""
}

// lookUpUser finds who hooks run as; nil: ourselves.
func lookUpUser(name string) (*command.User, error) {
	if name == "" {
		return nil, nil
	}
	found, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("hooks run as %q: %w", name, err)
	}
	groups, err := found.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("hooks run as %q: its groups: %w", name, err)
	}
	ids, err := numbers(append([]string{found.Uid, found.Gid}, groups...))
	if err != nil {
		return nil, fmt.Errorf("hooks run as %q: %w", name, err)
	}
	return &command.User{UID: ids[0], GID: ids[1], Groups: ids[2:]}, nil
}

func numbers(texts []string) ([]uint32, error) {
	list := make([]uint32, len(texts))
	for i, text := range texts {
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return nil, err
		}
		list[i] = uint32(n)
	}
	return list, nil
}
