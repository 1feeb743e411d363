package ntpproxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/durable"
	"holdfast/internal/health"
	"holdfast/internal/ntp"
	"holdfast/ntpproxy/discipline"
)

// Conditions of leap seconds.
const (
	conditionLeapList    = "ntp.leap_list"    // it can't be read, or is out of date
	conditionLeapSources = "ntp.leap_sources" // some make another thing of a leap second than we do
	conditionLeapNodes   = "ntp.leap_nodes"   // likewise
	conditionLeapDaemon  = "ntp.leap_daemon"  // it keeps the clock in a way that can't be smeared
)

// leapSettings is `ntp: leap:`, understood.
type leapSettings struct {
	mode   discipline.LeapMode
	shape  discipline.Shape
	list   string // file; "" none
	second discipline.LeapSecond
}

// leapSection is `ntp: leap:` as it stands in the file.
type leapSection struct {
	Mode   string `yaml:"mode"`
	Shape  string `yaml:"shape"`
	List   string `yaml:"list"`
	Insert string `yaml:"insert"`
	Delete string `yaml:"delete"`
}

// leap reads the section.
func (d *decoder) leap(raw leapSection) (set leapSettings) {
	known := false
	for _, m := range []discipline.LeapMode{discipline.LeapKernel, discipline.LeapSmear, discipline.LeapUpstream} {
		if raw.Mode == m.String() || raw.Mode == "" && m == discipline.LeapKernel {
			set.mode, known = m, true
		}
	}
	if !known {
		d.errorf("leap.mode", "%q is none of kernel, smear, upstream", raw.Mode)
	}
	switch raw.Shape {
	case "", discipline.Linear.String():
	case discipline.Cosine.String():
		set.shape = discipline.Cosine
	default:
		d.errorf("leap.shape", "%q is none of linear, cosine", raw.Shape)
	}
	if set.list = raw.List; raw.List != "" && !filepath.IsAbs(raw.List) {
		d.errorf("leap.list", "%q is no absolute path, such as /usr/share/zoneinfo/leap-seconds.list", raw.List)
	}
	if raw.Insert != "" && raw.Delete != "" {
		d.errorf("leap.delete", "there is one leap second at most: write insert or delete")
		return set
	}
	kind, key, text := discipline.LeapInsert, "leap.insert", raw.Insert
	if raw.Delete != "" {
		kind, key, text = discipline.LeapDelete, "leap.delete", raw.Delete
	}
	if text == "" {
		return set
	}
	day, err := time.Parse(time.DateOnly, text)
	next := day.AddDate(0, 0, 1)
	if err != nil || next.Day() != 1 {
		d.errorf(key, "%q is not the last day of a month, such as 2026-12-31", text)
		return set
	}
	set.second = discipline.LeapSecond{At: next, Kind: kind}
	return set
}

// ntpEpoch is the start of NTP's era 0, in which leap second lists count.
var ntpEpoch = time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC)

// errLeapList: not a list of leap seconds.
var errLeapList = errors.New("not a list of leap seconds as the IERS publishes it (leap-seconds.list)")

// maxLeapTime bounds what a list may say, in seconds of era 0: the year 9998.
const maxLeapTime = 255_000_000_000

// parseLeapList reads the IERS's leap-seconds.list: lines of NTP seconds and
// TAI less UTC from then on; "#@" says until when the list is good.
func parseLeapList(text []byte) (list []discipline.LeapSecond, expires time.Time, err error) {
	at := func(field string) (time.Time, error) {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil || n < 0 || n > maxLeapTime {
			return time.Time{}, fmt.Errorf("%q is no time", field)
		}
		return time.Unix(ntpEpoch.Unix()+n, 0).UTC(), nil
	}
	tai, rows := int64(0), 0
	var last time.Time
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		if rest, ok := strings.CutPrefix(line, "#@"); ok {
			if expires, err = at(strings.TrimSpace(rest)); err != nil {
				return nil, time.Time{}, fmt.Errorf("%w: line %d: %w", errLeapList, n, err)
			}
		}
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 2 {
			return nil, time.Time{}, fmt.Errorf("%w: line %d has %d fields in place of 2", errLeapList, n, len(fields))
		}
		when, err := at(fields[0])
		offset, badOffset := strconv.ParseInt(fields[1], 10, 32)
		step := offset - tai
		switch {
		case err != nil:
			return nil, time.Time{}, fmt.Errorf("%w: line %d: %w", errLeapList, n, err)
		case badOffset != nil || rows > 0 && step != 1 && step != -1:
			return nil, time.Time{}, fmt.Errorf("%w: line %d: %q is not one second from the line before", errLeapList, n, fields[1])
		case rows > 0 && !when.After(last):
			return nil, time.Time{}, fmt.Errorf("%w: line %d is not later than the line before", errLeapList, n)
		case rows > 0:
			list = append(list, discipline.LeapSecond{At: when, Kind: discipline.Leap(step)})
		}
		tai, last, rows = offset, when, rows+1
	}
	if err := lines.Err(); err != nil {
		return nil, time.Time{}, fmt.Errorf("%w: %w", errLeapList, err)
	}
	if rows == 0 || expires.IsZero() {
		return nil, time.Time{}, fmt.Errorf("%w: it has no leap second, or no date of expiry", errLeapList)
	}
	return list, expires, nil
}

// smearFile remembers the leap second that is being smeared, for a restart.
const smearFile = "ntp.smear"

// loadLeaps reads what is known of leap seconds: the file's, the list's, and
// the one that was begun before a restart. It blocks as long as the disk does;
// of two at a time the one counts that began later, with the later settings.
func (s *Server) loadLeaps(now time.Time) {
	load := s.loads.Add(1)
	set := s.settings.Load().leap
	var list []discipline.LeapSecond
	wrong := ""
	if set.list != "" {
		text, err := os.ReadFile(set.list)
		var expires time.Time
		if err == nil {
			list, expires, err = parseLeapList(text)
		}
		switch {
		case err != nil:
			wrong = fmt.Sprintf("ntp.leap.list: read %s: %v", set.list, err)
		case now.After(expires):
			wrong = fmt.Sprintf("ntp.leap.list: %s expired on %s: update it (Debian: tzdata)", set.list, expires.Format(time.DateOnly))
		}
	}
	if set.second.Kind != discipline.LeapNone {
		list = slices.DeleteFunc(list, func(l discipline.LeapSecond) bool { return l.At.Equal(set.second.At) })
		list = append(list, set.second)
	}
	if begun, ok := s.begunSmear(); ok && !slices.ContainsFunc(list, func(l discipline.LeapSecond) bool { return l.At.Equal(begun.At) }) {
		list = append(list, begun)
	}
	s.loaded.Lock()
	defer s.loaded.Unlock()
	if load != s.loads.Load() {
		return
	}
	s.leaps.Store(&list)
	if wrong == "" {
		s.board.Clear(conditionLeapList)
		return
	}
	s.board.Raise(conditionLeapList, health.Warning, wrong)
}

// begunSmear is the leap second whose smear this node had begun.
func (s *Server) begunSmear() (discipline.LeapSecond, bool) {
	if s.config.StateDir == "" {
		return discipline.LeapSecond{}, false
	}
	text, err := os.ReadFile(filepath.Join(s.config.StateDir, smearFile))
	if err != nil {
		return discipline.LeapSecond{}, false // none, most of the time
	}
	return parseSmear(text)
}

// parseSmear reads "insert" or "delete" and the midnight of the leap second.
func parseSmear(text []byte) (l discipline.LeapSecond, ok bool) {
	kind, at, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	when, err := time.Parse(time.RFC3339, at)
	switch kind {
	case "insert":
		l.Kind = discipline.LeapInsert
	case "delete":
		l.Kind = discipline.LeapDelete
	}
	if l.At = when.UTC(); err != nil || l.Kind == discipline.LeapNone || !l.At.Truncate(24*time.Hour).Equal(l.At) {
		return discipline.LeapSecond{}, false
	}
	return l, true
}

// rememberSmear notes that the smear of a leap second has begun.
func (s *Server) rememberSmear(l discipline.LeapSecond) {
	if was := s.begun.Swap(&l); s.config.StateDir == "" || was != nil && *was == l {
		return
	}
	kind := "insert"
	if l.Kind == discipline.LeapDelete {
		kind = "delete"
	}
	text := kind + " " + l.At.UTC().Format(time.RFC3339) + "\n"
	path := filepath.Join(s.config.StateDir, smearFile)
	s.files.save(path, func() error { return durable.Replace(path, []byte(text), 0o644) })
}

// sayLeap remembers a smear that has begun, and says which sources make another
// thing of the leap second than we do.
func (k *keeper) sayLeap(report *Kept) {
	s := k.server
	if report.Smearing {
		s.rememberSmear(k.core.Leaping())
	}
	var apart []string
	for i, source := range report.Sources {
		if source.State == discipline.OtherLeap {
			apart = append(apart, k.names[i])
		}
	}
	if len(apart) == 0 {
		s.board.Clear(conditionLeapSources)
		return
	}
	s.board.Raise(conditionLeapSources, health.Warning, fmt.Sprintf("sources that smear a leap second are not mixed with others (ntp.leap.mode is %s here): set aside until it is over: %s", report.leapMode, strings.Join(apart, ", ")))
}

// leapMode is what this node makes of leap seconds now: the file's word, but for
// a change of it that waits for the end of one.
func (s *Server) leapMode() discipline.LeapMode {
	if kept := s.Kept(); kept != nil {
		return kept.leapMode
	}
	if s.policy.Load().smear != nil {
		return discipline.LeapSmear
	}
	return s.settings.Load().leap.mode
}

// leapConflict says why another node can't have the same `ntp: leap:` as we do,
// "" it may.
func leapConflict(mode discipline.LeapMode, node string, p ntp.Packet) string {
	_, smears := p.ReferenceID.Smear()
	switch {
	case smears && mode != discipline.LeapSmear:
		return fmt.Sprintf("%s smears a leap second", node)
	case (p.Leap == ntp.LeapInsert || p.Leap == ntp.LeapDelete) && mode != discipline.LeapKernel:
		return fmt.Sprintf("%s announces a leap second to its clients", node)
	}
	return ""
}
