package link

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/lab"
)

// shrink leaves the kernel room for a handful of notices.
func shrink(t *testing.T, h *Handle) {
	t.Helper()
	conn, err := h.notices.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = conn.Control(func(fd uintptr) {
		if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// batch runs many commands of ip(8) in one process.
func batch(t *testing.T, h *lab.Host, lines []string) {
	t.Helper()
	if err := h.Write("/run/batch", []byte(strings.Join(lines, "\n")+"\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Run(t.Context(), "ip", "-batch", "/run/batch"); err != nil {
		t.Fatal(err)
	}
}

func TestLostNoticesLoseNoChange(t *testing.T) {
	node, handle := host(t)
	shrink(t, handle)
	var before, after []string
	for i := range 200 {
		before = append(before, fmt.Sprintf("address add 10.9.0.%d/32 dev eth0", i+1))
		after = append(after, fmt.Sprintf("address del 10.9.0.%d/32 dev eth0", i+1), fmt.Sprintf("address add 10.9.1.%d/32 dev eth0", i+1))
	}
	batch(t, node, before)

	// The watcher stands still after its first list, until everything changed.
	held := map[netip.Prefix]Addr{}
	synced, goOn := make(chan int), make(chan struct{})
	syncs := 0
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- handle.Watch(ctx, func(e Event) {
			switch {
			case e.Synced:
				syncs++
				synced <- syncs
				<-goOn
			case e.Addr == nil:
			case e.Gone:
				if _, ok := held[e.Addr.Prefix]; !ok {
					t.Errorf("told twice that it is gone: %+v", e.Addr)
				}
				delete(held, e.Addr.Prefix)
			default: // one that is no longer tentative is told again
				if held[e.Addr.Prefix] == *e.Addr {
					t.Errorf("told twice: %+v", e.Addr)
				}
				held[e.Addr.Prefix] = *e.Addr
			}
		})
	}()
	wait := func(what string) {
		select {
		case <-synced:
		case err := <-done:
			t.Fatalf("%s: Watch ended: %v", what, err)
		case <-time.After(time.Minute):
			t.Fatalf("%s did not come", what)
		}
	}
	wait("the first list")
	batch(t, node, after)
	goOn <- struct{}{}
	wait("a list after lost notices")
	addrs, err := handle.Addrs()
	if err != nil {
		t.Fatal(err)
	}
	want := map[netip.Prefix]bool{}
	for _, a := range addrs {
		want[a.Prefix] = true
	}
	same := func(_ Addr, there bool) bool { return there }
	if !maps.EqualFunc(held, want, same) {
		t.Errorf("told: %v\nthere is: %v", slices.Collect(maps.Keys(held)), slices.Collect(maps.Keys(want)))
	}
	cancel()
	close(goOn)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestWatchCanBeginAgain(t *testing.T) {
	node, handle := host(t)
	for i := range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		err := handle.Watch(ctx, func(e Event) {
			if e.Synced {
				cancel()
			}
		})
		if err != nil {
			t.Fatalf("the %d. time: %v", i+1, err)
		}
		cancel()
		ip(t, node, "address", "add", fmt.Sprintf("10.9.0.%d/32", i+1), "dev", "eth0")
	}
}

func TestSecondWatchAtATimeIsRefused(t *testing.T) {
	_, handle := host(t)
	watching(t, handle)
	if err := handle.Watch(t.Context(), func(Event) {}); err == nil {
		t.Error("two watches share a socket")
	}
}

func TestBridgePortComesAndGoesWithoutBeingDeleted(t *testing.T) {
	node, handle := host(t)
	eth := named(t, handle, "eth0").Index
	events := watching(t, handle)
	ip(t, node, "link", "add", "br0", "type", "bridge", "mcast_snooping", "1")
	bridge := await(t, events, func(e Event) bool { return e.Link != nil && e.Link.Name == "br0" }).Link
	if !bridge.Snooping {
		t.Errorf("a bridge that snoops: %+v", bridge)
	}
	ip(t, node, "link", "set", "eth0", "master", "br0")
	await(t, events, func(e Event) bool { return e.Link != nil && e.Link.Index == eth && e.Link.Master == bridge.Index })
	ip(t, node, "link", "set", "eth0", "nomaster")
	for {
		e := await(t, events, func(e Event) bool { return e.Link != nil && e.Link.Index == eth })
		if e.Gone {
			t.Fatal("eth0 left its bridge and was told as gone")
		}
		if e.Link.Master == 0 {
			return
		}
	}
}

func TestClosedHandleEndsItsWatch(t *testing.T) {
	_, handle := host(t)
	done := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		done <- handle.Watch(t.Context(), func(e Event) {
			if e.Synced {
				close(started)
			}
		})
	}()
	<-started
	if err := handle.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err == nil {
			t.Error("no error")
		}
	case <-time.After(time.Minute):
		t.Fatal("it goes on")
	}
}

func TestErrorsSayWhatWouldBeRight(t *testing.T) {
	node, handle := host(t)
	gone := handle.Add(Addr{Link: 99, Prefix: netip.MustParsePrefix("10.1.0.7/32")})
	if gone == nil || !strings.Contains(gone.Error(), "10.1.0.7/32") || !strings.Contains(gone.Error(), ErrNoLink.Error()) {
		t.Errorf("no such interface: %v", gone)
	}
	err := node.Do(func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", []byte("1"), 0) })
	if err != nil {
		t.Fatal(err)
	}
	off := handle.Add(Addr{Link: named(t, handle, "eth0").Index, Prefix: netip.MustParsePrefix("fd00::7/128")})
	if off == nil || !strings.Contains(off.Error(), "disable_ipv6") {
		t.Errorf("IPv6 is off: %v", off)
	}
	if err := handle.Add(Addr{Link: 2}); err == nil {
		t.Error("no address was added without an error")
	}
}
