package vrrp_test

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
)

// reload has the agent take over another file.
func (n *node) reload(vips string) {
	n.bed.Helper()
	was := n.count("cluster file reloaded")
	n.configure(vips)
	n.signal(syscall.SIGHUP)
	n.awaitLog(3*time.Second, "cluster file reloaded", was)
}

const twoVIPs = oneVIP + `  log: {network: lan, address: 10.9.0.101, vrid: 52, members: "n[1-3]", prefer: n1, advertise: 100ms}
`

func TestReloadTouchesOnlyWhatChanged(t *testing.T) {
	b := newBed(t, 1, oneVIP)
	n := b.nodes[0]
	second, third := netip.MustParseAddr("10.9.0.101"), netip.MustParseAddr("10.9.0.102")
	b.start(n)
	b.awaitHolder(3*time.Second, vip, n)
	lost := n.removals()
	n.reload(twoVIPs)
	b.awaitHolder(3*time.Second, second, n)
	n.reload(strings.Replace(twoVIPs, "10.9.0.101", "10.9.0.102", 1))
	b.awaitHolder(3*time.Second, third, n)
	n.reload(oneVIP)
	b.within(2*time.Second, "what is gone from the file is gone", func() error {
		if n.holds(second) || n.holds(third) {
			return fmt.Errorf("it is there")
		}
		return nil
	})
	if words := lost(); words != "" || !n.holds(vip) {
		t.Errorf("the address that did not change left: %s", words)
	}
	if got := n.count("router=web vrid=51 from="); got != 2 {
		t.Errorf("%d changes of the state of web, want its two first", got)
	}
	if got := n.metric(`holdfast_vrrp_state{router="log",state="active"}`); got != "0" {
		t.Errorf("metrics of the router that is gone: %s", got)
	}
	n.reload("")
	b.within(2*time.Second, "nothing is left", func() error {
		if n.holds(vip) {
			return fmt.Errorf("it is there")
		}
		return nil
	})
	n.reload(oneVIP)
	b.awaitHolder(3*time.Second, vip, n)
}

func TestAddressRemovedByHandIsPutBack(t *testing.T) {
	b := newBed(t, 1, oneVIP)
	n := b.nodes[0]
	b.start(n)
	b.awaitHolder(3*time.Second, vip, n)
	n.run("ip", "address", "del", "10.9.0.100/32", "dev", "eth0")
	n.awaitLog(2*time.Second, "put back", 0)
	if !n.holds(vip) {
		t.Error("it is not there")
	}
	b.within(time.Second, "it is counted", func() error {
		if got := n.metric(`holdfast_vrrp_addresses_returned_total{router="web"}`); got != "1" {
			return fmt.Errorf("%s times", got)
		}
		return nil
	})
}

// TestInterfaceThatComesLateIsRenamedAndComesBack follows an interface through
// all that people and udev do to one.
func TestInterfaceThatComesLateIsRenamedAndComesBack(t *testing.T) {
	b := newBed(t, 1, `vips:
  web: {network: lan, address: 10.9.0.100, vrid: 51, members: "n[1-3]", prefer: n1, advertise: 100ms}
`)
	n := b.nodes[0]
	n.run("ip", "address", "flush", "dev", "eth0")
	b.start(n)
	n.awaitLog(2*time.Second, "no interface has 10.9.0.1", 0)
	n.run("ip", "address", "add", "10.9.0.1/24", "dev", "eth0")
	b.awaitHolder(3*time.Second, vip, n)

	n.run("ip", "link", "set", "dev", "eth0", "down")
	b.within(2*time.Second, "a router without a carrier does not hold", func() error {
		if n.holds(vip) {
			return fmt.Errorf("it does")
		}
		return nil
	})
	n.run("ip", "link", "set", "dev", "eth0", "name", "lan0")
	n.run("ip", "link", "set", "dev", "lan0", "up")
	b.awaitHolder(3*time.Second, vip, n)

	// The machine moves to another interface, and the first goes away.
	n.run("ip", "link", "add", "late0", "type", "veth", "peer", "name", "late1")
	n.run("ip", "link", "set", "dev", "late1", "up")
	n.run("ip", "link", "set", "dev", "late0", "up")
	n.run("ip", "address", "del", "10.9.0.1/24", "dev", "lan0")
	n.run("ip", "address", "add", "10.9.0.1/24", "dev", "late0")
	awaitOn := func(device string) {
		b.Helper()
		b.within(3*time.Second, "the address is on "+device, func() error {
			text := n.run("ip", "-o", "address")
			for line := range strings.Lines(text) {
				if strings.Contains(line, " 10.9.0.100/") && strings.Contains(line, ": "+device+" ") && strings.Count(text, " 10.9.0.100/") == 1 {
					return nil
				}
			}
			return fmt.Errorf("%s", text)
		})
	}
	awaitOn("late0")
	n.run("ip", "link", "del", "late0")
	b.within(2*time.Second, "the journal forgets the interface", func() error {
		if text := n.run("cat", "/run/holdfast/vrrp/addresses"); text != "" {
			return fmt.Errorf("%s", text)
		}
		return nil
	})
	n.run("ip", "link", "add", "late0", "type", "veth", "peer", "name", "late1")
	n.run("ip", "link", "set", "dev", "late1", "up")
	n.run("ip", "link", "set", "dev", "late0", "up")
	n.run("ip", "address", "add", "10.9.0.1/24", "dev", "late0")
	awaitOn("late0")
	n.signal(syscall.SIGTERM)
	<-n.proc.Done()
	if n.holds(vip) {
		t.Error("the address stayed at the end")
	}
}

// TestTrackedThingsDecide: what a node tracks makes it give way and come back.
func TestTrackedThingsDecide(t *testing.T) {
	for name, c := range map[string]struct{ track, up, down string }{
		"file":      {"{file: /run/weight, weight: 1, every: 100ms}", "echo 0 >/run/weight", "echo -254 >/run/weight"},
		"process":   {"{process: tracked, every: 100ms}", "cp /bin/sleep /run/tracked; /run/tracked 1000 >/dev/null 2>&1 & true", "kill $(pidof tracked)"},
		"interface": {"{interface: side0}", "ip link add side0 type veth peer name side1 2>/dev/null; ip link set side1 up; ip link set side0 up", "ip link set side1 down"},
		"script":    {"{script: [/bin/test, -e, /run/healthy], every: 100ms, rise: 1, fall: 1}", "touch /run/healthy", "rm /run/healthy"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, 1, strings.Replace(oneVIP, "advertise: 100ms", "advertise: 100ms, vrrp: {track: ["+c.track+"]}", 1))
			n := b.nodes[0]
			n.run("sh", "-c", c.up)
			b.start(n)
			b.awaitHolder(4*time.Second, vip, n)
			n.run("sh", "-c", c.down)
			b.within(3*time.Second, "it gives way", func() error {
				if n.holds(vip) {
					return fmt.Errorf("it holds the address")
				}
				return nil
			})
			n.run("sh", "-c", c.up)
			b.awaitHolder(4*time.Second, vip, n)
		})
	}
}
