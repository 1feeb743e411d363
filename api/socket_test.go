package api

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/health"
	"holdfast/internal/run"
)

// ownLoopback is an address that no other test listens on: a port of 127.0.0.1
// that is given back may be another's before it is taken again.
func ownLoopback() string {
	pid := os.Getpid()
	return netip.AddrFrom4([4]byte{127, 85, byte(pid >> 8), byte(pid)}).String()
}

// TestTheAdminSocketAnswersThoughAPortIsTaken, and tells so: which one, and how to
// find who has it. Once that is gone the port is served, and the condition ends.
// It fails where the socket waits for the addresses.
func TestTheAdminSocketAnswersThoughAPortIsTaken(t *testing.T) {
	taken, err := net.Listen("tcp", ownLoopback()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	address := netip.MustParseAddrPort(taken.Addr().String())
	board := health.NewBoard(time.Now, nil, nil)
	c := newCell(t, func(config *Config, deps *Deps) { deps.Conditions = board.Conditions })
	c.stop()
	c.server.config.Listen = []netip.AddrPort{address}

	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	group := run.Group{Log: discard(), Board: board}
	go func() { done <- group.Run(ctx, func() { close(ready) }, c.server.Socket(), c.server) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	client, err := NewClient(ClientConfig{Socket: c.socket})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	// told waits until the status has, or has not, a condition of the API.
	told := func(want bool) (message string) {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		deadline := time.After(2 * patience)
		for {
			status, err := client.Status(ctx)
			message = ""
			for _, condition := range status.Conditions {
				if condition.Name == "task.api" {
					message = condition.Message
				}
			}
			if err == nil && (message != "") == want {
				return message
			}
			select {
			case <-tick.C:
			case <-deadline:
				t.Fatalf("the condition: %q, %v; want one: %v", message, err, want)
			}
		}
	}
	said := told(true)
	for _, want := range []string{"listen on " + address.String(), "another program has port", "ss -ltnp"} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q in %q", want, said)
		}
	}
	select {
	case <-ready:
		t.Error("it is ready without its address")
	default:
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	told(false)
	select {
	case <-ready:
	case <-time.After(2 * patience):
		t.Error("it is not ready though the address is free")
	}
	c.url = "http://" + address.String()
	if code, _, _ := c.get("/v1/status/leader"); code != 200 {
		t.Errorf("the address answers with %d", code)
	}
}

// TestAPortThatTheAPIHasItselfIsNoOtherPrograms: an admin who looks for one finds
// holdfast. It fails where each port in use counts as another program's.
func TestAPortThatTheAPIHasItselfIsNoOtherPrograms(t *testing.T) {
	inUse := os.NewSyscallError("bind", syscall.EADDRINUSE)
	for _, test := range []struct {
		address, had string
		own          bool
	}{
		{"10.1.0.5:8501", "10.1.0.5:8501", true},
		{"10.1.0.5:8501", "0.0.0.0:8501", true},
		{"0.0.0.0:8501", "127.0.0.1:8501", true},
		{"127.0.0.1:8501", "[::]:8501", true},
		{"[::ffff:127.0.0.1]:8501", "127.0.0.1:8501", true},
		{"[::1]:8501", "0.0.0.0:8501", false},
		{"10.1.0.5:8501", "127.0.0.1:8501", false},
		{"10.1.0.5:8501", "10.1.0.5:8500", false},
	} {
		got := advice(inUse, netip.MustParseAddrPort(test.address), []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort(test.had)})
		if own := strings.Contains(got, "the API itself listens on "+test.had); own != test.own || own == strings.Contains(got, "another program has port 8501, or another section") {
			t.Errorf("%s beside %s: %q", test.address, test.had, got)
		}
	}
	taken, err := net.Listen("tcp", ownLoopback()+":0")
	if err != nil {
		t.Fatal(err)
	}
	address := netip.MustParseAddrPort(taken.Addr().String())
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	s := &Server{config: Config{Listen: []netip.AddrPort{address, address}}}
	if _, err := s.listen(); err == nil || !strings.Contains(err.Error(), "the API itself listens on "+address.String()) {
		t.Errorf("twice the same address: %v", err)
	}
}
