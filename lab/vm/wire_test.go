package vm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"testing"
	"time"
)

func station(last byte) [6]byte { return [6]byte{2, 0, 0, 0, 0, last} }

func frame(to, from [6]byte, text string) []byte {
	f := append(append([]byte(nil), to[:]...), from[:]...)
	return append(append(f, 0x88, 0xb5), text...) // for experiments (IEEE 802, local)
}

// got returns what a port gets next, "" when there is nothing.
func got(t *testing.T, p *Port) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if len(p.out) == 0 {
		return ""
	}
	f, err := p.Receive(ctx)
	must(t, err)
	return string(f[headerEthernet:])
}

func TestWireLearnsWhereAStationIs(t *testing.T) {
	w := NewWire()
	a, b, c := w.Join(), w.Join(), w.Join()
	all := [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	expect := func(wantA, wantB, wantC string) {
		t.Helper()
		for i, p := range []*Port{a, b, c} {
			if g, want := got(t, p), []string{wantA, wantB, wantC}[i]; g != want {
				t.Errorf("port %c got %q, want %q", 'a'+rune(i), g, want)
			}
		}
	}
	must(t, a.Send(frame(station(2), station(1), "unknown")))
	expect("", "unknown", "unknown")
	must(t, b.Send(frame(station(1), station(2), "answer")))
	expect("answer", "", "")
	must(t, a.Send(frame(station(2), station(1), "known")))
	expect("", "known", "")
	// A station that moved is found after it said something.
	must(t, c.Send(frame(all, station(2), "I am here")))
	expect("I am here", "I am here", "")
	must(t, a.Send(frame(station(2), station(1), "moved")))
	expect("", "", "moved")
	// What was behind a cable that was pulled is unknown.
	c.Leave()
	must(t, a.Send(frame(station(2), station(1), "where?")))
	expect("", "where?", "")
	must(t, c.Send(frame(all, station(2), "from a pulled cable")))
	expect("", "", "")
	if _, err := c.Receive(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("receive without a cable: %v", err)
	}
}

func TestWireDropsWhatAFullPortHasNoRoomFor(t *testing.T) {
	w := NewWire()
	a, b := w.Join(), w.Join()
	for range queueLength + 10 {
		must(t, a.Send(frame(station(2), station(1), "x")))
	}
	if n := len(b.out); n != queueLength {
		t.Errorf("%d frames wait, want %d", n, queueLength)
	}
	if err := a.Send(make([]byte, headerEthernet-1)); err == nil {
		t.Error("a frame without a whole header was sent")
	}
}

func FuzzFrameFromAnEmulator(f *testing.F) {
	good := frame(station(1), station(2), "hello")
	f.Add(append(binary.BigEndian.AppendUint32(nil, uint32(len(good))), good...))
	f.Add([]byte{0, 0, 0, 1, 9})
	f.Fuzz(func(t *testing.T, data []byte) {
		frame, err := readFrame(bytes.NewReader(data))
		if err == nil && (len(frame) < headerEthernet || len(frame) > maxFrame) {
			t.Errorf("a frame of %d bytes was taken", len(frame))
		}
	})
}
