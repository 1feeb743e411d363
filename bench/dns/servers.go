package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"holdfast/bench"
)

// Names of the two that are no incumbents.
const (
	oursName = "holdfast"
	echoName = "echo"
)

// server is one process that answers.
type server struct {
	name     string
	addr     netip.AddrPort
	process  *exec.Cmd
	log      string
	forwards bool // answers names from elsewhere, and remembers them
}

// cpu is the time that all threads of the server have run, its children's
// included.
func (s *server) cpu() (time.Duration, error) {
	var sum time.Duration
	for _, pid := range family(s.process.Process.Pid) {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				continue // a thread that ended
			}
			first, _, _ := strings.Cut(string(text), " ")
			ns, err := strconv.ParseInt(first, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", file, err)
			}
			sum += time.Duration(ns)
		}
	}
	if sum == 0 {
		return 0, fmt.Errorf("%s is not running: its log ends with\n%s", s.name, s.tail())
	}
	return sum, nil
}

// memory is the server's resident set, in bytes, children included.
func (s *server) memory() (float64, error) {
	var sum float64
	for _, pid := range family(s.process.Process.Pid) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(text)) {
			if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
				kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
				if err != nil {
					return 0, err
				}
				sum += kb * 1024
			}
		}
	}
	return sum, nil
}

// family is a process and its descendants.
func family(pid int) []int {
	all := []int{pid}
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range files {
		text, _ := os.ReadFile(file)
		for _, child := range strings.Fields(string(text)) {
			if n, err := strconv.Atoi(child); err == nil {
				all = append(all, family(n)...)
			}
		}
	}
	return all
}

func (s *server) tail() string {
	text, _ := os.ReadFile(s.log)
	return string(text[max(0, len(text)-2000):])
}

// field is all servers, running.
type field struct {
	servers []*server
	dir     string
}

// startAll starts every server and waits until each answers.
func startAll(ctx context.Context, o options, dir string) (*field, error) {
	f := &field{dir: dir}
	zone := filepath.Join(dir, "virtual.zone")
	if err := os.WriteFile(zone, []byte(zoneText(o.names)), 0o644); err != nil {
		return f, err
	}
	port := uint16(5301)
	for _, c := range contestants(o) {
		own := filepath.Join(dir, c.name)
		if err := os.Mkdir(own, 0o777); err != nil {
			return f, err
		}
		s := &server{name: c.name, forwards: c.forwards, log: filepath.Join(own, "log"),
			addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)}
		port++
		argv, err := c.prepare(own, zone, s.addr)
		if err != nil {
			return f, fmt.Errorf("%s: %w", c.name, err)
		}
		log, err := os.Create(s.log)
		if err != nil {
			return f, err
		}
		s.process = exec.CommandContext(ctx, argv[0], argv[1:]...)
		s.process.Stdout, s.process.Stderr = log, log
		s.process.Cancel = func() error { return s.process.Process.Signal(os.Interrupt) }
		err = s.process.Start()
		log.Close()
		if err != nil {
			return f, fmt.Errorf("%s: %w", c.name, err)
		}
		f.servers = append(f.servers, s)
		if c.started != nil {
			if err := c.started(ctx, own, o); err != nil {
				return f, fmt.Errorf("%s: %w\n%s", c.name, err, s.tail())
			}
		}
		for _, question := range []string{serviceQuestion, externalQuestion} {
			if c.name == echoName || question == externalQuestion && !c.forwards {
				continue
			}
			if err := reachable(ctx, s.addr, question); err != nil {
				return f, fmt.Errorf("%s: %w\n%s", c.name, err, s.tail())
			}
		}
	}
	return f, nil
}

// stop ends all servers.
func (f *field) stop() error {
	var errs error
	for _, s := range f.servers {
		_ = s.process.Process.Signal(os.Interrupt)
		ended := make(chan struct{})
		go func() { _ = s.process.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			errs = errors.Join(errs, s.process.Process.Kill())
			<-ended
		}
	}
	return errs
}

// What is measured.
var (
	serviceCost = bench.Higher("service name, UDP", "answers per server-CPU-second")
	serviceRate = bench.Higher("service name, UDP, load generator on the same CPUs", "answers per second")
	cachedCost  = bench.Higher("cached external name, UDP", "answers per server-CPU-second")
	halfLoad    = bench.Lower("service name, p99 at half the load that the slowest bears", "ms")
	resident    = bench.Lower("memory after it (PSS)", "MiB")
)

// round measures each server once, beginning with another each round.
func (f *field) round(ctx context.Context, o options, round int, r *bench.Samples) error {
	slowest := 0.0
	order := append(append([]*server{}, f.servers[round%len(f.servers):]...), f.servers[:round%len(f.servers)]...)
	for _, s := range order {
		l, err := press(ctx, s, serviceQuestion, f.dir, o.length)
		if err != nil {
			return err
		}
		r.Add(serviceCost, s.name, l.cost)
		r.Add(serviceRate, s.name, l.rate)
		if slowest == 0 || l.rate < slowest {
			slowest = l.rate
		}
		if !s.forwards {
			continue
		}
		if l, err = press(ctx, s, externalQuestion, f.dir, o.length); err != nil {
			return err
		}
		r.Add(cachedCost, s.name, l.cost)
	}
	for _, s := range order {
		if s.name == echoName {
			continue
		}
		p99, err := latency(ctx, s, serviceQuestion, slowest/2, o.length)
		if err != nil {
			return err
		}
		r.Add(halfLoad, s.name, p99.Seconds()*1000)
		bytes, err := s.memory()
		if err != nil {
			return err
		}
		r.Add(resident, s.name, bytes/(1<<20))
	}
	return nil
}
