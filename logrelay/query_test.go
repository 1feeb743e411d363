package logrelay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// answer makes a node's answer of words: a number is a line of that second,
// "^" and a number says that nothing older comes, "." that this was all.
func answer(words string) io.Reader {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	for _, word := range strings.Fields(words) {
		var f Frame
		var n int64
		switch {
		case word == ".":
			f.Done = true
		case word[0] == '^':
			_, _ = fmt.Sscanf(word[1:], "%d", &n)
			at := time.Unix(n, 0)
			f.Upto = &at
		default:
			_, _ = fmt.Sscanf(word, "%d", &n)
			f.Entry = &Entry{Time: time.Unix(n, 0), Line: word}
		}
		_ = encoder.Encode(f)
	}
	return &b
}

func TestNodesAreMergedInOrderAndEveryLineIsThereOnce(t *testing.T) {
	for _, test := range []struct {
		nodes  []string
		want   string
		broken []string
	}{
		{[]string{"1 3 5 .", "2 4 ."}, "1 2 3 4 5", nil},
		{[]string{"1 2 3 .", "2 3 4 ."}, "1 2 3 4", nil},          // on two nodes
		{[]string{"1 3a 3b .", "3b 3c ."}, "1 3a 3b 3c", nil},     // of one time
		{[]string{"5 6 2 .", "1 7 ."}, "1 5 6 2 7", nil},          // one came late
		{[]string{"1 2", "3 ."}, "1 2 3", []string{"node0"}},      // one broke off
		{[]string{"1 1 1 .", "1 1 ."}, "1 1 1", nil},              // was sent three times in one instant
		{[]string{".", "1 ."}, "1", nil},                          // one has none
		{[]string{"^3 4 .", "1 ^9 10 .", "2 ."}, "1 2 4 10", nil}, // they say how far they are
		{[]string{"1 5 .", "2 3 .", "5 1 2 ."}, "1 2 3 5", nil},   // the third has only what is known, late
		{nil, "", nil},
	} {
		var streams []Stream
		for i, words := range test.nodes {
			streams = append(streams, Stream{fmt.Sprintf("node%d", i), answer(words)})
		}
		var got []string
		broken, err := Merge(t.Context(), streams, func(_ string, e *Entry) error {
			got = append(got, e.Line)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, strings.Join(got, " ")); diff != "" {
			t.Errorf("%q: %s", test.nodes, diff)
		}
		for _, node := range test.broken {
			if broken[node] == nil {
				t.Errorf("%q: nothing is said of %s", test.nodes, node)
			}
		}
		if len(broken) != len(test.broken) {
			t.Errorf("%q: %v", test.nodes, broken)
		}
	}
}

// TestANodeThatSaysNothingHoldsBackOnlyWhatItCouldBeBefore: while one of two
// that are followed is silent, the other's lines wait until the first says how
// far it is.
func TestANodeThatSaysNothingHoldsBackOnlyWhatItCouldBeBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, other := net.Pipe()
		got := make(chan string, 10)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			_, err := Merge(ctx, []Stream{{"a", answer("5 6 .")}, {"b", other}}, func(_ string, e *Entry) error {
				got <- e.Line
				return nil
			})
			ended <- err
		}()
		synctest.Wait()
		if len(got) != 0 {
			t.Errorf("%s was printed though b may have an older one", <-got)
		}
		_, _ = io.Copy(one, answer("^6"))
		synctest.Wait()
		if list := []string{<-got}; len(got) != 1 || list[0] != "5" || <-got != "6" {
			t.Errorf("b is at 6: %v", list)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		_ = one.Close()
	})
}

// endless is a node with very many lines that counts how much was read.
type endless struct {
	read atomic.Int64
	next int64
	rest []byte
}

func (e *endless) Read(b []byte) (int, error) {
	if len(e.rest) == 0 {
		e.next++
		e.rest, _ = json.Marshal(Frame{Entry: &Entry{Time: time.Unix(e.next, 0), Line: strings.Repeat("x", 1000)}})
	}
	n := copy(b, e.rest)
	e.rest = e.rest[n:]
	e.read.Add(int64(n))
	return n, nil
}

func TestASlowReaderHoldsTheNodesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &endless{}
		ctx, cancel := context.WithCancel(t.Context())
		held := make(chan struct{})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _ = Merge(ctx, []Stream{{"a", source}}, func(string, *Entry) error {
				<-held
				return nil
			})
		}()
		synctest.Wait()
		if n := source.read.Load(); n > 200<<10 {
			t.Errorf("%d bytes were read while nobody printed", n)
		}
		cancel()
		close(held)
		<-ended
	})
}

// ask queries a relay as the command line does.
func ask(t *testing.T, s *Server, q Query) (lines []string, done bool) {
	t.Helper()
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", QueryPath+"?"+q.Values().Encode(), nil))
	if w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	decoder := json.NewDecoder(w.Body)
	for {
		var f Frame
		if err := decoder.Decode(&f); err != nil {
			return lines, done
		}
		if f.Entry != nil {
			lines = append(lines, f.Entry.Line)
		}
		done = done || f.Done
	}
}

func TestAQueryGivesTheLinesThatFit(t *testing.T) {
	s, _, _ := serve(t, nil)
	c, err := dial(s.Addrs("relp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	for _, line := range []string{
		"<11>Nov 25 12:00:00 cn01 slurmd[1]: it burns", "<14>Nov 25 12:00:01 cn02 sshd: hello", "<15>Nov 25 12:00:02 cn17 sshd: password=secret",
	} {
		if _, err := c.conn.Write(c.session.AppendLine(nil, []byte(line))); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.read(0); err != nil {
		t.Fatal(err)
	}
	all := Query{Severity: NoSeverity}
	for want, change := range map[string]func(*Query){
		"burns hello password": func(*Query) {},
		"burns":                func(q *Query) { q.Severity = 3 },
		"burns hello":          func(q *Query) { q.Nodes = "cn[01-09]" },
		"password":             func(q *Query) { q.Nodes = "cn[01-20]!cn[01-09]" },
		"hello":                func(q *Query) { q.Text = "hel+o" },
		"hello password":       func(q *Query) { q.If = `app == "sshd"` },
		"":                     func(q *Query) { q.Since = time.Now().Add(time.Hour) },
	} {
		q := all
		change(&q)
		lines, done := ask(t, s, q)
		for i, word := range strings.Fields(want) {
			if len(lines) <= i || !strings.Contains(lines[i], word) {
				t.Errorf("%+v: %q, want %q", q, lines, want)
				break
			}
		}
		if len(lines) != len(strings.Fields(want)) || !done {
			t.Errorf("%+v: %q, want %q; the end was told: %v", q, lines, want, done)
		}
	}
	for query, want := range map[string]string{
		"?since=yesterday": "want a time", "?severity=8": "want 0 (emerg) to 7", "?match=(": "missing closing", "?if=x": "unknown name", "?nodes=cn[": "node set",
	} {
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", QueryPath+query, nil))
		if w.Code != 400 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s", query, w.Code, w.Body)
		}
	}
}

// TestCountsAreTheSameWithANodeGone: with replicas, both nodes have all lines;
// they count once, and also when only one of the two can be asked.
func TestCountsAreTheSameWithANodeGone(t *testing.T) {
	all := nodes(t, "fb1", "fb2")
	for _, n := range all {
		n.replicaPatience = time.Minute // what is answered is with both
		n.start(t)
	}
	all[0].send(t, 0, 40)
	all[1].send(t, 40, 20)
	summary := func(n *node) (s Summary) {
		w := httptest.NewRecorder()
		n.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", SummaryPath+"?"+url.Values{"by": {"host"}}.Encode(), nil))
		if err := json.NewDecoder(w.Body).Decode(&s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	one, two := summary(all[0]), summary(all[1])
	for name, list := range map[string][]Summary{"both": {one, two}, "the first": {one}, "the second": {two}} {
		sum := Add(list)
		if len(sum) != 1 || sum["cn01"] == nil || sum["cn01"].Lines != 60 {
			t.Errorf("%s: %v", name, sum)
		}
	}
	var streams []Stream
	for _, n := range all {
		w := httptest.NewRecorder()
		n.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", QueryPath, nil))
		streams = append(streams, Stream{n.name, w.Body})
	}
	var times []time.Time
	if broken, err := Merge(t.Context(), streams, func(_ string, e *Entry) error {
		times = append(times, e.Time)
		return nil
	}); err != nil || len(broken) > 0 {
		t.Error(broken, err)
	}
	if len(times) != 60 || !slices.IsSortedFunc(times, time.Time.Compare) {
		t.Errorf("%d lines of both nodes, in order %v", len(times), slices.IsSortedFunc(times, time.Time.Compare))
	}
	for _, n := range all {
		n.end()
	}
}

// TestFollowingGivesWhatComesIn: one who follows hears of a line, and before
// that how far the node is.
func TestFollowingGivesWhatComesIn(t *testing.T) {
	s, _, _ := serve(t, nil)
	web := httptest.NewServer(s.Handler())
	defer web.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	request := httptest.NewRequestWithContext(ctx, "GET", web.URL+QueryPath+"?follow=1", nil)
	request.RequestURI = ""
	answer, err := web.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	decoder := json.NewDecoder(answer.Body)
	told := false
	for {
		var f Frame
		if err := decoder.Decode(&f); err != nil {
			t.Fatal(err)
		}
		if f.Upto != nil && !told {
			told = true
			conn, err := net.Dial("udp", s.Addrs("udp")[0].String())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := fmt.Fprint(conn, "<13>Nov 25 12:00:00 cn01 test: now"); err != nil {
				t.Fatal(err)
			}
			_ = conn.Close()
		}
		if f.Entry != nil {
			if !told || !strings.HasSuffix(f.Entry.Line, "test: now") || f.Entry.Host != "cn01" || f.Entry.Input != "udp" {
				t.Errorf("%+v", f.Entry)
			}
			return
		}
	}
}
