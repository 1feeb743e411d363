package logrelay

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"path/filepath"
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
	elsewhere := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), at.Port())
	for _, at := range []netip.AddrPort{netip.MustParseAddrPort(other.RemoteAddr().String()), elsewhere} {
		if n, err := overflowed([]netip.AddrPort{at}); n != 0 || err != nil {
			t.Errorf("at %v, which got nothing, %d are lost (%v)", at, n, err)
		}
	}
}

// TestWithoutATableNothingIsSaid: where /proc is not mounted, nobody can count. It fails
// where that is taken for none lost, or where a kernel without IPv6 is.
func TestWithoutATableNothingIsSaid(t *testing.T) {
	at := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:514")}
	none := filepath.Join(t.TempDir(), "udp")
	if n, err := overflowedBy([]string{none, none + "6"}, at); err == nil {
		t.Errorf("without a table %d are lost", n)
	}
	if n, err := overflowedBy([]string{socketTables[0], none}, at); err != nil {
		t.Errorf("without IPv6: %d, %v", n, err)
	}
}

// socketLine is a line of the kernel's table, as udp4_seq_show writes it: the address
// in words of 32 bits, as they stand in memory.
func socketLine(at string, drops int) string {
	socket := netip.MustParseAddrPort(at)
	var address strings.Builder
	for word := socket.Addr().AsSlice(); len(word) > 0; word = word[4:] {
		fmt.Fprintf(&address, "%08X", binary.NativeEndian.Uint32(word))
	}
	return fmt.Sprintf(" 5711: %s:%04X %s:0000 07 00000000:00000000 00:00000000 00000000     0        0 7692229 2 0000000038254c51 %d      \n",
		address.String(), socket.Port(), strings.Repeat("0", address.Len()), drops)
}

// TestATableOfSocketsIsReadByAddresses and ports, in both families; what is none is an
// error. It fails where a socket of the same port at another address counts.
func TestATableOfSocketsIsReadByAddresses(t *testing.T) {
	const head = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops            \n"
	four := socketLine("127.0.0.1:514", 12)
	table := head + four + socketLine("127.0.0.1:515", 1000) + socketLine("[::]:514", 30) + socketLine("[::ffff:127.0.0.2]:514", 500) + socketLine("[2001:db8::1]:514", 7)
	for want, list := range map[uint64][]string{
		42: {"127.0.0.1:514", "[::]:514"}, 30: {"[::]:514"}, 1012: {"127.0.0.1:514", "127.0.0.1:515"},
		500: {"127.0.0.2:514"}, 7: {"[2001:db8::1]:514"}, 0: {"0.0.0.0:514", "[::1]:514"},
	} {
		var sockets []netip.AddrPort
		for _, at := range list {
			sockets = append(sockets, netip.MustParseAddrPort(at))
		}
		if n, err := dropsOf(strings.NewReader(table), sockets); n != want || err != nil {
			t.Errorf("%v: %d, %v; want %d", list, n, err, want)
		}
	}
	at := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:514")}
	for _, text := range []string{"1: 2\n", strings.Replace(four, ":0202", ":xyz", 1), strings.Replace(four, ":0202", "00:0202", 1), strings.Replace(four, " 12 ", " -1 ", 1)} {
		if n, err := dropsOf(strings.NewReader(head+text), at); err == nil {
			t.Errorf("%q: %d, and no error", text, n)
		}
	}
}
