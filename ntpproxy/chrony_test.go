package ntpproxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/ntp"
)

func TestChronysNumbersAreRead(t *testing.T) {
	number := func(exponent, coefficient int32) []byte {
		return binary.BigEndian.AppendUint32(nil, uint32(exponent)<<25|uint32(coefficient)&(1<<25-1))
	}
	for name, test := range map[string]struct {
		wire []byte
		want time.Duration
	}{
		"nothing":             {number(0, 0), 0},
		"the sign bit alone":  {number(0, 1<<24), maxDispersion},
		"a quarter":           {number(0, 1<<23), 250 * time.Millisecond},
		"one and a half":      {number(2, 3<<22), 1500 * time.Millisecond},
		"with small exponent": {number(-10, 1<<23), 250 * time.Millisecond / 1024},
		"negative":            {number(0, -1), maxDispersion},
		"too long":            {number(63, 1<<23), maxDispersion},
	} {
		if got := chronySeconds(test.wire); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

func TestAnswerThatIsNotChronydsIsNotBelieved(t *testing.T) {
	good := make([]byte, chronyReplySize)
	good[0], good[1], good[5], good[7], good[19] = chronyVersion, chronyReply, chronyTracking, chronyTracked, 9
	good[28+25] = 3
	if got, err := parseTracking(good, 9); err != nil || got.Stratum != 3 || got.Leap != ntp.LeapNone {
		t.Fatalf("a good one: %+v, %v", got, err)
	}
	for name, change := range map[string]func([]byte) []byte{
		"cut short":           func(b []byte) []byte { return b[:chronyReplySize-1] },
		"another version":     func(b []byte) []byte { b[0] = 5; return b },
		"a request":           func(b []byte) []byte { b[1] = chronyRequest; return b },
		"to another question": func(b []byte) []byte { b[5] = 34; return b },
		"to an earlier one":   func(b []byte) []byte { b[19] = 8; return b },
	} {
		if _, err := parseTracking(change(append([]byte(nil), good...)), 9); !errors.Is(err, errChrony) {
			t.Errorf("%s: %v", name, err)
		}
	}
	refused := append([]byte(nil), good...)
	refused[9] = 2
	if _, err := parseTracking(refused, 9); err == nil || errors.Is(err, errChrony) {
		t.Errorf("a refusal: %v", err)
	}
}

// A real chronyd, that leaves the clock alone, is asked over loopback.
func TestChronydTellsWhatTheKernelDoesNotKnow(t *testing.T) {
	root := peers(t)
	dir := t.TempDir()
	at := netip.MustParseAddrPort("127.0.0.1:32301")
	start := func(name, more string) {
		config := filepath.Join(dir, name+".conf")
		text := fmt.Sprintf("port 0\ncmdport %d\nbindcmdaddress 127.0.0.1\nbindcmdaddress /\npidfile %s/%s.pid\n%s\n", at.Port(), dir, name, more)
		if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cmd := exec.CommandContext(ctx, filepath.Join(root, "usr/sbin/chronyd"), "-x", "-d", "-u", "root", "-f", config)
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cancel(); _ = cmd.Wait() }) // ended by a signal, as asked
	}
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root to start chronyd")
	}
	if _, err := askChrony(at, 1); err == nil {
		t.Fatal("something answers before chronyd was started")
	}
	start("local", "local stratum 5")
	eventually(t, "chronyd tells its stratum", func() bool {
		got, err := askChrony(at, 7)
		return err == nil && got.Stratum == 5 && got.Leap == ntp.LeapNone && got.Reference == ntp.Reference{127, 127, 1, 1} && got.RootDispersion < time.Second
	})
}

func TestDaemonsWordIsServedButNeverBetterThanTheKernels(t *testing.T) {
	told := tracking{Stratum: 3, Reference: ntp.Reference{192, 0, 2, 1}, Set: start.Add(-time.Minute), RootDelay: 20 * time.Millisecond, RootDispersion: time.Millisecond}
	k := synchronised
	s := fromKernel(k, 4, start).with(told)
	if s.Stratum != 3 || s.Reference != told.Reference || s.RootDelay != told.RootDelay || s.RootDispersion != time.Millisecond || !s.Set.Equal(told.Set) {
		t.Errorf("standing %+v", s)
	}
	lost := told
	lost.Leap, lost.Stratum = ntp.LeapUnknown, 0
	if s := fromKernel(k, 4, start).with(lost); s.Stratum != 0 || s.Leap != ntp.LeapUnknown {
		t.Errorf("chronyd lost its sources, and %+v is served", s)
	}
	k.Synchronised = false
	if s := fromKernel(k, 4, start).with(told); s.Stratum != 0 {
		t.Errorf("the kernel's clock is not kept by this chronyd, and %+v is served", s)
	}
	k.Synchronised, k.Insert = true, true
	if s := fromKernel(k, 4, start).with(told); s.Leap != ntp.LeapInsert {
		t.Errorf("the kernel will insert a second, and %+v is served", s)
	}
}

func FuzzTracking(f *testing.F) {
	good := make([]byte, chronyReplySize)
	good[0], good[1], good[5], good[7] = chronyVersion, chronyReply, chronyTracking, chronyTracked
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseTracking(b, 0)
		if err != nil {
			return
		}
		if got.Stratum > ntp.MaxStratum || got.RootDelay < 0 || got.RootDispersion < 0 || got.RootDispersion > maxDispersion {
			t.Errorf("%+v", got)
		}
	})
}
