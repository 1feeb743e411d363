package dns

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"holdfast/internal/state"
)

func TestQuestionOfTheAdminIsAnsweredAsAClients(t *testing.T) {
	c := newCaching(t, maxForwardTimeout, newUpstream(t, zoneOf(t)))
	c.node("fbservice1", "10.1.0.1", "apt:3142")
	c.fixture.server.refresh()
	for _, test := range []struct {
		question Question
		rcode    string
		words    string
	}{
		{Question{Name: "apt.service.virtual"}, "NOERROR", "apt.service.virtual. 5 IN A 10.1.0.1"},
		{Question{Name: "nosuch.service.virtual.", Type: "srv"}, "NXDOMAIN", ""},
		{Question{Name: "www.example.com", Type: "a"}, "NOERROR", "IN A 198.51.100.7"},
		{Question{Name: "www.example.com", From: netip.MustParseAddr("203.0.113.9"), TCP: true}, "REFUSED", ""},
	} {
		r, err := c.fixture.server.Ask(t.Context(), test.question)
		if err != nil || r.Rcode != test.rcode || !strings.Contains(strings.Join(r.Answer, "\n"), test.words) {
			t.Errorf("%+v: %+v, %v", test.question, r, err)
		}
	}
	for _, bad := range []Question{{Name: "a..b"}, {Name: "x.virtual", Type: "NOSUCH"}, {Name: "virtual", Type: "AXFR"}, {Name: "x", Type: "TYPE99999"}} {
		if r, err := c.fixture.server.Ask(t.Context(), bad); !errors.Is(err, errQuestion) {
			t.Errorf("%+v: %+v, %v", bad, r, err)
		}
	}
}

// traced gives the steps to an answer that do not depend on the moment.
func traced(t *testing.T, s *Server, q Question, cut ...string) []string {
	t.Helper()
	r, err := s.Trace(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return steps(r, cut...)
}

// steps gives those to an answer without what comes after some words.
func steps(r *Reply, cut ...string) (list []string) {
	for _, step := range r.Trace {
		for _, word := range cut {
			if before, _, ok := strings.Cut(step, word); ok {
				step = before + word + "…"
			}
		}
		list = append(list, step)
	}
	return append(list, r.Why...)
}

func TestTraceTellsWhyAnInstanceIsOut(t *testing.T) {
	c := newCatalog(t)
	c.node("fbservice1", "10.1.0.1", "apt:3142")
	c.node("fbservice2", "10.1.0.2", "apt:3142")
	c.node("fbservice3", "10.1.0.3", "apt:3142", "ntp:123")
	c.apply(state.UpdateCheck{Node: "fbservice2", Updates: []state.CheckState{{ID: "service:apt", Status: state.Critical, Output: "connection\nrefused"}}})
	c.gossip("fbservice3=failed")
	f := newFixture(t, testCluster(t, ""), c)
	got := traced(t, f.server, Question{Name: "_apt._tcp.service.virtual", Type: "SRV"}, "leader ")
	want := []string{
		"in the zone virtual., serial 5",
		"from the catalog at index 5, confirmed by a leader …",
		"apt on fbservice1 (10.1.0.1:3142): passing",
		"apt on fbservice2 (10.1.0.2:3142): critical; service:apt is critical: connection refused",
		"apt on fbservice3 (10.1.0.3:3142): passing; the gossip says that its node is failed",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTraceTellsWhatEachForwarderSays(t *testing.T) {
	t.Parallel() // it waits for silence
	silent, good := newUpstream(t, silence), newUpstream(t, zoneOf(t))
	c := newCaching(t, short, silent, good)
	c.query("www.example.com", dns.TypeA)
	r, err := c.fixture.server.Trace(t.Context(), Question{Name: "www.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	got := steps(r, " (", "for ", "after", ", in")
	want := []string{
		"no zone of this server: forwarded, as all of .",
		"in the cache: NOERROR, for …",
		"forwarder " + good.addr.String() + " (…",
		"forwarder " + silent.addr.String() + " (…",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !strings.Contains(r.Trace[2], "): NOERROR, ") || !strings.Contains(r.Trace[3], "was silent lately): timeout after") {
		t.Errorf("%v", r.Trace)
	}
	if got := traced(t, c.fixture.server, Question{Name: "www.example.com", From: netip.MustParseAddr("203.0.113.9")}); !strings.Contains(got[1], "outside dns.allow_recursion") {
		t.Errorf("%q", got)
	}
}

func TestTraceFollowsAnAliasToTheForwarders(t *testing.T) {
	u := newUpstream(t, zoneOf(t))
	file := testCluster(t, "dns: {forward: {\".\": [\""+u.addr.String()+"\"]}, forward_timeout: 10s, records: [\"w CNAME www.example.com.\"]}\n")
	f := newFixtureListening(t, file, newCatalog(t), loopbackPort)
	serve(t, f)
	got := strings.Join(traced(t, f.server, Question{Name: "w.hpc.example.com"}), "\n")
	for _, words := range []string{"in the zone hpc.example.com.", "leads to www.example.com., which is forwarded, as all of .", "forwarder " + u.addr.String(), "NOERROR, "} {
		if !strings.Contains(got, words) {
			t.Errorf("no %q in\n%s", words, got)
		}
	}
}
