package vrrp

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/kernel/command"
)

// recorder notes what would be run, and holds it back while gate is locked.
type recorder struct {
	gate sync.Mutex
	mu   sync.Mutex
	ran  []command.Command
}

func (r *recorder) Run(_ context.Context, c command.Command) (command.Result, error) {
	r.gate.Lock()
	defer r.gate.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ran = append(r.ran, c)
	return command.Result{}, nil
}

func (r *recorder) lines() (lines []string) {
	for _, c := range r.ran {
		lines = append(lines, strings.Join(c.Argv, " "))
	}
	return lines
}

func hookBed(t *testing.T) (*hooks, *recorder, *metrics, func()) {
	t.Helper()
	m, err := newMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{}
	ctx, kill := context.WithCancel(context.Background())
	h := newHooks(ctx, r, slog.New(slog.DiscardHandler), m)
	return h, r, m, func() { h.close(context.Background(), kill) }
}

func hookRouter(name, group string, of Hooks) *instance {
	return &instance{settings: RouterSettings{Router: Router{Name: name, Group: group}, Hooks: of}}
}

func TestHooksRunInOrderWithKeepalivedsArguments(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"20last": 0o755, "10first": 0o755, "notes.txt": 0o755, "off": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	h, r, _, end := hookBed(t)
	in := hookRouter("web", "all", Hooks{Notify: []string{"/bin/notify", "-v"}, Dirs: map[string]string{"master": dir}, Timeout: 7 * time.Second})
	everywhere := Hooks{Notify: []string{"/bin/everywhere"}}
	h.changed(in, Backup, 253, everywhere)
	h.changed(in, Active, 253, everywhere)
	h.changed(in, Fault, 253, everywhere)
	end()
	want := []string{
		"/bin/everywhere INSTANCE web BACKUP 253", "/bin/notify -v INSTANCE web BACKUP 253",
		"/bin/everywhere INSTANCE web MASTER 253",
		dir + "/10first INSTANCE web MASTER 253", dir + "/20last INSTANCE web MASTER 253", "/bin/notify -v INSTANCE web MASTER 253",
		"/bin/everywhere INSTANCE web FAULT 253", "/bin/notify -v INSTANCE web FAULT 253",
	}
	if got := r.lines(); !slices.Equal(got, want) {
		t.Errorf("ran\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if r.ran[0].Timeout != defaultHookTimeout || r.ran[1].Timeout != 7*time.Second {
		t.Errorf("time-outs %v, %v", r.ran[0].Timeout, r.ran[1].Timeout)
	}
}

func TestGroupsHooksRunOnceAllOfItHaveChanged(t *testing.T) {
	h, r, _, end := hookBed(t)
	of := Hooks{Notify: []string{"/bin/notify"}}
	l := &loop{hooks: h, instances: []*instance{hookRouter("a", "g", of), hookRouter("b", "g", of)}}
	for _, in := range l.instances {
		in.state = Active
		l.groupChanged(in)
	}
	end()
	if got := r.lines(); !slices.Equal(got, []string{"/bin/notify GROUP g MASTER 0"}) {
		t.Errorf("ran %q", got)
	}
}

func TestSlowHooksHearOfTheLatestStates(t *testing.T) {
	h, r, m, end := hookBed(t)
	in := hookRouter("web", "", Hooks{Notify: []string{"/bin/notify"}})
	r.gate.Lock() // the first of them hangs
	for i := range 3 * maxQueued {
		h.changed(in, Backup+State(i%2), uint8(i), Hooks{})
	}
	r.gate.Unlock()
	end()
	got := r.lines()
	if last := got[len(got)-1]; len(got) > maxQueued+1 || !strings.HasSuffix(last, "MASTER 47") {
		t.Errorf("%d runs, the last %q", len(got), last)
	}
	if left := testutil.ToFloat64(m.hooks.WithLabelValues("coalesced")); int(left) != 3*maxQueued-len(got) {
		t.Errorf("%v were counted as left out, %d ran", left, len(got))
	}
}

func TestHooksRunAsTheirOwnUser(t *testing.T) {
	h, r, m, end := hookBed(t)
	h.changed(hookRouter("web", "", Hooks{Notify: []string{"/bin/notify"}, User: "nobody"}), Active, 1, Hooks{})
	h.changed(hookRouter("log", "", Hooks{Notify: []string{"/bin/notify"}, User: "no-such-user"}), Active, 1, Hooks{})
	end()
	if len(r.ran) != 1 || r.ran[0].User == nil || r.ran[0].User.UID == 0 {
		t.Errorf("ran %+v", r.ran)
	}
	if got := testutil.ToFloat64(m.hooks.WithLabelValues("refused")); got != 1 {
		t.Errorf("refused %v times", got)
	}
}
