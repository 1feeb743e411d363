package vrrp

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Explanation is why a virtual router is as it is, as this node sees it.
type Explanation struct {
	View  View     `json:"view"`
	Story []string `json:"story"` // sentences, the most important first
}

// explain tells the story of a view at a time.
func explain(v View, now time.Time) Explanation {
	story := []string{holderWords(&v, now)}
	if v.Lease != nil {
		story = append(story, leaseWords(&v))
	}
	story = append(story, own(&v, now)...)
	if next := successor(&v, now); next != "" {
		story = append(story, next)
	}
	for i := range v.Peers {
		story = append(story, lastWord(&v, &v.Peers[i], now))
	}
	for i := range v.Tracks {
		story = append(story, v.Tracks[i].words(now))
	}
	for i := range v.Peers {
		for _, d := range v.Peers[i].Disagrees {
			story = append(story, fmt.Sprintf("%s disagrees: %s; make the two files agree.", v.Peers[i].name(), disagreementWords(d)))
		}
	}
	return Explanation{View: v, Story: append(story, troubles(&v)...)}
}

func sinceWords(at, now time.Time) string {
	if at.IsZero() {
		return "ever since the agent began"
	}
	return "for " + span(now.Sub(at))
}

// span is a duration the way a person says it.
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 10*time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d < 48*time.Hour:
		return d.Round(time.Second).String()
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// leaseWords says how a fenced router stands with its lease.
func leaseWords(v *View) string {
	const rule = "It is fenced: who has it needs a lease in the cluster's store as well"
	l := v.Lease
	switch {
	case l.Held:
		return fmt.Sprintf("%s; %s has it for %s more and renews it, else the address leaves.", rule, v.Node, time.Duration(l.Left))
	case !l.Store:
		return fmt.Sprintf("%s, and %s does not reach the store.", rule, v.Node)
	case v.State == stateLabel(Active) && l.Holder != "" && l.Holder != v.Node:
		return fmt.Sprintf("%s; that is %s's, and %s waits until it is given back or was not renewed for %s.", rule, l.Holder, v.Node, leasePatience*time.Duration(l.TTL))
	case v.State == stateLabel(Active):
		return fmt.Sprintf("%s; %s asks for it.", rule, v.Node)
	case l.Holder != "":
		return fmt.Sprintf("%s; by the store it is %s's.", rule, l.Holder)
	}
	return rule + "; nobody has it."
}

func holderWords(v *View, now time.Time) string {
	switch {
	case v.Lease != nil && v.Holder != "" && v.Holder != v.Node:
		return fmt.Sprintf("%s holds it, by the store.", v.Holder)
	case v.Lease != nil && !v.Lease.Held:
		return "Nobody holds it."
	case v.State == stateLabel(Active):
		return fmt.Sprintf("%s holds it, %s: %s.", v.Node, sinceWords(v.Since, now), v.Reason)
	case v.Holder == "":
		return "Nobody is known to hold it."
	}
	return fmt.Sprintf("%s holds it, as %s hears.", v.Holder, v.Node)
}

// own says how this node stands.
func own(v *View, now time.Time) []string {
	var story []string
	if v.State != stateLabel(Active) {
		story = append(story, fmt.Sprintf("%s is in state %s, %s: %s.", v.Node, v.State, sinceWords(v.Since, now), v.Reason))
	}
	words := fmt.Sprintf("%s has priority %d", v.Node, v.Priority)
	if v.Priority != v.Base {
		words += fmt.Sprintf(" (%d by the file, the rest by what it tracks or was told)", v.Base)
	}
	story = append(story, fmt.Sprintf("%s, and an interval of %s is in force.", words, time.Duration(v.Interval)))
	switch v.Mode {
	case ModeHeld:
		story = append(story, fmt.Sprintf("It was told to hold (vip hold, vip move): holdfast vip release %s lets priorities decide again.", v.Name))
	case ModeYielded:
		story = append(story, fmt.Sprintf("It was told to hand over (vip move): holdfast vip release %s lets it take part again.", v.Name))
	}
	if len(v.Order) > 0 {
		story = append(story, "By the file it belongs to, first to last: "+strings.Join(v.Order, ", ")+".")
	}
	return story
}

// successor tells who would hold it next: of those that were heard, the one
// with the highest priority, and of the silent backups the first in the order.
func successor(v *View, now time.Time) string {
	if v.State != stateLabel(Active) {
		if v.State == stateLabel(Backup) && len(v.Order) > 1 {
			return "If the holder dies, the next in the order that is well takes over; here, " + ownPlace(v) + "."
		}
		return ""
	}
	for _, node := range v.Order {
		if node != v.Node {
			return fmt.Sprintf("%s would take over next: it comes first in the order after %s. Backups are silent, so whether it is well is seen there: holdfast vip explain %s --server https://%s:8501", node, v.Node, v.Name, node)
		}
	}
	return "No other node may take over: it is the only member."
}

func ownPlace(v *View) string {
	place := slices.Index(v.Order, v.Node)
	if place < 0 {
		return v.Node + " has no place in it"
	}
	return fmt.Sprintf("%s is number %d of %d", v.Node, place+1, len(v.Order))
}

func lastWord(v *View, p *PeerView, now time.Time) string {
	if p.Heard.IsZero() {
		return fmt.Sprintf("%s was not heard yet; a backup is silent.", p.name())
	}
	words := fmt.Sprintf("%s last said %s ago: priority %d, every %s", p.name(), span(now.Sub(p.Heard)), p.Priority, time.Duration(p.Interval))
	if p.Priority == 0 {
		words += " (it gave up)"
	}
	return words + "."
}

// words says how a tracked thing is and what that means.
func (t *TrackView) words(now time.Time) string {
	meaning := fmt.Sprintf("adds %d to the priority while up", t.Weight)
	switch {
	case t.Weight == 0:
		meaning = "when it is down, the node does not hold"
	case t.Weight < 0:
		meaning = fmt.Sprintf("takes %d from the priority while down", -t.Weight)
	}
	if t.Reverse {
		meaning += ", up and down reversed"
	}
	state := t.State
	if !t.Since.IsZero() {
		state += " " + sinceWords(t.Since, now)
	}
	return fmt.Sprintf("Tracked: %s is %s (%s).", t.Name, state, meaning)
}

// troubles are what an admin should look at.
func troubles(v *View) []string {
	var story []string
	if v.Link.Why != "" {
		story = append(story, "The interface does not count: "+v.Link.Why+".")
	}
	if v.Claimant != "" {
		story = append(story, fmt.Sprintf("%s answers for an address that this node holds: find who has that hardware address.", v.Claimant))
	}
	for _, a := range v.Addresses {
		switch {
		case a.Error != "":
			story = append(story, fmt.Sprintf("%s: %s.", a.Address, a.Error))
		case a.Wanted != a.Present:
			story = append(story, fmt.Sprintf("%s is %s the interface and should %sbe.", a.Address,
				map[bool]string{true: "on", false: "not on"}[a.Present], map[bool]string{true: "", false: "not "}[a.Wanted]))
		}
	}
	return story
}

// planLine is a change as an operator would type it.
func planLine(c Change) PlanLine {
	dev := cmp.Or(c.Interface, "INTERFACE")
	line := PlanLine{Router: c.Router, Kind: string(c.Kind), Why: c.Why}
	switch c.Kind {
	case Add:
		line.Command = fmt.Sprintf("ip address add %s dev %s proto 0x70", c.Prefix, dev)
	case Remove:
		line.Command = fmt.Sprintf("ip address del %s dev %s", c.Prefix, dev)
	case Ignore:
		line.Command = fmt.Sprintf("# %s on %s stays", c.Prefix, dev)
	case Wait:
		line.Command = fmt.Sprintf("# %s waits for %s", c.Prefix, dev)
	}
	return line
}

// PlanLine is a difference between what should be and what the kernel has.
type PlanLine struct {
	Router  string `json:"router"`
	Kind    string `json:"kind"`    // add, remove, ignore, wait, sysctl
	Command string `json:"command"` // what would be typed; a comment where nothing is done
	Why     string `json:"why"`
}
