package vrrp_test

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pause stops a process for a while.
func (n *node) pause(d time.Duration) {
	n.bed.Helper()
	n.signal(syscall.SIGSTOP)
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
	n.signal(syscall.SIGCONT)
}

func TestAPausedActiveIsReplacedAndGoesOnAlone(t *testing.T) {
	b := newBed(t, 2, oneVIP)
	first, second := b.nodes[0], b.nodes[1]
	b.start(first, second)
	b.awaitHolder(3*time.Second, vip, first)
	first.signal(syscall.SIGSTOP)
	b.within(2*time.Second, "n2 takes over", func() error {
		if !second.holds(vip) {
			return fmt.Errorf("it does not hold %s", vip)
		}
		return nil
	})
	first.signal(syscall.SIGCONT)
	b.awaitHolder(2*time.Second, vip, first)
	if first.metric("holdfast_vrrp_stalls_total") == "0" {
		t.Error("the pause was not noticed")
	}
}

func TestAPausedBackupDoesNotTakeOver(t *testing.T) {
	b := newBed(t, 2, oneVIP)
	first, second := b.nodes[0], b.nodes[1]
	b.start(first, second)
	b.awaitHolder(3*time.Second, vip, first)
	before := second.metric(`holdfast_vrrp_transitions_total{router="web",state="active"}`)
	second.pause(2 * time.Second)
	b.awaitHolder(time.Second, vip, first)
	if after := second.metric(`holdfast_vrrp_transitions_total{router="web",state="active"}`); after != before {
		t.Errorf("it became Active: %s times before, %s after", before, after)
	}
}

func TestTheGuardTakesNothingThatIsNotOurs(t *testing.T) {
	b := newBed(t, 2, oneVIP)
	first, second := b.nodes[0], b.nodes[1]
	b.start(first, second)
	b.awaitHolder(3*time.Second, vip, first)
	byHand := netip.MustParseAddr("10.9.0.77")
	first.run("ip", "address", "add", byHand.String()+"/32", "dev", "eth0")
	b.must(first.proc.Kill())
	b.awaitHolder(2*time.Second, vip, second)
	if !first.holds(byHand) || !first.holds(netip.MustParseAddr("10.9.0.1")) {
		t.Error("an address that was added by hand is gone")
	}
}

func TestAGuardThatDiesIsReplaced(t *testing.T) {
	b := newBed(t, 2, oneVIP)
	first, second := b.nodes[0], b.nodes[1]
	b.start(first, second)
	b.awaitHolder(3*time.Second, vip, first)
	first.run("pkill", "-KILL", "-f", "vip guard")
	first.awaitLog(3*time.Second, "name=vrrp.guard", 0)
	b.within(3*time.Second, "another guard runs", func() error {
		if first.metric("holdfast_vrrp_guard_restarts_total") == "0" {
			return fmt.Errorf("no restart is counted")
		}
		_, err := first.host.Run(t.Context(), "pgrep", "-f", "vip guard")
		return err
	})
	b.must(first.proc.Kill())
	b.awaitHolder(2*time.Second, vip, second)
}

func TestASecondAgentIsRefused(t *testing.T) {
	b := newBed(t, 1, oneVIP)
	n := b.nodes[0]
	b.start(n)
	_, err := n.host.Run(t.Context(), binary, "agent", "--only", "net")
	if err == nil || !strings.Contains(err.Error(), "run-dir") {
		t.Errorf("a second agent in one run directory: %v", err)
	}
	b.awaitHolder(3*time.Second, vip, n)
}

func TestReloadTouchesOnlyWhatChanged(t *testing.T) {
	b := newBed(t, 1, oneVIP)
	n := b.nodes[0]
	b.start(n)
	b.awaitHolder(3*time.Second, vip, n)
	before := n.metric(`holdfast_vrrp_transitions_total{router="web",state="active"}`)
	n.configure(oneVIP + `  log: {network: lan, address: 10.9.0.101, vrid: 52, members: "n[1-3]", advertise: 100ms}
`)
	n.signal(syscall.SIGHUP)
	b.awaitHolder(3*time.Second, netip.MustParseAddr("10.9.0.101"), n)
	n.configure(strings.Replace(oneVIP, "10.9.0.100", "10.9.0.102", 1))
	n.signal(syscall.SIGHUP)
	b.awaitHolder(3*time.Second, netip.MustParseAddr("10.9.0.102"), n)
	for _, gone := range []string{"10.9.0.100", "10.9.0.101"} {
		b.within(time.Second, gone+" goes away", func() error {
			if n.holds(netip.MustParseAddr(gone)) {
				return fmt.Errorf("still there")
			}
			return nil
		})
	}
	if after := n.metric(`holdfast_vrrp_transitions_total{router="web",state="active"}`); after != before {
		t.Errorf("the router that stayed became Active again: %s times before, %s after", before, after)
	}
}

const hookVIP = `vips:
  web:
    network: lan
    address: 10.9.0.100
    vrid: 51
    members: "n[1-3]"
    prefer: n1
    advertise: 100ms
    vrrp:
      track: [{file: /run/weight, every: 100ms, weight: 1}]
      notify: {script: [/etc/hooks/notify, first], master: /etc/hooks/notify_master.d, stop: /etc/hooks/notify_stop.d, user: nobody}
`

func TestHooksAreToldInOrderWithKeepalivedsWords(t *testing.T) {
	b := newBed(t, 1, hookVIP)
	n := b.nodes[0]
	n.run("sh", "-c", `mkdir -p /etc/hooks/notify_master.d /etc/hooks/notify_stop.d && touch /run/told && chmod 666 /run/told`)
	say := func(path, words string) {
		b.must(n.host.Write(path, []byte("#!/bin/sh\n"+words+"\n")))
		n.run("chmod", "755", path)
	}
	say("/etc/hooks/notify", `echo "$(id -un) $*" >>/run/told`)
	say("/etc/hooks/notify_master.d/20-second", `echo "20 $*" >>/run/told`)
	say("/etc/hooks/notify_master.d/10-first", `echo "10 $*" >>/run/told`)
	say("/etc/hooks/notify_master.d/readme.txt", `echo "never" >>/run/told`)
	say("/etc/hooks/notify_stop.d/bye", `echo "bye $*" >>/run/told`)
	b.start(n)
	b.awaitHolder(3*time.Second, vip, n)
	b.must(n.host.Write("/run/weight", []byte("5\n")))
	b.within(2*time.Second, "the file's number counts", func() error {
		if got := n.metric(`holdfast_vrrp_priority{router="web"}`); got != "254" {
			return fmt.Errorf("the priority is %s", got)
		}
		return nil
	})
	ctx := t.Context()
	b.must(n.proc.Stop(ctx))
	want := `nobody first INSTANCE web BACKUP 253
10 INSTANCE web MASTER 253
20 INSTANCE web MASTER 253
nobody first INSTANCE web MASTER 253
bye INSTANCE web STOP 254
nobody first INSTANCE web STOP 254
`
	if got := n.run("cat", "/run/told"); got != want {
		t.Errorf("hooks were told\n%swant\n%s", got, want)
	}
}
