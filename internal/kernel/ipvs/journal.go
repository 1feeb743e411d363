package ipvs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// The journal says which services and daemons are ours, since IPVS has no mark
// for an owner. It is a text file, a line each:
//
//	BOOT-ID NETNS KIND ...
//
// where KIND and what follows is "tcp ADDRESS:PORT", "udp ADDRESS:PORT",
// "mark N", "mark6 N" or "daemon ROLE". A line is written before the thing is
// made and removed after it is gone. Lines of another boot or of another
// network namespace speak of tables that are not these, and are dropped.
const journalFile = "ipvs"

// origin is where a table is: which kernel, which network namespace.
type origin struct {
	boot  string
	netns uint64
}

// here reads the place of the calling thread.
func here() (origin, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return origin{}, err
	}
	info, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return origin{}, err
	}
	return origin{boot: strings.TrimSpace(string(boot)), netns: info.Sys().(*syscall.Stat_t).Ino}, nil
}

// journal is the file and what stands in it.
type journal struct {
	path    string
	at      origin
	keys    map[Key]bool
	daemons map[Role]bool
}

// openJournal reads the journal of a directory. Lines that can't be read are
// left out: what they meant is not known.
func openJournal(dir string, at origin) (j *journal, broken int, err error) {
	j = &journal{path: filepath.Join(dir, journalFile), at: at}
	text, err := os.ReadFile(j.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, 0, err
	}
	broken = j.parse(text)
	return j, broken, nil
}

func (j *journal) parse(text []byte) (broken int) {
	j.keys, j.daemons = map[Key]bool{}, map[Role]bool{}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) != 4 {
			broken++
			continue
		}
		netns, err := strconv.ParseUint(fields[1], 10, 64)
		key, role, ok := parseThing(fields[2], fields[3])
		if err != nil || !ok {
			broken++
			continue
		}
		switch {
		case (origin{fields[0], netns}) != j.at:
		case role != 0:
			j.daemons[role] = true
		default:
			j.keys[key] = true
		}
	}
	return broken
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

// format is the whole file, sorted.
func (j *journal) format() []byte {
	var lines []string
	for k := range j.keys {
		kind, rest, _ := strings.Cut(k.String(), "/")
		lines = append(lines, kind+" "+rest)
	}
	for r := range j.daemons {
		lines = append(lines, "daemon "+r.String())
	}
	slices.Sort(lines)
	var b []byte
	for _, l := range lines {
		b = fmt.Appendf(b, "%s %d %s\n", j.at.boot, j.at.netns, l)
	}
	return b
}

// save puts the file in place whole. It need not outlive the kernel, so
// nothing is synced; it lies below /run, where only we may write.
func (j *journal) save() error {
	temporary := j.path + ".new"
	if err := os.WriteFile(temporary, j.format(), 0o600); err != nil {
		return fmt.Errorf("ipvs: journal: %w", err)
	}
	if err := os.Rename(temporary, j.path); err != nil {
		return fmt.Errorf("ipvs: journal: %w", err)
	}
	return nil
}
