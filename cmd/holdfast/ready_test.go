package main

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestWhoCantListenSaysThatItIsNotReady: to systemd, with the reason, and that it
// is ready once the address is free.
func TestWhoCantListenSaysThatItIsNotReady(t *testing.T) {
	n := newNode(t, "")
	taken, err := net.Listen("tcp", n.addr+":5353")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	socket := filepath.Join(t.TempDir(), "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	// hears waits until systemd hears what begins so and has the words in it. What
	// else is late is told before, in messages of its own.
	hears := func(begins, words string) string {
		t.Helper()
		if err := systemd.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		var all []string
		for text := make([]byte, 4096); ; {
			length, err := systemd.Read(text)
			if err != nil {
				t.Fatalf("systemd heard %q, and waits for %q with %q: %v", all, begins, words, err)
			}
			all = append(all, string(text[:length]))
			if strings.HasPrefix(all[len(all)-1], begins) && strings.Contains(all[len(all)-1], words) {
				return strings.Join(all, "\n")
			}
		}
	}
	t.Setenv("NOTIFY_SOCKET", socket)
	n.startUnit(t, onlyDNS)
	if before := hears("STATUS=not ready: ", n.addr+":5353: bind: address already in use"); strings.Contains(before, "READY=1") {
		t.Errorf("systemd hears %q", before)
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	hears("READY=1\nSTATUS=ready", "")
}
