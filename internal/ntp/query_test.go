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
	// An address that no other package's tests send to: what they say to a server
	// that has ended would come to who is given its port.
	conn, err := net.ListenPacket("udp4", "127.78.84.80:0")
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
	const ahead = 10 * time.Second
	at := server(t, func(r Packet) []Packet {
		now := FromTime(time.Now().Add(ahead))
		good := Packet{Version: 4, Mode: ModeServer, Stratum: 2, Origin: r.Transmit, Receive: now, Transmit: now}
		forged, early := good, good
		forged.Origin++
		early.Mode = ModeClient
		return []Packet{forged, early, good}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	a, err := Query(ctx, at)
	// The server looked at its clock somewhere between the request and the reply:
	// that is all that is known of it, however long this process stood still. The
	// rest is for a clock that is slewed meanwhile.
	if off := (a.Offset - ahead).Abs(); err != nil || a.Stratum != 2 || off > a.Delay/2+a.Delay/100+time.Millisecond {
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
