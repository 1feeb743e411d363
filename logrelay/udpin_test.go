package logrelay

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/kernel/sockopt"
	"holdfast/logrelay/journal"
)

// socketOf is a socket of the UDP input that nobody serves, and a sender to it. It
// has an address that no other test sends to.
func socketOf(t *testing.T, s *Server) (conn *net.UDPConn, sender net.Conn) {
	t.Helper()
	list, err := s.listenUDP(t.Context(), "127.9.6.1:0")
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range list[1:] {
		_ = other.Close() // the sender's datagrams go to one of them
	}
	t.Cleanup(func() { _ = list[0].Close() })
	if sender, err = net.Dial("udp", list[0].LocalAddr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sender.Close() })
	return list[0], sender
}

// TestDatagramsThatCameBeforeTheEndAreStored: lines gather in the socket for a
// while, and a planned end costs none of them.
func TestDatagramsThatCameBeforeTheEndAreStored(t *testing.T) {
	s, dir, stop := serve(t, nil)
	conn, sender := socketOf(t, s)
	const count = 2*datagrams + datagrams/2
	for n := range count {
		if _, err := fmt.Fprintf(sender, "<13>Nov 25 12:00:00 cn1 test: seq=%d.", n); err != nil {
			t.Fatal(err)
		}
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := s.serveUDP(ended, conn); err != nil {
		t.Fatal(err)
	}
	if n := testutil.ToFloat64(s.metrics.input(viaUDP).lines); n != count {
		t.Errorf("%v lines were taken, want %d", n, count)
	}
	stop()
	p := process{t: t, dir: dir}
	if got := p.numbers("cn1"); len(got) != count || !slices.IsSorted(got) {
		t.Errorf("%d lines are in the file, sorted %v; want %d in order", len(got), slices.IsSorted(got), count)
	}
}

// TestTheGreatestDatagramIsOneLine: of 65,507 bytes none is cut, and its
// neighbours are whole as well.
func TestTheGreatestDatagramIsOneLine(t *testing.T) {
	s, dir, stop := serve(t, nil)
	sender, err := net.Dial("udp", s.Addrs("udp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	const head = "<13>Nov 25 12:00:00 cn1 test: "
	big := head + strings.Repeat("0123456789", 6548)[:65507-len(head)]
	for _, line := range []string{head + "before", big, head + "behind"} {
		if _, err := sender.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	for _, text := range []string{"test: before\n", strings.TrimPrefix(big, "<13>Nov 25 12:00:00 cn1 ") + "\n", "test: behind\n"} {
		has(t, dir, "cn1", text)
	}
	stop()
	if n := testutil.ToFloat64(s.metrics.cut[viaUDP]); n != 0 {
		t.Errorf("%v lines are counted as cut", n)
	}
}

// TestDatagramsThatGatherComeInOrder: whether the relay waits for the next or
// they are there already, no line is missing, or in front of an older one.
func TestDatagramsThatGatherComeInOrder(t *testing.T) {
	s, dir, stop := serve(t, nil)
	sender, err := net.Dial("udp", s.Addrs("udp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	count := 0
	for burst := range 40 { // 1 to 157 lines each, with pauses of 0 to 3 ms
		for range 1 + 4*burst {
			if _, err := fmt.Fprintf(sender, "<13>Nov 25 12:00:00 cn1 test: seq=%d.", count); err != nil {
				t.Fatal(err)
			}
			count++
		}
		<-time.After(time.Duration(burst%4) * time.Millisecond)
	}
	eventually(t, time.Minute, "all lines are taken", func() error {
		if n := testutil.ToFloat64(s.metrics.input(viaUDP).lines); n != float64(count) {
			return fmt.Errorf("%v of %d", n, count)
		}
		return nil
	})
	stop()
	p := process{t: t, dir: dir}
	if got := p.numbers("cn1"); len(got) != count || !slices.IsSorted(got) {
		t.Errorf("%d lines, sorted %v; want %d in order", len(got), slices.IsSorted(got), count)
	}
}

// TestADatagramCostsNoAllocation, and one that was cut is counted.
func TestADatagramCostsNoAllocation(t *testing.T) {
	s, _, _ := serve(t, nil)
	conn, sender := socketOf(t, s)
	packets, err := sockopt.NewModerated(conn, datagrams, 50, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	for n := range datagrams {
		if _, err := fmt.Fprintf(sender, "<13>Nov 25 12:00:00 cn1 test: %d%s", n, strings.Repeat("x", n)); err != nil {
			t.Fatal(err)
		}
	}
	n, err := packets.Receive()
	if n != datagrams || err != nil {
		t.Fatalf("%d datagrams, %v", n, err)
	}
	var batch journal.Batch
	s.takeDatagrams(&batch, packets, n)
	if got := testutil.ToFloat64(s.metrics.cut[viaUDP]); got != 45 {
		t.Errorf("%v lines are counted as cut, want 45 of more than 50 bytes", got)
	}
	if allocs := testing.AllocsPerRun(100, func() {
		batch.Reset()
		s.takeDatagrams(&batch, packets, n)
	}); allocs != 0 {
		t.Errorf("%v allocations for %d datagrams", allocs, n)
	}
	if err := journal.BlockOf(0, batch.Len(), batch.Bytes()).Each(func(_ uint64, r journal.Record) bool {
		if r.Input != viaUDP || r.Source != netip.MustParseAddr("127.0.0.1") {
			t.Errorf("a line of %v by %s", r.Source, inputName(r.Input))
		}
		return true
	}); err != nil {
		t.Error(err)
	}
}
