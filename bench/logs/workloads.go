package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"golang.org/x/net/ipv4"
)

// Names of figures.
const (
	ackedLines = "lines acknowledged"
	filedLines = "lines in per-host files"
	drained    = "time"
	lossless   = "greatest rate without loss"
	lostLines  = "lines lost"
	cpuPerLine = "CPU per line"
	memory     = "memory (RSS), greatest"
)

// figure is one of a workload's results.
type figure struct{ name, unit, better string }

// workload is lines on their way to a server.
type workload struct {
	name    string
	most    int // lines
	slow    int // lines for who syncs each; 0: it is left out
	figures []figure
	// prepare does what is to be done before the server starts. load sends
	// the lines and waits for them in the files.
	prepare func(lines int) (load func(dir string) (result, error), done func(), err error)
}

func workloads() []workload {
	cpu, rss := figure{cpuPerLine, "us", "lower"}, figure{memory, "MB", "lower"}
	rate := figure{filedLines, "1/s", "higher"}
	return []workload{
		{"RELP, 8 connections, 128 hosts", 400_000, 2000, []figure{{ackedLines, "1/s", "higher"}, rate, cpu, rss}, byRELP(128)},
		{"RELP, 8 connections, 2000 hosts", 400_000, 0, []figure{rate, rss}, byRELP(2000)},
		{"rsyslogd's omrelp, 150000 lines that wait", 150_000, 0, []figure{{drained, "s", "lower"}}, byOmrelp},
		{"TCP, 8 connections, 128 hosts", 400_000, 0, []figure{rate, cpu}, byTCP},
		{"UDP at 20,000 lines/s, 128 hosts", 160_000, 0, []figure{cpu, {lostLines, "", "lower"}}, byUDPAt(20_000)},
		{"UDP at 100,000 lines/s, 128 hosts", 400_000, 0, []figure{cpu, {lostLines, "", "lower"}}, byUDPAt(100_000)},
		{"UDP, 128 hosts", 400_000, 0, []figure{{lossless, "1/s", "higher"}}, byUDP},
	}
}

func nothing() {}

// byRELP keeps the windows of all connections full.
func byRELP(hosts int) func(lines int) (func(string) (result, error), func(), error) {
	return func(lines int) (func(string) (result, error), func(), error) {
		return func(dir string) (result, error) {
			conns, err := dialAll(port)
			if err != nil {
				return nil, err
			}
			defer closeAll(conns)
			began := time.Now()
			if err := side(conns, func(c net.Conn, i int) error { return send(c, texts(i, hosts), lines/connections) }); err != nil {
				return nil, err
			}
			acked := time.Since(began)
			if err := filed(dir, lines/connections*connections); err != nil {
				return nil, err
			}
			return result{ackedLines: float64(lines) / acked.Seconds(), filedLines: float64(lines) / time.Since(began).Seconds()}, nil
		}, nothing, nil
	}
}

// byTCP sends lines that end in line feeds as fast as the server reads them.
func byTCP(lines int) (func(string) (result, error), func(), error) {
	return func(dir string) (result, error) {
		conns, err := dialAll(tcpPort)
		if err != nil {
			return nil, err
		}
		defer closeAll(conns)
		began := time.Now()
		err = side(conns, func(c net.Conn, i int) error {
			var out []byte
			list := texts(i, 128)
			for n := range lines / connections {
				out = append(append(out, list[n%len(list)]...), '\n')
				if len(out) >= 64<<10 || n == lines/connections-1 {
					if _, err := c.Write(out); err != nil {
						return err
					}
					out = out[:0]
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		if err := filed(dir, lines/connections*connections); err != nil {
			return nil, err
		}
		return result{filedLines: float64(lines) / time.Since(began).Seconds()}, nil
	}, nothing, nil
}

// tries are how often a rate may lose lines, or be more than the sender sends,
// before it is taken for too great: other processes of the machine take their
// part, too.
const tries = 2

// byUDPAt sends at a rate that no server loses lines at: what a line costs then
// can be compared.
func byUDPAt(rate int) func(lines int) (func(string) (result, error), func(), error) {
	return func(lines int) (func(string) (result, error), func(), error) {
		return func(dir string) (result, error) {
			conn, err := dialUDP()
			if err != nil {
				return nil, err
			}
			defer conn.Close()
			seconds := float64(lines) / float64(rate)
			sent, err := pace(conn, rate, time.Duration(seconds*float64(time.Second)))
			if err != nil {
				return nil, err
			}
			got := settled(dir, sent)
			return result{takenLines: float64(got), lostLines: float64(sent - got)}, nil
		}, nothing, nil
	}
}

// byUDP sends at a rate for a second, and at a greater one until lines are lost.
func byUDP(int) (func(string) (result, error), func(), error) {
	return func(dir string) (result, error) {
		conn, err := dialUDP()
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		best, failed := 0, 0
		for rate := 20_000; rate < 400_000 && failed < tries; {
			before := lineCount(dir)
			reached, err := pace(conn, rate, time.Second)
			if err != nil {
				return nil, err
			}
			whole := settled(dir, before+reached)-before >= reached
			if whole {
				best = max(best, reached)
			}
			if !whole || reached < rate*9/10 { // the sender is the limit
				failed++
				continue
			}
			failed = 0
			rate += rate / 7
		}
		return result{takenLines: float64(lineCount(dir)), lossless: float64(best)}, nil
	}, nothing, nil
}

// dialUDP waits for the server.
func dialUDP() (*net.UDPConn, error) {
	probe, err := dial(tcpPort)
	if err != nil {
		return nil, err
	}
	_ = probe.Close()
	return net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:"+udpPort)))
}

// pace sends datagrams for a time, evenly in steps of a millisecond, many at a
// call: the sender is not to be the limit. It returns how many there were.
func pace(conn *net.UDPConn, rate int, during time.Duration) (sent int, err error) {
	list := texts(0, 128*connections)
	batch := make([]ipv4.Message, len(list))
	for i, text := range list {
		batch[i].Buffers = [][]byte{text}
	}
	out := ipv4.NewPacketConn(conn)
	began := time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for now := began; now.Sub(began) < during; now = <-tick.C {
		for due := int(float64(rate) * now.Sub(began).Seconds()); sent < due && time.Since(began) < during; {
			from := sent % len(batch)
			n, err := out.WriteBatch(batch[from:min(len(batch), from+min(due-sent, atOnce))], 0)
			if sent += n; err != nil {
				return sent, err
			}
		}
	}
	return sent, nil
}

// atOnce is how many datagrams go out in one call at most: those of a
// millisecond at 64,000 a second.
const atOnce = 64

// settled counts the lines in the files when so many are there, or when no more
// have come for two seconds: a disk that is busy keeps them for longer than a
// flush takes.
func settled(dir string, want int) int {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	last, since := -1, time.Now()
	for ; ; <-tick.C {
		n := lineCount(dir)
		if n != last {
			last, since = n, time.Now()
		}
		if n >= want || time.Since(since) >= 2*time.Second {
			return n
		}
	}
}

// byOmrelp has an unmodified rsyslogd with a queue in memory that spills to the
// disk wait for the server with all lines, as nodes do after an outage. Time
// counts from the first line in the files to the last.
func byOmrelp(lines int) (func(string) (result, error), func(), error) {
	const inPort = "21517"
	dir, err := os.MkdirTemp("", "bench-omrelp-")
	if err != nil {
		return nil, nil, err
	}
	file := filepath.Join(dir, "client.conf")
	config := fmt.Sprintf(`global(workDirectory="%s" localHostname="client")
module(load="imptcp")
module(load="omrelp")
module(load="impstats" interval="1" format="json" log.file="%s/stats" log.syslog="off")
main_queue(queue.size="400000")
input(type="imptcp" address="127.0.0.1" port="%s")
action(name="relay" type="omrelp" target="127.0.0.1" port="%s" template="RSYSLOG_ForwardFormat"
  action.resumeRetryCount="-1" action.resumeInterval="1"
  queue.type="LinkedList" queue.size="400000" queue.filename="spool" queue.maxDiskSpace="200m" queue.saveOnShutdown="on")
`, dir, dir, inPort, port)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, nil, err
	}
	cmd := exec.Command("/usr/sbin/rsyslogd", "-n", "-f", file, "-i", filepath.Join(dir, "pid"))
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	done := func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	}
	conn, err := dial(inPort)
	if err != nil {
		done()
		return nil, nil, err
	}
	list := texts(0, 128*connections)
	var out []byte
	for n := range lines {
		out = append(append(out, list[n%len(list)]...), '\n')
	}
	if _, err := conn.Write(out); err != nil {
		done()
		return nil, nil, err
	}
	_ = conn.Close()
	if err := queued(filepath.Join(dir, "stats"), lines); err != nil {
		done()
		return nil, nil, err
	}
	return func(dir string) (result, error) {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		began := time.Now()
		for bytesOf(dir) == 0 {
			if time.Since(began) > patience {
				return nil, errSlow
			}
			<-tick.C
		}
		began = time.Now()
		if err := filed(dir, lines); err != nil {
			return nil, err
		}
		return result{drained: time.Since(began).Seconds()}, nil
	}, done, nil
}

// queued waits until rsyslogd's statistics say that so many lines wait for the relay.
func queued(stats string, lines int) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	queueSize := regexp.MustCompile(`"name":\s*"relay queue".*?"size":\s*(\d+)`)
	for began := time.Now(); time.Since(began) < patience; <-tick.C {
		b, err := os.ReadFile(stats)
		if err != nil {
			continue
		}
		for _, m := range queueSize.FindAllSubmatch(b, -1) {
			if n, _ := strconv.Atoi(string(m[1])); n >= lines-1000 { // a batch is in rsyslogd's hand
				return nil
			}
		}
	}
	return errSlow
}
