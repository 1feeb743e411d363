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
	hears := func() string {
		t.Helper()
		if err := systemd.SetReadDeadline(time.Now().Add(60 * time.Second)); err != nil {
			t.Fatal(err)
		}
		text := make([]byte, 4096)
		length, err := systemd.Read(text)
		if err != nil {
			t.Fatal(err)
		}
		return string(text[:length])
	}
	t.Setenv("NOTIFY_SOCKET", socket)
	n.startUnit(t, onlyDNS)
	if first := hears(); !strings.HasPrefix(first, "STATUS=not ready: ") || !strings.Contains(first, n.addr+":5353: bind: address already in use") || strings.Contains(first, "READY=1") {
		t.Errorf("systemd hears %q", first)
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	if then := hears(); then != "READY=1\nSTATUS=ready" {
		t.Errorf("systemd hears %q once the address is free", then)
	}
}
