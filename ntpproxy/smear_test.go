package ntpproxy

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/kernel/clock"
	"holdfast/internal/ntp"
	"holdfast/ntpproxy/discipline"
)

// dayAround is a machine whose kernel makes a leap second, and a spreader that
// looks at it every second.
type dayAround struct {
	midnight time.Time
	kind     discipline.Leap
	told     bool // the kernel is told of the leap second
	s        spreader
}

// at is what the machine's clock shows, elapsed seconds after noon before.
func (d *dayAround) at(elapsed float64) (wall time.Time, k clock.State) {
	wall = d.midnight.Add(-12 * time.Hour).Add(time.Duration(elapsed * 1e9))
	moment := 43200.0
	if d.kind == discipline.LeapDelete {
		moment--
	}
	k.Synchronised = true
	if d.told && elapsed >= moment {
		wall = wall.Add(-time.Duration(d.kind) * time.Second)
	} else if d.told && elapsed > -40000 {
		k.Insert, k.Delete = d.kind == discipline.LeapInsert, d.kind == discipline.LeapDelete
	}
	return wall, k
}

func (d *dayAround) look(elapsed float64, known ...discipline.LeapSecond) (served float64, ok bool) {
	wall, k := d.at(elapsed)
	d.s.look(k, wall, time.Duration((elapsed+1e6)*1e9), discipline.Linear, known)
	ns, ok := d.s.current.shift(wall)
	return elapsed + wall.Add(time.Duration(ns)).Sub(d.midnight.Add(-12*time.Hour)).Seconds() - elapsed, ok
}

var newYear = time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)

func TestStepOfTheKernelsClockIsServedAsASmear(t *testing.T) {
	for _, kind := range []discipline.Leap{discipline.LeapInsert, discipline.LeapDelete} {
		d := &dayAround{midnight: newYear, kind: kind, told: true}
		length := 86400 + float64(kind)
		most, last, silent := 0.0, math.Inf(-1), 0
		for elapsed := -3600.5; elapsed < length+3600; elapsed++ {
			served, ok := d.look(elapsed)
			if !ok {
				silent++
				continue
			}
			want := elapsed - float64(kind)*max(0, min(1, elapsed/length))
			most = max(most, math.Abs(served-want))
			if step := served - last; last > -1e9 && silent == 0 && math.Abs(step-1) > 20e-6 {
				t.Fatalf("%v: served %v after %v, a second before", kind, served, last)
			}
			last = served
		}
		// It begins up to a second late, since it is looked at every second.
		if most > 6e-6 || silent < 5 || silent > 8 {
			t.Errorf("%v: off from the ideal smear by up to %v s; nothing is answered for %d s", kind, most, silent)
		}
		if d.s.smear.Kind != discipline.LeapNone || d.s.failed {
			t.Errorf("%v: the smear does not end", kind)
		}
	}
}

func TestSmearThatIsHeardOfLateIsCaughtUpWithSlowly(t *testing.T) {
	d := &dayAround{midnight: newYear, kind: discipline.LeapInsert}
	last := math.Inf(-1)
	for elapsed := 18000.5; elapsed < 24000; elapsed++ {
		d.told = elapsed > 20000
		served, _ := d.look(elapsed)
		if step := served - last; last > -1e9 && math.Abs(step-1) > 501e-6 {
			t.Fatalf("at %v s: %v s in a second", elapsed, step)
		}
		last = served
	}
	if want := 23999.5 * (1 - 1/86401.0); math.Abs(last-want) > 1e-6 {
		t.Errorf("served %v, want %v", last, want)
	}
}

// The file has leap seconds smeared from now on, in the middle of one: what is
// served goes there slowly.
func TestSmearThatAChangedFileBeginsIsCaughtUpWithSlowly(t *testing.T) {
	for name, from := range map[string]float64{"before midnight": 30000.5, "after it": 50000.5} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, testCluster(t))
			f.server.leaps.Store(&[]discipline.LeapSecond{{At: newYear, Kind: discipline.LeapInsert}})
			d := &dayAround{midnight: newYear, kind: discipline.LeapInsert, told: true}
			served := func(elapsed float64) float64 {
				wall, k := d.at(elapsed)
				_, smear := f.server.spread(Standing{Stratum: 2}, k, wall)
				ns, _ := smear.shift(wall)
				return wall.Add(time.Duration(ns)).Sub(newYear.Add(-12 * time.Hour)).Seconds()
			}
			last := served(from)
			f.server.SetFile(testCluster(t, "ntp:\n", "ntp:\n  leap: {mode: smear}\n"))
			f.server.leaps.Store(&[]discipline.LeapSecond{{At: newYear, Kind: discipline.LeapInsert}})
			for elapsed := from + 1; elapsed < from+1500; elapsed++ {
				now := served(elapsed)
				if step := now - last; math.Abs(step-1) > 515e-6 { // and the smear itself
					t.Fatalf("%v s after the change: %v s in a second", elapsed-from, step)
				}
				last = now
			}
			if want := (from + 1499) * (1 - 1/86401.0); math.Abs(last-want) > 1e-6 {
				t.Errorf("served %v, want %v", last, want)
			}
		})
	}
}

func TestSmearGoesOnAfterARestart(t *testing.T) {
	for _, elapsed := range []float64{30000, 50000} {
		d := &dayAround{midnight: newYear, kind: discipline.LeapInsert, told: true}
		served, _ := d.look(elapsed, discipline.LeapSecond{At: newYear, Kind: discipline.LeapInsert})
		if want := elapsed * (1 - 1/86401.0); math.Abs(served-want) > 1e-6 {
			t.Errorf("%v s after noon: %v, want %v", elapsed, served, want)
		}
	}
	f := newFixture(t, testCluster(t), "127.0.0.1:0")
	f.server.config.StateDir = t.TempDir()
	want := discipline.LeapSecond{At: newYear, Kind: discipline.LeapDelete}
	f.server.rememberSmear(want)
	if err := f.server.files.wait(atMost); err != nil {
		t.Fatal(err)
	}
	f.server.loadLeaps(newYear)
	if got := *f.server.leaps.Load(); len(got) != 1 || got[0] != want {
		t.Errorf("known after a restart: %v, want %v", got, want)
	}
	if err := os.WriteFile(filepath.Join(f.server.config.StateDir, smearFile), []byte("insert yesterday\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if f.server.loadLeaps(newYear); len(*f.server.leaps.Load()) != 0 {
		t.Error("a spoilt file is believed")
	}
}

func TestClockThatIsNotSteppedAtTheLeapSecondIsNotServed(t *testing.T) {
	d := &dayAround{midnight: newYear, kind: discipline.LeapInsert, told: true}
	d.look(30000)
	d.told = false // and the daemon slews it later
	d.look(43199)
	d.look(43210)
	if !d.s.failed {
		t.Error("it is served as smeared, a second off")
	}
}

func TestClientSeesTheSmearAndNoLeapSecond(t *testing.T) {
	file := testCluster(t, "ntp:\n", "ntp:\n  leap: {mode: smear}\n")
	f := newFixture(t, file, "127.0.0.1:0")
	leap := clock.State{Synchronised: true, MaxError: time.Millisecond, Insert: true}
	f.kernel.Store(&leap) // and chronyd forgot to take it back
	// Six hours after a leap second, whatever the time of the day.
	second := discipline.LeapSecond{At: time.Now().Add(-6 * time.Hour), Kind: discipline.LeapInsert}
	f.server.spreader = spreader{passed: true, smear: discipline.Smear{LeapSecond: second}}
	at := f.serve(t)
	a := f.ask(t, at)
	inside := func(a ntp.Answer) time.Duration { return a.Transmit.Sub(a.Receive) }
	for range 9 { // the answer that took the shortest time, on its way as clients see it and at the server: the machine may be busy
		if b := f.ask(t, at); b.Delay+inside(b) < a.Delay+inside(a) {
			a = b
		}
	}
	if d := (a.Offset - 249997*time.Microsecond).Abs(); d > 20*time.Millisecond {
		t.Errorf("the server is %v ahead, want a quarter of a second", a.Offset)
	}
	if there := inside(a); there < 0 || there > 100*time.Millisecond {
		t.Errorf("the request was there for %v", there)
	}
	ahead, ok := a.ReferenceID.Smear()
	if a.Leap != ntp.LeapNone || !ok || (ahead-249997*time.Microsecond).Abs() > time.Millisecond || a.Stratum != 4 {
		t.Errorf("leap %v, reference %v, stratum %d: want no leap second, the smear, and the clock's own stratum", a.Leap, a.ReferenceID, a.Stratum)
	}
}

func TestNothingIsAnsweredWhileTheKernelMakesTheLeapSecond(t *testing.T) {
	file := testCluster(t, "ntp:\n", "ntp:\n  leap: {mode: smear}\n")
	f := newFixture(t, file, "127.0.0.1:0")
	now := time.Now()
	f.server.replace(func(p *policy) { p.smear = &smearing{at: now, midnight: now.Add(time.Hour)} })
	f.server.spreader = spreader{
		looked: true, smear: discipline.Smear{LeapSecond: discipline.LeapSecond{At: now.Add(2 * time.Second), Kind: discipline.LeapInsert}},
		current: &smearing{at: now, midnight: now.Add(2 * time.Second)},
	}
	at := f.serve(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if a, err := ntp.Query(ctx, at.String()); err == nil {
		t.Errorf("answered: %+v", a)
	}
	eventually(t, "the silence is counted", func() bool { return f.counted(t, dropLeap) > 0 })
}

func TestNodeThatKeepsItsClockSmearsAndSaysSo(t *testing.T) {
	source := newFixture(t, testCluster(t), "127.0.0.1:0").serve(t).String()
	c := newFakeClock(t, -3*time.Second, 0)
	f := keeping(t, c, keepDiscipline, source)
	set := *f.server.settings.Load()
	set.leap.mode = discipline.LeapSmear
	f.server.settings.Store(&set)
	f.server.leaps.Store(&[]discipline.LeapSecond{{At: time.Now().Add(-6 * time.Hour), Kind: discipline.LeapInsert}})
	at := f.serve(t)
	eventually(t, "the clock is a quarter of a second ahead", func() bool {
		return (c.off(t) - 249997*time.Microsecond).Abs() < 2*time.Millisecond
	})
	eventually(t, "clients are told", func() bool {
		ahead, ok := f.ask(t, at).ReferenceID.Smear()
		return ok && (ahead-249997*time.Microsecond).Abs() < 5*time.Millisecond
	})
	if a := f.ask(t, at); a.Leap != ntp.LeapNone {
		t.Errorf("leap %v", a.Leap)
	}
}

func TestNodesThatMakeDifferentThingsOfALeapSecondAreACondition(t *testing.T) {
	for _, test := range []struct {
		mode string
		p    ntp.Packet
		want string
	}{
		{"kernel", ntp.Packet{ReferenceID: ntp.SmearReference(-time.Millisecond)}, "fb2 smears"},
		{"kernel", ntp.Packet{Leap: ntp.LeapInsert}, ""},
		{"smear", ntp.Packet{Leap: ntp.LeapInsert}, "fb2 announces"},
		{"smear", ntp.Packet{ReferenceID: ntp.SmearReference(-time.Millisecond)}, ""},
		{"upstream", ntp.Packet{Leap: ntp.LeapDelete}, "fb2 announces"},
	} {
		f := newFixture(t, testCluster(t, "ntp:\n", "ntp:\n  leap: {mode: "+test.mode+"}\n"))
		f.server.observe()
		set := *f.server.settings.Load()
		set.peers = []peer{{node: "fb2"}}
		f.server.settings.Store(&set)
		test.p.Stratum = 2
		f.server.ask = func(context.Context, string) (ntp.Answer, error) { return ntp.Answer{Packet: test.p}, nil }
		f.server.sight(t.Context())
		text := ""
		for _, c := range f.board.Conditions() {
			if c.Name == conditionLeapNodes {
				text = c.Message
			}
		}
		if (text == "") != (test.want == "") || !strings.Contains(text, test.want) {
			t.Errorf("%s, a node that %q: %q", test.mode, test.want, text)
		}
	}
}

func TestLeapSecondListIsRead(t *testing.T) {
	const good = "#\tcomment\n#$ 3676924800\n#@ 3960057600\n3644697600 36 # 1 Jul 2015\n3692217600 37 # 1 Jan 2017\n3723753600 36 # never was\n#h 1 2\n"
	list, expires, err := parseLeapList([]byte(good))
	want := []discipline.LeapSecond{
		{At: time.Date(2017, 1, 1, 0, 0, 0, 0, time.UTC), Kind: discipline.LeapInsert},
		{At: time.Date(2018, 1, 1, 0, 0, 0, 0, time.UTC), Kind: discipline.LeapDelete},
	}
	if err != nil || len(list) != 2 || list[0] != want[0] || list[1] != want[1] || expires.Format(time.DateOnly) != "2025-06-28" {
		t.Errorf("%v, expires %v, error %v", list, expires, err)
	}
	for name, text := range map[string]string{
		"empty":          "",
		"no expiry":      "3644697600 36\n",
		"words":          "#@ 3960057600\nhello world\n",
		"two at once":    "#@ 3960057600\n3644697600 36\n3692217600 38\n",
		"going back":     "#@ 3960057600\n3692217600 36\n3644697600 37\n",
		"three fields":   "#@ 3960057600\n3644697600 36 7\n",
		"expiry by word": "#@ never\n3644697600 36\n",
	} {
		if _, _, err := parseLeapList([]byte(text)); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if text, err := os.ReadFile("/usr/share/zoneinfo/leap-seconds.list"); err == nil { // tzdata's
		if list, _, err := parseLeapList(text); err != nil || len(list) < 27 {
			t.Errorf("Debian's list: %d leap seconds, error %v", len(list), err)
		}
	}
}

func TestLeapListThatExpiredOrIsMissingIsACondition(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leap-seconds.list")
	f := newFixture(t, testCluster(t, "ntp:\n", "ntp:\n  leap: {list: "+path+", insert: 2027-06-30}\n"))
	if !raised(f.board, conditionLeapList) {
		t.Error("a list that is missing is nothing to speak of")
	}
	if err := os.WriteFile(path, []byte("#@ 3960057600\n3644697600 36\n3692217600 37\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.server.loadLeaps(time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC))
	if raised(f.board, conditionLeapList) || len(*f.server.leaps.Load()) != 2 {
		t.Errorf("a good list: %v, conditions %v", *f.server.leaps.Load(), f.board.Conditions())
	}
	if f.server.loadLeaps(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)); !raised(f.board, conditionLeapList) {
		t.Error("a list that expired is nothing to speak of")
	}
}

func FuzzLeapList(f *testing.F) {
	f.Add([]byte("#@ 3960057600\n3644697600 36\n3692217600 37\n"))
	f.Add([]byte("insert 2027-01-01T00:00:00Z\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, expires, err := parseLeapList(text)
		if err == nil && expires.IsZero() {
			t.Error("no expiry")
		}
		for i, l := range list {
			if l.Kind != discipline.LeapInsert && l.Kind != discipline.LeapDelete || i > 0 && !l.At.After(list[i-1].At) {
				t.Errorf("leap second %d: %v", i, l)
			}
		}
		if l, ok := parseSmear(text); ok && l.Kind == discipline.LeapNone {
			t.Error("a smear of nothing")
		}
	})
}
