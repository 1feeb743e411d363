// Command logs compares the log relay with rsyslogd, one after the other on
// this machine and in turn: lines per second by RELP from 8 connections, by TCP
// and by UDP into per-host files, the server's CPU per line, its memory with
// 2,000 hosts, and how fast an unmodified rsyslogd empties its queue into it. By
// UDP, where a sender that is too fast costs lines and not time, the CPU per line
// is measured at rates that all bear.
//
// Ours acknowledges after fdatasync. rsyslogd is measured twice: as it is
// mostly run, acknowledging before it stores, and with a synced disk queue,
// which is as durable as ours. A second of ours, on the same disk, holds each
// line too before it is acknowledged. All traffic is on loopback.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"holdfast/bench"
)

func main() { os.Exit(bench.Main("logs", run)) }

func run(ctx context.Context) error {
	rounds := flag.Int("rounds", 3, "measurements of each server")
	lines := flag.Int("lines", 400_000, "lines of a measurement")
	only := flag.String("only", "", "measure the workloads alone whose name has this in it")
	who := flag.String("who", "", "measure the servers alone whose name fits this regular expression")
	profile := flag.String("profile", "", "write CPU profiles of ours, each in the place of the one before, to this file")
	pair := flag.String("pair", "", "be two servers that hold each other's lines, below this directory")
	serve := flag.String("serve", "", "be the server, below this directory (the benchmark starts itself so)")
	flag.Parse()
	if *serve != "" {
		return serveMain(ctx, *serve, *profile)
	}
	if *pair != "" {
		return pairMain(ctx, *pair)
	}
	wanted, err := regexp.Compile(*who)
	if err != nil {
		return fmt.Errorf("-who: %w", err)
	}
	found := bench.NewSamples()
	for _, w := range workloads() {
		if *only != "" && !strings.Contains(w.name, *only) {
			continue
		}
		for round := range *rounds + 1 { // the first warms up
			for _, c := range contestants(*profile) {
				if !wanted.MatchString(c.name) {
					continue
				}
				n := min(*lines, w.most)
				if c.slow {
					if n = w.slow; n == 0 {
						continue
					}
				}
				r, err := measure(c, w, n)
				if err != nil {
					return fmt.Errorf("%s: %s: %w", w.name, c.name, err)
				}
				fmt.Printf("round %d: %s: %-24s %v\n", round, w.name, c.name, r)
				if round > 0 {
					for _, f := range w.figures {
						found.Add(bench.Quantity{Name: w.name + ": " + f.name, Unit: f.unit, Better: f.better}, c.name, r[f.name])
					}
				}
			}
		}
	}
	results := found.Results(ours)
	return errors.Join(bench.Print(os.Stdout, results), bench.Save("build/bench/logs.json", results))
}

// contestant is a server and how it is started in a directory.
type contestant struct {
	name  string
	slow  bool
	start func(dir string) (*exec.Cmd, error)
}

// Ports of every contestant.
const (
	port    = "21514" // RELP
	tcpPort = "21515"
	udpPort = "21516"
)

func contestants(profile string) []contestant {
	return []contestant{
		{ours, false, func(dir string) (*exec.Cmd, error) {
			self, err := os.Executable()
			return exec.Command(self, "-serve", dir, "-profile", profile), err
		}},
		{both, false, func(dir string) (*exec.Cmd, error) {
			self, err := os.Executable()
			return exec.Command(self, "-pair", dir), err
		}},
		{"rsyslogd, not durable", false, func(dir string) (*exec.Cmd, error) { return rsyslogd(dir, "") }},
		{"rsyslogd, durable", true, func(dir string) (*exec.Cmd, error) {
			return rsyslogd(dir, `queue.type="Disk" queue.filename="q" queue.checkpointInterval="1" queue.syncQueueFiles="on"`)
		}},
	}
}

func rsyslogd(dir, queue string) (*exec.Cmd, error) {
	sync := ""
	if queue != "" {
		sync = ` sync="on"`
	}
	text := fmt.Sprintf(`global(workDirectory="%[1]s")
module(load="imrelp" ruleset="in")
module(load="imtcp")
module(load="imudp")
input(type="imrelp" port="%[2]s" maxDataSize="128k")
input(type="imtcp" port="%[5]s" ruleset="in")
input(type="imudp" port="%[6]s" ruleset="in" rcvbufSize="16m")
template(name="path" type="string" string="%[1]s/hosts/%%HOSTNAME%%.log")
template(name="line" type="string" string="%%TIMESTAMP:::date-rfc3339%% %%HOSTNAME%% %%pri-text%% %%syslogtag%%%%msg%%\n")
ruleset(name="in" %[3]s) { action(type="omfile" dynaFile="path" template="line" dynaFileCacheSize="2000"%[4]s) }
`, dir, port, queue, sync, tcpPort, udpPort)
	file := filepath.Join(dir, "rsyslog.conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	path := "/usr/sbin/rsyslogd"
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("rsyslogd is missing, run hack/deps: %w", err)
	}
	return exec.Command(path, "-n", "-f", file, "-i", filepath.Join(dir, "pid")), nil
}

// lineCount counts the lines of all files of a directory.
func lineCount(dir string) (n int) {
	names, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err == nil {
			n += strings.Count(string(b), "\n")
		}
	}
	return n
}

// bytesOf is how large the files of a directory are.
func bytesOf(dir string) (n int64) {
	names, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	for _, name := range names {
		if info, err := os.Stat(name); err == nil {
			n += info.Size()
		}
	}
	return n
}

var errSlow = errors.New("not all lines are in the files after two minutes")

const patience = 2 * time.Minute
