package chaos_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"holdfast/lab/site"
	"holdfast/lab/stall"
)

// A check that changes among a hundred thousand names is in the answers of all
// four nodes within 50 ms of the request that changes it: replication, compiling
// and the question included.
func TestChangeAmongAHundredThousandNamesReachesEveryNodeIn50Milliseconds(t *testing.T) {
	machine := watchMachine(t)
	s := startedSite(t)
	const (
		services = 2000
		tags     = 25 // each gives a service two names more
		least    = 100_000
	)
	register(t, s.Nodes, services, tags)
	for _, n := range s.Nodes {
		within(t, 2*patience, fmt.Sprintf("%s has %d names", n.Name(), least), func(ctx context.Context) error {
			return hasNames(ctx, n, least)
		})
	}
	var took []time.Duration
	for i := range 20 {
		status, want := "critical", dns.RcodeNameError
		if i%2 == 1 {
			status, want = "passing", dns.RcodeSuccess
		}
		name := fmt.Sprintf("svc%d", 100+i/2)
		took = append(took, everyNode(t, machine, s, name+".service.virtual", want, func() {
			put(t, s.Nodes[i%len(s.Nodes)], map[string]any{"Node": "machine", "Address": "10.1.200.1", "SkipNodeUpdate": true,
				"Check": map[string]any{"CheckID": "check", "Name": "check", "ServiceID": name, "Status": status}})
		}))
	}
	slices.Sort(took)
	median, worst := took[len(took)/2], took[len(took)-1]
	t.Logf("from the request to the last node's answer: median %v, least %v, most %v", median, took[0], worst)
	if median > 50*time.Millisecond {
		t.Errorf("a change took %v in the median of %d, want under 50ms; all: %v", median, len(took), took)
	}
}

// register puts services with tags into the catalog, through all nodes at once.
func register(t *testing.T, nodes []*site.Node, services, tags int) {
	t.Helper()
	words := make([]string, tags)
	for i := range words {
		words[i] = fmt.Sprintf("tag%d", i)
	}
	const writers = 32
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			for i := w; i < services; i += writers {
				name := fmt.Sprintf("svc%d", i)
				put(t, nodes[w%len(nodes)], map[string]any{"Node": "machine", "Address": "10.1.200.1",
					"Service": map[string]any{"ID": name, "Service": name, "Port": 80, "Tags": words}})
			}
		})
	}
	group.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// put registers until that is acknowledged: to do it again is harmless, and a
// leader that stood still with its machine is replaced.
func put(t *testing.T, n *site.Node, registration any) {
	t.Helper()
	body, err := json.Marshal(registration)
	if err != nil {
		t.Error(err)
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err = site.Poll(ctx, func(ctx context.Context) error {
		_, err := n.Do(ctx, http.MethodPut, "/v1/catalog/register", body)
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// hasNames looks whether a node answers for so many names of the catalog.
func hasNames(ctx context.Context, n *site.Node, least float64) error {
	text, err := n.Do(ctx, http.MethodGet, "/v1/agent/metrics?format=prometheus", nil)
	if err != nil {
		return err
	}
	for line := range bytes.Lines(text) {
		if value, ok := strings.CutPrefix(string(line), "holdfast_dns_virtual_names "); ok {
			names, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err == nil && names < least {
				err = fmt.Errorf("it has %v", names)
			}
			return err
		}
	}
	return fmt.Errorf("%s tells no number of names", n.Name())
}

// everyNode makes a change and tells how long it took, from before it was asked
// for, until the last of the nodes answered a name with an rcode, without the time
// that the machine stood still.
func everyNode(t *testing.T, machine *stall.Watch, s *site.Site, name string, rcode int, change func()) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var group sync.WaitGroup
	seen := make([]time.Time, len(s.Nodes))
	started := time.Now()
	for i, n := range s.Nodes {
		group.Go(func() {
			err := site.Poll(ctx, func(ctx context.Context) error {
				m, err := s.Exchange(ctx, n, new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA))
				if err == nil && m.Rcode != rcode {
					err = fmt.Errorf("%s answers %s", n.Name(), dns.RcodeToString[m.Rcode])
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
			seen[i] = time.Now()
		})
	}
	change()
	group.Wait()
	return machine.Took(started, slices.MaxFunc(seen, time.Time.Compare))
}
