package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Direction is the way of packets, seen from a host.
type Direction int

const (
	Both Direction = iota // sent and received
	Sent
	Received
)

// Traffic selects packets of a host.
type Traffic struct {
	Direction Direction
	Peers     []*Host // to and from these hosts; none: every other
	Network   string  // on this network; "": on all
	Percent   int     // so many of a hundred, at random; 0: all
	Match     string  // and only what this nftables expression matches, such as "udp dport 8301"
}

// Fault is something wrong with the wires, until it is healed.
type Fault struct {
	lab   *Lab
	table string
}

// Drop loses packets of the host on their way through the switch: nobody is
// told, and what is below IP (ARP) is lost too.
func (h *Host) Drop(t Traffic) (*Fault, error) {
	rules, err := h.dropRules(t)
	if err != nil {
		return nil, fmt.Errorf("lab: host %s: drop: %w", h.name, err)
	}
	f, err := h.lab.addFault(rules)
	if err != nil {
		return nil, fmt.Errorf("lab: host %s: drop: %w", h.name, err)
	}
	return f, nil
}

func (h *Host) dropRules(t Traffic) ([]string, error) {
	if t.Percent < 0 || t.Percent > 100 {
		return nil, fmt.Errorf("%d percent; want 0 to 100", t.Percent)
	}
	ours, err := h.ports(t.Network)
	if err != nil {
		return nil, err
	}
	var theirs []string
	for _, peer := range t.Peers {
		ports, err := peer.ports(t.Network)
		if err != nil {
			return nil, err
		}
		theirs = append(theirs, ports...)
	}
	match := t.Match
	if t.Percent > 0 && t.Percent < 100 {
		match += fmt.Sprintf(" numgen random mod 100 < %d", t.Percent)
	}
	var rules []string
	if t.Direction != Received {
		rules = append(rules, dropRule(ours, theirs, match))
	}
	if t.Direction != Sent {
		rules = append(rules, dropRule(theirs, ours, match))
	}
	return rules, nil
}

// dropRule is an nftables rule of the bridge family. No ports are all ports.
func dropRule(from, to []string, match string) string {
	var b strings.Builder
	if len(from) > 0 {
		fmt.Fprintf(&b, "iifname { %s } ", quoted(from))
	}
	if len(to) > 0 {
		fmt.Fprintf(&b, "oifname { %s } ", quoted(to))
	}
	if match = strings.TrimSpace(match); match != "" {
		b.WriteString(match + " ")
	}
	b.WriteString("counter drop")
	return b.String()
}

func quoted(names []string) string {
	var b strings.Builder
	for i, n := range names {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q", n)
	}
	return b.String()
}

// Partition cuts all networks between two groups of hosts, both ways. Within a
// group nothing changes.
func (l *Lab) Partition(a, b []*Host) (*Fault, error) {
	left, right, err := allPorts(a, b)
	if err != nil {
		return nil, fmt.Errorf("lab: partition: %w", err)
	}
	f, err := l.addFault([]string{dropRule(left, right, ""), dropRule(right, left, "")})
	if err != nil {
		return nil, fmt.Errorf("lab: partition: %w", err)
	}
	l.log.Info("partition", "a", fmt.Sprint(a), "b", fmt.Sprint(b))
	return f, nil
}

func allPorts(a, b []*Host) (left, right []string, err error) {
	for i, group := range [][]*Host{a, b} {
		if len(group) == 0 {
			return nil, nil, errors.New("an empty group")
		}
		for _, h := range group {
			ports, err := h.ports("")
			if err != nil {
				return nil, nil, err
			}
			if i == 0 {
				left = append(left, ports...)
			} else {
				right = append(right, ports...)
			}
		}
	}
	for _, p := range left {
		if slices.Contains(right, p) {
			return nil, nil, errors.New("a host in both groups")
		}
	}
	return left, right, nil
}

// addFault gives each fault a table of its own, so that healing one says
// nothing about another.
func (l *Lab) addFault(rules []string) (*Fault, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errClosed
	}
	l.serial++
	f := &Fault{lab: l, table: fmt.Sprintf("fault%d", l.serial)}
	script := fmt.Sprintf("table bridge %s {\n chain forward {\n  type filter hook forward priority 0; policy accept;\n  %s\n }\n}\n",
		f.table, strings.Join(rules, "\n  "))
	if _, err := l.sw.nft(script, "-f", "-"); err != nil {
		return nil, err
	}
	l.faults[f] = true
	return f, nil
}

// Heal ends the fault. A healed fault stays so.
func (f *Fault) Heal() error {
	f.lab.mu.Lock()
	defer f.lab.mu.Unlock()
	return f.heal()
}

func (f *Fault) heal() error {
	if !f.lab.faults[f] || f.lab.closed {
		return nil
	}
	if _, err := f.lab.sw.nft("", "delete", "table", "bridge", f.table); err != nil {
		return fmt.Errorf("lab: heal: %w", err)
	}
	delete(f.lab.faults, f)
	return nil
}

// Heal ends all drops and partitions. Cables that were pulled and delays stay.
func (l *Lab) Heal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	for _, f := range slices.Collect(maps.Keys(l.faults)) {
		err = errors.Join(err, f.heal())
	}
	l.log.Info("healed")
	return err
}

// Dropped returns how many packets the fault has lost so far: a test can show
// that it took something away. It is an error after Heal.
func (f *Fault) Dropped() (int, error) {
	out, err := f.lab.sw.nft("", "-j", "list", "table", "bridge", f.table)
	if err != nil {
		return 0, fmt.Errorf("lab: %w", err)
	}
	return countPackets([]byte(out))
}

func countPackets(listing []byte) (int, error) {
	var doc struct {
		Nftables []struct {
			Rule *struct {
				Expr []struct {
					Counter *struct{ Packets int }
				}
			}
		}
	}
	if err := json.Unmarshal(listing, &doc); err != nil {
		return 0, fmt.Errorf("lab: read nft's counters: %w", err)
	}
	total := 0
	for _, object := range doc.Nftables {
		if object.Rule == nil {
			continue
		}
		for _, e := range object.Rule.Expr {
			if e.Counter != nil {
				total += e.Counter.Packets
			}
		}
	}
	return total, nil
}
