package logrelay

import (
	"net/netip"
	"strings"
	"testing"
)

// TestWhatASocketHadNoRoomForIsCounted: nobody reads it, so its buffer fills. It
// fails where another socket's losses are counted, or none.
func TestWhatASocketHadNoRoomForIsCounted(t *testing.T) {
	s, _, _ := prepare(t)
	conn, sender := socketOf(t, s)
	_, other := socketOf(t, s)
	at := netip.MustParseAddrPort(conn.LocalAddr().String())
	text := []byte(strings.Repeat("x", 60_000))
	var lost uint64
	for n := 0; n < 2000 && lost == 0; n++ { // 120 MB: more than any buffer
		if _, err := sender.Write(text); err != nil {
			t.Fatal(err)
		}
		if n%50 != 0 {
			continue
		}
		var err error
		if lost, err = overflowed([]netip.AddrPort{at}); err != nil {
			t.Fatal(err)
		}
	}
	if lost == 0 {
		t.Error("of 120 MB that nobody reads none is lost")
	}
	if n, err := overflowed([]netip.AddrPort{netip.MustParseAddrPort(other.RemoteAddr().String())}); n != 0 || err != nil {
		t.Errorf("at a socket that got nothing %d are lost (%v)", n, err)
	}
}

// TestATableOfSocketsIsReadByPorts, in both families; what is none is an error.
func TestATableOfSocketsIsReadByPorts(t *testing.T) {
	const head = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops            \n"
	const four = " 5711: 0100007F:0202 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 7692229 2 0000000038254c51 12      \n"
	const six = " 5712: 00000000000000000000000000000000:0202 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 7692230 2 0000000038254c52 30\n"
	const other = " 5713: 0100007F:0203 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 7692231 2 0000000038254c53 1000\n"
	if n, err := dropsOf(strings.NewReader(head+four+other+six), []uint16{514}); n != 42 || err != nil {
		t.Errorf("%d, %v; want 42", n, err)
	}
	for _, text := range []string{"1: 2\n", strings.Replace(four, "0202", "xyz", 1), strings.Replace(four, " 12 ", " -1 ", 1)} {
		if n, err := dropsOf(strings.NewReader(head+text), []uint16{514}); err == nil {
			t.Errorf("%q: %d, and no error", text, n)
		}
	}
}
