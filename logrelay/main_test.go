package logrelay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/cluster"
	"holdfast/internal/peer"
	"holdfast/logrelay/relp"
)

// serveEnv makes this test binary a server that can be killed: it names the
// address of its RELP input and its directory, and for one with replicas its
// name, its certificate's directory, and the other's name and address; with
// spaces between them.
const serveEnv = "LOGRELAY_TEST_SERVE"

// filesEnv is the files' section of such a server.
const filesEnv = "LOGRELAY_TEST_FILES"

// filesOf sets path and format as a files' section says.
func filesOf(s *settings, section string) error {
	text := clusterHead + "roles: {service: {voters: 1, run: [dns, logs]}}\nlogs: {files: " + section + "}\n"
	file, err := cluster.Parse("cluster.yaml", []byte(text), map[string]cluster.SectionValidator{Section: ValidateSection})
	if err != nil {
		return err
	}
	set, err := decode(file.Section(Section))
	s.path, s.format, s.apps = set.path, set.format, set.apps
	return err
}

func TestMain(m *testing.M) {
	if what := os.Getenv(serveEnv); what != "" {
		if err := serveMain(what); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if err := ownNetwork(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// networkEnv says that this process has a network of its own.
const networkEnv = "LOGRELAY_TEST_NETWORK"

// ownNetwork starts this process once more with a network of its own, if it
// may: the ports that tests have are then no other process's.
func ownNetwork() error {
	if os.Getenv(networkEnv) != "" || os.Getuid() != 0 {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		return fmt.Errorf("run hack/deps: %w", err)
	}
	argv := append([]string{unshare, "-n", "sh", "-ec", `ip link set lo up; exec "$0" "$@"`, self}, os.Args[1:]...)
	return syscall.Exec(unshare, argv, append(os.Environ(), networkEnv+"=yes"))
}

func serveMain(what string) error {
	words := strings.Fields(what)
	dir := words[1]
	at, err := netip.ParseAddrPort(words[0])
	if err != nil {
		return err
	}
	config := Config{Node: "server", DataDir: dir, Dir: filepath.Join(dir, "hosts"), Listen: map[string][]netip.AddrPort{"relp": {at}}}
	deps := Deps{File: cluster.Single("server", at.Addr()), Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Metrics: prometheus.NewRegistry()}
	if len(words) > 2 {
		trust, err := peer.Load(words[3])
		if err != nil {
			return err
		}
		config.Node, config.Listen["replica"] = words[2], []netip.AddrPort{netip.AddrPortFrom(at.Addr(), testReplica)}
		other := Other{words[4], netip.MustParseAddr(words[5])}
		deps.ReplicaTLS, deps.PeerTLS, deps.Others = trust.Server(peer.RoleServer), trust.Client, func() []Other { return []Other{other} }
	}
	s, err := New(config, deps)
	if err != nil {
		return err
	}
	if len(words) > 2 {
		s.settings.replicas, s.replicaPatience, s.replicaPort = 2, time.Second, testReplica
	}
	if section := os.Getenv(filesEnv); section != "" {
		if err := filesOf(&s.settings, section); err != nil {
			return err
		}
	}
	settled(s)
	s.settings.replay = 1 << 30 // for a look at the journal when a test fails
	s.tap = tapInto(dir)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return s.Run(ctx, func() { fmt.Println("ready") })
}

// settled has all that a relay stored be in its files when it has ended, however
// slow this machine is, and its disk have room, however full it is.
func settled(s *Server) {
	s.catchUp = time.Hour
	s.space = func(string) (float64, error) { return 50, nil }
}

// process is a server in a process of its own.
type process struct {
	t    *testing.T
	addr string
	dir  string
	more string // behind these two; see serveEnv
	cmd  *exec.Cmd

	files  string // see filesEnv
	undone int    // how often it was killed with something to undo
}

// newProcess says where a server will be: no test has two of them.
func newProcess(t *testing.T) *process {
	t.Helper()
	return &process{t: t, addr: fmt.Sprintf("127.9.5.1:%d", testRELP), dir: t.TempDir()}
}

// start starts it and waits until it serves.
func (p *process) start() {
	p.t.Helper()
	self, err := os.Executable()
	if err != nil {
		p.t.Fatal(err)
	}
	p.cmd = exec.Command(self)
	p.cmd.Env = append(os.Environ(), serveEnv+"="+p.addr+" "+p.dir+" "+p.more, filesEnv+"="+p.files)
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(p.dir, "stderr"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	p.cmd.Stderr = log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	cmd := p.cmd
	p.t.Cleanup(func() { _ = cmd.Process.Kill() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		p.t.Fatalf("the server is not ready: %q, %v; %s", line, err, p.log())
	}
}

func (p *process) log() string {
	b, _ := os.ReadFile(filepath.Join(p.dir, "stderr"))
	return string(b)
}

// end sends a signal and waits for the end.
func (p *process) end(signal os.Signal) {
	p.t.Helper()
	_ = p.cmd.Process.Signal(signal)
	ended := make(chan error, 1)
	go func() { ended <- p.cmd.Wait() }()
	select {
	case err := <-ended:
		if signal == syscall.SIGTERM && err != nil {
			p.t.Fatalf("%v: %s", err, p.log())
		}
	case <-time.After(time.Minute):
		p.t.Fatalf("the server does not end: %s", p.log())
	}
}

var sequence = regexp.MustCompile(`seq=(\d+)`)

// numbers are the sequence numbers in a host's file, in the file's order.
func (p *process) numbers(host string) (list []int) {
	b, err := os.ReadFile(filepath.Join(p.dir, "hosts", host+fileSuffix))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		p.t.Fatal(err)
	}
	for _, m := range sequence.FindAllSubmatch(b, -1) {
		n, err := strconv.Atoi(string(m[1]))
		if err != nil {
			p.t.Fatal(err)
		}
		list = append(list, n)
	}
	return list
}

// stored tells whether the journal was given a line.
func (p *process) stored(n int) bool {
	names, err := filepath.Glob(filepath.Join(p.dir, "logs", "*.journal"))
	if err != nil {
		p.t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			p.t.Fatal(err)
		}
		if regexp.MustCompile(fmt.Sprintf(`seq=%d\b`, n)).Match(b) {
			return true
		}
	}
	return false
}

// eventually polls until try succeeds. within only ends a test that would never
// end: a machine may stand still for seconds, and this process with it, so what is
// true at the end counts.
func eventually(t *testing.T, within time.Duration, what string, try func() error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(within)
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			if err := try(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			return
		}
	}
}

// sender is a RELP client that knows which of its lines are acknowledged.
type sender struct {
	conn    net.Conn
	session relp.Client
	unread  []byte
	acked   int
}

func dial(addr string) (*sender, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	s := &sender{conn: conn}
	if _, err := conn.Write(s.session.AppendOpen(nil)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if err := s.read(0); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return s, nil
}

// read reads answers until at most that many are missing.
func (s *sender) read(most int) error {
	buf := make([]byte, 8192)
	for s.session.Waiting() > most {
		n, err := s.conn.Read(buf)
		s.unread = append(s.unread, buf[:n]...)
		for {
			f, size, err := relp.Parse(s.unread)
			if err != nil {
				return err
			}
			if size == 0 {
				break
			}
			s.unread = s.unread[size:]
			acknowledged, err := s.session.Step(f)
			s.acked += acknowledged
			if err != nil {
				return err
			}
		}
		if err != nil && s.session.Waiting() > most {
			return err
		}
	}
	return nil
}
