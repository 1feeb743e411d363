package ntpproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

const (
	// lookTimeout is how long the resolvers have for a name: the C library's
	// and Go's try each of resolv.conf for 5 s, up to three of them, and a dead
	// one stands first sometimes.
	lookTimeout = 20 * time.Second
	// lookPause is how long after a look-up that failed the next may begin
	// while no address is known, lookRetry while one is.
	lookPause = 2 * time.Second
	lookRetry = time.Hour
	// patience is how many requests in a row an address that has answered may
	// leave unanswered until another of its name is tried: one lost datagram
	// is no reason to leave a server whose oscillator is known.
	patience = 3
	// deniedFor is how long an address that denies us is passed over: who has no
	// other is asked again every 2^10 s (discipline.Core.Refused), 4 s later.
	deniedFor = 17 * time.Minute
)

// errNoAddress: a name that has none.
var errNoAddress = errors.New("the name has no address")

// lead is where a source's name leads.
type lead struct {
	found   []netip.AddrPort // by the last look-up that found any, in the order in which they are tried
	silent  int              // requests in a row that the present address left unanswered
	tried   int              // addresses in a row that were given up
	shun    netip.AddrPort   // the last of those
	denied  []denial         // addresses that want none of us
	looking bool             // a look-up is under way
	owed    bool             // a request waits for it
	again   time.Duration    // raw time before which no other begins
}

// denial is an address that denied us (DENY, RSTR).
type denial struct {
	at    netip.AddrPort
	until time.Duration // raw time to which it is passed over
}

// denies tells whether an address is to be passed over at a raw time.
func (l *lead) denies(at netip.AddrPort, raw time.Duration) bool {
	return slices.ContainsFunc(l.denied, func(d denial) bool { return d.at == at && raw < d.until })
}

// lead is where a source's name leads.
func (k *keeper) lead(i int) *lead {
	if k.leads == nil {
		k.leads = map[int]*lead{}
	}
	if k.leads[i] == nil {
		k.leads[i] = &lead{}
	}
	return k.leads[i]
}

// send asks a source, which is due, and has its name looked up beside that if
// need be; it is asked where it answered last meanwhile. It does not block.
func (k *keeper) send(ctx context.Context, i int, raw time.Duration) {
	l, at := k.lead(i), k.where(i, raw)
	if !at.IsValid() {
		if literal, err := netip.ParseAddrPort(k.names[i]); err == nil {
			k.addrs[i], at = literal, literal
		}
	}
	if at.IsValid() {
		k.goAsk(ctx, i, at, raw)
		return
	}
	if !l.looking && raw >= l.again {
		l.looking = true
		k.goLook(ctx, i, raw)
	}
	if good := k.good(i, raw); good.IsValid() && good != l.shun {
		k.goAsk(ctx, i, good, raw)
		return
	}
	l.owed = true
}

// good is the address at which a source answered last; zero: nowhere yet, or it
// denied us there.
func (k *keeper) good(i int, raw time.Duration) netip.AddrPort {
	if !k.last[i].IsValid() {
		return netip.AddrPort{}
	}
	at := netip.AddrPortFrom(k.last[i], portOf(k.names[i]))
	if k.lead(i).denies(at, raw) {
		return netip.AddrPort{}
	}
	return at
}

// portOf is the port of a host:port that the configuration accepted.
func portOf(name string) uint16 {
	_, port, _ := net.SplitHostPort(name)
	n, _ := strconv.ParseUint(port, 10, 16)
	return uint16(n)
}

// goLook looks a source's name up beside the loop.
func (k *keeper) goLook(ctx context.Context, i int, raw time.Duration) {
	name := k.names[i]
	k.beside(ctx, heard{source: i, generation: k.generation, lookup: true, raw: raw}, func(h *heard) error {
		var err error
		h.found, err = k.server.lookUp(ctx, name)
		return err
	})
}

// lookUp finds the addresses of host:port, in the order in which they are to be
// tried. It blocks for lookTimeout at most.
func (s *Server) lookUp(ctx context.Context, name string) (list []netip.AddrPort, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	host, _, err := net.SplitHostPort(name)
	if err != nil {
		return nil, err
	}
	addrs, err := s.resolve(ctx, "ip", host)
	if err == nil && len(addrs) == 0 {
		err = errNoAddress
	}
	if err != nil {
		return nil, fmt.Errorf("look %s up: %w", host, err)
	}
	for _, a := range inTurn(addrs) {
		list = append(list, netip.AddrPortFrom(a, portOf(name)))
	}
	return list, nil
}

// inTurn puts the two families in turn, the first one first (RFC 8305 §4): where
// all of one is filtered, the second address that is tried is of the other.
// Within a family the resolver's order stays (RFC 6724).
func inTurn(addrs []netip.Addr) (list []netip.Addr) {
	var families [2][]netip.Addr // the first one's, the other's
	for i, a := range addrs {
		a = a.Unmap()
		addrs[i] = a
		family := 0
		if a.Is4() != addrs[0].Is4() {
			family = 1
		}
		if !slices.Contains(families[family], a) {
			families[family] = append(families[family], a)
		}
	}
	for i := range max(len(families[0]), len(families[1])) {
		for _, family := range families {
			if i < len(family) {
				list = append(list, family[i])
			}
		}
	}
	return list
}

// lookAfter is how long the address of a source's name is taken for good.
func lookAfter(i int) time.Duration { return lookAgain - time.Duration(i)*lookApart }

// located takes what a look-up found. The address that answered stays while its
// name leads there; when nothing was found, what was known before is as good as
// it was.
func (k *keeper) located(ctx context.Context, h heard) {
	i, l := h.source, k.lead(h.source)
	l.looking = false
	good := k.good(i, h.raw)
	switch {
	case h.err == nil:
		l.found, l.tried, l.silent = h.found, 0, 0
		k.addrs[i] = l.choose(good, h.raw)
	case good.IsValid():
		k.addrs[i] = good
	default:
		k.addrs[i] = l.choose(good, h.raw)
	}
	if h.err != nil {
		if k.addrs[i].IsValid() {
			k.looked[i] = h.raw - lookAfter(i) + lookRetry
		} else {
			l.again = h.raw + lookPause
		}
		k.server.log.Debug("a source's name is not found", "source", k.names[i], "error", h.err)
	}
	if l.owed && k.addrs[i].IsValid() {
		l.owed = false
		k.goAsk(ctx, i, k.addrs[i], h.raw)
	}
}

// choose is the address of a name to be asked: the one that answered, unless it
// fell silent and there is another. It is zero when all deny us, or none is
// known.
func (l *lead) choose(good netip.AddrPort, raw time.Duration) (at netip.AddrPort) {
	if good.IsValid() && good != l.shun && slices.Contains(l.found, good) {
		return good
	}
	for _, a := range l.found {
		switch {
		case l.denies(a, raw):
		case a != l.shun:
			return a
		default:
			at = a
		}
	}
	return at
}

// unanswered notes that the present address left a request unanswered, by a raw
// time.
func (k *keeper) unanswered(i int, raw time.Duration) {
	at := k.addrs[i]
	if !at.IsValid() {
		return // a look-up decides
	}
	l := k.lead(i)
	if l.silent++; k.last[i] == at.Addr() && l.silent < patience {
		return
	}
	l.tried++
	k.giveUp(i, at, raw)
}

// refusedBy notes that an address denies us. fresh: that is news.
func (k *keeper) refusedBy(i int, at netip.AddrPort, raw time.Duration) (fresh bool) {
	l := k.lead(i)
	fresh = !l.denies(at, raw)
	l.denied = slices.DeleteFunc(l.denied, func(d denial) bool { return d.at == at || raw >= d.until })
	l.denied = append(l.denied, denial{at, raw + deniedFor})
	k.giveUp(i, at, raw)
	return fresh
}

// giveUp has another address of the name asked than this one, and when all were
// tried, the name looked up again. Those that deny us are passed over: who
// answered nothing yet would else be believed to be news again and again.
func (k *keeper) giveUp(i int, at netip.AddrPort, raw time.Duration) {
	l := k.lead(i)
	l.silent, l.shun = 0, at
	from, n := slices.Index(l.found, at)+1, len(l.found)
	var left []netip.AddrPort
	for j := range n {
		if a := l.found[(from+j)%n]; !l.denies(a, raw) {
			left = append(left, a)
		}
	}
	if l.tried >= len(left) {
		k.addrs[i], l.tried = netip.AddrPort{}, 0
		return
	}
	k.addrs[i] = left[0]
}

// answered notes that an address answered.
func (k *keeper) answered(i int, at netip.AddrPort) {
	l := k.lead(i)
	l.silent, l.tried, l.shun = 0, 0, netip.AddrPort{}
	l.denied = slices.DeleteFunc(l.denied, func(d denial) bool { return d.at == at })
}
