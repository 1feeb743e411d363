package chaos_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/chaos"
	"holdfast/lab/site"
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
	out, err := s.Client.Run(t.Context(), "getent", "hosts", rest[0].Addr().String())
	if err != nil || !strings.Contains(out, rest[0].Name()+"."+s.File.Domain) {
		t.Errorf("the second's address is %q, %v", out, err)
	}
	installFrom(t, s, first, rest[0])

	lookups := &chaos.Lookups{Workers: 2, Pause: 50 * time.Millisecond, Resolve: func(ctx context.Context) ([]string, error) {
		out, err := s.Client.Run(ctx, "getent", "ahostsv4", "apt.service.virtual")
		return chaos.Getent(out), err
	}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan struct{})
	go func() { defer close(ended); lookups.Run(ctx) }()
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
	}
	waitLeader(t, s.Nodes, "")
	cancel()
	<-ended
	failed, slowest := lookedUp(t, machine, "while one node became four", lookups.Results())
	t.Logf("%d look-ups while one node became four, %d failed, slowest %v", len(lookups.Results()), failed, slowest)
}

// installFrom fetches what a second node is installed from: by name, over the
// resolver of the second node, which is the first.
func installFrom(t *testing.T, s *site.Site, first, second *site.Node) {
	t.Helper()
	if err := s.Resolve(second.Host, first); err != nil {
		t.Fatal(err)
	}
	out, err := second.Host.Run(t.Context(), "getent", "ahostsv4", "apt.service.virtual")
	addrs := chaos.Getent(out)
	if err != nil || len(addrs) != 1 {
		t.Fatalf("the second node finds no APT proxy: %q, %v", out, err)
	}
	response, err := second.Host.HTTPClient().Get("http://" + addrs[0] + ":3142/")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("APT proxy: %v, %v", response.Status, err)
	}
}
