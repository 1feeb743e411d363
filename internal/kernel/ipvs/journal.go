package ipvs

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Journal keeps lines that are of this boot and network namespace, over the ends
// of processes.
type Journal interface {
	// Read calls line with the words of each line, and whether it is of this boot
	// and namespace, and counts those that don't have as many or that line says
	// no to.
	Read(words int, line func(words []string, ours bool) bool) (broken int, err error)
	// Write puts these in the place of all lines.
	Write(lines []string) error
}

// journal says which services and daemons are ours, since IPVS has no mark for an
// owner: a line each, "tcp ADDRESS:PORT", "udp ADDRESS:PORT", "mark N", "mark6 N"
// or "daemon ROLE". A line is written before the thing is made and removed after
// it is gone.
type journal struct {
	kept    Journal
	keys    map[Key]bool
	daemons map[Role]bool
}

// openJournal reads what is kept. Lines that can't be read are left out: what
// they meant is not known.
func openJournal(kept Journal) (j *journal, broken int, err error) {
	j = &journal{kept: kept, keys: map[Key]bool{}, daemons: map[Role]bool{}}
	broken, err = kept.Read(2, func(words []string, ours bool) bool {
		key, role, ok := parseThing(words[0], words[1])
		switch {
		case !ok || !ours:
		case role != 0:
			j.daemons[role] = true
		default:
			j.keys[key] = true
		}
		return ok
	})
	return j, broken, err
}

// parseThing reads what a line is about: a role, or else a key.
func parseThing(kind, rest string) (k Key, r Role, ok bool) {
	switch kind {
	case "daemon":
		for _, r := range []Role{Master, Backup} {
			if rest == r.String() {
				return Key{}, r, true
			}
		}
		return Key{}, 0, false
	case "mark", "mark6":
		n, err := strconv.ParseUint(rest, 10, 32)
		k = ByMark(uint32(n), kind == "mark6")
		return k, 0, err == nil && n != 0
	case "tcp", "udp":
		addr, err := netip.ParseAddrPort(rest)
		if err != nil {
			return Key{}, 0, false
		}
		k = ByAddr(map[string]Protocol{"tcp": TCP, "udp": UDP}[kind], addr)
		return k, 0, k.valid() == nil
	}
	return Key{}, 0, false
}

// lines are all of them, sorted.
func (j *journal) lines() (lines []string) {
	for k := range j.keys {
		kind, rest, _ := strings.Cut(k.String(), "/")
		lines = append(lines, kind+" "+rest)
	}
	for r := range j.daemons {
		lines = append(lines, "daemon "+r.String())
	}
	slices.Sort(lines)
	return lines
}

func (j *journal) save() error {
	if err := j.kept.Write(j.lines()); err != nil {
		return fmt.Errorf("ipvs: journal: %w", err)
	}
	return nil
}
