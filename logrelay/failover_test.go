package logrelay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/peer"
	"holdfast/logrelay/relp"
)

// address stands for a virtual address: who connects reaches the node that
// holds it, with the client's own address. A move breaks what was connected, as
// a node that is gone does.
type address struct {
	net.Listener
	mu     sync.Mutex
	holder string // an address with its port; "" nobody
	conns  []net.Conn
}

func newAddress(t *testing.T) *address {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &address{Listener: l}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go a.join(conn)
		}
	}()
	return a
}

func (a *address) join(client net.Conn) {
	defer client.Close()
	a.mu.Lock()
	holder := a.holder
	a.mu.Unlock()
	if holder == "" {
		return
	}
	from := &net.TCPAddr{IP: client.RemoteAddr().(*net.TCPAddr).IP}
	server, err := (&net.Dialer{LocalAddr: from}).Dial("tcp", holder)
	if err != nil {
		return
	}
	defer server.Close()
	a.mu.Lock()
	if a.holder != holder {
		a.mu.Unlock()
		return
	}
	a.conns = append(a.conns, client, server)
	a.mu.Unlock()
	go func() {
		_, _ = io.Copy(server, client)
		_ = server.(*net.TCPConn).CloseWrite() // what it has said is still on its way to the client
	}()
	_, _ = io.Copy(client, server)
}

// move gives the address to a node; "" takes it from all.
func (a *address) move(to string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.holder = to
	for _, c := range a.conns {
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
	a.conns = nil
}

// client sends numbered lines as librelp does: what was not answered comes
// first at the next connection, in order.
type client struct {
	number int
	to     string
	next   int          // number of the next line
	acked  atomic.Int64 // all before it are answered
	move   *atomic.Int64
	resent []resend
}

// resend is a session that began with lines sent before: from, and up to to.
type resend struct {
	from, to int
	move     int // after which it was; 0: none
}

// kinds of moves, in turn.
var kinds = [...]string{"kill", "cable", "planned"}

// doubledBy says for a line that is twice in files which kind of move had it
// sent again; "" none. Several: the last that was not planned.
func (c *client) doubledBy(n int) (kind string) {
	for _, r := range c.resent {
		if n < r.from || n >= r.to || r.move == 0 {
			continue
		}
		if k := kinds[(r.move-1)%len(kinds)]; k != "planned" || kind == "" {
			kind = k
		}
	}
	return kind
}

func (c *client) line(n int) []byte {
	return fmt.Appendf(nil, "<13>Nov 25 12:00:00 client%d test: seq=%d.", c.number, n)
}

// run sends at a rate until ctx ends, and then what is not answered.
func (c *client) run(ctx context.Context, every time.Duration) {
	for ctx.Err() == nil || int(c.acked.Load()) < c.next {
		_ = c.session(ctx, every) // it ends with the connection; the next goes on
		<-time.After(20 * time.Millisecond)
	}
}

func (c *client) session(ctx context.Context, every time.Duration) error {
	from := &net.TCPAddr{IP: net.IPv4(127, 0, 8, byte(c.number+1))}
	conn, err := (&net.Dialer{LocalAddr: from}).Dial("tcp", c.to)
	if err != nil {
		return err
	}
	defer conn.Close()
	s := &sender{conn: conn}
	if _, err := conn.Write(s.session.AppendOpen(nil)); err != nil {
		return err
	}
	if err := s.read(0); err != nil {
		return err
	}
	base := int(c.acked.Load())
	// librelp looks for answers when it has a line to send, and hears of those that
	// came before the connection broke: so they are read behind a write that failed, too.
	read := func(most int) error {
		_ = conn.SetReadDeadline(time.Now().Add(2 * time.Minute)) // who gives up sends lines again
		err := s.read(most)
		c.acked.Store(int64(base + s.acked))
		return err
	}
	var b []byte
	if c.next > base {
		c.resent = append(c.resent, resend{base, c.next, int(c.move.Load())})
	}
	for n := base; n < c.next; n++ {
		b = s.session.AppendLine(b, c.line(n))
	}
	if _, err := conn.Write(b); err != nil {
		return errors.Join(err, read(0))
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return read(0)
		case <-tick.C:
		}
		b = b[:0]
		for range 20 {
			b = s.session.AppendLine(b, c.line(c.next))
			c.next++
		}
		if _, err := conn.Write(b); err != nil {
			return errors.Join(err, read(0))
		}
		if err := read(relp.Window - 20); err != nil {
			return err
		}
	}
}

// TestFailoversLoseNothing: clients send to an address that two nodes hold in
// turn; the holder is killed, cut off, or ends as planned. In the end both
// nodes' files have every line that was answered, in each client's order.
// LOGRELAY_FAILOVERS says how many moves there are.
func TestFailoversLoseNothing(t *testing.T) {
	moves, clients := 6, 10
	if text := os.Getenv("LOGRELAY_FAILOVERS"); text != "" {
		var err error
		if moves, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
		clients = 50
	}
	pair := processes(t)
	for _, p := range pair {
		p.start()
	}
	at := newAddress(t)
	at.move(pair[0].addr)
	ctx, end := context.WithCancel(t.Context())
	defer end()
	var group sync.WaitGroup
	list := make([]*client, clients)
	var moved atomic.Int64
	for i := range list {
		list[i] = &client{number: i, to: at.Addr().String(), move: &moved}
		group.Go(func() { list[i].run(ctx, 200*time.Millisecond) }) // 20 lines each time
	}
	answered := func() (sum int64) {
		for _, c := range list {
			sum += c.acked.Load()
		}
		return sum
	}
	for move := range moves {
		before := answered()
		eventually(t, time.Minute, "clients are answered", func() error {
			if n := answered() - before; n < int64(clients*60) {
				return fmt.Errorf("%d lines since the last move", n)
			}
			return nil
		})
		holder, other := pair[move%2], pair[(move+1)%2]
		// One fault at a time: lines that a node took alone, and that died with
		// it before the other had them, come when it is back, behind younger ones.
		eventually(t, time.Minute, "the other node has caught up", func() error { return other.has(list) })
		kind := kinds[move%len(kinds)]
		moved.Store(int64(move + 1))
		switch kind {
		case "kill":
			holder.end(syscall.SIGKILL)
		case "cable": // nobody hears of it, and its answers are lost
		case "planned":
			holder.end(syscall.SIGTERM)
		}
		at.move("")
		at.move(other.addr)
		if kind != "cable" {
			holder.start()
		}
	}
	end()
	group.Wait()
	total := 0
	for _, c := range list {
		total += c.next
	}
	for _, p := range pair {
		var doubled map[string]int
		eventually(t, time.Minute, "every answered line is in the files", func() (err error) {
			doubled, err = p.complete(list)
			return err
		})
		t.Logf("%d moves, %d lines of %d clients; twice in the files of %s, by the kind of move: %v", moves, total, clients, p.addr, doubled)
		if n := doubled["planned"] + doubled[""]; n > 0 {
			t.Errorf("%d lines are twice in the files of %s after planned moves, or after none", n, p.addr)
		}
	}
	for _, p := range pair {
		p.end(syscall.SIGTERM)
	}
}

// has tells whether the files have what each client has been answered by now.
func (p *process) has(list []*client) error {
	for _, c := range list {
		answered := int(c.acked.Load())
		if lost := missing(p.numbers(fmt.Sprintf("client%d", c.number)), answered); len(lost) > 0 {
			return fmt.Errorf("client %d was answered %d lines, and %v are not there", c.number, answered, lost)
		}
	}
	return nil
}

// complete tells whether the files have each client's lines, the first time in
// order, and how many are there more than once, by the kind of move.
func (p *process) complete(list []*client) (doubled map[string]int, err error) {
	doubled = map[string]int{}
	for _, c := range list {
		got := p.numbers(fmt.Sprintf("client%d", c.number))
		var first []int
		seen := map[int]bool{}
		for _, n := range got {
			if !seen[n] {
				first = append(first, n)
			} else {
				doubled[c.doubledBy(n)]++
			}
			seen[n] = true
		}
		if len(first) < c.next || !slices.IsSorted(first) {
			return nil, fmt.Errorf("client %d: %d of %d lines, missing %v, in order %v; %s", c.number, len(first), c.next, missing(got, c.next), slices.IsSorted(first), p.addr)
		}
	}
	return doubled, nil
}

// processes are two nodes that hold each other's lines.
func processes(t *testing.T) []*process {
	t.Helper()
	dir := t.TempDir()
	if err := peer.Init(filepath.Join(dir, "ca"), "foobar"); err != nil {
		t.Fatal(err)
	}
	names := []string{"fb1", "fb2"}
	addrs := []netip.Addr{netip.MustParseAddr("127.0.9.1"), netip.MustParseAddr("127.0.9.2")}
	var list []*process
	for i, name := range names {
		pki := filepath.Join(dir, "pki-"+name)
		if err := peer.Issue(filepath.Join(dir, "ca"), pki, peer.Request{Identity: peer.Identity{Name: name, Role: peer.RoleServer}}); err != nil {
			t.Fatal(err)
		}
		list = append(list, &process{
			t: t, addr: netip.AddrPortFrom(addrs[i], testRELP).String(), dir: t.TempDir(),
			more: fmt.Sprintf("%s %s %s %s", name, pki, names[1-i], addrs[1-i]),
		})
	}
	return list
}
