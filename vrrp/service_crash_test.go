package vrrp_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/lab"
)

// guardPID is the process that guards an agent; "" none.
func (n *node) guardPID() string {
	n.bed.Helper()
	for _, line := range strings.Split(n.run("sh", "-c", "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | sed \"s|^|${p#/proc/} |\"; echo; done"), "\n") {
		if strings.Contains(line, " vip guard ") {
			return strings.Fields(line)[0]
		}
	}
	return ""
}

func (n *node) awaitGuard(not string) (pid string) {
	n.bed.Helper()
	n.bed.within(3*time.Second, "a guard runs on "+n.host.String(), func() error {
		if pid = n.guardPID(); pid == "" || pid == not {
			return fmt.Errorf("it is process %q", pid)
		}
		return nil
	})
	return pid
}

// kill ends the agent without a word.
func (n *node) kill() {
	n.bed.Helper()
	n.signal(syscall.SIGKILL)
	<-n.proc.Done()
}

// awaitAdvert waits until a node has sent an advert more.
func (n *node) awaitAdvert() {
	n.bed.Helper()
	const sent = `holdfast_vrrp_adverts_sent_total{router="web"}`
	before := n.metric(sent)
	n.bed.within(5*time.Second, "an advert is sent", func() error {
		if now := n.metric(sent); now == before {
			return fmt.Errorf("%s were", now)
		}
		return nil
	})
}

// removals follows the addresses that the kernel of a node loses.
func (n *node) removals() (lost func() string) {
	n.bed.Helper()
	proc, err := n.host.Start(lab.Cmd{Args: []string{"ip", "-o", "monitor", "address"}, Name: "monitor"})
	n.bed.must(err)
	read := func() string {
		text, err := os.ReadFile(proc.StdoutPath())
		n.bed.must(err)
		return string(text)
	}
	n.run("ip", "address", "add", "192.0.2.1/32", "dev", "lo") // until it listens
	n.bed.within(3*time.Second, "ip monitor listens", func() error {
		n.run("sh", "-c", "ip address del 192.0.2.1/32 dev lo; ip address add 192.0.2.1/32 dev lo")
		if !strings.Contains(read(), "192.0.2.1") {
			return fmt.Errorf("it does not")
		}
		return nil
	})
	return func() string {
		var lost []string
		for line := range strings.Lines(read()) {
			if strings.HasPrefix(line, "Deleted") && strings.Contains(line, " "+vip.String()+"/") {
				lost = append(lost, line)
			}
		}
		return strings.Join(lost, "")
	}
}

func TestKilledAgentsAddressIsWithdrawnByTheGuardAndNothingElse(t *testing.T) {
	for _, c := range []struct {
		interval       string
		takeover, back time.Duration
	}{{"100ms", 2 * time.Second, 3 * time.Second}, {"1s", 8 * time.Second, 6 * time.Second}} {
		t.Run(c.interval, func(t *testing.T) {
			b := newBed(t, 2, strings.Replace(oneVIP, "100ms", c.interval, 1))
			first, second := b.nodes[0], b.nodes[1]
			b.start(first)
			b.awaitHolder(c.back, vip, first)
			b.start(second)
			first.run("ip", "address", "add", "10.9.0.200/32", "dev", "eth0")
			first.awaitGuard("")
			// Peers wait from the last advert on, the guard from the death on: right
			// after an advert it is ahead of them by almost an interval.
			first.awaitAdvert()
			died := time.Now()
			first.kill()
			took := b.awaitHolder(c.takeover, vip, second)
			t.Logf("withdrawn and taken over after %v", took)
			first.awaitLog(time.Second, "withdrew an address", 0)
			// The peer heard priority 0: it did not have to wait for three intervals and
			// more. The guard waits for two, so that at 100 ms it has a tenth of a second
			// for all it does, and a machine that stands still for so long another reason.
			out := second.run(binary, "vip", "explain", "web")
			if c.interval == "1s" && !strings.Contains(out, "resigned") && !strings.Contains(out, "priority 0") && !strings.Contains(out, "gave up") {
				b.unlessStood(500*time.Millisecond, died, "why n2 took over: %s", out)
			}
			if text := first.run("ip", "-o", "address"); !strings.Contains(text, " 10.9.0.200/") || !strings.Contains(text, " 10.9.0.1/") {
				t.Errorf("addresses that are not the guard's are gone: %s", text)
			}
			first.start()
			b.awaitHolder(c.back, vip, first)
		})
	}
}

func TestGuardThatIsKilledIsReplacedAndTheNextOneWithdraws(t *testing.T) {
	b := newBed(t, 1, oneVIP)
	n := b.nodes[0]
	b.start(n)
	b.awaitHolder(3*time.Second, vip, n)
	before := n.awaitGuard("")
	n.run("kill", "-KILL", before)
	n.awaitGuard(before)
	b.within(2*time.Second, "the new guard knows what is held", func() error {
		text, err := n.host.Run(t.Context(), "cat", "/run/holdfast/vrrp/guard")
		if err != nil || strings.TrimSpace(text) == before {
			return fmt.Errorf("guard %q: %v", text, err)
		}
		return nil
	})
	if got := n.metric("holdfast_vrrp_guard_restarts_total"); got != "1" {
		t.Errorf("guard_restarts_total is %s", got)
	}
	n.kill()
	b.within(2*time.Second, "the address is gone", func() error {
		if n.holds(vip) {
			return fmt.Errorf("it is there")
		}
		return nil
	})
}

func TestRestartAdoptsAndNoAddressLeaves(t *testing.T) {
	for _, interval := range []string{"100ms", "1s"} {
		t.Run(interval, func(t *testing.T) {
			b := newBed(t, 2, strings.Replace(oneVIP, "100ms", interval, 1))
			first, second := b.nodes[0], b.nodes[1]
			b.start(first)
			b.awaitHolder(6*time.Second, vip, first)
			every, err := time.ParseDuration(interval)
			b.must(err)
			// The second becomes Active in no part of the test, but where a machine that
			// stood still in that part made adverts late.
			began, actives := time.Now(), 0
			stayedBackup := func(part string) {
				t.Helper()
				if n := second.count("to=Active"); n != actives {
					b.unlessStood(2*every, began, "n2 became Active %d times %s", n-actives, part)
					actives = n
				}
				began = time.Now()
			}
			b.start(second)
			lost := first.removals()
			stayedBackup("as it started")
			first.run(binary, "restart", "--grace", "30s")                              // however long the successor takes to start
			first.run("sh", "-c", "kill -KILL $(cat /run/holdfast/vrrp/guard) || true") // as systemd may do
			first.start()
			b.awaitHolder(2*time.Second, vip, first)
			first.awaitLog(time.Second, "adopted from a predecessor", 0)
			first.awaitGuard("")
			if words := lost(); words != "" {
				t.Errorf("the address left: %s", words)
			}
			stayedBackup("as n1 was restarted")
			// The grace is over: the crash that comes now is a crash.
			first.kill()
			b.awaitHolder(8*time.Second, vip, second)
		})
	}
}

func TestSecondInstanceIsRefusedAndTouchesNothing(t *testing.T) {
	b := newBed(t, 1, oneVIP)
	n := b.nodes[0]
	b.start(n)
	b.awaitHolder(3*time.Second, vip, n)
	out, err := n.host.Run(t.Context(), binary, "agent", "--only", "net")
	if err == nil || !strings.Contains(out+err.Error(), "process ") {
		t.Errorf("a second instance: %s, %v", out, err)
	}
	if !n.holds(vip) {
		t.Error("the address is gone")
	}
}

func TestSIGTERMHandsOverAtOnce(t *testing.T) {
	b := newBed(t, 2, strings.Replace(oneVIP, "100ms", "1s", 1))
	first, second := b.nodes[0], b.nodes[1]
	b.start(first)
	b.awaitHolder(6*time.Second, vip, first)
	b.start(second)
	first.signal(syscall.SIGTERM)
	b.awaitHolder(time.Second, vip, second) // Skew_Time, not three seconds and more
	<-first.proc.Done()
	b.within(2*time.Second, "the guard ends, too", func() error {
		if pid := first.guardPID(); pid != "" {
			return fmt.Errorf("process %s runs", pid)
		}
		return nil
	})
	if text := first.run("cat", filepath.Join("/run/holdfast/vrrp", "addresses")); strings.TrimSpace(text) != "" {
		t.Errorf("the journal has %q", text)
	}
}

// TestStoppedProcessLeavesOneActive stops processes with SIGSTOP: what a
// suspended or overloaded virtual machine does.
func TestStoppedProcessLeavesOneActive(t *testing.T) {
	b := newBed(t, 2, oneVIP)
	first, second := b.nodes[0], b.nodes[1]
	b.start(first, second)
	b.awaitHolder(3*time.Second, vip, first)
	pause := func(n *node, d time.Duration) {
		n.signal(syscall.SIGSTOP)
		timer := time.NewTimer(d) // the very thing under test is time that passes
		<-timer.C
		n.signal(syscall.SIGCONT)
	}
	began := time.Now()
	pause(second, 2*time.Second) // the Backup
	b.awaitHolder(500*time.Millisecond, vip, first)
	before := second.count("to=Active")
	if before != 0 {
		b.unlessStood(standstill, began, "the Backup that was stopped became Active %d times", before)
	}
	began = time.Now()
	pause(first, 5*time.Second) // the Active
	b.awaitHolder(time.Second, vip, first)
	if n := second.count("to=Active") - before; n == 0 {
		t.Error("the Backup did not act while the Active was stopped")
	} else if n > 1 {
		b.unlessStood(standstill, began, "the Backup acted %d times while the Active was stopped once", n)
	}
}
