package check

import (
	"net"
	"testing"
	"time"

	"holdfast/internal/ntp"
	"holdfast/internal/state"
)

// ntpServer answers requests with a packet, or not at all.
func ntpServer(t *testing.T, answer *ntp.Packet) string {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			request, err := ntp.Parse(buf[:n])
			if err != nil || answer == nil {
				continue
			}
			reply := *answer
			reply.Origin = request.Transmit
			var out [ntp.Size]byte
			reply.Put(&out)
			_, _ = conn.WriteTo(out[:], from) // the test may be over
		}
	}()
	return conn.LocalAddr().String()
}

func TestNTPServerPassesOnlyWhileItIsSynchronised(t *testing.T) {
	now := ntp.FromTime(time.Now())
	good := ntp.Packet{Version: 4, Mode: ntp.ModeServer, Stratum: 3, Receive: now, Transmit: now}
	lost := ntp.Packet{Version: 4, Mode: ntp.ModeServer, Leap: ntp.LeapUnknown, ReferenceID: ntp.KissInit}
	deny := ntp.Packet{Version: 4, Mode: ntp.ModeServer, Leap: ntp.LeapUnknown, ReferenceID: ntp.KissDeny}
	for name, test := range map[string]struct {
		answer *ntp.Packet
		status state.Status
		words  string
	}{
		"synchronised": {&good, state.Passing, "synchronised, stratum 3"},
		"lost":         {&lost, state.Critical, "not synchronised"},
		"refused":      {&deny, state.Critical, "kiss code DENY"},
		"silent":       {nil, state.Critical, "no answer within 100ms"},
	} {
		t.Run(name, func(t *testing.T) {
			limit := time.Minute // a busy machine must not make silence of an answer
			if test.answer == nil {
				limit = 100 * time.Millisecond
			}
			expect(t, probe(t, Definition{NTP: ntpServer(t, test.answer), Timeout: limit}, nil), test.status, test.words)
		})
	}
}
