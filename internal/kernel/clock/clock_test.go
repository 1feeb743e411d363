package clock

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestKernelsAnswerIsUnderstood(t *testing.T) {
	for name, test := range map[string]struct {
		state int
		timex unix.Timex
		want  State
	}{
		"nobody sets it": {unix.TIME_ERROR, unix.Timex{Status: unix.STA_UNSYNC, Maxerror: 16e6, Esterror: 16e6},
			State{MaxError: 16 * time.Second, EstError: 16 * time.Second}},
		"the error grew too large": {unix.TIME_ERROR, unix.Timex{Status: unix.STA_PLL, Maxerror: 16e6},
			State{MaxError: 16 * time.Second}},
		"chronyd sets it": {unix.TIME_OK, unix.Timex{Freq: -3 << 15, Maxerror: 1500, Esterror: 20, Offset: 7},
			State{Synchronised: true, MaxError: 1500 * time.Microsecond, EstError: 20 * time.Microsecond, Offset: 7 * time.Microsecond, Frequency: -1.5}},
		"in nanoseconds, with a leap second to come": {unix.TIME_INS, unix.Timex{Status: unix.STA_NANO | unix.STA_INS, Offset: -9},
			State{Synchronised: true, Insert: true, Offset: -9}},
		"its tick is not the nominal one": {unix.TIME_OK, unix.Timex{Tick: 10_100, Freq: 2 << 16}, State{Synchronised: true, Tick: 10_100, Frequency: 2}},
		"a second will be left out":       {unix.TIME_DEL, unix.Timex{Status: unix.STA_DEL}, State{Synchronised: true, Delete: true}},
	} {
		if diff := cmp.Diff(test.want, understand(test.state, test.timex)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestReadNeedsNoPrivilege(t *testing.T) {
	state, err := Read()
	if err != nil {
		t.Fatal(err)
	}
	if state.Frequency < -500 || state.Frequency > 500 {
		t.Errorf("frequency %v ppm is beyond what the kernel allows", state.Frequency)
	}
}

func TestRateIsTheTicksAndTheFrequencys(t *testing.T) {
	for want, state := range map[float64]State{
		-3: {Frequency: -3}, 98: {Tick: 10_001, Frequency: -2}, -10_000: {Tick: 9_900},
	} {
		if got := state.Rate(); got != want {
			t.Errorf("%+v: %v ppm, want %v", state, got, want)
		}
	}
}
