package logs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/cluster"
	"holdfast/internal/health"
	"holdfast/internal/peer"
	"holdfast/lab/vm"
	"holdfast/logrelay"
	"holdfast/logrelay/relp"
)

const (
	// pairEnv makes this test binary a relay of a pair: its name, its directory
	// and that of its certificate, with spaces between them. It prints how it
	// stands, until SIGTERM.
	pairEnv = "LOGS_TEST_PAIR"
	// pairClientsEnv makes it clients that send to the address that a line of
	// their input names, until one says that it is the end. They print how much
	// they are answered.
	pairClientsEnv = "LOGS_TEST_CLIENTS"
)

// What the processes print, one line each, and what follows.
const (
	pairStateLine = "state"    // of pairState
	pairAlone     = "alone"    // nothing: that begins
	pairAnswer    = "answered" // client, lines
	pairEnd       = "end"      // likewise; all are. It is also what ends the clients
)

// pairState is how a relay stands: the end of its journal, the first line that
// the other one lacks, and whether lines are acknowledged without that.
type pairState struct {
	end, replicated uint64
	alone           bool
	doubled         uint64 // as the relay counts since it was started
}

const (
	pairCluster     = "logs"
	pairClientCount = 4
	pairEvery       = 100 * time.Millisecond // a client sends pairTogether lines
	pairTogether    = 8
	pairRELP        = 20514
	conditionAlone  = "logs.replica"
)

var (
	pairNames = []string{"fb1", "fb2"}
	pairLine  = regexp.MustCompile(`seq=(\d+)\.\n`)
)

// pairFile is their cluster. Clients are relays to it, since their names say
// which file is whose.
const pairFile = `schema: 1
cluster: logs
domain: logs.example.com
networks: {main: {prefix: 10.9.0.0/24}}
roles: {service: {voters: 1, run: [logs]}}
nodes:
  fb1: {role: service, addresses: {main: 10.9.0.1}}
  fb2: {role: service, addresses: {main: 10.9.0.2}}
logs: {replicas: 2, relays: [10.9.0.16/28]}
`

func pairAddr(name string) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 9, 0, byte(slices.Index(pairNames, name) + 1)})
}

// pairClientAddr is a client's own: a relay tells clients by it.
func pairClientAddr(client int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 9, 0, byte(17 + client)})
}

func pairNode(what string) error {
	words := strings.Fields(what)
	name, dir := words[0], words[1]
	file, err := cluster.Parse("pair.yaml", []byte(pairFile), map[string]cluster.SectionValidator{logrelay.Section: logrelay.ValidateSection})
	if err != nil {
		return err
	}
	trust, err := peer.Load(words[2])
	if err != nil {
		return err
	}
	var others []logrelay.Other
	for _, other := range pairNames {
		if other != name {
			others = append(others, logrelay.Other{Name: other, Addr: pairAddr(other)})
		}
	}
	board := health.NewBoard(time.Now, nil, nil)
	s, err := logrelay.New(logrelay.Config{Node: name, DataDir: dir, Dir: filepath.Join(dir, "hosts")}, logrelay.Deps{
		File: file, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Metrics: prometheus.NewRegistry(), Board: board,
		ReplicaTLS: trust.Server(peer.RoleServer), PeerTLS: trust.Client, Others: func() []logrelay.Other { return others },
	})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var group sync.WaitGroup
	defer group.Wait()
	return s.Run(ctx, func() { group.Go(func() { tellPair(ctx, s, board) }) })
}

// tellPair prints how a relay stands until ctx ends, and then once more.
func tellPair(ctx context.Context, s *logrelay.Server, board *health.Board) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for was := false; ; {
		last := ctx.Err() != nil
		state := pairState{alone: slices.ContainsFunc(board.Conditions(), func(c health.Condition) bool { return c.Name == conditionAlone })}
		status := s.Status()
		state.end, state.doubled = status.End, status.Doubled
		for _, o := range status.Outputs {
			if o.Name == "replica" {
				state.replicated = o.Next
			}
		}
		if state.alone && !was {
			fmt.Println(pairAlone)
		}
		was = state.alone
		fmt.Println(pairStateLine, state.end, state.replicated, state.alone, state.doubled)
		if last {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// pairClients are the clients, each with an address of its own.
func pairClients(string) error {
	out := &sync.Mutex{}
	list := make([]*pairClient, pairClientCount)
	moved := newPairTarget()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var group sync.WaitGroup
	for i := range list {
		list[i] = &pairClient{number: i, target: moved, print: func(text string) {
			out.Lock()
			defer out.Unlock()
			fmt.Println(text)
		}}
		group.Go(func() { list[i].run(ctx) })
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() && in.Text() != pairEnd {
		to, err := netip.ParseAddr(in.Text())
		if err != nil {
			return err
		}
		moved.set(netip.AddrPortFrom(to, pairRELP))
	}
	stop()
	group.Wait()
	return in.Err()
}

// pairTarget is who has the address.
type pairTarget struct {
	mu    sync.Mutex
	to    netip.AddrPort
	moved chan struct{} // closed when that changes
}

func newPairTarget() *pairTarget { return &pairTarget{moved: make(chan struct{})} }

func (p *pairTarget) set(to netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.to = to
	close(p.moved)
	p.moved = make(chan struct{})
}

func (p *pairTarget) get() (to netip.AddrPort, moved <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.to, p.moved
}

// pairClient sends numbered lines as librelp does: what was not answered comes
// first at the next connection, in order.
type pairClient struct {
	number      int
	target      *pairTarget
	print       func(string)
	next, acked int // number of the next line; all before acked are answered
}

// run sends until ctx ends, and then what is not answered.
func (c *pairClient) run(ctx context.Context) {
	for ctx.Err() == nil || c.acked < c.next {
		if err := c.session(ctx); err != nil {
			fmt.Fprintf(os.Stderr, "client %d: %v\n", c.number, err) // the next session goes on
		}
		<-time.After(pairEvery)
	}
	c.print(fmt.Sprintf("%s %d %d", pairEnd, c.number, c.acked))
}

// session is one connection; it ends with it, or when the address moves.
func (c *pairClient) session(ctx context.Context) error {
	to, moved := c.target.get()
	if !to.IsValid() {
		return nil
	}
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(pairClientAddr(c.number), 0)), Timeout: 2 * time.Second}
	conn, err := dialer.Dial("tcp", to.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-moved:
			_ = conn.Close()
		case <-over:
		}
	}()
	s := pairSession{client: c, conn: conn}
	out := s.AppendOpen(nil)
	for n := c.acked; n < c.next; n++ {
		out = s.AppendLine(out, c.line(n))
	}
	if _, err := conn.Write(out); err != nil {
		return err
	}
	tick := time.NewTicker(pairEvery)
	defer tick.Stop()
	for {
		if err := s.read(relp.Window - pairTogether); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return s.read(0)
		case <-tick.C:
		}
		out = out[:0]
		for range pairTogether {
			out = s.AppendLine(out, c.line(c.next))
			c.next++
		}
		if _, err := conn.Write(out); err != nil {
			return err
		}
	}
}

func (c *pairClient) line(n int) []byte {
	return fmt.Appendf(nil, "<13>Nov 25 12:00:00 client%d test: seq=%d.", c.number, n)
}

// pairSession is a connection that counts its client's answers.
type pairSession struct {
	relp.Client
	client *pairClient
	conn   net.Conn
	unread []byte
}

// read takes what answers are there, and waits for them while more than most
// frames have none.
func (s *pairSession) read(most int) error {
	room, before := make([]byte, 8192), s.client.acked
	defer func() {
		if s.client.acked > before {
			s.client.print(fmt.Sprintf("%s %d %d", pairAnswer, s.client.number, s.client.acked))
		}
	}()
	for {
		// A moment for those that are under way, else all the time that it takes.
		wait := time.Minute
		if s.Waiting() <= most {
			wait = time.Millisecond
		}
		_ = s.conn.SetReadDeadline(time.Now().Add(wait))
		n, err := s.conn.Read(room)
		s.unread = append(s.unread, room[:n]...)
		for {
			frame, size, err := relp.Parse(s.unread)
			if err != nil {
				return err
			}
			if size == 0 {
				break
			}
			s.unread = s.unread[size:]
			more, err := s.Step(frame)
			if err != nil {
				return err
			}
			s.client.acked += more
		}
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) && s.Waiting() <= most {
				return nil
			}
			return err
		}
	}
}

// pairLoad is the clients, in a process on their machine.
type pairLoad struct {
	proc *vm.Proc
	says *heard
	in   *io.PipeWriter
}

func newPairLoad(t *testing.T, m *vm.Machine, binary string) *pairLoad {
	t.Helper()
	r, w := io.Pipe()
	soundClock(t, m)
	l := &pairLoad{says: newHeard(), in: w}
	t.Cleanup(func() { _ = w.Close() })
	var err error
	l.proc, err = m.Start(vm.Cmd{Args: []string{binary}, Env: []string{pairClientsEnv + "=yes"}, Stdin: r, Stdout: l.says})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// send has the clients send to a node from now on.
func (l *pairLoad) send(t *testing.T, to *pairMachine) {
	t.Helper()
	if _, err := fmt.Fprintln(l.in, pairAddr(to.name)); err != nil {
		t.Fatal(err)
	}
}

func (l *pairLoad) total() (sum int) {
	l.says.mu.Lock()
	defer l.says.mu.Unlock()
	for _, n := range l.says.clients {
		sum += n
	}
	return sum
}

// answered waits until each client has been answered so many more lines.
func (l *pairLoad) answered(t *testing.T, more int) {
	t.Helper()
	l.says.mu.Lock()
	before := l.says.clients
	l.says.mu.Unlock()
	l.says.until(t, "clients are answered", l.proc.Done(), func(pairState, bool) bool {
		for i, n := range l.says.clients {
			if n < before[i]+more {
				return false
			}
		}
		return true
	})
}

// end has the clients send no more, waits until all that they sent is answered,
// and returns how many lines that is of each.
func (l *pairLoad) end(t *testing.T) (sent []int) {
	t.Helper()
	if _, err := fmt.Fprintln(l.in, pairEnd); err != nil {
		t.Fatal(err)
	}
	l.says.until(t, "all lines are answered", nil, func(pairState, bool) bool { return !slices.Contains(l.says.ended[:], false) })
	l.says.mu.Lock()
	defer l.says.mu.Unlock()
	return slices.Clone(l.says.clients[:])
}
