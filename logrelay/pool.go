package logrelay

import "time"

// A target's first address is tried again so long after it failed, and each
// time twice as long after: one that takes connections and no lines costs
// answersLimit each time.
const (
	firstReturn = time.Minute
	lastReturn  = time.Hour
)

// pool says which of a target's addresses is its turn: the first while it is
// well, else the next that is. It knows no clock and no connection.
type pool struct {
	size  int
	least time.Duration // firstReturn
	at    int           // whose turn it is
	pause time.Duration // after the first failed; 0: it took lines since
	back  time.Time     // when it is tried again
}

// turn is the address to connect to.
func (p *pool) turn(now time.Time) int {
	if p.due(now) {
		p.at = 0
	}
	return p.at
}

// due tells whether the first is to be tried again though another is in use.
func (p *pool) due(now time.Time) bool { return p.at > 0 && !now.Before(p.back) }

// took says that the one whose turn it is takes lines.
func (p *pool) took() {
	if p.at == 0 {
		p.pause = 0
	}
}

// failed passes the turn on.
func (p *pool) failed(now time.Time) {
	if p.at == 0 {
		p.still(now)
	}
	p.at = (p.at + 1) % p.size
}

// still says that the first was tried, and in vain.
func (p *pool) still(now time.Time) {
	p.pause = min(max(2*p.pause, p.least), lastReturn)
	p.back = now.Add(p.pause)
}
