package vm

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
)

const (
	// queueLength is how many frames wait at a port for a machine that is
	// slow; what comes on top is lost, as in a switch.
	queueLength = 1000

	// maxFrame is the longest frame in bytes, 64 KiB and its header.
	maxFrame = 64<<10 + 4096

	headerEthernet = 14
)

// Wire is an Ethernet switch in this process. Machines are plugged into it by
// their NICs, and the test by Join; nothing else can see it. It learns
// addresses, as switches do: a machine that takes over an address without
// saying so isn't found.
type Wire struct {
	prefix [2]byte

	mu    sync.Mutex
	ports map[*Port]bool
	seen  map[[6]byte]*Port // by hardware address
	nics  byte
}

// NewWire returns a wire that nothing is plugged into.
func NewWire() *Wire {
	w := &Wire{ports: make(map[*Port]bool), seen: make(map[[6]byte]*Port)}
	// So that machines with two wires have two addresses.
	binary.BigEndian.PutUint16(w.prefix[:], uint16(rand.Uint32()))
	return w
}

// newMAC returns a hardware address for one NIC, locally administered.
func (w *Wire) newMAC() net.HardwareAddr {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nics++
	return net.HardwareAddr{0x02, 'v', 'm', w.prefix[0], w.prefix[1], w.nics}
}

// Port is a socket of the switch.
type Port struct {
	wire *Wire
	out  chan []byte
	once sync.Once
	done chan struct{}
}

// Join plugs the test itself in. Leave closes the port.
func (w *Wire) Join() *Port {
	p := &Port{wire: w, out: make(chan []byte, queueLength), done: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ports[p] = true
	return p
}

// Leave pulls the cable: the switch forgets who was behind it.
func (p *Port) Leave() {
	p.once.Do(func() { close(p.done) })
	p.wire.mu.Lock()
	defer p.wire.mu.Unlock()
	delete(p.wire.ports, p)
	for mac, at := range p.wire.seen {
		if at == p {
			delete(p.wire.seen, mac)
		}
	}
}

// Send gives a frame to the switch. It doesn't block; what a slow receiver has
// no room for is lost. The frame must not be changed afterwards.
func (p *Port) Send(frame []byte) error {
	if len(frame) < headerEthernet || len(frame) > maxFrame {
		return fmt.Errorf("vm: a frame of %d bytes", len(frame))
	}
	p.wire.forward(p, frame)
	return nil
}

// Receive returns the next frame that the switch sends to this port. The error
// is that of ctx, or [net.ErrClosed].
func (p *Port) Receive(ctx context.Context) ([]byte, error) {
	select {
	case frame := <-p.out:
		return frame, nil
	case <-p.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (w *Wire) forward(from *Port, frame []byte) {
	to, source := [6]byte(frame), [6]byte(frame[6:])
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.ports[from] {
		return // its cable was pulled
	}
	if source[0]&1 == 0 {
		w.seen[source] = from
	}
	if at := w.seen[to]; at != nil && to[0]&1 == 0 {
		if at != from {
			at.offer(frame)
		}
		return
	}
	for p := range w.ports {
		if p != from {
			p.offer(frame)
		}
	}
}

func (p *Port) offer(frame []byte) {
	select {
	case p.out <- frame:
	default:
	}
}

// serve connects a port with an emulator's "stream" network backend: each
// frame after its length in four bytes. It returns when either is gone.
func (p *Port) serve(conn net.Conn) {
	go func() {
		defer conn.Close()
		for {
			frame, err := p.Receive(context.Background())
			if err != nil {
				return
			}
			buf := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(frame)), uint32(len(frame)))
			if _, err := conn.Write(append(buf, frame...)); err != nil {
				return
			}
		}
	}()
	defer p.Leave()
	r := bufio.NewReader(conn)
	for {
		frame, err := readFrame(r)
		if err != nil {
			return
		}
		p.wire.forward(p, frame)
	}
}

func readFrame(r io.Reader) ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(length[:])
	if n < headerEthernet || n > maxFrame {
		return nil, fmt.Errorf("vm: a frame of %d bytes", n)
	}
	frame := make([]byte, n)
	if _, err := io.ReadFull(r, frame); err != nil {
		return nil, errors.Join(io.ErrUnexpectedEOF, err)
	}
	return frame, nil
}
