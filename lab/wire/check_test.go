package wire

import (
	"bufio"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A recorded sequence has a line an event: milliseconds, a host, and what it
// sends: an advert with its priority, or an answer for the address.
func sequence(t *testing.T, text string) []Event {
	t.Helper()
	var events []Event
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 {
			continue
		}
		var ms int
		if _, err := fmt.Sscan(fields[0], &ms); err != nil {
			t.Fatal(err)
		}
		e := Event{At: at(ms), From: host(fields[1]), Kind: Answer, Addr: address()}
		if fields[2] == "advert" {
			e = Event{At: at(ms), From: host(fields[1]), Kind: Advert, VRID: 51, Src: netip.MustParseAddr("10.1.0.1")}
			if _, err := fmt.Sscan(fields[3], &e.Priority); err != nil {
				t.Fatal(err)
			}
		}
		events = append(events, e)
	}
	return events
}

func at(ms int) time.Time { return time.Unix(0, 0).Add(time.Duration(ms) * time.Millisecond) }

func host(name string) MAC { return MAC{2, 0, 0, 0, 0, name[0]} }

func address() netip.Addr { return netip.MustParseAddr("10.1.0.101") }

// tell writes spans the way sequence reads hosts and times.
func tell(spans []Span) string {
	var b strings.Builder
	for _, s := range spans {
		fmt.Fprintf(&b, "%c %d-%d %d\n", s.By[5], s.Start.UnixMilli(), s.End.UnixMilli(), s.Count)
	}
	return b.String()
}

func TestWindowsThatTouchAreOne(t *testing.T) {
	got := Merge(Window{at(50), at(60)}, Window{at(0), at(30)}, Window{at(10), at(20)}, Window{at(30), at(40)})
	if want := []Window{{at(0), at(40)}, {at(50), at(60)}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestTwoActivesForMoreThanOneAdvertAreFound(t *testing.T) {
	for _, c := range []struct {
		name, wire string
		excused    []Window
		spans      string
		over       []time.Duration
		times      []int
	}{
		{name: "one that takes over from a dead one", wire: `
			0 a advert 100
			100 a advert 100
			440 b advert 50
			540 b advert 50`,
			spans: "a 0-100 2\nb 440-540 2\n"},
		{name: "one that gives up", wire: `
			0 a advert 100
			100 a advert 100
			150 a advert 0
			230 b advert 50`,
			spans: "a 0-150 2\nb 230-230 1\n"},
		{name: "one that gives up what it did not have", wire: `
			0 a advert 0
			100 b advert 50`,
			spans: "b 100-100 1\n"},
		{name: "a better one preempts, and the worse sends once more", wire: `
			0 b advert 50
			100 b advert 50
			150 a advert 100
			200 b advert 50
			250 a advert 100
			350 a advert 100`,
			spans: "b 0-200 3\na 150-350 3\n"},
		{name: "and twice more", wire: `
			0 b advert 50
			100 b advert 50
			150 a advert 100
			200 b advert 50
			250 a advert 100
			300 b advert 50
			350 a advert 100`,
			spans: "b 0-300 4\na 150-350 3\n", over: []time.Duration{150 * time.Millisecond}, times: []int{2}},
		{name: "a partition, and both drop to one in time", wire: `
			0 a advert 100
			100 a advert 100
			200 a advert 100
			300 a advert 100
			340 b advert 50
			400 a advert 100
			440 b advert 50
			500 a advert 100
			540 b advert 50
			600 a advert 100`,
			excused: []Window{{at(50), at(500)}},
			spans:   "a 0-600 7\nb 340-540 3\n"},
		{name: "a partition, and both go on after it", wire: `
			0 a advert 100
			100 a advert 100
			200 a advert 100
			300 a advert 100
			340 b advert 50
			400 a advert 100
			440 b advert 50
			500 a advert 100
			540 b advert 50
			600 a advert 100`,
			excused: []Window{{at(50), at(400)}},
			spans:   "a 0-600 7\nb 340-540 3\n", over: []time.Duration{140 * time.Millisecond}, times: []int{2}},
		{name: "a long silence ends a span", wire: `
			0 a advert 100
			340 b advert 50
			400 a advert 100
			500 a advert 100`,
			spans: "a 0-0 1\nb 340-340 1\na 400-500 2\n"},
		{name: "one that gives way, and is back when the better one gives up", wire: `
			0 b advert 50
			100 b advert 50
			150 a advert 100
			152 b advert 50
			250 a advert 100
			259 a advert 0
			300 b advert 50
			400 b advert 50`,
			spans: "b 0-152 3\na 150-259 2\nb 300-400 2\n"},
		{name: "one that never gave way to one that gives up", wire: `
			0 b advert 50
			100 b advert 50
			150 a advert 100
			200 b advert 50
			250 a advert 100
			259 a advert 0
			300 b advert 50
			400 b advert 50`,
			spans: "b 0-400 5\na 150-259 2\n", over: []time.Duration{109 * time.Millisecond}, times: []int{1}},
		{name: "one that was stalled and sends its last advert late", wire: `
			0 b advert 50
			100 b advert 50
			101 a advert 100
			201 a advert 100
			223 b advert 50
			301 a advert 100`,
			spans: "b 0-223 3\na 101-301 3\n", over: []time.Duration{122 * time.Millisecond}, times: []int{1}},
		{name: "another router is another matter", wire: ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			events := sequence(t, c.wire)
			events = append(events, Event{Kind: Advert, VRID: 52, From: host("z"), Src: netip.MustParseAddr("10.1.0.3"), Priority: 9},
				Event{Kind: Advert, VRID: 51, From: host("z"), Src: netip.MustParseAddr("fe80::3"), Priority: 9})
			spans := Actives(events, Router{VRID: 51, Interval: 100 * time.Millisecond})
			if diff := cmp.Diff(c.spans, tell(spans)); diff != "" {
				t.Errorf("spans (-want +got)\n%s", diff)
			}
			var over []time.Duration
			var times []int
			for _, o := range Overlaps(spans, 100*time.Millisecond, c.excused...) {
				over = append(over, o.For)
				times = append(times, o.Times)
			}
			if !slices.Equal(times, c.times) {
				t.Errorf("two Actives for %v adverts, want %v", times, c.times)
			}
			if !slices.Equal(over, c.over) {
				t.Errorf("two Actives for %v, want %v", over, c.over)
			}
		})
	}
}

func TestAnswersOfOneThatIsNotActiveAreFound(t *testing.T) {
	events := sequence(t, `
		10 b answer
		90 a answer
		100 a advert 100
		150 a answer
		200 a advert 100
		390 a answer
		410 a answer
		420 b advert 50
		430 b answer
		440 a answer`)
	actives := Actives(events, Router{VRID: 51, Interval: 100 * time.Millisecond})
	var got []int64
	for _, e := range Strays(events, actives, address(), 200*time.Millisecond) {
		got = append(got, e.At.UnixMilli())
	}
	if want := []int64{10, 90, 410, 440}; !slices.Equal(got, want) {
		t.Errorf("strays at %v, want %v", got, want)
	}
	owners := Answering(events, address(), 50*time.Millisecond)
	if diff := cmp.Diff("b 10-10 1\na 90-90 1\na 150-150 1\na 390-440 3\nb 430-430 1\n", tell(owners)); diff != "" {
		t.Errorf("owners (-want +got)\n%s", diff)
	}
	if over := Overlaps(owners, -1); len(over) != 1 || over[0].For != 0 {
		t.Errorf("two owners: %v, want the one at 430", over)
	}
}

func TestGapIsFromTheFaultToTheFirstReplyOfAnother(t *testing.T) {
	a, b := host("a"), host("b")
	pings := []Ping{
		{Sent: at(0), Reply: at(1), By: a},
		{Sent: at(10), Reply: at(11), By: a},
		{Sent: at(20)},
		{Sent: at(30), Reply: at(52), By: b}, // waited for its neighbour
		{Sent: at(40), Reply: at(51), By: b},
		{Sent: at(60), Reply: at(61), By: b},
	}
	if gap, ok := Takeover(pings, at(12), a); !ok || gap != 39*time.Millisecond {
		t.Errorf("the gap is %v, %v, want 39ms", gap, ok)
	}
	if _, ok := Takeover(pings[:3], at(12), a); ok {
		t.Error("a gap without another's reply")
	}
	if silence := LongestSilence(pings, at(12)); silence != 40*time.Millisecond {
		t.Errorf("the longest silence is %v, want 40ms", silence)
	}
	if silence := LongestSilence(pings, at(52)); silence != 9*time.Millisecond {
		t.Errorf("the longest silence after 52 is %v, want 9ms", silence)
	}
	if lost := Lost(pings, Window{at(10), at(40)}); lost != 1 {
		t.Errorf("%d lost, want 1", lost)
	}
}

func FuzzFrames(f *testing.F) {
	a, b := netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("224.0.0.18")
	advert, err := VRRP(3, 51, 100, 100*time.Millisecond, a, b, "", address())
	if err != nil {
		f.Fatal(err)
	}
	s := Sender{MAC: host("a")}
	f.Add(s.Frame(broadcast(), typeIPv4, IPv4(a, b, protocolVRRP, 255, advert)))
	f.Add(s.request(a, address()))
	f.Add(s.Frame(host("b"), typeARP, ARP(2, host("a"), a, host("b"), b)))
	f.Add(s.solicitation(netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if e, ok := decode(frame); ok && e.Kind == 0 {
			t.Error("an event of no kind")
		}
		decodeEchoReply(frame)
	})
}
