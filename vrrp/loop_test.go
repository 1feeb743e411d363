package vrrp

import (
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/kernel/rawsock"
	"holdfast/lab"
)

// loopOn is a loop with one router, on the interface of a host of its own.
func loopOn(t *testing.T) (*loop, *instance) {
	t.Helper()
	host, err := lab.NewTest(t, lab.Options{Networks: []string{"lan"}}).AddHost("n1", lab.On("lan", "10.9.0.1/24"))
	if err != nil {
		t.Fatal(err)
	}
	var socket *rawsock.Socket
	if err := host.Do(func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		socket, err = rawsock.Open(rawsock.Interface{Index: eth0.Index, Name: eth0.Name, MAC: eth0.HardwareAddr}, false)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	m, err := newMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	core := loopRouter()
	in := &instance{log: log, metrics: m.router("web"), settings: RouterSettings{Router: core, MinTTL: 255}, core: core}
	in.port = &port{socket4: socket, users: []*instance{in}}
	in.port.routers4[51] = in
	l := &loop{log: log, metrics: m, told: &conditions{log: log}, garbage: newGarbage(), machine: NewMachine([]Router{core}), instances: []*instance{in}}
	l.machine.Step(Event{Kind: Start, At: time.Now()})
	return l, in
}

func loopRouter() Router {
	return Router{
		Name: "web", Version: 3, VRID: 51, Priority: 100, Interval: 100 * time.Millisecond, Preempt: true,
		Source: netip.MustParseAddr("10.9.0.1"), Advertised: []netip.Addr{netip.MustParseAddr("10.9.0.100")},
	}
}

func TestSendingAndReceivingAdvertsCostsNoMemory(t *testing.T) {
	l, in := loopOn(t)
	l.send(in, 100, in.core.Interval) // makes the packet
	if n := testing.AllocsPerRun(200, func() { l.send(in, 100, in.core.Interval) }); n > 0 || in.sendErrors > 0 {
		t.Errorf("an advert that is sent makes %v allocations; %d were not sent", n, in.sendErrors)
	}
	peer := netip.MustParseAddr("10.9.0.2")
	advert := in.advert(200, in.core.Interval)
	got := rawsock.Packet{Src: peer, Dst: groupIPv4, TTL: 255, Payload: advert.Append(nil, peer, groupIPv4, in.core.Checksum)}
	l.packet(in.port, got, &in.port.routers4)
	if n := testing.AllocsPerRun(200, func() { l.packet(in.port, got, &in.port.routers4) }); n > 0 || in.lastSeen.IsZero() {
		t.Errorf("an advert that is received makes %v allocations; the last came %v", n, in.lastSeen)
	}
}

func TestGarbageIsLoggedOnceAndCostsNoMemoryAfterwards(t *testing.T) {
	l, in := loopOn(t)
	got := rawsock.Packet{Src: netip.MustParseAddr("10.9.0.2"), Dst: groupIPv4, TTL: 255, Payload: []byte{0x31, 51, 0}}
	l.packet(in.port, got, &in.port.routers4)
	if len(l.garbage.said) != 1 {
		t.Errorf("said %v", l.garbage.said)
	}
	if n := testing.AllocsPerRun(200, func() { l.packet(in.port, got, &in.port.routers4) }); n > 1 { // the parser's error
		t.Errorf("garbage makes %v allocations", n)
	}
}

func TestManySourcesOfGarbageDoNotFillTheMemory(t *testing.T) {
	g, now := newGarbage(), time.Now()
	said := 0
	for i := range 100000 {
		if g.news(garbageKey{"checksum", netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}, now) {
			said++
		}
	}
	if said != garbageSources || len(g.said) != garbageSources {
		t.Errorf("%d were said, %d are remembered", said, len(g.said))
	}
	if !g.news(garbageKey{"checksum", netip.MustParseAddr("10.200.0.1")}, now.Add(garbageEvery+time.Second)) {
		t.Error("a new one is not told after the pause")
	}
}
