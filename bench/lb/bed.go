package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"holdfast/internal/kernel/ipvs"
	"holdfast/lab"
	"holdfast/lab/attempts"
	"holdfast/lab/site"
)

// What is measured.
const (
	removal         = "a dead real server leaves the table"
	recovery        = "new connections after the director's cable is cut"
	outage          = "UDP without an answer meanwhile"
	lostPackets     = "UDP packets lost meanwhile"
	lostConnections = "new connections lost meanwhile"
)

const (
	servers  = 3
	vip      = "10.1.0.100"
	patience = time.Minute
	pingGap  = 10 * time.Millisecond
	tryGap   = 50 * time.Millisecond
)

// bed is two directors, three real servers and a client.
type bed struct {
	binary    string
	lab       *lab.Lab
	directors []*lab.Host
	servers   []*lab.Host
	client    *lab.Host
	tables    []*ipvs.Handle
	last      net.Listener // of the last real server
}

func newBed(binary string) (b *bed, err error) {
	b = &bed{binary: binary}
	if b.lab, err = lab.New(lab.Options{Networks: []string{"adm"}}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.lab.Close())
		}
	}()
	if b.client, err = b.lab.AddHost("client", lab.On("adm", "10.1.0.200/24")); err != nil {
		return nil, err
	}
	for i := range 2 {
		d, err := b.lab.AddHost(fmt.Sprintf("d%d", i+1), lab.On("adm", fmt.Sprintf("10.1.0.%d/24", i+1)))
		if err != nil {
			return nil, err
		}
		b.directors = append(b.directors, d)
		err = d.Do(func() error {
			tables, err := ipvs.Open()
			b.tables = append(b.tables, tables)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	for i := range servers {
		if err := b.addServer(i); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// addServer makes a real server as an admin does who has scripts: the address
// on lo, silent to ARP, for both programs alike.
func (b *bed) addServer(i int) error {
	h, err := b.lab.AddHost(fmt.Sprintf("r%d", i+1), lab.On("adm", fmt.Sprintf("10.1.0.%d/24", 11+i)))
	if err != nil {
		return err
	}
	b.servers = append(b.servers, h)
	if out, err := h.Run(context.Background(), "sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore; echo 2 >/proc/sys/net/ipv4/conf/all/arp_announce; ip address add "+vip+"/32 dev lo"); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if b.last, err = serveTCP(h); err != nil {
		return err
	}
	return serveUDP(h)
}

func serveTCP(h *lab.Host) (net.Listener, error) {
	l, err := h.Listen("tcp", "0.0.0.0:7")
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed
			}
			conn.Close()
		}
	}()
	return l, nil
}

// serveUDP echoes from the address that was asked.
func serveUDP(h *lab.Host) error {
	conn, err := h.ListenPacket("udp", vip+":9")
	if err != nil {
		return err
	}
	go func() {
		for b := make([]byte, 64); ; {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return // closed
			}
			_, _ = conn.WriteTo(b[:n], from) // one that is lost is counted
		}
	}()
	return nil
}

// round measures one program once. The faults come late after a check that let
// the last server in: else they would come at once after it, for a program whose
// checks fill its table.
func (b *bed) round(ctx context.Context, c contestant, late time.Duration) (figures map[string]float64, err error) {
	procs, err := b.start(c)
	defer func() {
		err = errors.Join(err, b.directors[0].Plug("adm"), b.clean(ctx, procs))
	}()
	if err != nil {
		return nil, err
	}
	if err := b.await(ctx, "all real servers", func() error { return errors.Join(b.has(0, true), b.has(1, true), b.holds()) }); err != nil {
		return nil, err
	}
	select {
	case <-time.After(late):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	figures = map[string]float64{}
	if figures[removal], err = b.remove(ctx); err != nil {
		return nil, err
	}
	return figures, b.cut(ctx, figures)
}

// remove stops the last real server and waits until it gets nobody.
func (b *bed) remove(ctx context.Context) (ms float64, err error) {
	if err := b.last.Close(); err != nil {
		return 0, err
	}
	died := time.Now()
	if err := b.await(ctx, "the dead server to leave", func() error { return b.has(0, false) }); err != nil {
		return 0, err
	}
	ms = milliseconds(time.Since(died))
	if b.last, err = serveTCP(b.servers[servers-1]); err != nil {
		return 0, err
	}
	return ms, b.await(ctx, "the server to come back", func() error { return errors.Join(b.has(0, true), b.has(1, true)) })
}

// cut cuts the director's cable while a client sends packets and connects.
func (b *bed) cut(ctx context.Context, figures map[string]float64) error {
	p, err := b.ping()
	if err != nil {
		return err
	}
	tries := attempts.Start(ctx, tryGap, func(int) error { return b.connect() })
	defer tries.Stop()
	if err := b.await(ctx, "a second without loss", func() error { _, err := tries.Works(time.Second); return err }); err != nil {
		return err
	}
	cut := time.Now()
	if err := b.directors[0].Unplug("adm"); err != nil {
		return err
	}
	_, before := tries.Count()
	var works time.Time
	err = b.await(ctx, "new connections to work again", func() (err error) {
		if _, failed := tries.Count(); failed == before {
			return errors.New("none has failed yet")
		}
		works, err = tries.Works(time.Second)
		return err
	})
	if err != nil {
		return err
	}
	_, failed := tries.Count()
	figures[recovery], figures[lostConnections] = milliseconds(works.Sub(cut)), float64(failed-before)
	lost, gap := p.end()
	figures[lostPackets], figures[outage] = float64(lost), milliseconds(gap)
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// connect makes a new connection.
func (b *bed) connect() error {
	return b.client.Do(func() error {
		conn, err := (&net.Dialer{Timeout: 500 * time.Millisecond}).Dial("tcp4", vip+":7")
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// has tells whether the last real server gets connections from a director's
// table, as it should, and the others do.
func (b *bed) has(director int, want bool) error {
	o, _, err := b.tables[director].Get(ipvs.ByAddr(ipvs.TCP, netip.MustParseAddrPort(vip+":7")))
	if err != nil {
		return err
	}
	takes := 0
	last := false
	for _, r := range o.Servers {
		if r.Weight > 0 {
			takes++
			last = last || r.Addr.Addr() == b.servers[servers-1].Addr("adm")
		}
	}
	if last != want || want && takes != servers {
		return fmt.Errorf("%v has the real servers %v", b.directors[director], o.Servers)
	}
	return nil
}

// holds tells whether the first director has the address.
func (b *bed) holds() error {
	var addrs []net.Addr
	err := b.directors[0].Do(func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		addrs, err = ifi.Addrs()
		return err
	})
	if err == nil && !slices.ContainsFunc(addrs, func(a net.Addr) bool { return a.String() == vip+"/32" || a.String() == vip+"/24" }) {
		err = fmt.Errorf("d1 has %v", addrs)
	}
	return err
}

func (b *bed) await(ctx context.Context, what string, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := site.Poll(ctx, func(context.Context) error { return f() }); err != nil {
		return fmt.Errorf("wait for %s: %w", what, err)
	}
	return nil
}

// pinger sends numbered packets from one port and looks which are answered. It
// sends fewer than it should on a machine that is busy, so that packets lost
// are told beside the time in which none was answered.
type pinger struct {
	conn net.PacketConn
	stop chan struct{}
	all  sync.WaitGroup
	sent []time.Time // by number
	seen map[string]bool
}

func (b *bed) ping() (*pinger, error) {
	conn, err := b.client.ListenPacket("udp", "10.1.0.200:0")
	if err != nil {
		return nil, err
	}
	p := &pinger{conn: conn, stop: make(chan struct{}), seen: map[string]bool{}}
	p.all.Go(func() {
		for buffer := make([]byte, 64); ; {
			n, _, err := conn.ReadFrom(buffer)
			if err != nil {
				return // closed
			}
			p.seen[string(buffer[:n])] = true
		}
	})
	go func() {
		to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(vip + ":9"))
		tick := time.NewTicker(pingGap)
		defer tick.Stop()
		for {
			select {
			case <-p.stop:
				// What is under way may arrive.
				_ = conn.SetReadDeadline(time.Now().Add(time.Second))
				return
			case <-tick.C:
				p.sent = append(p.sent, time.Now())
				_, _ = conn.WriteTo(fmt.Append(nil, len(p.sent)-1), to) // one that is lost is counted
			}
		}
	}()
	return p, nil
}

// end tells how many packets got no answer, and the longest time between the
// sending of two that did.
func (p *pinger) end() (lost int, gap time.Duration) {
	p.stop <- struct{}{}
	p.all.Wait()
	p.conn.Close()
	var last time.Time
	for i, sent := range p.sent {
		if !p.seen[fmt.Sprint(i)] {
			lost++
			continue
		}
		if !last.IsZero() {
			gap = max(gap, sent.Sub(last))
		}
		last = sent
	}
	return lost, gap
}
