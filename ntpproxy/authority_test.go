package ntpproxy

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/cluster"
	"holdfast/internal/health"
	"holdfast/internal/kernel/clock"
	"holdfast/internal/ntp"
	"holdfast/ntpproxy/discipline"
)

// twoSources is a keeper of two sources and another node, without a clock.
func twoSources(t *testing.T) *keeper {
	t.Helper()
	f := newFixture(t, testCluster(t), "127.0.0.1:0")
	k := &keeper{
		server: f.server, set: &settings{sources: []string{"a:123", "b:123"}, nodes: []ntp.Reference{{10, 1, 0, 2}}},
		names: []string{"a:123", "b:123", "10.1.0.2:123"}, addrs: make([]netip.AddrPort, 3),
		last: make([]netip.Addr, 3), looked: make([]time.Duration, 3),
	}
	var sources []discipline.SourceConfig
	for _, name := range k.names {
		sources = append(sources, discipline.SourceConfig{Name: name, MinPoll: 6, MaxPoll: 10, Burst: true})
	}
	k.core = discipline.New(discipline.Config{Sources: sources}, discipline.Reading{Clock: start, Raw: time.Hour})
	return k
}

// What the others read from an answer must be what this node's time stands on,
// whatever it stood on a moment before.
func TestOthersReadFromAnAnswerWhatStandsBehindIt(t *testing.T) {
	k := twoSources(t)
	k.last = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("10.1.0.2")}
	for name, test := range map[string]struct {
		tracking discipline.Tracking
		want     discipline.Authority
	}{
		"a source of its own":                 {discipline.Tracking{Phase: discipline.Sourced, Leading: 0, Stratum: 3}, discipline.SourceAuthority},
		"one by IPv6":                         {discipline.Tracking{Phase: discipline.Sourced, Leading: 1, Stratum: 3}, discipline.SourceAuthority},
		"one, and it smears":                  {discipline.Tracking{Phase: discipline.Sourced, Leading: 0, Stratum: 3, Smearing: true, Smeared: time.Millisecond}, discipline.SourceAuthority},
		"another node that has one":           {discipline.Tracking{Phase: discipline.Following, Leading: 2, Stratum: 4}, discipline.NoAuthority},
		"the same, and it smears":             {discipline.Tracking{Phase: discipline.Following, Leading: 2, Stratum: 4, Smearing: true}, discipline.NoAuthority},
		"the leader":                          {discipline.Tracking{Phase: discipline.Orphan, Leading: 2, Stratum: 11}, discipline.NoAuthority},
		"it leads, by what a source once set": {discipline.Tracking{Phase: discipline.OrphanLeader, Leading: -1, Stratum: 10}, discipline.LeaderAuthority},
		"nobody":                              {discipline.Tracking{Phase: discipline.Alone, Leading: -1, Stratum: 14}, discipline.NoAuthority},
	} {
		r := k.reference(&test.tracking)
		if got := k.authority(ntp.Packet{Stratum: test.tracking.Stratum, ReferenceID: r}); got != test.want {
			t.Errorf("%s: reference %v is read as %v, want %v", name, r, got, test.want)
		}
	}
}

// It led the orphans; a source came back, then lost a datagram: its address is
// looked up again, and nothing is known of it meanwhile.
func TestWhoLedTheOrphansIsNoSecondAuthorityWhileItsSourceIsLookedUp(t *testing.T) {
	k := twoSources(t)
	k.server.kept.Store(&Kept{reference: orphanReference})
	k.last[0], k.addrs[0] = netip.MustParseAddr("192.0.2.1"), netip.AddrPort{}
	if r := k.reference(&discipline.Tracking{Phase: discipline.Sourced, Leading: 0, Stratum: 3}); r != (ntp.Reference{192, 0, 2, 1}) {
		t.Errorf("its reference is %v", r)
	}
}

func TestSourceThatDeniesUsIsLookedUpAgain(t *testing.T) {
	from := netip.MustParseAddr("192.0.2.1")
	for code, known := range map[ntp.Reference]bool{ntp.KissRate: true, ntp.KissDeny: false, ntp.KissRestrict: false} {
		k := twoSources(t)
		k.hear(heard{source: 0, from: from, err: &ntp.KissError{Code: code}})
		if k.addrs[0].IsValid() != known {
			t.Errorf("%v: the address is %v", code, k.addrs[0])
		}
		polled := k.core.Sources(discipline.Reading{Clock: start, Raw: time.Hour})[0].Poll
		if (polled == 10) == known {
			t.Errorf("%v: it is asked every 2^%d s", code, polled)
		}
	}
}

// However many names were looked up at one moment: their servers change at
// moments that are polls apart.
func TestNamesAreNotLookedUpTogether(t *testing.T) {
	const now = 1000 * time.Hour
	k := &keeper{addrs: make([]netip.AddrPort, maxSources), looked: make([]time.Duration, maxSources)}
	for i := range maxSources {
		k.where(i, now)
		k.addrs[i] = netip.MustParseAddrPort("192.0.2.1:123")
	}
	last := time.Duration(0)
	for at := 10 * time.Hour; at <= lookAgain; at += time.Minute {
		for i := range maxSources {
			if k.where(i, now+at).IsValid() {
				continue
			}
			if at-last < discipline.Interval(defaultMaxPoll) {
				t.Errorf("name %d is looked up %v after another one", i, at-last)
			}
			k.addrs[i], last = netip.MustParseAddrPort("192.0.2.2:123"), at
		}
	}
	for i, at := range k.looked {
		if at == now {
			t.Errorf("name %d is not looked up again within a day", i)
		}
	}
}

func TestPermissionToStepIsNotTheNextKeepers(t *testing.T) {
	f := keeping(t, newFakeClock(t, 0, 0), keepDiscipline, "127.0.0.1:1")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 { // the loop may take it before it ends
		f.server.stepNow <- true
		k := f.server.keep(ended, f.server.settings.Load())
		if k != "" || len(f.server.stepNow) > 0 {
			t.Fatalf("%q: the permission waits for whoever comes next", k)
		}
	}
}

// Clients see leap indicator 3 from 16 s of dispersion on, whatever the stratum.
func TestClockThatIsTooUnsureForClientsIsSaidToBeUnsynchronised(t *testing.T) {
	f := newFixture(t, testCluster(t), "127.0.0.1:0")
	for dispersion, want := range map[time.Duration]bool{15 * time.Second: false, 17 * time.Second: true} {
		f.server.kept.Store(&Kept{at: f.server.now(), Tracking: discipline.Tracking{Synchronised: true, Stratum: 14, Phase: discipline.Alone, Leading: -1, Dispersion: dispersion}})
		f.server.observe()
		if raised(f.board, conditionUnsynchronised) != want {
			t.Errorf("a dispersion of %v: said: %v", dispersion, !want)
		}
	}
}

// A machine whose own clock is beyond NTP's era would else read every answer as
// one of its own era, and be right with itself for ever.
func TestClockOfAnotherCenturyIsToldTheTruth(t *testing.T) {
	for _, ours := range []string{"1970-01-01T00:00:10Z", "2094-06-01T00:00:00Z", "2106-02-07T06:28:20Z", "2162-11-26T09:00:00Z", "2250-01-01T00:00:00Z"} {
		for _, theirs := range []string{"2026-11-26T09:00:00Z", "2036-02-07T06:28:15Z", "2036-02-07T06:28:17Z", "2090-01-01T00:00:00Z"} {
			ready := clock.Reading{Clock: date(t, ours), Raw: time.Hour}
			now := clock.Reading{Clock: ready.Clock.Add(time.Millisecond), Raw: time.Hour + time.Millisecond}
			there := ntp.FromTime(date(t, theirs))
			s, err := measure(ntp.Packet{Stratum: 1, Receive: there, Transmit: there}, ready, now, 0, 0)
			if err != nil || s.Server.Sub(date(t, theirs)).Abs() > time.Microsecond {
				t.Errorf("at %s by our clock %s is read as %v, %v", ours, theirs, s.Server, err)
			}
		}
	}
}

// withoutSources is the cluster file with a section of its own.
func withoutSources(t *testing.T, section string) (*cluster.File, error) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	head, _, _ := strings.Cut(string(text), "ntp:\n")
	return cluster.Parse("cluster.yaml", []byte(head+section), map[string]cluster.SectionValidator{Section: ValidateSection})
}

func TestClusterThatIsToHaveNoSourceSaysSoInItsFile(t *testing.T) {
	if _, err := withoutSources(t, "ntp: {keep: discipline}\n"); err == nil || !strings.Contains(err.Error(), "needs sources, or orphan") {
		t.Errorf("neither sources nor orphan: %v", err)
	}
	if _, err := withoutSources(t, "ntp: {keep: discipline, orphan: 14}\n"); err == nil || !strings.Contains(err.Error(), "5 to 13") {
		t.Errorf("orphan out of range: %v", err)
	}
	file, err := withoutSources(t, "ntp: {keep: discipline, orphan: 9}\n")
	if err != nil {
		t.Fatal(err)
	}
	c := newFakeClock(t, 90*time.Minute, 0)
	f := &fixture{registry: prometheus.NewRegistry(), board: health.NewBoard(time.Now, nil, nil)}
	config := Config{Node: "fbservice1", Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, StateDir: t.TempDir(), RunDir: t.TempDir()}
	f.server, err = New(config, Deps{
		File: file, Log: slog.New(slog.DiscardHandler), Metrics: f.registry, Board: f.board, Chrony: nobody,
		Kernel: c.State, Clock: c, Now: func() time.Time { now, _ := c.Now(); return now.Clock },
		Leader: func() string { return "fbservice1" },
	})
	if err != nil {
		t.Fatal(err)
	}
	f.server.settings.Load().peers = nil // the only service node
	f.serve(t)
	eventually(t, "the only node serves its own clock", func() bool {
		s := f.server.Standing()
		return s.Stratum == 9 && s.Reference == orphanReference
	})
	if raised(f.board, conditionOrphan) || len(c.stepped()) > 0 {
		t.Errorf("steps %v; what the file wants is a condition: %v", c.stepped(), raised(f.board, conditionOrphan))
	}
}
