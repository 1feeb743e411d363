package logrelay

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestAPlannedMoveDoublesNothingThoughNoNodeHasTheOthersLines: clients that send
// all the time go to another relay and back, while both run, as at `holdfast vip
// move`. Before the address goes, what is stored of a client is what it was
// answered, so that nothing comes again; and nothing is lost.
func TestAPlannedMoveDoublesNothingThoughNoNodeHasTheOthersLines(t *testing.T) {
	first, firstDir, stopFirst := serve(t, nil)
	second, secondDir, stopSecond := serve(t, nil)
	relays := []*Server{first, second}
	files := []process{{t: t, dir: firstDir}, {t: t, dir: secondDir}}
	at := newAddress(t)
	at.move(first.Addrs("relp")[0].String())
	ctx, end := context.WithCancel(t.Context())
	defer end()
	var group sync.WaitGroup
	var moved atomic.Int64
	list := make([]*client, 5)
	for i := range list {
		list[i] = &client{number: i, to: at.Addr().String(), move: &moved}
		group.Go(func() { list[i].run(ctx, 50*time.Millisecond) })
	}
	stored := func(c *client) (all []int) {
		for _, p := range files {
			all = append(all, p.numbers(fmt.Sprint("client", c.number))...)
		}
		return all
	}
	for move := range 2 {
		var before []int64
		for _, c := range list {
			before = append(before, c.acked.Load())
		}
		eventually(t, time.Minute, "clients are answered", func() error {
			for i, c := range list {
				if n := c.acked.Load() - before[i]; n < 100 {
					return fmt.Errorf("client %d: %d lines since the last move", i, n)
				}
			}
			return nil
		})
		here := netip.MustParseAddr("127.0.0.1")
		mayGo(&relays[1-move].sessions, here, time.Time{}) // what was said at its own move is over
		// However long that and the files take, its clients are not to go on here meanwhile.
		mayGo(&relays[move].sessions, here, time.Now().Add(time.Hour))
		relays[move].Leave(t.Context(), 0, here)
		eventually(t, time.Minute, "what is stored is answered", func() error {
			for i, c := range list {
				if have, answered := len(stored(c)), int(c.acked.Load()); have != answered {
					return fmt.Errorf("client %d: %d lines are stored, %d answered", i, have, answered)
				}
			}
			return nil
		})
		at.move(relays[1-move].Addrs("relp")[0].String())
	}
	end()
	group.Wait()
	stopFirst()
	stopSecond()
	for i, c := range list {
		all := stored(c)
		slices.Sort(all)
		if twice := len(all) - len(slices.Compact(slices.Clone(all))); twice > 0 || len(all) != c.next {
			t.Errorf("client %d sent %d lines; %d are in the files of %s and %s, %d of them twice", i, c.next, len(all), filepath.Base(firstDir), filepath.Base(secondDir), twice)
		}
	}
}
