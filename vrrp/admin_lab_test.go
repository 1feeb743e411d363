package vrrp_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"holdfast/lab"
)

// says types holdfast vip on a node; the error is that it does not say words.
func (n *node) says(words string, args ...string) error {
	result, err := n.host.Run(n.bed.Context(), append([]string{binary, "vip"}, args...)...)
	if !strings.Contains(result, words) {
		return fmt.Errorf("%s: vip %s says %q (%w), want %q", n.host, strings.Join(args, " "), result, err, words)
	}
	return nil
}

// vip types holdfast vip on a node and wants it to say words. A command that can be
// typed twice is typed again when the machine stood still meanwhile: what it waited
// for may have come too late.
func (n *node) vip(words string, args ...string) {
	n.bed.Helper()
	n.bed.machine.Repeat(n.bed, "vip "+strings.Join(args, " "), 3, standstill, func() (from, to time.Time, missed error) {
		from = time.Now()
		missed = n.says(words, args...)
		return from, time.Now(), missed
	})
}

// TestAdminMovesAndProbesOnALiveWire: what the commands say is what the kernel
// has.
func TestAdminMovesAndProbesOnALiveWire(t *testing.T) {
	b := newBed(t, 2, oneVIP)
	first, second := b.nodes[0], b.nodes[1]
	b.start(first, second)
	b.awaitHolder(3*time.Second, vip, first)
	second.vip("10.9.0.100", "list")
	first.vip("n1 holds it", "explain", "web")
	second.vip("n1 holds it, as n2 hears", "explain", "web")
	first.vip("nobody else answers for 10.9.0.100", "probe", "web")
	second.vip("answers for 10.9.0.100", "probe", "web")
	second.vip("n1 (10.9.0.1) sends with pseudo-header", "probe", "web")
	first.vip("the kernel has what it should have", "plan")

	moved := false
	b.machine.Repeat(b, "vip move", 3, standstill, func() (from, to time.Time, missed error) {
		if moved { // or not; it begins anew
			first.vip("priorities decide", "release", "web")
			b.awaitHolder(3*time.Second, vip, first)
		}
		moved, from = true, time.Now()
		missed = first.says("n2 holds web", "move", "web")
		return from, time.Now(), missed
	})
	b.awaitHolder(time.Second, vip, second)
	first.vip("priorities decide", "release", "web")
	b.awaitHolder(3*time.Second, vip, first)

	second.vip("n2 holds web", "hold", "web")
	b.awaitHolder(time.Second, vip, second)
	second.vip("n2 holds it", "explain", "web")
	second.vip("priorities decide", "release", "web")
	b.awaitHolder(3*time.Second, vip, first)

	// A stranger on the wire answers for it, too.
	stranger, err := b.lab.AddHost("stranger", lab.On("lan", "10.9.0.77/24"))
	b.must(err)
	if _, err := stranger.Run(t.Context(), "ip", "address", "add", vip.String()+"/32", "dev", "eth0"); err != nil {
		t.Fatal(err)
	}
	b.within(5*time.Second, "the probe names the stranger", func() error {
		out, err := first.host.Run(t.Context(), binary, "vip", "probe", "web")
		if err == nil || !strings.Contains(out+err.Error(), "fail") {
			return fmt.Errorf("%s: %v", out, err)
		}
		return nil
	})
}
