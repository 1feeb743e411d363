package link

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"holdfast/lab"
)

func TestMain(m *testing.M) {
	if lab.Init() {
		return
	}
	m.Run()
}

// host is a host of a lab, with a handle in its network namespace.
func host(t *testing.T) (*lab.Host, *Handle) {
	t.Helper()
	l := lab.NewTest(t, lab.Options{Networks: []string{"adm"}})
	h, err := l.AddHost("node", lab.On("adm", "10.1.0.1/24", "fd00::1/64"))
	if err != nil {
		t.Fatal(err)
	}
	return h, open(t, h)
}

func open(t *testing.T, h *lab.Host) *Handle {
	t.Helper()
	var handle *Handle
	if err := h.Do(func() (err error) { handle, err = Open(); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = handle.Close() })
	return handle
}

func ip(t *testing.T, h *lab.Host, args ...string) string {
	t.Helper()
	out, err := h.Run(t.Context(), append([]string{"ip"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func named(t *testing.T, h *Handle, name string) Link {
	t.Helper()
	links, err := h.Links()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(links, func(l Link) bool { return l.Name == name })
	if i < 0 {
		t.Fatalf("no interface %s in %+v", name, links)
	}
	return links[i]
}

func find(t *testing.T, h *Handle, link int, prefix string) (Addr, bool) {
	t.Helper()
	addrs, err := h.Addrs()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(addrs, func(a Addr) bool { return a.Link == link && a.Prefix == netip.MustParsePrefix(prefix) })
	if i < 0 {
		return Addr{}, false
	}
	return addrs[i], true
}

func TestLinksTellWhatTheInterfaceIs(t *testing.T) {
	_, handle := host(t)
	eth := named(t, handle, "eth0")
	if eth.Kind != Ethernet || len(eth.MAC) != 6 || eth.Broadcast.String() != "ff:ff:ff:ff:ff:ff" || eth.MTU != 1500 || !eth.Up || !eth.Running {
		t.Errorf("the cable: %+v", eth)
	}
	if lo := named(t, handle, "lo"); lo.Kind != Loopback || lo.Index != 1 {
		t.Errorf("the loopback: %+v", lo)
	}
}

func TestAddingAndRemovingTwiceIsHarmless(t *testing.T) {
	node, handle := host(t)
	eth := named(t, handle, "eth0")
	for _, prefix := range []string{"10.1.0.101/32", "10.1.0.102/24", "fd00::101/128", "fd00::102/64", "fe80::101/128"} {
		a := Addr{Link: eth.Index, Prefix: netip.MustParsePrefix(prefix)}
		for range 2 {
			if err := handle.Add(a); err != nil {
				t.Fatal(err)
			}
		}
		got, ok := find(t, handle, eth.Index, prefix)
		if !ok || got.Tentative || got.Duplicate {
			t.Errorf("%s was added: %+v, %v", prefix, got, ok)
		}
		keeps, err := handle.KeepsProtocol()
		if err != nil || keeps != (got.Protocol == Protocol) {
			t.Errorf("%s: the kernel keeps marks: %v, %v; but the mark read back is %d", prefix, keeps, err, got.Protocol)
		}
		t.Log(ip(t, node, "-d", "address", "show", "to", prefix))
		for range 2 {
			if err := handle.Remove(a); err != nil {
				t.Fatal(err)
			}
		}
		if _, ok := find(t, handle, eth.Index, prefix); ok {
			t.Errorf("%s is still there", prefix)
		}
	}
}

// watching collects the events of a Watch.
func watching(t *testing.T, h *Handle) <-chan Event {
	t.Helper()
	events := make(chan Event, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Watch(ctx, func(e Event) { events <- e }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	await(t, events, func(e Event) bool { return e.Synced })
	return events
}

func await(t *testing.T, events <-chan Event, want func(Event) bool) Event {
	t.Helper()
	timeout := time.After(time.Minute)
	for {
		select {
		case e := <-events:
			if want(e) {
				return e
			}
		case <-timeout:
			t.Fatal("the event did not come")
		}
	}
}

func isAddr(prefix string, gone bool) func(Event) bool {
	return func(e Event) bool {
		return e.Addr != nil && e.Addr.Prefix == netip.MustParsePrefix(prefix) && e.Gone == gone
	}
}

func TestWatchTellsWhatAnAdminDoesByHand(t *testing.T) {
	node, handle := host(t)
	eth := named(t, handle, "eth0")
	if err := handle.Add(Addr{Link: eth.Index, Prefix: netip.MustParsePrefix("10.1.0.101/32")}); err != nil {
		t.Fatal(err)
	}
	events := watching(t, handle)
	ip(t, node, "address", "del", "10.1.0.101/32", "dev", "eth0")
	await(t, events, isAddr("10.1.0.101/32", true))
	ip(t, node, "address", "add", "fd00::7/64", "dev", "eth0")
	await(t, events, isAddr("fd00::7/64", false))
	ip(t, node, "link", "set", "eth0", "down")
	await(t, events, func(e Event) bool { return e.Link != nil && e.Link.Name == "eth0" && !e.Link.Up && !e.Gone })
	ip(t, node, "link", "set", "eth0", "up")
	await(t, events, func(e Event) bool { return e.Link != nil && e.Link.Name == "eth0" && e.Link.Running })
}

func TestWatchTellsAnInterfaceThatIsDeletedAndMadeAgain(t *testing.T) {
	node, handle := host(t)
	ip(t, node, "link", "add", "v0", "type", "veth", "peer", "name", "v1")
	ip(t, node, "address", "add", "10.2.0.1/24", "dev", "v0")
	first := named(t, handle, "v0").Index
	events := watching(t, handle)
	ip(t, node, "link", "del", "v0")
	await(t, events, isAddr("10.2.0.1/24", true))
	await(t, events, func(e Event) bool { return e.Link != nil && e.Link.Index == first && e.Gone })
	ip(t, node, "link", "add", "v0", "type", "veth", "peer", "name", "v1")
	again := await(t, events, func(e Event) bool { return e.Link != nil && e.Link.Name == "v0" && !e.Gone })
	if again.Link.Index == first {
		t.Errorf("it came again with the index %d", first)
	}
	if err := handle.Remove(Addr{Link: first, Prefix: netip.MustParsePrefix("10.2.0.1/24")}); err != nil {
		t.Errorf("an address of an interface that is gone: %v", err)
	}
}
