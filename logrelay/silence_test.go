package logrelay

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/health"
)

// TestARegularHostThatStopsIsSilent: each letter of a host's line is a period:
// "x" it logged, "." it did not. In the end those that are named are silent.
func TestARegularHostThatStopsIsSilent(t *testing.T) {
	for _, test := range []struct {
		hosts  map[string]string
		silent string
	}{
		{map[string]string{"cn1": "xxxxxxxxxx.....", "cn2": "xxxxxxxxxxxxxxx"}, "cn1"},
		{map[string]string{"cn1": "xxxxxxxxxx....", "cn2": "xxxxxxxxxxxxxx"}, ""},                     // not yet
		{map[string]string{"cn1": "xxxxxxxxx......", "cn2": "xxxxxxxxxxxxxxx"}, ""},                   // never was regular
		{map[string]string{"cn1": "x.x.x.x.x.x.x.x.x.x.....", "cn2": "xxxxxxxxxxxxxxxxxxxxxxxx"}, ""}, // likewise
		{map[string]string{"cn1": "xxxxxxxxxx..xx.....", "cn2": "xxxxxxxxxxxxxxxxxxx"}, "cn1"},        // a pause makes it no less regular
		{map[string]string{"cn1": "xxxxxxxxxx.......x", "cn2": "xxxxxxxxxxxxxxxxxx"}, ""},             // it is back
		{map[string]string{"cn1": "xxxxxxxxxx.....", "cn2": "xxxxxxxxxx....."}, ""},                   // the address moved
		{map[string]string{"cn1": "xxxxxxxxxx......", "cn2": "xxxxxxxxxx......", "cn3": "xxxxxxxxxxxxxxxx"}, "cn1 cn2"},
	} {
		s := newSilence()
		var silent []string
		for i := range len(test.hosts["cn1"]) {
			for host, periods := range test.hosts {
				if v := s.of(host); periods[i] == 'x' {
					v.heard.Store(true)
				}
			}
			silent = s.tick()
		}
		if diff := cmp.Diff(test.silent, strings.Join(silent, " ")); diff != "" {
			t.Errorf("%v: %s", test.hosts, diff)
		}
		if diff := cmp.Diff(test.silent, strings.Join(s.silent(), " ")); diff != "" {
			t.Errorf("%v: %s", test.hosts, diff)
		}
	}
}

// TestASilentHostIsAConditionAndCounted, in virtual time: it is named until it
// logs again, and the gauge says how many there are.
func TestASilentHostIsAConditionAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, board, gauge := newSilence(), health.NewBoard(time.Now, nil, nil), prometheus.NewGauge(prometheus.GaugeOpts{Name: "silent"})
		ctx, end := context.WithCancel(t.Context())
		defer end()
		go s.listen(ctx, board, gauge)
		<-time.After(time.Second) // what follows is in the midst of periods
		period := func(hosts ...string) {
			t.Helper()
			for _, host := range hosts {
				s.of(host).heard.Store(true)
			}
			<-time.After(silencePeriod)
			synctest.Wait()
		}
		named := func(want string) {
			t.Helper()
			got := ""
			for _, c := range board.Conditions() {
				got += c.Name + ": " + c.Message
			}
			if count := testutil.ToFloat64(gauge); !strings.HasPrefix(got, want) || (want == "") != (got == "") || (count > 0) != (want != "") {
				t.Errorf("%q and %v are silent, want %q", got, count, want)
			}
		}
		for range regularAfter {
			period("cn1", "cn2", "cn3")
		}
		for range silentAfter - 1 {
			period("cn2", "cn3")
		}
		named("")
		period("cn2", "cn3")
		named("logs.silent: cn1 logged every minute")
		if n := testutil.ToFloat64(gauge); n != 1 {
			t.Errorf("%v hosts are silent", n)
		}
		for range silentAfter {
			period("cn3")
		}
		named("logs.silent: cn[1-2] logged every minute")
		if n := testutil.ToFloat64(gauge); n != 2 {
			t.Errorf("%v hosts are silent", n)
		}
		period("cn1", "cn2", "cn3")
		named("")
	})
}

func TestWhatANumberedSenderLostIsCounted(t *testing.T) {
	for _, test := range []struct {
		numbers []int64
		want    int64
	}{
		{[]int64{1, 2, 3}, 0},
		{[]int64{7, 8, 12}, 3},
		{[]int64{7, 8, 7, 8, 9}, 0},                   // sent again
		{[]int64{500, 501, 1, 2}, 0},                  // it began anew
		{[]int64{50_000, 12, 13}, 0},                  // likewise, and the first were lost or not
		{[]int64{maxSequence - 1, maxSequence, 1}, 0}, // it went round
		{[]int64{maxSequence - 1, maxSequence, 3}, 2}, // and lost two
		{[]int64{1, 2_000_000_000}, 0},                // another sender under the same name
	} {
		g := newGaps()
		sum := int64(0)
		for _, n := range test.numbers {
			sum += g.saw("cn01", n, time.Time{})
		}
		if sum != test.want {
			t.Errorf("%v: %d are missing, want %d", test.numbers, sum, test.want)
		}
	}
	for data, want := range map[string]int64{
		`[meta sequenceId="29"]`: 29, `[x y="1"][meta language="en" sequenceId="2147483647"]`: maxSequence,
		`[meta sequenceId="2147483648"]`: 0, `[meta sequenceId="x"]`: 0, `[meta sequenceId="1`: 0, `[x sequenceId="3"]`: 0, ``: 0,
	} {
		if got := sequenceOf([]byte(data)); got != want {
			t.Errorf("%s: %d, want %d", data, got, want)
		}
	}
}
