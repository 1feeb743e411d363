package logrelay

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/health"
	"holdfast/logrelay/journal"
)

// held stores lines as another node's shipment does, with its mark.
func (x *stage) held(node string, texts ...string) {
	x.t.Helper()
	var b journal.Batch
	for _, text := range texts {
		b.Add(journal.Record{
			Time: time.Now().UnixNano(), Source: netip.MustParseAddr("10.1.0.9"), Input: viaRELP | viaOther,
			Data: []byte("<13>Nov 25 12:00:00 cn1 test: " + text),
		})
	}
	b.Add(journal.Record{Time: time.Now().UnixNano(), Input: viaMark, Data: appendMark(nil, node, progress{Next: 1})})
	commit, err := x.j.Append(x.ctx, &b)
	if err == nil {
		err = commit.Wait(x.ctx)
	}
	if err != nil {
		x.t.Fatal(err)
	}
	synctest.Wait()
}

// outputs runs a stage's outputs until end.
func (x *stage) outputs() (end func()) {
	x.t.Helper()
	list, err := x.s.newOutputs(x.j)
	if err != nil {
		x.t.Fatal(err)
	}
	x.s.current.Store(x.j)
	ctx, cancel := context.WithCancel(x.ctx)
	done := make(chan struct{})
	x.group.Go(func() {
		defer close(done)
		x.s.runOutputs(ctx, list)
	})
	return func() {
		cancel()
		<-done
	}
}

// TestATargetGetsTheLinesOfALostNodeFromTheOthersDisk, in virtual time: those of
// that node and of that time, once, beside this node's own, though the target is
// down at first and this relay is started again meanwhile.
func TestATargetGetsTheLinesOfALostNodeFromTheOthersDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{forward: {siem: {relp: ["10.1.0.77:20514"]}}}`)
		defer x.end()
		target := &receiver{}
		var up atomic.Bool
		var group sync.WaitGroup
		defer group.Wait()
		x.s.dialer = func(context.Context, string, string) (net.Conn, error) {
			if !up.Load() {
				return nil, errors.New("connection refused")
			}
			here, there := net.Pipe()
			group.Go(func() { target.serve(there) })
			return here, nil
		}
		up.Store(true)
		endOutputs := x.outputs()
		own := func(text string) { x.store("<13>Nov 25 12:00:00 cn1 test: " + text) }
		own("own 1")
		x.held("fb2", "fb2 old")
		<-time.After(time.Hour)
		since := time.Now()
		x.held("fb2", "fb2 1", "fb2 2")
		x.held("fb3", "fb3 1")
		own("own 2")
		x.held("fb2", "fb2 3")
		<-time.After(time.Minute)
		synctest.Wait()
		if diff := cmp.Diff([]string{"own 1", "own 2"}, target.lines()); diff != "" {
			t.Fatalf("before anybody said that fb2 is lost: %s", diff)
		}
		for _, ask := range []struct{ output, of, want string }{
			{"files", "fb2", "no target"}, {"siem", "fb9", `["fb2" "fb3"]`},
		} {
			if _, err := x.s.ReplayOf(ask.output, ask.of, since); err == nil || !strings.Contains(err.Error(), ask.want) {
				t.Errorf("%s of %s: %v", ask.output, ask.of, err)
			}
		}
		up.Store(false)
		answer := httptest.NewRecorder()
		args := url.Values{"output": {"siem"}, "of": {"FB2"}, "from": {since.Format(time.RFC3339Nano)}}
		x.s.Handler().ServeHTTP(answer, httptest.NewRequest(http.MethodPost, ReplayPath+"?"+args.Encode(), nil))
		if answer.Body.String() != "{\"lines\":3}\n" {
			t.Fatalf("%d %s", answer.Code, answer.Body)
		}
		if _, err := x.s.ReplayOf("siem", "fb3", since); err == nil || !strings.Contains(err.Error(), "wait") {
			t.Errorf("another one meanwhile: %v", err)
		}
		<-time.After(time.Minute)
		synctest.Wait()
		if list := x.s.board.Conditions(); len(list) != 1 || list[0].Name != conditionReplay+"siem" {
			t.Errorf("while the target is down: %v", list)
		}
		endOutputs()
		endOutputs = x.outputs()
		up.Store(true)
		x.held("fb2", "fb2 of later") // it is not lost, as it seems
		own("own 3")
		<-time.After(2 * time.Minute)
		synctest.Wait()
		var lost, mine []string
		for _, text := range target.lines() {
			if strings.HasPrefix(text, "own") {
				mine = append(mine, text)
			} else {
				lost = append(lost, text)
			}
		}
		if diff := cmp.Diff([]string{"fb2 1", "fb2 2", "fb2 3"}, lost); diff != "" {
			t.Errorf("of the lost node: %s", diff)
		}
		if diff := cmp.Diff([]string{"own 1", "own 2", "own 3"}, mine); diff != "" {
			t.Errorf("of this one: %s", diff)
		}
		if list := x.s.board.Conditions(); len(list) != 0 {
			t.Errorf("in the end: %v", list)
		}
		for _, name := range []string{"replay-siem", "cursor-re-siem"} {
			if _, err := os.Stat(filepath.Join(x.s.dir(), name)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left: %v", name, err)
			}
		}
		// A target that never takes them does not keep the journal for ever.
		up.Store(false)
		x.s.lost["siem"].tooMuch = func() bool { return true }
		if _, err := x.s.ReplayOf("siem", "fb3", since); err != nil {
			t.Error(err)
		}
		<-time.After(2 * time.Minute)
		synctest.Wait()
		if order := x.s.lost["siem"].underWay(); order != nil {
			t.Errorf("still under way: %v", order)
		}
		if list := x.s.board.Conditions(); !slices.ContainsFunc(list, func(c health.Condition) bool {
			return c.Name == conditionReplay+"siem" && strings.Contains(c.Message, "no more")
		}) {
			t.Errorf("what was given up is not said: %v", list)
		}
		if _, err := os.Stat(filepath.Join(x.s.dir(), "cursor-re-siem")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the journal is still kept: %v", err)
		}
		endOutputs()
	})
}

// TestAnOrderThatIsGivenUpEnds, in virtual time, though the disk refuses that at
// first, and a day later nobody speaks of it any more. It fails if the order stands
// until a restart, so that no other can be given.
func TestAnOrderThatIsGivenUpEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{forward: {siem: {relp: ["10.1.0.77:20514"]}}}`)
		defer x.end()
		x.s.dialer = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("connection refused") }
		l, err := x.s.newLostLines(x.j, x.s.settings.forward[0])
		if err != nil {
			t.Fatal(err)
		}
		l.tooMuch = func() bool { return true }
		x.held("fb2", "fb2 1")
		if _, err := l.begin("fb2", time.Now().Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
		// A folder that is not empty can't be removed as a file is.
		if err := errors.Join(os.Remove(l.path), os.MkdirAll(filepath.Join(l.path, "x"), 0o700)); err != nil {
			t.Fatal(err)
		}
		ctx, end := context.WithCancel(x.ctx)
		x.group.Go(func() { l.run(ctx) })
		defer end()
		says := func(what, want string) {
			t.Helper()
			synctest.Wait()
			got := ""
			for _, c := range x.s.board.Conditions() {
				got += c.Message
			}
			if (want == "") != (got == "") || !strings.Contains(got, want) {
				t.Errorf("%s: %q, want %q", what, got, want)
			}
		}
		<-time.After(time.Minute)
		says("the disk refuses", "tried again")
		if err := os.RemoveAll(l.path); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Minute)
		says("it does not any more", "kept for it no more")
		if l.underWay() != nil {
			t.Error("the order stands")
		}
		<-time.After(gaveUpFor)
		says("a day later", "")
		if _, err := l.begin("fb2", time.Now().Add(-48*time.Hour)); err != nil {
			t.Error(err)
		}
	})
}
