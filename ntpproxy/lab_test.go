package ntpproxy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/lab"
	"holdfast/lab/stall"
)

// site is a server and a host for clients, on one wire.
type site struct {
	t      *testing.T
	root   string // of the peers
	client *lab.Host
}

func newSite(t *testing.T) *site {
	t.Helper()
	root := peers(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	l := lab.NewTest(t, lab.Options{Networks: []string{"adm"}, Expose: []string{filepath.Dir(self), filepath.Dir(root)}})
	server, err := l.AddHost("server", lab.On("adm", "10.1.0.1/24", "2001:db8:1::1/64"))
	if err != nil {
		t.Fatal(err)
	}
	client, err := l.AddHost("client", lab.On("adm", "10.1.0.99/24", "2001:db8:1::99/64"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("testdata/cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Write("/etc/holdfast/cluster.yaml", text); err != nil {
		t.Fatal(err)
	}
	p, err := server.Start(lab.Cmd{Args: []string{self}, Name: "ntp", Env: []string{serveEnv + "=/etc/holdfast/cluster.yaml"}})
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, root: root, client: client}
	s.eventually("the server is ready", func() error {
		out, err := os.ReadFile(p.StdoutPath())
		if err == nil && !strings.Contains(string(out), "ready") {
			err = errors.New("not yet")
		}
		return err
	})
	return s
}

// eventually polls until try succeeds.
func (s *site) eventually(what string, try func() error) {
	s.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(atMost)
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			s.t.Fatalf("%s: %v", what, err)
		}
	}
}

// command is a program of the peers, run by a user who can't set a clock: all
// hosts of a lab have the machine's.
func (s *site) command(args ...string) lab.Cmd {
	args[0] = filepath.Join(s.root, args[0])
	return lab.Cmd{Args: args, User: "nobody", Env: []string{"PYTHONPATH=" + s.root + "/usr/lib/python3/dist-packages", "HOME=/tmp"}}
}

// run runs such a program to its end and returns all that it said.
func (s *site) run(args ...string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), atMost)
	defer cancel()
	out, err := s.client.RunCmd(ctx, s.command(args...))
	if err != nil {
		out += err.Error()
	}
	return out
}

// start starts a daemon that writes to its log what it sees.
func (s *site) start(c lab.Cmd) (log func() string) {
	s.t.Helper()
	p, err := s.client.Start(c)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = p.Kill() })
	return func() string {
		out, _ := os.ReadFile(p.StdoutPath())
		more, _ := os.ReadFile(p.StderrPath())
		return string(out) + string(more)
	}
}

// chronyd starts one that measures and never touches the clock.
func (s *site) chronyd(source string) (measurements func() [][]string) {
	s.t.Helper()
	const dir = "/var/log/chrony"
	config := fmt.Sprintf("%s\ncmdport 0\nbindcmdaddress /\npidfile /run/chronyd.pid\nlogdir %s\nlog rawmeasurements\nlogbanner 0\n", source, dir)
	if err := s.client.Write("/etc/chrony.conf", []byte(config)); err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.client.Run(s.t.Context(), "mkdir", "-p", dir); err != nil {
		s.t.Fatal(err)
	}
	s.start(lab.Cmd{Args: []string{filepath.Join(s.root, "usr/sbin/chronyd"), "-x", "-d", "-u", "root", "-f", "/etc/chrony.conf"}})
	return func() (rows [][]string) {
		data, _ := s.client.Read(dir + "/measurements.log")
		for line := range strings.Lines(string(data)) {
			rows = append(rows, strings.Fields(line))
		}
		return rows
	}
}

// A free port is nobody else's, also where the others share theirs: of two ports
// that the kernel has to give, two servers have one each, and a third has none. It
// fails if a socket lets others share its port before it has one: then the third
// answers half of the requests to one of the others.
func TestFreePortIsNotThatOfAnotherServer(t *testing.T) {
	for _, processors := range []int{2, 4} { // with a socket each, and with two
		l := lab.NewTest(t, lab.Options{})
		host, err := l.AddHost("alone")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := host.Run(t.Context(), "sh", "-c", "echo 40000 40001 >/proc/sys/net/ipv4/ip_local_port_range"); err != nil {
			t.Fatal(err)
		}
		withProcessors(t, processors)
		taken := map[uint16]bool{}
		for server := range 3 {
			f := newFixture(t, testCluster(t), "127.0.0.1:0")
			var sockets []socket
			err := host.Do(func() (err error) {
				sockets, err = f.server.listen(t.Context())
				return err
			})
			for _, s := range sockets {
				defer s.conn.Close()
				taken[s.addr.Port()] = true
			}
			want := min(server+1, 2)
			if len(taken) != want || (err == nil) != (server < 2) || err != nil && !errors.Is(err, syscall.EADDRINUSE) {
				t.Fatalf("%d processors: %d servers have the ports %v, want %d; %v", processors, server+1, taken, want, err)
			}
		}
	}
}

// Columns of chronyd's measurements.log.
const (
	columnStratum = 4  // of the server
	columnTests   = 5  // RFC 5905's checks of the packet
	columnMode    = 17 // "4B" basic, "4I" interleaved
)

func TestChronydBelievesTheServer(t *testing.T) {
	s := newSite(t)
	for name, test := range map[string]struct{ source, mode string }{
		"basic":       {"server 10.1.0.1 iburst minpoll -4 maxpoll -4", "4B"},
		"interleaved": {"server 10.1.0.1 iburst minpoll -4 maxpoll -4 xleave", "4I"},
		"IPv6":        {"server 2001:db8:1::1 iburst minpoll -4 maxpoll -4", "4B"},
		"version 3":   {"server 10.1.0.1 iburst minpoll -4 maxpoll -4 version 3", "4B"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &site{t: t, root: s.root, client: s.client}
			if _, err := s.client.Run(t.Context(), "rm", "-rf", "/var/log/chrony"); err != nil {
				t.Fatal(err)
			}
			measurements := s.chronyd(test.source)
			s.eventually("chronyd takes 20 samples", func() error {
				good := 0
				rows := measurements()
				for _, row := range rows {
					if len(row) > columnMode && row[columnStratum] == "4" && row[columnTests] == "111" && row[columnMode] == test.mode {
						good++
					}
				}
				if good < 20 {
					return fmt.Errorf("%d of %d rows are good; the last: %v", good, len(rows), rows[max(0, len(rows)-1):])
				}
				return nil
			})
		})
	}
}

func TestOtherClientsBelieveTheServer(t *testing.T) {
	s := newSite(t)
	machine := stall.Test(t, "")
	// Both wait for some seconds alone, in which the machine may stand still.
	once := func(what string, check func() error) {
		t.Helper()
		machine.Repeat(t, what, 3, time.Second, func() (from, to time.Time, missed error) {
			from = time.Now()
			missed = check()
			return from, time.Now(), missed
		})
	}
	once("ntpdig takes a reply", func() error { return holds(s.run("usr/bin/ntpdig", "--json", "10.1.0.1"), `"stratum":4`) })
	once("ntpq is refused at once", func() error {
		out := s.run("usr/bin/ntpq", "-c", "rv", "10.1.0.1")
		if strings.Contains(out, "version=") {
			t.Fatalf("ntpq is answered: %s", out)
		}
		if strings.Contains(out, "timed out") {
			return errors.New(out)
		}
		return nil
	})

	if _, err := s.client.Run(t.Context(), "sh", "-c", "mkdir -p /run/systemd/timesync /etc/systemd && chmod 777 /run/systemd/timesync && printf '[Time]\\nNTP=10.1.0.1\\n' >/etc/systemd/timesyncd.conf"); err != nil {
		t.Fatal(err)
	}
	c := s.command("lib/systemd/systemd-timesyncd")
	c.Env = append(c.Env, "SYSTEMD_LOG_LEVEL=debug", "SYSTEMD_LOG_TARGET=console")
	timesyncd := s.start(c)
	s.eventually("systemd-timesyncd takes a sample", func() error { return holds(timesyncd(), "stratum      : 4", "Contacted time server 10.1.0.1") })
}

// holds is an error unless the text holds both parts.
func holds(text string, parts ...string) error {
	for _, part := range parts {
		if !strings.Contains(text, part) {
			return fmt.Errorf("no %q in %q", part, text)
		}
	}
	return nil
}
