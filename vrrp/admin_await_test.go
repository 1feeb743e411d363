package vrrp

import (
	"context"
	"errors"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// standingRouters are ones whose loop takes an order and stands from then on: who
// asks waits until its context ends.
type standingRouters struct {
	*fakeRouters
	stands bool
}

func (s *standingRouters) Yield(ctx context.Context, router string) error {
	s.stands = true
	return s.fakeRouters.Yield(ctx, router)
}

func (s *standingRouters) Pull(ctx context.Context, router string) error {
	s.stands = true
	return s.fakeRouters.Pull(ctx, router)
}

func (s *standingRouters) Status(ctx context.Context) ([]RouterReport, error) {
	if s.stands {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return s.fakeRouters.Status(ctx)
}

// TestAMoveAnswersWhenTheLoopStands: it fails if a look at what came of an order has
// no time limit of its own, for who asked has none.
func TestAMoveAnswersWhenTheLoopStands(t *testing.T) {
	for path, state := range map[string]State{"move/dns1": Active, "hold/dns1": Backup} {
		synctest.Test(t, func(t *testing.T) {
			routers := &standingRouters{fakeRouters: newFake(state, time.Now())}
			var moved Moved
			begun := time.Now()
			status, text := request(t, NewAdmin(AdminDeps{Node: "fbservice1", Routers: routers}), "POST", path, &moved)
			if status != 200 || moved.Done || !strings.Contains(moved.Text, "is not known: context deadline exceeded") {
				t.Errorf("%s: %d %s", path, status, text)
			}
			if took := time.Since(begun); took > awaitLongest+2*awaitSlack {
				t.Errorf("%s: it took %v", path, took)
			}
		})
	}
}

// lookedAtRouters counts the looks in vain.
type lookedAtRouters struct {
	*fakeRouters
	looks, vain int
}

func (l *lookedAtRouters) Status(ctx context.Context) ([]RouterReport, error) {
	l.looks++
	if ctx.Err() != nil {
		l.vain++
	}
	return l.fakeRouters.Status(ctx)
}

// TestNobodyLooksForOneWhoIsGone: it fails if the loop is given work when who asked
// waits no more.
func TestNobodyLooksForOneWhoIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		routers := &lookedAtRouters{fakeRouters: newFake(Active, time.Now())}
		routers.deaf = true
		ctx, cancel := context.WithTimeout(t.Context(), 10*awaitEvery+awaitEvery/2)
		defer cancel()
		begun := time.Now()
		admin := NewAdmin(AdminDeps{Node: "fbservice1", Routers: routers})
		admin.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "POST", AdminPath+"move/dns1", nil))
		if routers.looks < 2 || routers.vain > 0 {
			t.Errorf("%d looks, %d of them for nobody", routers.looks, routers.vain)
		}
		if took := time.Since(begun); took > awaitSlack {
			t.Errorf("it went on for %v", took)
		}
	})
}

// TestWhatTheLoopStillWritesIsNotRead: who does not wait for the loop any more gets
// an error, and nothing that the loop is writing. It fails, most of all under the
// race detector, where the loop writes what its caller gives back.
func TestWhatTheLoopStillWritesIsNotRead(t *testing.T) {
	core := Router{Name: "dns1", VRID: 161, Version: 3, Priority: 254, Interval: time.Second}
	l := quietLoop()
	l.machine, l.instances = NewMachine([]Router{core}), []*instance{instanceOf(core)}
	v := &session{loop: l, fence: &fence{}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 {
		for _, ask := range []func(){
			func() {
				if reports, err := v.reports(ctx); (err == nil) != (len(reports) == 1) {
					t.Errorf("%d reports, %v", len(reports), err)
				}
			},
			func() {
				err := v.order(ctx, "nothing", Pull)
				if errors.Is(err, ErrUnknown) == errors.Is(err, context.Canceled) {
					t.Errorf("an order for no router: %v", err)
				}
			},
		} {
			done := make(chan struct{})
			go func() {
				defer close(done)
				ask()
			}()
			for ran := false; !ran; runtime.Gosched() {
				for _, f := range l.mail.take() {
					f()
					ran = true
				}
			}
			<-done
		}
	}
}
