package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/chaos"
	"holdfast/lab"
	"holdfast/lab/site"
	"holdfast/lab/stall"
)

// The first node runs alone, with nothing but the cluster file, and the second
// is installed from it; then the others come. A client that knows the first
// alone looks names up, and no file is changed anywhere.
func TestOneNodeAloneAnswersAndGrowsToFour(t *testing.T) {
	machine := watchMachine(t)
	s := newSite(t)
	first, rest := s.Nodes[0], s.Nodes[1:]
	if err := s.Resolve(s.Client, first); err != nil {
		t.Fatal(err)
	}
	if err := first.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	within(t, patience, "the first answers for itself", func(ctx context.Context) error {
		return answersExactly(ctx, s, first, s.Nodes[:1])
	})
	for name, want := range map[string]string{
		"web-boot.service.virtual":                    first.Addr().String(),
		rest[0].Name() + "." + s.File.Domain:          rest[0].Addr().String(),
		rest[0].Name() + ".node.virtual":              rest[0].Addr().String(),
		"fbcn01." + s.File.Domain:                     s.File.Node("fbcn01").Addresses[s.File.Main().Name].String(),
		s.File.VIPs[0].Hostname + "." + s.File.Domain: s.File.VIPs[0].Address.String(),
	} {
		// A service is answered after a check of its own, whenever that ran first.
		within(t, patience, "the first answers for "+name, func(ctx context.Context) error {
			got, err := s.Lookup(ctx, first, name)
			if err == nil && !slices.Equal(got, []string{want}) {
				err = fmt.Errorf("it answers %v, want %s", got, want)
			}
			return err
		})
	}
	within(t, patience, "the first names the second's address", func(ctx context.Context) error {
		out, err := s.Client.Run(ctx, "getent", "hosts", rest[0].Addr().String())
		if err == nil && !strings.Contains(out, rest[0].Name()+"."+s.File.Domain) {
			err = fmt.Errorf("it is %q", out)
		}
		return err
	})
	installFrom(t, s, first, rest[0])

	lookups := &chaos.Lookups{Workers: 2, Pause: 50 * time.Millisecond, Resolve: func(ctx context.Context) ([]string, error) {
		out, err := s.Client.Run(ctx, "getent", "ahostsv4", "apt.service.virtual")
		return chaos.Getent(out), err
	}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan struct{})
	go func() { defer close(ended); lookups.Run(ctx) }()
	var alone time.Time // until then
	for i, n := range rest {
		if err := n.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		up := s.Nodes[:i+2]
		for _, asked := range up {
			within(t, patience, fmt.Sprintf("%s answers for %d nodes", asked.Name(), len(up)), func(ctx context.Context) error {
				return answersExactly(ctx, s, asked, up)
			})
		}
		if i == 0 {
			alone = time.Now()
		}
	}
	waitLeader(t, s.Nodes, "")
	cancel()
	<-ended
	all := lookups.Results()
	judged := slices.DeleteFunc(slices.Clone(all), func(l chaos.Lookup) bool {
		return l.Start.Before(alone) && answeredEmpty(machine, l) && checkMayHaveFailed(machine, l.Start)
	})
	early := 0
	for _, l := range judged {
		if l.Start.Before(alone) {
			early++
		}
	}
	failed, slowest := lookedUp(t, machine, "while one node became four", judged)
	t.Logf("%d look-ups while one node became four, %d judged, %d of them before the second answered, %d failed, slowest %v", len(all), len(judged), early, failed, slowest)
	if early == 0 {
		t.Error("none was judged while one node answered alone: the test shows nothing of that time")
	}
}

// Of the reference cluster's checks of services.
const (
	checkEvery   = 10 * time.Second
	checkTimeout = time.Second
)

// answeredEmpty tells whether a look-up was answered, with no address. getent's
// status is the same when nobody answers, but that takes the resolver's time-out.
func answeredEmpty(machine *stall.Watch, l chaos.Lookup) bool {
	const notFound = 2
	exit, ok := errors.AsType[*lab.ExitError](l.Err)
	return ok && exit.Status.ExitStatus() == notFound && len(l.Answers) == 0 && machine.Took(l.Start, l.Start.Add(l.Took)) < resolverTimeout
}

// checkMayHaveFailed tells whether the machine, by a time, had stood still for so
// long that the one instance of a service may be out of the answers: a check that
// failed meanwhile is made again only when its turn comes, and there is no other
// instance that could be answered.
func checkMayHaveFailed(machine *stall.Watch, by time.Time) bool {
	for _, s := range machine.Spans(by.Add(-checkEvery-2*checkTimeout), by) {
		if s.To.Sub(s.From) >= checkTimeout/2 {
			return true
		}
	}
	return false
}

// installFrom fetches what a second node is installed from: by name, over the
// resolver of the second node, which is the first.
func installFrom(t *testing.T, s *site.Site, first, second *site.Node) {
	t.Helper()
	if err := s.Resolve(second.Host, first); err != nil {
		t.Fatal(err)
	}
	var addrs []string
	within(t, patience, "the second node finds one APT proxy", func(ctx context.Context) error {
		out, err := second.Host.Run(ctx, "getent", "ahostsv4", "apt.service.virtual")
		if addrs = chaos.Getent(out); err == nil && len(addrs) != 1 {
			err = fmt.Errorf("it finds %q", out)
		}
		return err
	})
	response, err := second.Host.HTTPClient().Get("http://" + addrs[0] + ":3142/")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("APT proxy: %v, %v", response.Status, err)
	}
}
