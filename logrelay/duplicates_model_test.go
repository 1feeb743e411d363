package logrelay

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"holdfast/logrelay/journal"
	"holdfast/logrelay/relp"
)

// modelNode is a node as far as duplicates go: what is on its disk, what it knows
// of the sender's lines, and what is on its way to the other node.
type modelNode struct {
	*model
	other   *modelNode
	up      bool
	blocks  []modelBlock // its journal
	writing *modelBlock  // on its way to the disk
	recent  *recent
	counted int
	// As a sender: what it said and the other has not read, and what it knows.
	wire    []modelBlock
	linked  bool
	sent    uint64      // all before it were said
	said    bool        // that there is no more
	numbers keptNumbers // as they are on its disk
	has     uint64      // what the other has of it
	// As a receiver.
	held, had uint64
	begun     bool
	newest    *shipped
}

// modelBlock is a write of the journal, or a shipment of one.
type modelBlock struct {
	first, end uint64
	lines      []int
	times      []int64
	foreign    bool
	progress   uint64 // of a foreign one: its mark
	begins     bool   // likewise
}

// model is two nodes and a client that has numbered lines.
type model struct {
	dice        *rand.Rand
	now         int64
	nodes       [2]*modelNode
	holder      *modelNode
	acked, next int
	script      []string
}

var modelSource = netip.MustParseAddr("10.1.0.31")

func (m *model) note(format string, args ...any) {
	m.script = append(m.script, fmt.Sprintf(format, args...))
}

func newModel(seed uint64) *model {
	m := &model{dice: rand.New(rand.NewPCG(seed, 1))}
	for i := range m.nodes {
		m.nodes[i] = &modelNode{model: m}
	}
	for i, n := range m.nodes {
		n.other = m.nodes[1-i]
		n.start()
	}
	m.holder = m.nodes[0]
	return m
}

func (n *modelNode) name() int { return slices.Index(n.nodes[:], n) }

func (n *modelNode) end() uint64 {
	if len(n.blocks) == 0 {
		return 0
	}
	return n.blocks[len(n.blocks)-1].end
}

func modelRecord(line int, at int64, foreign bool) journal.Record {
	r := journal.Record{Time: at, Source: modelSource, Input: viaRELP, Data: fmt.Append(nil, "line ", line)}
	if foreign {
		r.Input |= viaOther
	}
	return r
}

// start reads the journal as openReplicas does, and goes on.
func (n *modelNode) start() {
	n.up, n.recent, n.newest = true, newRecent(), nil
	n.recent.pairs = true
	n.numbers.starts(n.end())
	n.held, n.has, n.linked = 0, 0, false
	var newest *shipped
	for _, b := range n.blocks {
		if !b.foreign {
			for i, line := range b.lines {
				n.recent.add(modelRecord(line, b.times[i], false))
			}
			continue
		}
		if !b.begins {
			n.recent.confirm(newest)
		}
		newest.over()
		newest = n.shipped(b)
		n.recent.doubt(newest)
		n.held = b.progress
	}
	newest.over()
}

func (n *modelNode) shipped(b modelBlock) *shipped {
	s := &shipped{end: b.end}
	for i, line := range b.lines {
		s.add(n.recent, modelRecord(line, b.times[i], true))
	}
	return s
}

// crash ends a node. power: of what was on its way to the disk and to the other
// node some may be lost.
func (n *modelNode) crash(power bool) {
	n.note("%d dies, power %v", n.name(), power)
	n.up, n.linked = false, false
	if n.writing != nil && (!power || n.dice.IntN(2) == 0) {
		n.blocks = append(n.blocks, *n.writing)
	}
	n.writing = nil
	if power {
		n.wire = n.wire[:n.dice.IntN(len(n.wire)+1)]
	}
	n.other.wire = nil // nobody reads it
	n.other.linked = false
}

// link connects it to the other node, which then has no older connection of it.
func (n *modelNode) link() {
	to := n.other
	if n.linked || !n.up || !to.up || len(n.wire) > 0 {
		return
	}
	to.newest.over()
	to.newest, to.begun, to.had = nil, false, to.held
	n.linked, n.sent, n.said = true, n.numbers.begins("other", to.held), false
	if to.held <= n.numbers.before("other") { // as ship does
		n.numbers.agree("other")
	}
	n.has = max(n.has, n.sent)
}

// says puts on the wire what there is.
func (n *modelNode) says() {
	n.link()
	if !n.linked {
		return
	}
	for _, b := range n.blocks {
		if b.end > n.sent {
			n.ships(b)
		}
	}
	if w := n.writing; w != nil && w.end > n.sent {
		n.ships(*w)
		return
	}
	if n.writing == nil && !n.said {
		n.said = true
		n.wire = append(n.wire, modelBlock{first: n.sent, end: n.sent})
	}
}

func (n *modelNode) ships(b modelBlock) {
	if b.foreign {
		b.lines, b.times = nil, nil
	}
	n.wire, n.sent, n.said = append(n.wire, b), b.end, false
}

// reads takes a shipment of the other node, as intake does.
func (n *modelNode) reads() {
	from := n.other
	if !n.up || len(from.wire) == 0 {
		return
	}
	b := from.wire[0]
	from.wire = from.wire[1:]
	if n.newest != nil && b.first >= n.newest.end {
		n.recent.confirm(n.newest)
	}
	n.newest.over()
	n.newest = nil
	if b.first == b.end {
		return
	}
	if len(b.lines) > 0 {
		if n.writing != nil {
			n.syncs()
		}
		first := n.end()
		n.blocks = append(n.blocks, modelBlock{first: first, end: first + uint64(len(b.lines)) + 1, lines: b.lines, times: b.times, foreign: true, progress: b.end, begins: !n.begun})
		n.begun = true
	}
	if b.first < n.had {
		n.recent.anew()
		n.had = 0
	}
	n.newest = n.shipped(b)
	n.counts(n.recent.doubt(n.newest))
	n.held = b.end
	if from.linked {
		if from.has = max(from.has, b.end); len(b.lines) > 0 {
			from.numbers.agree("other")
		}
	}
}

func (n *modelNode) counts(lines int) {
	if lines > 0 {
		n.note("%d counts %d", n.name(), lines)
	}
	n.counted += lines
}

// takes begins to store lines of the client.
func (n *modelNode) takes(lines []int) {
	if len(lines) == 0 {
		return
	}
	if n.writing != nil {
		n.syncs()
	}
	b := &modelBlock{first: n.end(), end: n.end() + uint64(len(lines)), lines: lines}
	for range lines {
		b.times = append(b.times, n.now)
	}
	n.writing = b
	n.says()
}

// syncs has what it writes on the disk.
func (n *modelNode) syncs() {
	w := n.writing
	if w == nil {
		return
	}
	n.blocks, n.writing = append(n.blocks, *w), nil
	var hashes []uint64
	for _, line := range w.lines {
		hashes = append(hashes, n.recent.hash(modelRecord(line, 0, false).Data))
	}
	n.counts(n.recent.put(modelSource, n.now, hashes...))
	n.says()
}

// send has the client send some lines, or what it was not answered and some.
func (m *model) send(session bool) {
	n := m.holder
	if !n.up {
		return
	}
	from := m.next
	m.next = min(m.next+1+m.dice.IntN(8), m.acked+relp.Window)
	if session {
		from = m.acked
	}
	var lines []int
	for line := from; line < m.next; line++ {
		lines = append(lines, line)
	}
	if session {
		if first := n.recent.resent(modelSource, m.now); first != nil {
			for i, line := range lines {
				j := first.take(n.recent.hash(modelRecord(line, 0, false).Data))
				if j == again {
					lines = lines[i+1:]
				}
				if j != open {
					break
				}
			}
		}
	}
	m.note("%d gets %v", n.name(), lines)
	n.takes(lines)
}

// answer tells the client what is on both disks; alone: on one. all: nothing of
// that is lost.
func (m *model) answer(alone, all bool) {
	n := m.holder
	if !n.up {
		return
	}
	stored := map[int]bool{}
	for _, b := range n.blocks {
		if b.foreign || alone || b.end <= n.has {
			for _, line := range b.lines {
				stored[line] = true
			}
		}
	}
	most := m.next
	if !all && m.dice.IntN(3) == 0 { // an answer may end anywhere
		most = m.acked + m.dice.IntN(m.next-m.acked+1)
	}
	for m.acked < most && stored[m.acked] {
		m.acked++
	}
}

// step does one thing of what may happen next.
func (m *model) step(alone bool) {
	m.now++
	n := m.nodes[m.dice.IntN(2)]
	switch m.dice.IntN(6) {
	case 0:
		m.send(false)
	case 1, 2:
		if n.up {
			n.syncs()
			n.says()
		}
	case 3, 4:
		n.reads()
	case 5:
		m.answer(alone, false)
	}
}

// settle has both nodes bring each other all; a client waits for that where it is
// to come, see arrivals.
func (m *model) settle() {
	for range 3 {
		for _, n := range m.nodes {
			if n.up {
				n.syncs()
				n.says()
			}
			for range len(n.wire) {
				n.other.reads()
			}
		}
	}
}

// move has the client go to a node.
func (m *model) move(to *modelNode) {
	for range len(to.other.wire) { // what was said comes before
		to.reads()
	}
	m.holder = to
	m.now++
	m.note("client to %d, from line %d", to.name(), m.acked)
	m.send(true)
}

// twice is how many lines are on the node's disk more than once.
func (n *modelNode) twice() (sum int) {
	seen := map[int]bool{}
	for _, b := range n.blocks {
		for _, line := range b.lines {
			if seen[line] {
				sum++
			}
			seen[line] = true
		}
	}
	return sum
}

// TestWhateverIsTwiceIsCounted plays moves of a client between two nodes of which
// one, the other, both or none dies, by a kill or a power cut, at any moment, and
// compares what each counts with what is on its disk. It fails if a line is
// counted that is there once, if one that is there twice is not or is twice, and
// if one that was answered is not there.
func TestWhateverIsTwiceIsCounted(t *testing.T) {
	found := 0
	for seed := range uint64(1000) {
		m := newModel(seed)
		for range 4 {
			for range 5 + m.dice.IntN(30) {
				m.step(false)
			}
			holder, other := m.holder, m.holder.other
			power := m.dice.IntN(2) == 0
			switch m.dice.IntN(5) {
			case 0: // the holder
				holder.crash(power)
				m.move(other)
				for range m.dice.IntN(20) {
					m.step(true)
				}
				holder.start()
			case 1: // both
				holder.crash(power)
				for range m.dice.IntN(3) {
					m.step(false)
				}
				other.crash(power)
				other.start()
				m.move(other)
				for range m.dice.IntN(20) {
					m.step(true)
				}
				holder.start()
			case 2: // the other
				other.crash(power)
				for range m.dice.IntN(20) {
					m.step(true)
				}
				other.start()
			case 3: // the holder, which is back before its client went elsewhere
				holder.crash(power)
				holder.start()
				holder.says()
				m.move(holder)
			case 4: // none: its cable, say
				m.move(other)
			}
			for range 20 {
				m.step(false)
			}
			m.settle()
			m.answer(false, true)
			m.note("settled, answered before %d", m.acked)
		}
		for _, n := range m.nodes {
			there := map[int]bool{}
			for _, b := range n.blocks {
				for _, line := range b.lines {
					there[line] = true
				}
			}
			for line := range m.acked {
				if !there[line] {
					t.Fatalf("seed %d: line %d was answered, and is not on node %d\n%s", seed, line, n.name(), strings.Join(m.script, "\n"))
				}
			}
			if twice := n.twice(); n.counted != twice {
				t.Fatalf("seed %d: node %d has %d lines twice and counted %d\n%s", seed, n.name(), twice, n.counted, strings.Join(m.script, "\n"))
			}
			found += n.counted
		}
	}
	if found < 1000 {
		t.Errorf("only %d lines were twice at all", found)
	}
}
