package logrelay

import (
	"context"
	"fmt"
	"math"
	"net"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/kernel/sockopt"
	"holdfast/logrelay/journal"
)

// TestWhatStandsInASocketOfThisNodeAtTheEndIsTaken: the relay was told to end before it
// read the first, and its wait for that ends with it or not. It fails where what it reads
// then, or what stands behind that, goes with the socket, and where a program that writes
// later is not told that nobody reads it.
func TestWhatStandsInASocketOfThisNodeAtTheEndIsTaken(t *testing.T) {
	for _, ended := range []bool{false, true} {
		p, _, end := latePromises(t, journal.Config{}, viaUnix, unixPatience)
		path := filepath.Join(t.TempDir(), "log")
		conn, err := listenUnix(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		sender, err := net.Dial("unixgram", path)
		if err != nil {
			t.Fatal(err)
		}
		defer sender.Close()
		const lines = 5 // fewer than a socket has room for (net.unix.max_dgram_qlen)
		for n := range lines {
			if _, err := fmt.Fprintf(sender, "<13>Nov 25 12:00:00 app[1]: seq=%d.", n); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if ended {
			if err := conn.SetReadDeadline(time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.s.serveUnix(ctx, conn); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprint(sender, "<13>Nov 25 12:00:00 app[1]: late"); err == nil {
			t.Error("a line is taken that nobody will read")
		}
		end()
		got := linesFrom(t, p.s.journal, 0)
		for n := range lines {
			if want := fmt.Sprintf("seq=%d.", n); !slices.ContainsFunc(got, func(line string) bool { return strings.HasSuffix(line, want) }) {
				t.Errorf("its wait has ended: %v: %s is lost", ended, want)
			}
		}
		if len(got) != lines {
			t.Errorf("its wait has ended: %v: %q are stored, want %d lines", ended, got, lines)
		}
	}
}

// TestADatagramOfThisNodeThatPanicsTwiceIsCounted: also as it is written as text. It
// fails where the second panic ends the process, and where the line is stored, or lost
// without being counted.
func TestADatagramOfThisNodeThatPanicsTwiceIsCounted(t *testing.T) {
	s, _, _ := prepare(t)
	var endless []byte // of which nothing is looked at: there is no room behind it
	slice := (*struct {
		at       unsafe.Pointer
		len, cap int
	})(reflect.ValueOf(&endless).UnsafePointer())
	slice.len, slice.cap = math.MaxInt, math.MaxInt
	_, wanted := s.takeLocal(endless, []byte("<13>poison"), make([]byte, sockopt.CredentialsRoom()), time.Now())
	if lost, panics := testutil.ToFloat64(s.metrics.lost[viaUnix]), testutil.ToFloat64(s.metrics.panics[viaUnix]); wanted || lost != 1 || panics != 2 {
		t.Errorf("stored: %v; %v lines and %v panics are counted, want 1 and 2", wanted, lost, panics)
	}
}
