package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"holdfast/lab"
)

// Ping is one echo request and what became of it.
type Ping struct {
	Sent  time.Time
	Reply time.Time // zero: none so far
	By    MAC       // who replied
}

// Pinger pings an address from a host again and again, as a client would: the
// host's own kernel finds the neighbour. It records whose replies come.
type Pinger struct {
	target netip.Addr
	conn   net.PacketConn
	file   *os.File
	stop   chan struct{}
	wait   sync.WaitGroup

	mu     sync.Mutex
	pings  []Ping
	closed bool
	failed error
}

// pingID marks our echoes; there is one pinger an address and host.
const pingID = 0x4846

// StartPing pings target from a host every so often. Device is the host's
// interface to it. Close ends it.
func StartPing(h *lab.Host, device string, target netip.Addr, every time.Duration) (*Pinger, error) {
	p := &Pinger{target: target, stop: make(chan struct{})}
	err := h.Do(func() (err error) {
		network, listen := "ip4:icmp", "0.0.0.0"
		if target.Is6() {
			network, listen = "ip6:ipv6-icmp", "::"
		}
		if p.conn, err = net.ListenPacket(network, listen); err != nil {
			return err
		}
		if p.file, err = openPacket(device, false, echoReplies()); err != nil {
			return errors.Join(err, p.conn.Close())
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("wire: ping %s from %s: %w", target, h, err)
	}
	p.wait.Go(func() { p.send(every) })
	p.wait.Go(p.receive)
	return p, nil
}

func echoReplies() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: typeIPv6, SkipTrue: 3},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: typeIPv4, SkipTrue: 5},
		bpf.LoadAbsolute{Off: 23, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: protocolICMP, SkipTrue: 2, SkipFalse: 3},
		bpf.LoadAbsolute{Off: 54, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 129, SkipTrue: 1},
		bpf.RetConstant{Val: 256},
		bpf.RetConstant{Val: 0},
	}
}

func (p *Pinger) send(every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		p.mu.Lock()
		n := len(p.pings)
		p.pings = append(p.pings, Ping{Sent: time.Now()})
		p.mu.Unlock()
		if err := p.sendOne(n); err != nil && !transient(err) {
			p.fail(err)
			return
		}
		select {
		case <-tick.C:
		case <-p.stop:
			return
		}
	}
}

func (p *Pinger) sendOne(n int) error {
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: pingID, Seq: n & 0xffff, Data: binary.BigEndian.AppendUint32(nil, uint32(n))}}
	if p.target.Is6() {
		m.Type = ipv6.ICMPTypeEchoRequest // the kernel sums
	}
	data, err := m.Marshal(nil)
	if err != nil {
		return err
	}
	_, err = p.conn.WriteTo(data, &net.IPAddr{IP: p.target.AsSlice()})
	return err
}

// transient errors are what a client sees while nobody has the address.
func transient(err error) bool {
	for _, e := range transientErrors() {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (p *Pinger) receive() {
	buffer := make([]byte, 256)
	for {
		n, at, err := receivePacket(p.file, buffer)
		if err != nil {
			p.fail(err)
			return
		}
		frame := buffer[:n]
		src, number, ok := decodeEchoReply(frame)
		if !ok || src != p.target {
			continue
		}
		p.mu.Lock()
		if int(number) < len(p.pings) && p.pings[number].Reply.IsZero() {
			p.pings[number].Reply, p.pings[number].By = at, MAC(frame[6:12])
		}
		p.mu.Unlock()
	}
}

// decodeEchoReply reads the number of one of our echoes.
func decodeEchoReply(frame []byte) (src netip.Addr, number uint32, ok bool) {
	if len(frame) < etherLen+20 {
		return src, 0, false
	}
	b := frame[etherLen:]
	var body []byte
	switch b[0] >> 4 {
	case 4:
		header := int(b[0]&0x0f) * 4
		if header < 20 || len(b) < header {
			return src, 0, false
		}
		src, body = netip.AddrFrom4([4]byte(b[12:])), b[header:]
	case 6:
		if len(b) < 40 {
			return src, 0, false
		}
		src, body = netip.AddrFrom16([16]byte(b[8:])), b[40:]
	}
	if len(body) < 12 || body[0] != 0 && body[0] != 129 || binary.BigEndian.Uint16(body[4:]) != pingID {
		return src, 0, false
	}
	return src, binary.BigEndian.Uint32(body[8:]), true
}

func (p *Pinger) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.failed = errors.Join(p.failed, err)
	}
}

// Pings returns what was sent so far, oldest first.
func (p *Pinger) Pings() []Ping {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.pings)
}

// Await returns a ping that was sent at that time or later, was
// answered, and that match accepts.
func (p *Pinger) Await(ctx context.Context, since time.Time, match func(Ping) bool) (Ping, error) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		p.mu.Lock()
		for i := len(p.pings) - 1; i >= 0 && !p.pings[i].Sent.Before(since); i-- {
			if found := p.pings[i]; !found.Reply.IsZero() && match(found) {
				p.mu.Unlock()
				return found, nil
			}
		}
		err := p.failed
		p.mu.Unlock()
		if err != nil {
			return Ping{}, err
		}
		select {
		case <-ctx.Done():
			return Ping{}, ctx.Err()
		case <-tick.C:
		}
	}
}

// Since returns what was sent at that time or later.
func (p *Pinger) Since(at time.Time) []Ping {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := len(p.pings)
	for i > 0 && !p.pings[i-1].Sent.Before(at) {
		i--
	}
	return slices.Clone(p.pings[i:])
}

// Err is what broke the pinger, nil while it works.
func (p *Pinger) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}

// Close ends it; what was recorded stays.
func (p *Pinger) Close() error {
	p.mu.Lock()
	again := p.closed
	p.closed = true
	p.mu.Unlock()
	if again {
		return nil
	}
	close(p.stop)
	err := errors.Join(p.conn.Close(), p.file.Close())
	p.wait.Wait()
	return errors.Join(err, p.Err())
}

// Takeover is the time from a fault to the first reply of another host than
// the one that had the address. Ok is false when none came.
func Takeover(pings []Ping, fault time.Time, old MAC) (time.Duration, bool) {
	var first time.Time
	for _, p := range pings {
		if !p.Reply.IsZero() && p.By != old && p.Reply.After(fault) && (first.IsZero() || p.Reply.Before(first)) {
			first = p.Reply
		}
	}
	return first.Sub(fault), !first.IsZero()
}

// LongestSilence is the longest time between two replies, whoever gave them,
// of which the second came after a time.
func LongestSilence(pings []Ping, since time.Time) time.Duration {
	var replies []time.Time
	for _, p := range pings {
		if !p.Reply.IsZero() {
			replies = append(replies, p.Reply)
		}
	}
	slices.SortFunc(replies, time.Time.Compare)
	var longest time.Duration
	for i := 1; i < len(replies); i++ {
		if replies[i].After(since) {
			longest = max(longest, replies[i].Sub(replies[i-1]))
		}
	}
	return longest
}

// Lost counts the pings sent in a window that nobody replied to.
func Lost(pings []Ping, w Window) int {
	lost := 0
	for _, p := range pings {
		if p.Reply.IsZero() && !p.Sent.Before(w.From) && p.Sent.Before(w.To) {
			lost++
		}
	}
	return lost
}
