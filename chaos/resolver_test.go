package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/chaos"
	"holdfast/lab"
	"holdfast/lab/site"
	"holdfast/lab/stall"
)

// virtualServers is a site whose client lists two virtual addresses and no
// node's own, as clusters configure their clients.
type virtualServers struct {
	*site.Site
	t       *testing.T
	machine *stall.Watch
	net     map[*site.Node]*lab.Proc // what holds the virtual addresses
}

func newVirtualServers(t *testing.T) *virtualServers {
	t.Helper()
	v := &virtualServers{Site: quickSite(t), t: t, machine: watchMachine(t), net: map[*site.Node]*lab.Proc{}}
	if err := v.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, n := range v.Nodes {
		v.startNet(n)
	}
	settle(t, v.Site, v.Nodes)
	conf := fmt.Sprintf("nameserver %s\nnameserver %s\noptions timeout:1 rotate\n", v.File.VIPs[0].Address, v.File.VIPs[1].Address)
	if err := v.Client.Write("/etc/resolv.conf", []byte(conf)); err != nil {
		t.Fatal(err)
	}
	v.home()
	return v
}

// quickSite is the reference cluster, but for how long a node waits before it
// takes its own address back: a server is killed when both are at home.
func quickSite(t *testing.T) *site.Site {
	t.Helper()
	text, err := os.ReadFile("../examples/scibian.yaml")
	if err != nil {
		t.Fatal(err)
	}
	const was = "preempt_delay: 30s"
	if !strings.Contains(string(text), was) {
		t.Fatalf("the example has no %q any more", was)
	}
	file := filepath.Join(t.TempDir(), "cluster.yaml")
	if err := os.WriteFile(file, []byte(strings.Replace(string(text), was, "preempt_delay: 3s", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := site.New(t.Context(), site.Options{
		Binary: binary, File: file,
		Lab: func(o lab.Options) (*lab.Lab, error) { return lab.NewTest(t, o), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (v *virtualServers) startNet(n *site.Node) {
	v.t.Helper()
	p, err := n.Host.Start(lab.Cmd{Args: []string{v.Binary(), "agent", "--only", "net"}, Name: "net"})
	if err != nil {
		v.t.Fatal(err)
	}
	v.net[n] = p
}

// home waits until both listed addresses are at the nodes that they prefer, so
// that one kill concerns one of them.
func (v *virtualServers) home() {
	v.t.Helper()
	for i, n := range v.Nodes[:2] {
		vip := v.File.VIPs[i]
		within(v.t, 2*patience, fmt.Sprintf("%s holds %s", n.Name(), vip.Name), func(ctx context.Context) error {
			held, err := v.holds(ctx, n, vip.Address)
			if err == nil && !held {
				err = errors.New("it does not")
			}
			return err
		})
	}
}

// kill ends a node's server with SIGKILL, and what holds its virtual address
// too if all is set. They start again when its address has moved, and after
// down at the earliest. It gives the time in which the server died.
func (v *virtualServers) kill(n *site.Node, all bool, down time.Duration) (died moment) {
	v.t.Helper()
	died.from = time.Now()
	if err := n.Kill(); err != nil {
		v.t.Fatal(err)
	}
	died.to = time.Now()
	if all {
		if err := v.net[n].Kill(); err != nil {
			v.t.Fatal(err)
		}
	}
	v.wait(down)
	v.moved(n)
	if err := n.StartAgent(); err != nil {
		v.t.Fatal(err)
	}
	if all {
		v.startNet(n)
	}
	return died
}

type moment struct{ from, to time.Time }

// hit tells whether the look-up was under way then, or may have been: an answered
// one is done within 50 ms, unless the machine stands still.
func (v *virtualServers) hit(m moment, l chaos.Lookup) bool {
	return l.Start.Before(m.to) && v.machine.Took(l.Start, m.from) < 50*time.Millisecond
}

// moved waits until another node holds the address that prefers n.
func (v *virtualServers) moved(n *site.Node) {
	v.t.Helper()
	vip := v.File.VIPs[slices.Index(v.Nodes, n)]
	within(v.t, patience, vip.Name+" moves", func(ctx context.Context) error {
		for _, other := range without(v.Nodes, n) {
			if holds, err := v.holds(ctx, other, vip.Address); holds || err != nil {
				return err
			}
		}
		return errors.New("no other node holds it")
	})
}

func (v *virtualServers) holds(ctx context.Context, n *site.Node, addr netip.Addr) (bool, error) {
	out, err := n.Host.Run(ctx, "ip", "-4", "-o", "addr")
	return strings.Contains(out, addr.String()+"/"), err
}

func (v *virtualServers) wait(d time.Duration) {
	v.t.Helper()
	select {
	case <-time.After(d):
	case <-v.t.Context().Done():
		v.t.Fatal(v.t.Context().Err())
	}
}

// clients are processes of the client that look a name up all the time, each
// with the C library's resolver.
func (v *virtualServers) clients(count int, name string, pause time.Duration) (stop func() []chaos.Lookup) {
	v.t.Helper()
	script, err := os.ReadFile("testdata/lookups.py")
	if err != nil {
		v.t.Fatal(err)
	}
	if err := v.Client.Write("/root/lookups.py", script); err != nil {
		v.t.Fatal(err)
	}
	procs := make([]*lab.Proc, count)
	for i := range procs {
		procs[i], err = v.Client.Start(lab.Cmd{
			Args: []string{"/usr/bin/python3", "/root/lookups.py", name, fmt.Sprint(pause.Seconds())},
			Name: fmt.Sprintf("lookups%d", i),
		})
		if err != nil {
			v.t.Fatal(err)
		}
	}
	return func() (all []chaos.Lookup) {
		for _, p := range procs {
			if err := p.Stop(v.t.Context()); err != nil {
				v.t.Errorf("a client: %v", err)
			}
			all = append(all, readLookups(v.t, p.StdoutPath())...)
		}
		return all
	}
}

// readLookups reads what lookups.py printed.
func readLookups(t *testing.T, path string) (list []chaos.Lookup) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasSuffix(line, "\n") {
			break // the look-up under way at the end
		}
		fields := strings.Fields(line)
		if len(fields) < 3 {
			t.Fatalf("%s: %q", path, line)
		}
		start, err := strconv.ParseFloat(fields[0], 64)
		took, err2 := strconv.ParseFloat(fields[1], 64)
		if err := errors.Join(err, err2); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		l := chaos.Lookup{Start: time.UnixMicro(int64(start * 1e6)), Took: time.Duration(took * float64(time.Second))}
		if fields[2] == "ok" {
			l.Answers = fields[3:]
		} else {
			l.Err = errors.New(strings.Join(fields[3:], " "))
		}
		list = append(list, l)
	}
	return list
}

// Fifty processes look a service up through two virtual addresses while one or
// the other server is killed, again and again: the addresses move, and nobody
// sees a look-up fail. The C library asks for A and AAAA at once; when it got
// one answer of a server that was killed before the other, it asks that server
// once more, alone, before it asks the next (glibc, resolv/res_send.c: "switch
// to the mode where we send the second request only once we have received the
// first answer"). Such a look-up takes a second time-out of 1 s, whatever we
// do; at most two of the fifty may at each kill. RESOLVER_CHAOS makes it last longer, ten minutes say.
func TestNoLookupFailsWhenEitherServerOfResolvConfIsKilled(t *testing.T) {
	lasts := 45 * time.Second
	if text := os.Getenv("RESOLVER_CHAOS"); text != "" {
		var err error
		if lasts, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	const processes, worst = 50, 1200 * time.Millisecond
	v := newVirtualServers(t)
	stop := v.clients(processes, "apt.service.virtual", 250*time.Millisecond)
	began, kills := time.Now(), 0
	var deaths []moment
	for time.Since(began) < lasts {
		v.wait(2 * time.Second)
		n := v.Nodes[kills%2]
		t.Logf("%v: %s is killed", time.Since(began).Round(time.Second), n.Name())
		deaths = append(deaths, v.kill(n, kills%4 < 2, 5*time.Second))
		kills++
		settle(t, v.Site, v.Nodes)
		v.home()
	}
	all := stop()
	failed, slowest := lookedUp(t, v.machine, "under kills", all)
	waited, halves := 0, make([]int, kills) // for a server that does not answer; one that refuses costs no time
	stalled := 0
	for _, l := range all {
		if l.Took > time.Second/2 {
			waited++
		}
		if l.Took <= worst {
			continue
		}
		// In a stall as long as its patience a client gives up a server that lives.
		stood := v.machine.Within(l.Start, l.Start.Add(l.Took))
		at := slices.IndexFunc(deaths, func(m moment) bool { return v.hit(m, l) })
		switch took := l.Took - stood; {
		case took <= worst || stood >= resolverTimeout:
			stalled++
		case at >= 0 && took <= worst+time.Second:
			halves[at]++
		default:
			t.Errorf("after %v: took %v, want under %v; the machine stood still for %v of it", l.Start.Sub(began), l.Took, worst, stood)
		}
	}
	t.Logf("%d look-ups are not judged, since the machine stood still meanwhile; it did for %v in all", stalled, v.machine.Within(began, time.Now()))
	t.Logf("%d kills in %v; %d look-ups of %d processes, %d failed, %d had to ask the second server, slowest %v; answered by half, for each kill: %v",
		kills, time.Since(began).Round(time.Second), len(all), processes, failed, waited, slowest, halves)
	if slices.Max(halves) > 2 {
		t.Errorf("%v look-ups took two time-outs, want at most 2 for each kill", halves)
	}
	if per := (len(all) - stalled) / processes; per < int(lasts/time.Second) {
		t.Errorf("%d look-ups a process in %v: too few to show anything", per, lasts)
	}
}
