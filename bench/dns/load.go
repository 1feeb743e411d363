package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// What every server is asked for.
const (
	serviceQuestion  = "apt.service.virtual"
	externalQuestion = "www.example.org"
)

// The load: enough outstanding questions that no server ever waits.
const (
	clients     = 20
	outstanding = 400
	warmUp      = 300 * time.Millisecond
)

// load is what one run of dnsperf gave.
type load struct {
	rate float64 // answers per second
	cost float64 // answers per second of the server's CPU
}

var completed = regexp.MustCompile(`Queries completed:\s+(\d+)`)
var perSecond = regexp.MustCompile(`Queries per second:\s+([0-9.]+)`)

// press asks a server one question, as fast as it answers.
func press(ctx context.Context, s *server, question, dir string, length time.Duration) (load, error) {
	file := filepath.Join(dir, question+".queries")
	if err := os.WriteFile(file, []byte(question+" A\n"), 0o600); err != nil {
		return load{}, err
	}
	if _, err := dnsperf(ctx, s, file, warmUp); err != nil {
		return load{}, err
	}
	before, err := s.cpu()
	if err != nil {
		return load{}, err
	}
	out, err := dnsperf(ctx, s, file, length)
	if err != nil {
		return load{}, err
	}
	after, err := s.cpu()
	if err != nil {
		return load{}, err
	}
	n, rate := completed.FindStringSubmatch(out), perSecond.FindStringSubmatch(out)
	if n == nil || rate == nil {
		return load{}, fmt.Errorf("dnsperf said:\n%s", out)
	}
	answers, _ := strconv.ParseFloat(n[1], 64)
	var l load
	l.rate, _ = strconv.ParseFloat(rate[1], 64)
	l.cost = answers / (after - before).Seconds()
	if s.name != echoName && !strings.Contains(out, "NOERROR") {
		return load{}, fmt.Errorf("%s has no answers:\n%s", s.name, out)
	}
	return l, nil
}

func dnsperf(ctx context.Context, s *server, file string, length time.Duration) (string, error) {
	// Whole seconds are all that -l takes: shorter runs are ended by -n.
	seconds := strconv.Itoa(max(1, int(length.Seconds())))
	out, err := exec.CommandContext(ctx, "dnsperf", "-s", s.addr.Addr().String(), "-p", strconv.Itoa(int(s.addr.Port())),
		"-d", file, "-l", seconds, "-c", strconv.Itoa(clients), "-q", strconv.Itoa(outstanding), "-T", "1", "-t", "1", "-W").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("dnsperf against %s: %w\n%s", s.name, err, out)
	}
	return string(out), nil
}

// latency asks at a steady rate, whatever the answers do, and gives the time
// within which 99 of 100 came. An answer that never came counts as a second.
func latency(ctx context.Context, s *server, question string, rate float64, length time.Duration) (time.Duration, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(s.addr))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	_ = conn.SetReadBuffer(4 << 20)
	query, err := new(dns.Msg).SetQuestion(dns.Fqdn(question), dns.TypeA).Pack()
	if err != nil {
		return 0, err
	}
	const ids = 1 << 16
	var sent [ids]time.Time
	times, done := make([]time.Duration, 0, int(rate*length.Seconds())+1), make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			if n >= 12 {
				times = append(times, time.Since(sent[binary.BigEndian.Uint16(buf)]))
			}
		}
	}()
	count, started := 0, time.Now()
	for time.Since(started) < length && ctx.Err() == nil {
		due := int(time.Since(started).Seconds() * rate)
		for ; count < due; count++ {
			binary.BigEndian.PutUint16(query, uint16(count))
			sent[count%ids] = time.Now()
			if _, err := conn.Write(query); err != nil {
				return 0, err
			}
		}
		time.Sleep(100 * time.Microsecond)
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	<-done
	for len(times) < count {
		times = append(times, time.Second)
	}
	if len(times) == 0 {
		return 0, errors.New("nothing was asked")
	}
	slices.Sort(times)
	return times[len(times)*99/100], ctx.Err()
}

// reachable waits until a server answers the question with records.
func reachable(ctx context.Context, addr netip.AddrPort, question string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	client := dns.Client{Timeout: 500 * time.Millisecond}
	var last error
	for ctx.Err() == nil {
		m, _, err := client.ExchangeContext(ctx, new(dns.Msg).SetQuestion(dns.Fqdn(question), dns.TypeA), addr.String())
		if err == nil && len(m.Answer) > 0 {
			return nil
		}
		if last = err; err == nil {
			last = fmt.Errorf("%s, %d records", dns.RcodeToString[m.Rcode], len(m.Answer))
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("%v does not answer %s: %w", addr, question, last)
}
