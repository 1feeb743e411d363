package vrrp

import (
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/cluster"
)

func TestAFencedVIPTracksTheStoreAndHasALease(t *testing.T) {
	set := settings(t, small(t, `  web: {network: administration, address: 10.1.0.101, vrid: 7, members: "@service", vrrp: {fenced: true}}
`, ""), "fbservice2")
	r := set.Routers[0]
	if !r.Fenced || r.Lease != defaultLease || !slices.Contains(r.Tracks, Track{Name: storeTrack("web")}) {
		t.Errorf("%+v", r)
	}
}

func TestMistakesAboutFencesAreNamed(t *testing.T) {
	for vrrp, words := range map[string]string{
		"{fenced: true, lease: 1s}":                   "vips.web.vrrp.lease: 1s; the range is 2s to 1m0s",
		"{lease: 5s}":                                 "vips.web.vrrp.lease: 5s without fenced: true means nothing",
		"{fenced: true, sync: g}":                     "vips.web.vrrp.fenced: a fenced VIP can't be in sync group g",
		"{fenced: true, priority: {fbservice1: 255}}": "vips.web.vrrp.fenced: fbservice1 has priority 255",
	} {
		_, err := cluster.Parse("bad.yaml", []byte(`schema: 1
cluster: foobar
domain: hpc.example.com
networks: {administration: {prefix: 10.1.0.0/24}}
roles: {service: {voters: 3, run: [dns]}}
nodes: {"fbservice[1-3]": {role: service, addresses: {administration: "10.1.0.[1-3]"}}}
vips:
  web: {network: administration, address: 10.1.0.101, vrid: 7, members: "@service", vrrp: `+vrrp+`}
`), validators())
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, want %q", vrrp, err, words)
		}
	}
}

// TestARestartHandsAFencedAddressOver: its lease would run out under the
// successor, which could not tell.
func TestARestartHandsAFencedAddressOver(t *testing.T) {
	at := time.Unix(1000, 0)
	for _, fenced := range []bool{true, false} {
		m := NewMachine([]Router{{Name: "web", Version: 3, VRID: 1, Priority: 255, Interval: time.Second, Fenced: fenced}})
		m.Step(Event{Kind: Start, At: at})
		kinds := map[ActionKind]int{}
		zero := false
		for _, a := range m.Step(Event{Kind: Suspend, At: at.Add(time.Second), Grace: 10 * time.Second}) {
			kinds[a.Kind]++
			zero = zero || a.Kind == Send && a.Priority == 0
		}
		if withdrawn := kinds[Withdraw] > 0; withdrawn != fenced || zero != fenced {
			t.Errorf("fenced %v: withdrawn %v, priority 0 sent %v", fenced, withdrawn, zero)
		}
	}
}
