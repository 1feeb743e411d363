package vrrp

import (
	"net/netip"
	"time"
)

// Who removes addresses again and again is answered at once so often, then
// after pauses: we don't keep a machine busy with a quarrel.
const (
	verifyBurst = 5
	verifyPause = 100 * time.Millisecond
)

// putBack looks which addresses are missing and adds them again. Where
// somebody removes them again and again, it gives him pauses.
func (a *applier) putBack(now time.Time) {
	if !a.verifications.AllowN(now, 1) {
		a.verifyAt = now.Add(verifyPause)
		return
	}
	a.verifyAt = time.Time{}
	there, err := a.all.handle.Addrs()
	if err != nil {
		a.log.Error("list addresses", "error", err)
		a.verifyAt = now.Add(time.Second)
		return
	}
	present := map[netip.Prefix]bool{}
	for _, addr := range there {
		if addr.Link == a.link.Index {
			present[addr.Prefix] = true
		}
	}
	for _, h := range a.holdings {
		h.restore(a, present)
	}
}
