package check

import (
	"context"
	"time"

	"holdfast/internal/ntp"
)

// ntpProbe asks for the time once. A server that answers but is not
// synchronised is critical: its clients have no time from it.
type ntpProbe struct {
	address string
	limit   time.Duration
}

func (p ntpProbe) Probe(ctx context.Context) Result {
	a, err := ntp.Query(ctx, p.address)
	switch {
	case err != nil:
		return critical("NTP %s: %s", p.address, reason(err, p.limit))
	case !a.Synchronised():
		return critical("NTP %s: the server says that it is not synchronised", p.address)
	}
	// No figure that changes with each probe: an output that changes is written
	// to the store.
	return passing("NTP %s: synchronised, stratum %d", p.address, a.Stratum)
}
