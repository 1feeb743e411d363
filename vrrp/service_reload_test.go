package vrrp_test

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What the guard would do follows a reload: with the patience of an interval
// that was ten seconds, it would leave the address for 20 s while the peers act
// after 0.4.
func TestGuardFollowsAReload(t *testing.T) {
	const told = `msg="the guard was told"`
	slow := strings.Replace(oneVIP, "advertise: 100ms", "advertise: 10s, vrrp: {priority: {n1: 255}}", 1)
	b := newBed(t, 1, slow)
	n := b.nodes[0]
	b.start(n)
	b.awaitHolder(5*time.Second, vip, n)
	n.awaitLog(5*time.Second, told, 0) // of the address, in the old time
	before := n.count(told)
	n.reload(strings.Replace(slow, "10s", "100ms", 1))
	n.awaitLog(5*time.Second, told, before) // what is written reaches it, also after our death
	n.signal(syscall.SIGKILL)
	b.within(8*time.Second, "the guard withdraws the address in the new time", func() error {
		if n.holds(vip) {
			return fmt.Errorf("it is there")
		}
		return nil
	})
}

// Two networks on one wire: adverts say the VRID only, so the second VIP that
// has it can't work there. It is said, and it does once the first is gone.
func TestVRIDThatTwoNetworksOfOneWireShareIsNamed(t *testing.T) {
	const file = `schema: 1
cluster: test
domain: example.org
networks:
  lan: {prefix: 10.9.0.0/24}
  san: {prefix: 10.8.0.0/24}
roles:
  service: {voters: 1, run: [dns]}
nodes:
  n1: {role: service, addresses: {lan: 10.9.0.1, san: 10.8.0.1}}
vips:
  web: {network: lan, address: 10.9.0.100, vrid: 51, members: n1, advertise: 100ms}
`
	const other = `  store: {network: san, address: 10.8.0.100, vrid: 51, members: n1, advertise: 100ms}
`
	b := newBedOf(t, 1, file+other)
	n := b.nodes[0]
	n.run("ip", "address", "add", "10.8.0.1/24", "dev", "eth0")
	b.start(n)
	b.awaitHolder(3*time.Second, vip, n)
	n.awaitLog(3*time.Second, condition("vrrp.store.fault"), 0)
	if words := "VRID 51 is that of web on eth0, too"; n.count(words) == 0 {
		t.Errorf("the log does not say %q: %s", words, n.log())
	}
	store := netip.MustParseAddr("10.8.0.100")
	if n.holds(store) {
		t.Error("it holds the address all the same")
	}
	vips, _, _ := strings.Cut(file, "  web:")
	b.must(n.host.Write("/etc/holdfast/cluster.yaml", []byte(vips+other)))
	n.signal(syscall.SIGHUP)
	b.awaitHolder(3*time.Second, store, n)
}

// Excluded addresses, of either family, go where the VIP goes, and are not in
// its adverts.
func TestExcludedAddressesMoveWithTheVIP(t *testing.T) {
	b := newBed(t, 2, strings.Replace(oneVIP, "advertise: 100ms", `advertise: 100ms, vrrp: {excluded: [10.9.0.201, "fd00:9::1/64"]}`, 1))
	first, second := b.nodes[0], b.nodes[1]
	b.start(second, first)
	for _, addr := range []string{"10.9.0.100", "10.9.0.201", "fd00:9::1"} {
		b.awaitHolder(3*time.Second, netip.MustParseAddr(addr), first)
	}
	heard := second.run(binary, "vip", "show", "web", "--json")
	_, peers, _ := strings.Cut(heard, `"peers"`)
	if !strings.Contains(peers, "10.9.0.100") || strings.Contains(peers, "10.9.0.201") || strings.Contains(peers, "fd00:9::1") {
		t.Errorf("the advert has other addresses than 10.9.0.100: %s", peers)
	}
	b.must(first.host.PowerOff())
	for _, addr := range []string{"10.9.0.100", "10.9.0.201", "fd00:9::1"} {
		b.awaitHolder(2*time.Second, netip.MustParseAddr(addr), second)
	}
}

// An interface that flaps for less than debounce is left alone; one that stays
// down counts after it, and no sooner.
func TestInterfaceThatFlapsIsLeftAlone(t *testing.T) {
	b := newBed(t, 1, strings.Replace(oneVIP, "advertise: 100ms", "advertise: 100ms, vrrp: {debounce: 3s}", 1))
	n := b.nodes[0]
	b.start(n)
	b.awaitHolder(8*time.Second, vip, n)
	changes, began := n.count("router=web vrid=51 from="), time.Now()
	for range 3 {
		n.run("sh", "-c", "ip link set eth0 down; ip link set eth0 up")
	}
	const sent = `holdfast_vrrp_adverts_sent_total{router="web"}`
	before := n.metric(sent)
	b.within(5*time.Second, "adverts go on", func() error {
		if n.metric(sent) == before {
			return fmt.Errorf("%s were sent", before)
		}
		return nil
	})
	if n.count("router=web vrid=51 from=") != changes || !n.holds(vip) {
		b.unlessStood(2*time.Second, began, "a flap moved it: %s", n.log())
	}
	down := time.Now()
	n.run("ip", "link", "set", "eth0", "down")
	n.awaitLog(6*time.Second, condition("vrrp.web.fault"), 0)
	if took := time.Since(down); took < 3*time.Second {
		t.Errorf("it counted after %v, debounce is 3s", took)
	}
}

// A reload whose socket can't be opened: the node says so and lets go, since its
// peers speak to the new router, and takes part as soon as it can be opened. The
// kernel of this host lets nobody into a multicast group.
func TestARouterThatCantHaveItsNewSocketIsInFaultUntilItCan(t *testing.T) {
	unicast := strings.Replace(oneVIP, "advertise: 100ms", "advertise: 100ms, vrrp: {unicast: true}", 1)
	b := newBed(t, 2, unicast)
	first, second := b.nodes[0], b.nodes[1]
	b.start(first, second)
	b.awaitHolder(3*time.Second, vip, first)
	groups := func(most string) {
		b.must(first.host.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/igmp_max_memberships", []byte(most), 0) }))
	}
	groups("0")
	second.reload(oneVIP)
	first.reload(oneVIP)
	first.awaitLog(3*time.Second, condition("vrrp.web.fault"), 0)
	_, said, _ := strings.Cut(first.log(), condition("vrrp.web.fault"))
	if said, _, _ = strings.Cut(said, "\n"); !strings.Contains(said, "join 224.0.0.18") {
		t.Errorf("the condition does not say what can't be opened: %s", said)
	}
	b.awaitHolder(3*time.Second, vip, second)
	groups("20")
	b.awaitHolder(5*time.Second, vip, first)
	if words := `msg="condition ended" name=vrrp.web.fault`; first.count(words) == 0 {
		t.Errorf("its log does not say %q: %s", words, first.log())
	}
}
