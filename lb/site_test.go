package lb_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/lab"
	"holdfast/lab/site"
	"holdfast/lab/vm"
)

const (
	vip     = "10.1.0.100"
	binaryE = "HOLDFAST_LB_BINARY" // tells the test in the machine where the program is
)

const clusterFile = `schema: 1
cluster: lab
domain: lab.example.com
networks:
  adm: {prefix: 10.1.0.0/24}
roles:
  frontend: {voters: 3, run: []}
nodes:
  f[1-3]: {role: frontend, addresses: {adm: "10.1.0.[1-3]"}}
vips:
  front:
    network: adm
    address: 10.1.0.100
    vrid: 20
    advertise: 1s
    members: "@frontend"
    vrrp: {priority: {f1: 250, f2: 200, f3: 100}, preempt: false}
lb:
  handover: 1s
  services:
    plain:  {vip: front, port: 7, scheduler: rr, check: {tcp: true, every: 2s, timeout: 2s, rise: 2, fall: 2}}
    sticky: {vip: front, port: 22, scheduler: wlc, persistence: 600s, check: {tcp: true, every: 2s, timeout: 2s, rise: 2, fall: 3}}
`

func TestMain(m *testing.M) {
	if lab.Init() {
		return
	}
	m.Run()
}

// Three frontends that are directors and real servers, with their real
// agents, on a kernel that has IPVS.
func TestFrontends(t *testing.T) {
	if os.Getenv("HOLDFAST_LB_FRONTENDS") == "" && !vm.IsInside() {
		t.Skip("set HOLDFAST_LB_FRONTENDS=1: it is under construction and does not pass every time")
	}
	o := vm.Options{Modules: []string{"ip_vs", "ip_vs_rr", "ip_vs_wlc"}}
	if !vm.IsInside() {
		vm.Require(t)
		// Below the module, which hosts in the machine see; not so /tmp.
		check(t, os.MkdirAll("../build", 0o755))
		dir := must(os.MkdirTemp("../build", "lb-"))(t)
		t.Cleanup(func() { os.RemoveAll(dir) })
		t.Setenv(binaryE, must(site.Build(t.Context(), must(filepath.Abs(dir))(t)))(t))
	}
	vm.Inside(t, o, func(t *testing.T) {
		b := newBed(t)
		t.Run("balance", b.testBalance)
		t.Run("a dead server gets nobody", b.testDeadServer)
		t.Run("a planned move loses no session", b.testMove)
		t.Run("a dead director loses no session", b.testDeadDirector)
		t.Run("who stops leaves nothing", b.testStop)
	})
}

// bed is the frontends and a client with thirty addresses.
type bed struct {
	whole     *testing.T // listeners outlive the part that opened them
	client    *lab.Host
	frontends []*lab.Host
	agents    []*lab.Proc

	mu        sync.Mutex
	listeners map[string]net.Listener // by frontend and port
}

func newBed(t *testing.T) *bed {
	l := lab.NewTest(t, lab.Options{Networks: []string{"adm"}})
	b := &bed{whole: t, listeners: map[string]net.Listener{}}
	var addrs []string
	for i := range 30 {
		addrs = append(addrs, fmt.Sprintf("10.1.0.%d/24", 150+i))
	}
	b.client = must(l.AddHost("client", lab.On("adm", addrs...)))(t)
	for i := range 3 {
		h := must(l.AddHost(fmt.Sprintf("f%d", i+1), lab.On("adm", fmt.Sprintf("10.1.0.%d/24", i+1))))(t)
		b.frontends = append(b.frontends, h)
		for _, port := range []string{"7", "22"} {
			b.listen(t, h, port)
		}
		check(t, h.Write("/etc/holdfast/cluster.yaml", []byte(clusterFile)))
		p := must(h.Start(lab.Cmd{Args: []string{os.Getenv(binaryE), "agent", "--only", "net", "--config", "/etc/holdfast/cluster.yaml",
			"--node", h.String(), "--run-dir", "/run/holdfast"}, Name: "agent"}))(t)
		b.agents = append(b.agents, p)
	}
	b.until(t, "f1 directs", func() error { return b.directs(t, 0) })
	return b
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		check(t, err)
		return v
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (b *bed) until(t *testing.T, what string, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	if err := site.Poll(ctx, func(context.Context) error { return f() }); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// listen answers connections with the frontend's name, then echoes lines. The
// socket is bound to all addresses, as sshd's is.
func (b *bed) listen(t *testing.T, h *lab.Host, port string) {
	t.Helper()
	l := must(h.Listen("tcp", "0.0.0.0:"+port))(t)
	b.mu.Lock()
	b.listeners[h.String()+":"+port] = l
	b.mu.Unlock()
	b.whole.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed
			}
			go func() {
				defer conn.Close()
				_, _ = io.WriteString(conn, h.String()+"\n")
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
}

// session is a connection to the address, on some frontend.
type session struct {
	net.Conn
	on string
}

// open makes a connection from one of the client's addresses.
func (b *bed) open(from int, port string) (s session, err error) {
	err = b.client.Do(func() error {
		d := net.Dialer{Timeout: 3 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(150 + from)}), 0))}
		s.Conn, err = d.Dial("tcp4", vip+":"+port)
		return err
	})
	if err != nil {
		return s, err
	}
	s.on, err = s.line()
	return s, err
}

func (s session) line() (string, error) {
	if err := s.SetReadDeadline(time.Now().Add(15 * time.Second)); err != nil {
		return "", err
	}
	var text strings.Builder
	for one := make([]byte, 1); ; {
		if _, err := s.Read(one); err != nil {
			return "", err
		}
		if one[0] == '\n' {
			return text.String(), nil
		}
		text.WriteByte(one[0])
	}
}

// echo proves that a session lives.
func (s session) echo(text string) error {
	if _, err := io.WriteString(s, text+"\n"); err != nil {
		return err
	}
	if got, err := s.line(); err != nil || got != text {
		return fmt.Errorf("the session on %s echoes %q: %w", s.on, got, err)
	}
	return nil
}

// directs tells whether a frontend directs with all three servers.
func (b *bed) directs(t *testing.T, i int) error {
	out, err := b.frontends[i].Run(t.Context(), "sh", "-c", "cat /proc/sys/net/ipv4/vs/backup_only; ip -o address; ipvsadm -Sn")
	if err == nil && (!strings.HasPrefix(out, "0\n") || !strings.Contains(out, "eth0    inet "+vip) || strings.Count(out, "-w 1") != 6) {
		err = fmt.Errorf("f%d has\n%s", i+1, out)
	}
	return err
}

func (b *bed) testBalance(t *testing.T) {
	count, stays := map[string]int{}, map[int]string{}
	for i := range 30 {
		s := must(b.open(i, "7"))(t)
		count[s.on]++
		s.Close()
		s = must(b.open(i, "22"))(t)
		stays[i] = s.on
		s.Close()
	}
	if len(count) != 3 || count["f1"] < 9 || count["f2"] < 9 || count["f3"] < 9 {
		t.Errorf("of 30 connections the frontends got %v", count)
	}
	for i, on := range stays {
		s := must(b.open(i, "22"))(t)
		if s.on != on {
			t.Errorf("source %d went to %s first, then to %s", i, on, s.on)
		}
		s.Close()
	}
}

func (b *bed) testDeadServer(t *testing.T) {
	b.mu.Lock()
	b.listeners["f3:7"].Close()
	b.mu.Unlock()
	start := time.Now()
	b.until(t, "f3 is out", func() error {
		out, err := b.frontends[0].Run(t.Context(), "ipvsadm", "-Sn")
		if err == nil && strings.Contains(out, "-r 10.1.0.3:7 ") {
			err = fmt.Errorf("it is there still")
		}
		return err
	})
	t.Logf("out after %v; the check is made every 2 s, and must fail twice", time.Since(start))
	for i := range 12 {
		if s := must(b.open(i, "7"))(t); s.on == "f3" {
			t.Error("f3 got somebody")
		}
	}
	b.listen(t, b.frontends[2], "7")
	b.until(t, "f3 is back", func() error { return b.directs(t, 0) })
}

// sessions are six on each kind of service, two on each frontend at least.
func (b *bed) sessions(t *testing.T) (all []session) {
	t.Helper()
	for i := range 6 {
		for _, port := range []string{"7", "22"} {
			s := must(b.open(i, port))(t)
			check(t, s.echo("first"))
			t.Cleanup(func() { s.Close() })
			all = append(all, s)
		}
	}
	// A connection is told to the other directors after its third packet.
	for _, s := range all {
		check(t, s.echo("second"))
		check(t, s.echo("third"))
	}
	return all
}

// survive proves that all sessions live but those on a frontend, and that who
// was persistent stays where it was.
func (b *bed) survive(t *testing.T, all []session, but string) {
	t.Helper()
	lost := 0
	for i, s := range all {
		if s.on == but {
			continue
		}
		if err := s.echo("after"); err != nil {
			lost++
			t.Errorf("session %d: %v", i, err)
		}
		if i%2 == 1 {
			if again, err := b.open(i/2, "22"); err != nil || again.on != s.on {
				t.Errorf("source %d was on %s and is now on %s (%v)", i/2, s.on, again.on, err)
			}
		}
	}
	t.Logf("%d of %d sessions lost", lost, len(all))
}

func (b *bed) testMove(t *testing.T) {
	all := b.sessions(t)
	out, err := b.frontends[1].Run(t.Context(), os.Getenv(binaryE), "vip", "hold", "front", "--socket", "/run/holdfast/net.sock")
	if err != nil {
		t.Fatal(out, err)
	}
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); { // through the handover and beyond
		for _, s := range all {
			if err := s.echo("during"); err != nil {
				t.Fatalf("during the move: %v", err)
			}
		}
	}
	b.until(t, "f2 directs", func() error { return b.directs(t, 1) })
	b.survive(t, all, "")
	out, err = b.frontends[0].Run(t.Context(), "cat", "/proc/sys/net/ipv4/vs/backup_only")
	if err != nil || out != "1\n" {
		t.Errorf("f1 directs still: %q, %v", out, err)
	}
}

func (b *bed) testDeadDirector(t *testing.T) {
	all := b.sessions(t)
	check(t, b.frontends[1].PowerOff())
	start := time.Now()
	b.until(t, "somebody answers", func() error {
		s, err := b.open(20, "7")
		if err == nil {
			s.Close()
		}
		return err
	})
	t.Logf("new connections after %v; three adverts and the skew are 3 to 4 s", time.Since(start))
	b.survive(t, all, "f2")
}

func (b *bed) testStop(t *testing.T) {
	for _, i := range []int{2, 0} {
		check(t, b.agents[i].Stop(t.Context()))
		out := must(b.frontends[i].Run(t.Context(), "sh", "-c", "ip -o address; ipvsadm -Sn; ipvsadm -L --daemon; cat /proc/sys/net/ipv4/conf/all/arp_ignore /proc/sys/net/ipv4/conf/all/arp_announce /proc/sys/net/ipv4/vs/backup_only"))(t)
		if strings.Contains(out, vip) || strings.Contains(out, "sync daemon") || !strings.HasSuffix(out, "0\n0\n0\n") {
			t.Errorf("f%d left\n%s", i+1, out)
		}
	}
}
