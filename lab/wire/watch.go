package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"holdfast/lab"
)

// Watch records what is said on a network of the lab, seen from the switch.
// Its methods may be called from several goroutines.
type Watch struct {
	file  *os.File
	ended chan struct{}

	mu     sync.Mutex
	events []Event
	more   chan struct{} // closed and replaced at every event
	closed bool
	err    error
}

// Listen starts recording. Close ends it.
func Listen(l *lab.Lab, network string) (*Watch, error) {
	w := &Watch{ended: make(chan struct{}), more: make(chan struct{})}
	err := l.OnSwitch(network, func(bridge string) (err error) {
		w.file, err = openPacket(bridge, true, interesting())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("wire: watch %s: %w", network, err)
	}
	go w.run()
	return w, nil
}

// interesting passes VRRP, ARP and neighbour advertisements: pings in between
// would cost what the tested daemons need.
func interesting() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: typeARP, SkipTrue: 8},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: typeIPv4, SkipTrue: 5},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: typeIPv6, SkipTrue: 7},
		bpf.LoadAbsolute{Off: 20, Size: 1}, // next header
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: protocolVRRP, SkipTrue: 4},
		bpf.LoadAbsolute{Off: 54, Size: 1}, // of ICMPv6, or of nothing that looks like it by chance
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 136, SkipTrue: 2, SkipFalse: 3},
		bpf.LoadAbsolute{Off: 23, Size: 1}, // protocol
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protocolVRRP, SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 16},
		bpf.RetConstant{Val: 0},
	}
}

func (w *Watch) run() {
	defer close(w.ended)
	buffer := make([]byte, 2048)
	for {
		n, at, err := receivePacket(w.file, buffer)
		if err != nil {
			w.mu.Lock()
			if !w.closed {
				w.err = err
			}
			w.mu.Unlock()
			return
		}
		e, ok := decode(buffer[:n])
		if !ok {
			continue
		}
		e.At = at
		w.mu.Lock()
		w.events = append(w.events, e)
		close(w.more)
		w.more = make(chan struct{})
		w.mu.Unlock()
	}
}

// Events returns what was recorded so far, oldest first.
func (w *Watch) Events() []Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.events)
}

// Since returns what was recorded at that time or later.
func (w *Watch) Since(at time.Time) []Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := len(w.events)
	for i > 0 && !w.events[i-1].At.Before(at) {
		i--
	}
	return slices.Clone(w.events[i:])
}

// Await returns the first event at that time or later that match accepts; an
// error with what says what was waited for when ctx ends before.
func (w *Watch) Await(ctx context.Context, since time.Time, what string, match func(Event) bool) (Event, error) {
	next := 0
	for {
		w.mu.Lock()
		fresh, more := w.events[next:], w.more
		next = len(w.events)
		w.mu.Unlock()
		for _, e := range fresh {
			if !e.At.Before(since) && match(e) {
				return e, nil
			}
		}
		select {
		case <-more:
		case <-w.ended:
			return Event{}, fmt.Errorf("wire: wait for %s: the watch ended", what)
		case <-ctx.Done():
			return Event{}, fmt.Errorf("wire: wait for %s: %w", what, ctx.Err())
		}
	}
}

// Close ends the recording; what was recorded stays. It returns what broke it
// before.
func (w *Watch) Close() error {
	w.mu.Lock()
	again := w.closed
	w.closed = true
	w.mu.Unlock()
	if again {
		return nil
	}
	err := w.file.Close()
	<-w.ended
	return errors.Join(err, w.err)
}

// openPacket opens an AF_PACKET socket on an interface of the thread's network
// namespace that the runtime's poller can wait for.
func openPacket(device string, promiscuous bool, filter []bpf.Instruction) (*os.File, error) {
	ifi, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	// Protocol 0: nothing is received before the filter is in place.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := preparePacket(fd, ifi.Index, promiscuous, filter); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "packet "+device), nil
}

func preparePacket(fd, index int, promiscuous bool, filter []bpf.Instruction) error {
	raw, err := bpf.Assemble(filter)
	if err != nil {
		return err
	}
	program := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		program[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}); err != nil {
		return err
	}
	for option, value := range map[int]int{unix.SO_TIMESTAMPNS: 1, unix.SO_RCVBUFFORCE: 8 << 20} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, value); err != nil {
			return err
		}
	}
	if promiscuous {
		if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP,
			&unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_PROMISC}); err != nil {
			return err
		}
	}
	return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: index})
}

// htons: the kernel wants this number in network order, whatever the machine's is.
func htons(n uint16) uint16 { return n<<8 | n>>8 }

// receivePacket waits for a frame, and says when the kernel got it.
func receivePacket(f *os.File, buffer []byte) (n int, at time.Time, err error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return 0, at, err
	}
	oob := make([]byte, 64)
	var oobn int
	var failed error
	err = conn.Read(func(fd uintptr) bool {
		n, oobn, _, _, failed = unix.Recvmsg(int(fd), buffer, oob, 0)
		return !errors.Is(failed, unix.EAGAIN) && !errors.Is(failed, unix.EINTR)
	})
	if err := errors.Join(err, failed); err != nil {
		return 0, at, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return 0, at, err
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
			return n, timestamp(m.Data), nil
		}
	}
	return n, time.Now(), nil
}

func timestamp(data []byte) time.Time {
	return time.Unix(int64(binary.NativeEndian.Uint64(data)), int64(binary.NativeEndian.Uint64(data[8:])))
}
