package ntpproxy

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/ntp"
)

func TestClocksThatStayApartAreNamedAndBlameGoesWithTheMajority(t *testing.T) {
	const ms = time.Millisecond
	at := func(node string, offset time.Duration) sighting { return sighting{node, offset, 2 * ms, "stratum 3"} }
	for name, test := range map[string]struct {
		rounds [][]sighting
		want   []string // words of the last verdict; none: nothing is wrong
	}{
		"all agree":           {[][]sighting{{at("fb2", ms), at("fb3", -ms)}}, nil},
		"apart once":          {[][]sighting{{at("fb2", 50*ms)}}, nil},
		"apart now and then":  {[][]sighting{{at("fb2", 50*ms)}, {at("fb2", 50*ms)}, {at("fb2", 0)}, {at("fb2", 50*ms)}}, nil},
		"silent in between":   {[][]sighting{{at("fb2", 50*ms)}, {at("fb2", 50*ms)}, {}, {at("fb2", 50*ms)}}, nil},
		"the way may explain": {[][]sighting{{{"fb2", 50 * ms, 90 * ms, ""}}, {{"fb2", 50 * ms, 90 * ms, ""}}, {{"fb2", 50 * ms, 90 * ms, ""}}}, nil},
		"one of three stays apart": {[][]sighting{
			{at("fb2", 50*ms), at("fb3", 0), at("fb4", 0)}, {at("fb2", 50*ms), at("fb3", 0), at("fb4", 0)}, {at("fb4", 0), at("fb2", 50*ms), at("fb3", 0)},
		}, []string{"more than 10ms apart", "fb2 is 50ms ahead of this node (stratum 3)", "most nodes agree with this one"}},
		"we stay apart from all": {[][]sighting{
			{at("fb3", -40*ms), at("fb2", -41*ms)}, {at("fb3", -40*ms), at("fb2", -41*ms)}, {at("fb3", -40*ms), at("fb2", -41*ms)},
		}, []string{"fb2 is 41ms behind this node", "fb3 is 40ms behind", "this node's clock that is likely wrong"}},
		"only two there are": {[][]sighting{{at("fb2", 50*ms)}, {at("fb2", 50*ms)}, {at("fb2", 50*ms)}}, []string{"compare the sources of the two"}},
	} {
		var c council
		got := ""
		for _, round := range test.rounds {
			got = c.hear(round, 10*ms)
		}
		if len(test.want) == 0 && got != "" {
			t.Errorf("%s: %s", name, got)
		}
		for _, words := range test.want {
			if !strings.Contains(got, words) {
				t.Errorf("%s: %q lacks %q", name, got, words)
			}
		}
	}
}

func TestEveryOtherNodeThatServesTheTimeIsMeasured(t *testing.T) {
	file := parseFile(t, `schema: 1
cluster: foobar
domain: hpc.example.com
networks: {main: {prefix: 10.1.0.0/24}}
roles: {service: {voters: 3, run: [ntp]}, login: {run: [dns]}}
nodes:
  fb[1-3]: {role: service, addresses: {main: "10.1.0.[1-3]"}}
  login1: {role: login, addresses: {main: 10.1.0.9}}
`)
	want := []peer{{"fb1", netip.MustParseAddrPort("10.1.0.1:123")}, {"fb3", netip.MustParseAddrPort("10.1.0.3:123")}}
	if diff := cmp.Diff(want, peersOf(file, "fb2"), cmp.AllowUnexported(peer{}), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestDisagreementIsAConditionUntilTheClocksAgree(t *testing.T) {
	file := testCluster(t, "  fbservice1: {role: service, addresses: {administration: 10.1.0.1}}",
		"  fbservice[1-3]: {role: service, addresses: {administration: \"10.1.0.[1-3]\"}}")
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, file)
		f.server.observe()
		var apart atomic.Bool
		f.server.ask = func(_ context.Context, server string) (ntp.Answer, error) {
			a := ntp.Answer{Packet: ntp.Packet{Stratum: 3, ReferenceID: ntp.Reference{192, 0, 2, 1}}}
			switch {
			case server == "10.1.0.3:123":
				return a, errors.New("silent")
			case apart.Load():
				a.Offset = -time.Second
			}
			return a, nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { f.server.compare(ctx); close(done) }()
		shows := func(after time.Duration, words string) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			found := f.board.Conditions()
			if words == "" && len(found) == 0 {
				return
			}
			if len(found) != 1 || found[0].Name != conditionDisagreement || words == "" || !strings.Contains(found[0].Message, words) {
				t.Errorf("%v later: %+v, want %q", after, found, words)
			}
		}
		shows(2*compareEvery, "")
		apart.Store(true)
		shows(2*compareEvery, "")
		shows(2*compareEvery, "fbservice2 is 1s behind this node (stratum 3, below 192.0.2.1)")
		apart.Store(false)
		shows(compareEvery, "")
		cancel()
		<-done
	})
}

func TestNodeThatIsNotSynchronisedComparesNothing(t *testing.T) {
	f := newFixture(t, testCluster(t))
	f.server.ask = func(context.Context, string) (ntp.Answer, error) {
		t.Error("asked")
		return ntp.Answer{}, nil
	}
	f.server.settings.Load().peers = []peer{{"fbservice2", netip.MustParseAddrPort("10.1.0.2:123")}}
	if round := f.server.sight(t.Context()); round != nil {
		t.Errorf("saw %v", round)
	}
}
