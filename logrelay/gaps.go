package logrelay

import (
	"bytes"
	"strconv"
	"sync"
	"time"
)

// gaps finds lines that a sender numbered and that did not come: RFC 5424
// §7.3.1, [meta sequenceId="N"], 1 to 2147483647 and then 1 again. Nothing else
// in syslog is a line's number: RELP's are a connection's.
type gaps struct {
	mu   sync.Mutex
	last map[string]int64
	list []Gap // the newest, the oldest first
}

// Gap is lines of a host that are missing.
type Gap struct {
	Host  string    `json:"host"`
	After int64     `json:"after"` // the number before the first that is missing
	Lines int64     `json:"lines"`
	Time  time.Time `json:"time"` // the line behind them, when it was received
}

// Bounds of what is taken for a gap.
const (
	maxSequence = 1<<31 - 1
	// A number that is smaller by no more than this was sent again; one that is
	// smaller by more, or jumps further ahead, is of a sender that began anew.
	maxAgain = 4096
	maxGap   = 1_000_000
	maxGaps  = 100
)

func newGaps() *gaps { return &gaps{last: map[string]int64{}} }

// sequenceOf is the sequenceId of a message's structured data; 0: there is none.
func sequenceOf(data []byte) int64 {
	at := bytes.Index(data, []byte("[meta "))
	if at < 0 {
		return 0
	}
	i := bytes.Index(data[at:], []byte(` sequenceId="`))
	if i < 0 {
		return 0
	}
	text, _, ok := bytes.Cut(data[at+i+len(` sequenceId="`):], []byte{'"'})
	if !ok || len(text) > 10 {
		return 0
	}
	n, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil || n < 1 || n > maxSequence {
		return 0
	}
	return n
}

// saw tells how many lines are missing before a line of a host.
func (g *gaps) saw(host string, number int64, at time.Time) (missing int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	last, known := g.last[host]
	ahead := number - last
	if known && ahead <= 0 && -ahead < maxAgain && number != 1 {
		return 0 // sent again
	}
	g.last[host] = number
	if last == maxSequence && known {
		ahead = number
	}
	if !known || ahead <= 1 || ahead > maxGap {
		return 0
	}
	missing = ahead - 1
	g.list = append(g.list, Gap{Host: host, After: last, Lines: missing, Time: at})
	if len(g.list) > maxGaps {
		g.list = g.list[1:]
	}
	return missing
}

// newest are the last gaps that were found.
func (g *gaps) newest() []Gap {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]Gap(nil), g.list...)
}
