package lb_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/kernel/ipvs"
	"holdfast/lab"
	"holdfast/lab/attempts"
	"holdfast/lab/stall"
	"holdfast/lab/wire"
)

const (
	vip      = "10.1.0.100"
	binaryE  = "HOLDFAST_LB_BINARY" // tells the test in the machine where the program is
	sources  = 30                   // addresses of the client, from 10.1.0.150
	settled  = 9                    // of them are followed through a failover
	askEvery = 25 * time.Millisecond
	tryEvery = 50 * time.Millisecond
)

// bed is the frontends and a client with thirty addresses.
type bed struct {
	whole     *testing.T // listeners outlive the part that opened them
	binary    string
	client    *lab.Host
	frontends []*lab.Host
	agents    []*lab.Proc
	sshd      []*lab.Proc
	tables    []*ipvs.Handle
	watch     *wire.Watch
	machine   *stall.Watch
	asked     atomic.Int64
	home      []string // where the first addresses are persistent
}

func newBed(t *testing.T, cluster string) *bed {
	t.Helper()
	l := lab.NewTest(t, lab.Options{Networks: []string{"adm"}})
	b := &bed{whole: t, binary: os.Getenv(binaryE), agents: make([]*lab.Proc, 3), sshd: make([]*lab.Proc, 3), machine: stall.Test(t, "")}
	b.watch = must(wire.Listen(l, "adm"))(t)
	t.Cleanup(func() { b.watch.Close() })
	var addrs []string
	for i := range sources {
		addrs = append(addrs, fmt.Sprintf("10.1.0.%d/24", 150+i))
	}
	b.client = must(l.AddHost("client", lab.On("adm", addrs...)))(t)
	keys := makeKeys(t)
	check(t, install(b.client, "/etc/ssh/id", keys["user"]))
	for i := range 3 {
		h := must(l.AddHost(fmt.Sprintf("f%d", i+1), lab.On("adm", fmt.Sprintf("10.1.0.%d/24", i+1))))(t)
		b.frontends = append(b.frontends, h)
		check(t, h.Do(func() error {
			tables, err := ipvs.Open()
			b.tables = append(b.tables, tables)
			return err
		}))
		t.Cleanup(b.tables[i].Close)
		b.listen(t, h, "7")
		check(t, h.Write("/etc/holdfast/cluster.yaml", []byte(cluster)))
		check(t, install(h, "/etc/ssh/host", keys["host"]))
		check(t, h.Write("/etc/ssh/users", keys["user.pub"]))
		check(t, h.Write("/etc/ssh/frontend", []byte(sshdFile+"VersionAddendum "+h.String()+"\n")))
		must(h.Run(t.Context(), "mkdir", "-p", "/run/sshd"))(t)
		b.startSSHD(t, i)
	}
	// What a director finds at its first look is up; who is not yet would be out
	// until the next.
	for i, h := range b.frontends {
		b.eventually(t, "the sshd of "+h.String(), func() error {
			conn, err := b.client.DialContext(t.Context(), "tcp", fmt.Sprintf("10.1.0.%d:22", i+1))
			if err == nil {
				conn.Close()
			}
			return err
		})
	}
	// Nobody preempts, so who starts first directs: on a busy machine an agent
	// that was started a moment later may be there before it.
	b.startAgent(t, 0)
	b.eventually(t, "f1 directs", func() error { return b.directs(0) })
	b.startAgent(t, 1)
	b.startAgent(t, 2)
	b.eventually(t, "f2 stands by", func() error { return b.standsBy(1) })
	b.eventually(t, "f3 stands by", func() error { return b.standsBy(2) })
	return b
}

// sshdFile is a frontend's OpenSSH; its banner says which one it is.
const sshdFile = `Port 22
ListenAddress 0.0.0.0
HostKey /etc/ssh/host
AuthorizedKeysFile /etc/ssh/users
StrictModes no
UsePAM no
UseDNS no
PermitRootLogin yes
MaxStartups 500
PidFile none
`

// makeKeys makes the frontends' one host key and a user's.
func makeKeys(t *testing.T) map[string][]byte {
	t.Helper()
	dir, keys := t.TempDir(), map[string][]byte{}
	for _, name := range []string{"host", "user"} {
		path := filepath.Join(dir, name)
		keys[name] = nil
		run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path)
		keys[name] = must(os.ReadFile(path))(t)
		keys[name+".pub"] = must(os.ReadFile(path + ".pub"))(t)
	}
	return keys
}

// install writes a file that only root may read.
func install(h *lab.Host, path string, content []byte) error {
	if err := h.Write(path, content); err != nil {
		return err
	}
	_, err := h.Run(context.Background(), "chmod", "600", path)
	return err
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

// listen answers connections with the frontend's name, then echoes.
func (b *bed) listen(t *testing.T, h *lab.Host, port string) {
	t.Helper()
	l := must(h.Listen("tcp", "0.0.0.0:"+port))(t)
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

// ask asks all the time who has the address.
func (b *bed) ask(ctx context.Context) {
	s, err := wire.OpenSender(b.client, "eth0")
	if err != nil {
		b.whole.Error(err)
		return
	}
	defer s.Close()
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	src := netip.MustParseAddr("10.1.0.150")
	question := s.Frame(wire.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 0x0806, wire.ARP(1, s.MAC, src, wire.MAC{}, netip.MustParseAddr(vip)))
	for {
		switch err := s.Send(question); {
		case err == nil:
			b.asked.Add(1)
		case !errors.Is(err, syscall.ENOBUFS): // a queue is full while nobody runs who empties it
			b.whole.Error(err)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// beside calls f for 0 to n-1, so many at a time.
func (b *bed) beside(workers, n int, f func(int)) {
	var next atomic.Int64
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	all.Wait()
}

func source(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, 0, byte(150 + i)}) }

// dial connects from one of the client's addresses.
func (b *bed) dial(from int, port string, limit time.Duration) (conn net.Conn, err error) {
	err = b.client.Do(func() error {
		d := net.Dialer{Timeout: limit, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(source(from), 0))}
		conn, err = d.Dial("tcp4", vip+":"+port)
		return err
	})
	return conn, err
}

// banner connects to OpenSSH and tells whose it is.
func (b *bed) banner(from int) (on string, err error) {
	conn, err := b.dial(from, "22", 10*time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	s := session{in: conn, out: conn}
	line, err := s.line()
	if err != nil {
		return "", err
	}
	words := strings.Fields(line)
	if len(words) < 2 || !strings.HasPrefix(line, "SSH-2.0-OpenSSH") {
		return "", fmt.Errorf("the banner is %q", line)
	}
	return words[len(words)-1], nil
}

// ssh is a command line of the real client.
func (b *bed) ssh(from int, command string) []string {
	return []string{
		"ssh", "-F", "none", "-b", source(from).String(), "-i", "/etc/ssh/id", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "KexAlgorithms=curve25519-sha256",
		"-c", "aes128-ctr", "-o", "ConnectTimeout=20", "root@" + vip, command,
	}
}

// login logs in and runs hostname.
func (b *bed) login(ctx context.Context, from int) (on string, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	out, err := b.client.Run(ctx, b.ssh(from, "hostname")...)
	return strings.TrimSpace(out), err
}

// settle finds out where some addresses are at home.
func (b *bed) settle(t *testing.T) {
	t.Helper()
	home := make([]string, settled)
	b.beside(3, settled, func(i int) {
		on, err := b.banner(i)
		if err != nil {
			t.Errorf("source %d: %v", i, err)
		}
		home[i] = on
	})
	b.home = home
}

// sourceOn is an address that is at home on a frontend.
func (b *bed) sourceOn(t *testing.T, frontend string) int {
	t.Helper()
	i := slices.Index(b.home, frontend)
	if i < 0 {
		t.Fatalf("nobody is at home on %s: %v", frontend, b.home)
	}
	return i
}

// session is a connection or a log-in that echoes lines.
type session struct {
	in interface {
		io.Reader
		SetReadDeadline(time.Time) error
	}
	out io.WriteCloser
	on  string
}

// open makes a connection from one of the client's addresses.
func (b *bed) open(from int, port string) (s session, err error) {
	conn, err := b.dial(from, port, 15*time.Second)
	if err != nil {
		return s, err
	}
	s = session{in: conn, out: conn}
	s.on, err = s.line()
	return s, err
}

// shell logs in and stays.
func (b *bed) shell(t *testing.T, from int) (s session) {
	t.Helper()
	return must(b.pipe(t, b.ssh(from, "hostname; exec cat")))(t)
}

// pipe starts a program on the client that says where it is and then echoes.
func (b *bed) pipe(t *testing.T, args []string) (s session, err error) {
	t.Helper()
	stdin, out, err := os.Pipe()
	check(t, err)
	in, stdout, err := os.Pipe()
	check(t, err)
	p := must(b.client.Start(lab.Cmd{Name: args[0], Args: args, Stdin: stdin, Stdout: stdout}))(t)
	check(t, errors.Join(stdin.Close(), stdout.Close()))
	t.Cleanup(func() {
		_ = p.Kill()
		_ = errors.Join(out.Close(), in.Close())
	})
	s = session{in: in, out: out}
	s.on, err = s.line()
	return s, err
}

func (s session) Close() { _ = s.out.Close() }

func (s session) line() (string, error) {
	if err := s.in.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return "", err
	}
	var text strings.Builder
	for one := make([]byte, 1); ; {
		if _, err := s.in.Read(one); err != nil {
			return "", err
		}
		if one[0] == '\n' {
			return strings.TrimSuffix(text.String(), "\r"), nil
		}
		text.WriteByte(one[0])
	}
}

// echo proves that a session lives.
func (s session) echo(text string) error {
	if _, err := io.WriteString(s.out, text+"\n"); err != nil {
		return fmt.Errorf("the session on %s: %w", s.on, err)
	}
	got, err := s.line()
	if err != nil || got != text {
		return fmt.Errorf("the session on %s echoes %q: %w", s.on, got, err)
	}
	return nil
}

// tries are new connections, one every 50 ms, for at most half a second each. One
// whose time the machine stood still for half of says nothing, and is made again.
func (b *bed) tries(t *testing.T) *attempts.Series {
	t.Helper()
	const limit = 500 * time.Millisecond
	s := attempts.Start(t.Context(), tryEvery, func(i int) (err error) {
		for range 5 {
			began := time.Now()
			var conn net.Conn
			if conn, err = b.dial(i%sources, "7", limit); err == nil {
				conn.Close()
				return nil
			}
			if b.machine.Within(began, time.Now()) < limit/2 {
				return err
			}
		}
		return err
	})
	t.Cleanup(s.Stop)
	return s
}

// outage tries until connections have worked for a second after a fault, and
// tells when they began to. Failures may begin long after the fault: it waits
// for as long as VRRP takes.
func (b *bed) outage(t *testing.T, s *attempts.Series, fault time.Time) (works time.Time) {
	t.Helper()
	b.eventually(t, "new connections work again", func() (err error) {
		if _, failed := s.Count(); failed == 0 && time.Since(fault) < activeDown(200)+2*time.Second {
			return errors.New("nothing has failed yet")
		}
		works, err = s.Works(time.Second)
		return err
	})
	s.Stop()
	return works
}

// run runs a program of the machine.
func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := execute(t.Context(), args...)
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return out
}

func execute(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	return string(out), err
}
