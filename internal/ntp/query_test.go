package ntp

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"
)

// server answers one request with packets that answer makes of it.
func server(t *testing.T, answer func(request Packet) []Packet) string {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buf := make([]byte, 100)
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		request, err := Parse(buf[:n])
		if err != nil || request.Mode != ModeClient || request.Transmit == 0 {
			t.Errorf("request %+v, %v", request, err)
		}
		for _, p := range answer(request) {
			var out [Size]byte
			p.Put(&out)
			_, _ = conn.WriteTo(out[:], from) // the test may be over
		}
	}()
	return conn.LocalAddr().String()
}

func TestQueryPassesOverWhatIsNoReplyToIt(t *testing.T) {
	now := FromTime(time.Now())
	at := server(t, func(r Packet) []Packet {
		good := Packet{Version: 4, Mode: ModeServer, Stratum: 2, Origin: r.Transmit, Receive: now, Transmit: now}
		forged, early := good, good
		forged.Origin++
		early.Mode = ModeClient
		return []Packet{forged, early, good}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	a, err := Query(ctx, at)
	if err != nil || a.Stratum != 2 || a.Offset.Abs() > time.Second {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestQueryTellsRefusalFromSilence(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Query(ctx, server(t, func(Packet) []Packet { return nil })); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a silent server: %v", err)
	}
	at := server(t, func(r Packet) []Packet {
		return []Packet{{Leap: LeapUnknown, Version: 4, Mode: ModeServer, ReferenceID: KissDeny, Origin: r.Transmit}}
	})
	if _, err := Query(t.Context(), at); !errors.As(err, new(*KissError)) {
		t.Errorf("a server that refuses: %v", err)
	}
}
