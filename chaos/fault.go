package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// Fault is one thing that goes wrong, and comes to its end. A fault that can't
// be shown to have had its effect shows nothing itself.
type Fault struct {
	Name  string
	Begin func(context.Context) error
	// Effect returns nil once what the fault does is seen from outside; it is
	// asked again and again while the fault lasts.
	Effect func(context.Context) error
	End    func(context.Context) error
}

// Together is several faults at the same time: it began when all have, had its
// effect when each has had its own, and ends the last first.
func Together(faults ...Fault) Fault {
	var names []string
	for _, f := range faults {
		names = append(names, f.Name)
	}
	done := make([]bool, len(faults))
	return Fault{
		Name: strings.Join(names, " and "),
		Begin: func(ctx context.Context) error {
			for _, f := range faults {
				if err := f.Begin(ctx); err != nil {
					return fmt.Errorf("%s: %w", f.Name, err)
				}
			}
			return nil
		},
		Effect: func(ctx context.Context) error {
			for i, f := range faults {
				if done[i] {
					continue
				}
				if err := f.Effect(ctx); err != nil {
					return fmt.Errorf("%s: %w", f.Name, err)
				}
				done[i] = true
			}
			return nil
		},
		End: func(ctx context.Context) error {
			var errs []error
			for i := len(faults) - 1; i >= 0; i-- {
				errs = append(errs, faults[i].End(ctx))
			}
			return errors.Join(errs...)
		},
	}
}

// Inflict begins a fault, waits until it had its effect, lets it last a moment
// longer and ends it, which it does in any case. It returns how long the effect
// took to be seen.
func (f Fault) Inflict(ctx context.Context, bound, longer time.Duration) (time.Duration, error) {
	if err := f.Begin(ctx); err != nil {
		return 0, errors.Join(fmt.Errorf("chaos: begin %s: %w", f.Name, err), f.End(ctx))
	}
	start := time.Now()
	err := f.await(ctx, bound)
	took := time.Since(start)
	if err == nil {
		err = wait(ctx, longer)
	}
	if ended := f.End(ctx); ended != nil {
		err = errors.Join(err, fmt.Errorf("chaos: end %s: %w", f.Name, ended))
	}
	return took, err
}

func (f Fault) await(ctx context.Context, bound time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	for {
		err := f.Effect(ctx)
		if err == nil {
			return nil
		}
		if wait(ctx, 20*time.Millisecond) != nil {
			return fmt.Errorf("chaos: %s had no effect within %v: %w", f.Name, bound, err)
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Deck deals kinds of faults so that in every round of as many as there are
// each kind comes once, in an order of its own: a short run leaves none out.
type Deck struct {
	kinds  []string
	random *rand.Rand
	left   []string
}

// NewDeck makes a deck; the same kinds and seed deal the same.
func NewDeck(random *rand.Rand, kinds ...string) *Deck {
	return &Deck{kinds: kinds, random: random}
}

// Deal gives the next kind.
func (d *Deck) Deal() string {
	if len(d.left) == 0 {
		for _, i := range d.random.Perm(len(d.kinds)) {
			d.left = append(d.left, d.kinds[i])
		}
	}
	kind := d.left[0]
	d.left = d.left[1:]
	return kind
}
