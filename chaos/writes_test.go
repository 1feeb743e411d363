package chaos

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
)

// memory is a store that forgets and invents on demand, to test the checker.
type memory struct {
	mu   sync.Mutex
	data map[string]string
	fail func(key string) error // called after the write was stored
}

func (m *memory) Put(_ context.Context, key, value string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.data[key] = value
	return m.fail(key)
}

func (m *memory) List(context.Context, string) (map[string]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.data, nil
}

func TestCheckerFindsLostChangedAndInventedKeys(t *testing.T) {
	acked := map[string]string{"a": "1", "b": "2"}
	maybe := map[string]string{"c": "3"}
	for _, c := range []struct {
		name  string
		found map[string]string
		want  string // "" passes
	}{
		{"all there", map[string]string{"a": "1", "b": "2"}, ""},
		{"an unacknowledged write may be there", map[string]string{"a": "1", "b": "2", "c": "3"}, ""},
		{"lost", map[string]string{"a": "1"}, "lost: b"},
		{"changed", map[string]string{"a": "1", "b": "9"}, "changed: b"},
		{"invented", map[string]string{"a": "1", "b": "2", "d": "4"}, "invented: d"},
		{"unacknowledged with another value", map[string]string{"a": "1", "b": "2", "c": "9"}, "invented: c"},
	} {
		err := compare(acked, maybe, c.found)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// silent is a store that does not tell what it holds.
type silent struct{ *memory }

func (silent) List(context.Context, string) (map[string]string, error) {
	return nil, errors.New("no leader")
}

func TestAStoreThatDoesNotTellHasLostNothing(t *testing.T) {
	w := &Writes{Prefix: "t/", acked: map[string]string{"t/a": "1"}}
	store := &memory{data: map[string]string{}}
	if err := w.Check(t.Context(), silent{store}); !errors.Is(err, ErrUnread) {
		t.Errorf("it is not read: %v", err)
	}
	if err := w.Check(t.Context(), store); err == nil || errors.Is(err, ErrUnread) {
		t.Errorf("it has nothing: %v", err)
	}
}

func TestWorkloadCountsOnlyAcknowledgedWritesAsAcked(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var writes int
	store := &memory{data: map[string]string{}}
	store.fail = func(string) error {
		if writes++; writes >= 20 {
			cancel()
		}
		if writes%2 == 0 {
			return errors.New("refused")
		}
		return nil
	}
	w := &Writes{Store: store, Prefix: "t/", Writers: 3, Timeout: time.Second}
	w.Run(ctx)
	s := w.Summary()
	if s.Acked+s.Unknown != writes || s.Failures["refused"] != s.Unknown || s.Acked == 0 {
		t.Errorf("%d writes were made, the summary is %+v", writes, s)
	}
	if err := w.Check(t.Context(), store); err != nil {
		t.Error(err)
	}
	for key := range w.acked {
		delete(store.data, key)
		break
	}
	if err := w.Check(t.Context(), store); err == nil {
		t.Error("a lost write was not found")
	}
}
