package ntpproxy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"holdfast/internal/health"
	"holdfast/ntpproxy/discipline"
)

// sayingBoard counts what a board says anew, each a line of the log.
func sayingBoard() (board *health.Board, last *string, lines *int) {
	last, lines = new(string), new(int)
	board = health.NewBoard(time.Now, func(c health.Condition) { *last = string(c.Severity) + " " + c.Message; *lines++ }, nil)
	return board, last, lines
}

// A source that drifts away by 10 ppm is not worth a line each second.
func TestFalsetickerThatDriftsIsSaidOnceAndRoughly(t *testing.T) {
	board, last, lines := sayingBoard()
	k := &keeper{server: &Server{board: board, started: time.Now()}, names: []string{"a:123", "b:123", "c:123"}}
	report := func(off time.Duration, states ...discipline.State) *Kept {
		r := &Kept{Tracking: discipline.Tracking{Synchronised: true}}
		for _, s := range states {
			r.Sources = append(r.Sources, discipline.SourceReport{State: s, Offset: off})
		}
		return r
	}
	for i := range 3600 {
		k.sayFalsetickers(report(300*time.Millisecond+time.Duration(i)*10*time.Microsecond, discipline.Leading, discipline.Falseticker, discipline.Survivor))
	}
	if *lines != 1 || *last != "warning sources that the majority outvotes: b:123 is off by about 300ms" {
		t.Errorf("%d lines, the last: %s", *lines, *last)
	}
	k.server.started = k.server.started.Add(-sayAgain)
	k.sayFalsetickers(report(2*time.Second+34567, discipline.Leading, discipline.Falseticker, discipline.Survivor))
	if *lines != 2 || !strings.HasSuffix(*last, "about 2s") {
		t.Errorf("a quarter of an hour later %d lines, the last: %s", *lines, *last)
	}
	k.sayFalsetickers(report(time.Second, discipline.Leading, discipline.Falseticker, discipline.Falseticker))
	if *lines != 3 || !strings.Contains(*last, "b:123 is off by about 1s; c:123") {
		t.Errorf("another one is news: %d lines, the last: %s", *lines, *last)
	}
	k.sayFalsetickers(report(time.Second, discipline.Falseticker, discipline.Falseticker, discipline.Unreachable))
	if *lines != 4 || !strings.HasPrefix(*last, "error ") || !strings.Contains(*last, "no majority") || strings.Contains(*last, "outvotes") {
		t.Errorf("two that contradict each other: %d lines, the last: %s", *lines, *last)
	}
	k.sayFalsetickers(report(0, discipline.Leading, discipline.Survivor, discipline.Survivor))
	if raised(board, conditionFalseticker) {
		t.Error("it stands though all agree")
	}
	k.sayFalsetickers(report(time.Second, discipline.Falseticker, discipline.Falseticker, discipline.Unreachable))
	if !raised(board, conditionFalseticker) {
		t.Error("it does not stand again")
	}
}

func TestClockThatIsTooFarOffIsSaidOnce(t *testing.T) {
	board, _, lines := sayingBoard()
	k := &keeper{server: &Server{board: board, started: time.Now()}}
	for i := range 1000 {
		k.sayPanic(fmt.Errorf("%w: by %v", discipline.ErrPanic, time.Hour+time.Duration(i)))
	}
	if *lines != 1 {
		t.Errorf("%d lines", *lines)
	}
	k.spoken.over(conditionPanic) // it was corrected
	board.Clear(conditionPanic)
	k.sayPanic(discipline.ErrPanic)
	if *lines != 2 || !raised(board, conditionPanic) {
		t.Errorf("it does not stand again: %d lines", *lines)
	}
}

func TestFiguresAreSaidInTwoDigits(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 1234567: "1.2ms", -1234567: "-1.2ms", 99: "99ns", 34*time.Second + 567: "34s", 86399*time.Second + 7: "23h53m20s", 999600: "1ms",
	} {
		if got := roughly(d).String(); got != want {
			t.Errorf("%v is said as %s, want %s", d, got, want)
		}
	}
}

// What only a node that steers can take back is taken back when it ends.
func TestConditionsOfSteeringEndWithIt(t *testing.T) {
	f := keeping(t, newFakeClock(t, 0, 0), keepDiscipline, "127.0.0.1:9")
	t.Run("serving", func(t *testing.T) {
		f.serve(t)
		eventually(t, "we steer", func() bool { return f.server.Kept() != nil })
		for _, name := range []string{conditionPanic, conditionHeld, conditionOrphan, conditionLeapSources} {
			f.board.Raise(name, health.Error, "as if")
		}
		f.board.Raise(conditionRefused, health.Error, "as if")
	})
	for _, name := range []string{conditionPanic, conditionFalseticker, conditionHeld, conditionOrphan, conditionLeapSources, conditionRefused} {
		if raised(f.board, name) {
			t.Errorf("%s stands though nobody steers any more", name)
		}
	}
	k := &keeper{server: f.server}
	f.board.Raise(conditionPanic, health.Error, "as if")
	f.board.Raise(conditionFalseticker, health.Error, "as if")
	if k.quiet(); raised(f.board, conditionPanic) || raised(f.board, conditionFalseticker) {
		t.Error("ntp.panic and ntp.falseticker outlive steering")
	}
}
