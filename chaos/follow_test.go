package chaos_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/stream"
	"holdfast/lab"
	"holdfast/lab/site"
	"holdfast/lab/stall"
)

// followerSite is three servers and two frontends that follow them. All run and
// know of each other.
func followerSite(t *testing.T) *site.Site {
	t.Helper()
	s, err := site.New(t.Context(), site.Options{
		Binary: binary, File: "testdata/followers.yaml", Followers: []string{"fbfront1", "fbfront2"},
		Lab: func(o lab.Options) (*lab.Lab, error) { return lab.NewTest(t, o), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range slices.Concat(s.Nodes, s.Followers) {
		if err := n.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	settle(t, s, s.Nodes)
	for _, n := range slices.Concat(s.Followers, s.Nodes) {
		within(t, patience, n.Name()+" answers for the frontends' own service", func(ctx context.Context) error {
			return answers(ctx, s, n, "login.service.virtual", addrsOf(s.Followers))
		})
	}
	return s
}

func addrsOf(nodes []*site.Node) (list []string) {
	for _, n := range nodes {
		list = append(list, n.Addr().String())
	}
	slices.Sort(list)
	return list
}

func answers(ctx context.Context, s *site.Site, n *site.Node, name string, want []string) error {
	addrs, err := s.Lookup(ctx, n, name)
	if err == nil && !slices.Equal(addrs, want) {
		err = fmt.Errorf("%s answers %v for %s, want %v", n.Name(), addrs, name, want)
	}
	return err
}

// followed is how a frontend stands.
func followed(ctx context.Context, n *site.Node) (s stream.Status, err error) {
	all, err := followers(ctx, n)
	for _, s := range all {
		if s.Unit == stream.NodeUnit {
			return s, nil
		}
	}
	return s, fmt.Errorf("%s follows nobody: %w", n.Name(), err)
}

// followers are who on a node follows another's state.
func followers(ctx context.Context, n *site.Node) (all []stream.Status, err error) {
	out, err := n.CLI(ctx, "units", "--json")
	if !strings.HasPrefix(out, "[") { // it ends with a status other than 0 when something is not fresh
		return nil, err
	}
	err = json.NewDecoder(strings.NewReader(out)).Decode(&all)
	return all, err
}

// freshFrom waits until a frontend is streamed a confirmed state by a server that
// is not not, and returns which and how long that took.
func freshFrom(t *testing.T, front *site.Node, not string) (source string, took time.Duration) {
	t.Helper()
	took = within(t, patience, front.Name()+" is fresh again", func(ctx context.Context) error {
		s, err := followed(ctx, front)
		if err == nil && (!s.Connected || !s.Confirmed || s.Age > time.Second || s.Source == not) {
			err = fmt.Errorf("%+v", s)
		}
		source = s.Source
		return err
	})
	return source, took
}

// askTime is how long a look-up of asking may take; one whose time the machine
// stood still for half of is not counted.
const askTime = time.Second

// asking looks a name up on a node again and again until stop, and counts what
// failed.
func asking(t *testing.T, machine *stall.Watch, s *site.Site, n *site.Node, name string) (stop func() (asked, failed int64, last error)) {
	ctx, cancel := context.WithCancel(t.Context())
	var asked, failed atomic.Int64
	var last error
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			began := time.Now()
			once, cancel := context.WithTimeout(ctx, askTime)
			addrs, err := s.Lookup(once, n, name)
			cancel()
			if ctx.Err() != nil {
				return
			}
			if late := net.Error(nil); errors.As(err, &late) && late.Timeout() && machine.Within(began, time.Now()) >= askTime/2 {
				continue
			}
			if asked.Add(1); err != nil || len(addrs) == 0 {
				failed.Add(1)
				last = fmt.Errorf("%v: %w", addrs, err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	return func() (int64, int64, error) {
		cancel()
		<-done
		return asked.Load(), failed.Load(), last
	}
}

// The server that streams to a frontend is killed, stopped and cut off, and cut off
// from the other servers alone: the frontend goes on answering and is fresh again
// by another server.
func TestAFrontendIsFreshAgainWhenItsServerIsGone(t *testing.T) {
	machine := watchMachine(t)
	s := followerSite(t)
	front := s.Followers[0]
	faults := []struct {
		name   string
		bound  time.Duration
		strike func(server *site.Node) (heal func() error)
	}{
		{"killed", 2 * time.Second, func(server *site.Node) func() error {
			if err := server.Kill(); err != nil {
				t.Fatal(err)
			}
			return server.StartAgent
		}},
		{"stopped", 5 * time.Second, func(server *site.Node) func() error {
			if err := server.Agent().Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			return func() error { return server.Agent().Signal(syscall.SIGCONT) }
		}},
		{"without its cable", 5 * time.Second, func(server *site.Node) func() error {
			if err := server.Host.Unplug("administration"); err != nil {
				t.Fatal(err)
			}
			return func() error { return server.Host.Plug("administration") }
		}},
		{"cut off from the servers", 8 * time.Second, func(server *site.Node) func() error {
			var others []*lab.Host
			for _, n := range without(s.Nodes, server) {
				others = append(others, n.Host)
			}
			cut, err := s.Lab.Partition([]*lab.Host{server.Host}, others)
			if err != nil {
				t.Fatal(err)
			}
			return cut.Heal
		}},
	}
	for _, fault := range faults {
		machine.Repeat(t, fault.name, 3, disturbing, func() (from, to time.Time, missed error) {
			source, _ := freshFrom(t, front, "")
			server := s.Node(source)
			stop := asking(t, machine, s, front, "apt.service.virtual")
			heal := fault.strike(server)
			from = time.Now()
			next, took := freshFrom(t, front, source)
			to = from.Add(took)
			t.Logf("%s %s: fresh again by %s after %v, of which the machine stood still for %v", source, fault.name, next, took.Round(10*time.Millisecond), machine.Within(from, to))
			if took := machine.Took(from, to); took > fault.bound {
				missed = fmt.Errorf("%s: fresh again after %v, want under %v", source, took, fault.bound)
			}
			if asked, failed, last := stop(); failed > 0 || asked == 0 {
				t.Errorf("%s: %d of %d look-ups on %s failed, the last with %v", fault.name, failed, asked, front.Name(), last)
			}
			if err := heal(); err != nil {
				t.Fatal(err)
			}
			settle(t, s, s.Nodes)
			return from, to, missed
		})
	}
}

// Without any server the frontends answer on, say the age, and one that starts
// serves what is on its disk.
func TestFrontendsGoOnWithoutAnyServer(t *testing.T) {
	s := followerSite(t)
	one, two := s.Followers[0], s.Followers[1]
	freshFrom(t, one, "")
	held := func(ctx context.Context) (string, error) {
		for _, n := range s.Followers {
			if !n.Host.IsOn() {
				continue
			}
			out, err := n.Host.Run(ctx, "ip", "-4", "-br", "addr")
			if err != nil {
				return "", err
			}
			if strings.Contains(out, "10.1.0.100/") {
				return n.Name(), nil
			}
		}
		return "", fmt.Errorf("no frontend has the virtual address")
	}
	within(t, patience, "a frontend holds the address", func(ctx context.Context) error { _, err := held(ctx); return err })
	within(t, patience, "the state is on the disk", func(ctx context.Context) error {
		text, err := one.Host.Read("/var/lib/holdfast/state.node")
		if err == nil && !strings.Contains(string(text), "fbfront2") {
			err = fmt.Errorf("it lacks fbfront2")
		}
		return err
	})
	within(t, patience, "all answer", func(ctx context.Context) error {
		return answers(ctx, s, one, "login.service.virtual", addrsOf(s.Followers))
	})
	if err := s.PowerOffAll(); err != nil { // at one moment: none is there to say that another is dead
		t.Fatal(err)
	}
	within(t, patience, "the frontend says that no server answers", func(ctx context.Context) error {
		status, err := followed(ctx, one)
		if err == nil && (status.Connected || status.Age < 3*time.Second || status.Error == "") {
			err = fmt.Errorf("%+v", status)
		}
		return err
	})
	// More than once, since a question may be lost where the machine stands still;
	// nobody is there who could put right what they forgot.
	within(t, patience, "the frontend answers without a server", func(ctx context.Context) error {
		return answers(ctx, s, one, "login.service.virtual", addrsOf(s.Followers))
	})
	within(t, patience, "a frontend holds the address without a server", func(ctx context.Context) error { _, err := held(ctx); return err })
	// Its power is taken, and what it has kept is what it starts with.
	if err := one.PowerOff(); err != nil {
		t.Fatal(err)
	}
	within(t, patience, two.Name()+" holds the address", func(ctx context.Context) error {
		who, err := held(ctx)
		if err == nil && who != two.Name() {
			err = fmt.Errorf("%s has it", who)
		}
		return err
	})
	if err := one.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	within(t, patience, "it answers from its disk", func(ctx context.Context) error {
		if err := answers(ctx, s, one, "apt.service.virtual", addrsOf(s.Nodes)); err != nil {
			return err
		}
		status, err := followed(ctx, one)
		if err == nil && (!status.FromDisk || !status.Confirmed || status.Age < time.Second) {
			err = fmt.Errorf("%+v", status)
		}
		return err
	})
	for _, n := range s.Nodes {
		if err := n.PowerOn(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	source, took := freshFrom(t, one, "")
	t.Logf("after the servers' power came back: fresh by %s after %v", source, took.Round(10*time.Millisecond))
	// And a check's end is written by way of a server.
	within(t, patience, "the frontend's own check is written", func(ctx context.Context) error {
		return answers(ctx, s, s.Nodes[0], "login.service.virtual", addrsOf(s.Followers))
	})
}
