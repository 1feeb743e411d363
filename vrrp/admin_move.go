package vrrp

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Moved is what came of an order to move.
type Moved struct {
	Name   string `json:"name"`
	From   string `json:"from"` // who held it before, as this node knew; "" nobody
	Holder string `json:"holder"`
	Done   bool   `json:"done"`           // it is where it was to go
	Text   string `json:"text"`           // a sentence about it
	Note   string `json:"note,omitempty"` // what the move may have cost; "" nothing
}

// Told is what came of the word that a router is about to be taken away.
type Told struct {
	Name  string `json:"name"`
	Holds bool   `json:"holds"` // this node does; else there is nobody to tell
}

func (a *Admin) move(r *http.Request) (any, error) {
	ctx, name, to := r.Context(), r.PathValue("name"), r.URL.Query().Get("to")
	v, err := a.view(ctx, name)
	if err != nil {
		return nil, err
	}
	switch {
	case to == a.Node:
		return a.pull(ctx, v, "")
	case to != "":
		return a.push(ctx, v, to)
	case v.State != stateLabel(Active):
		return nil, conflict{fmt.Errorf("%s does not hold %s, %s does: type it there, or say where it shall go: holdfast vip move %s --to NODE", a.Node, name, orNobody(v.Holder), name)}
	}
	note := a.hearOut(ctx, a.Node, name)
	if err := a.Routers.Yield(ctx, name); err != nil {
		return nil, err
	}
	moved := a.await(ctx, v, "", func(v *View) bool { return v.State != stateLabel(Active) && v.Holder != "" && v.Holder != a.Node })
	moved.Note = note
	return moved, nil
}

func orNobody(holder string) string {
	if holder == "" {
		return "nobody that is known"
	}
	return holder
}

func (a *Admin) hold(r *http.Request) (any, error) {
	v, err := a.view(r.Context(), r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	return a.pull(r.Context(), v, r.URL.Query().Get("heard"))
}

// pull takes it over here. heard is a node that has been told; if another holds it by
// now, that is told, too.
func (a *Admin) pull(ctx context.Context, v View, heard string) (any, error) {
	if v.State == stateLabel(Fault) {
		return nil, conflict{fmt.Errorf("%s can't hold %s: %s", a.Node, v.Name, v.Reason)}
	}
	note := ""
	if v.Holder != a.Node && v.Holder != heard {
		note = a.hearOut(ctx, v.Holder, v.Name)
	}
	if err := a.Routers.Pull(ctx, v.Name); err != nil {
		return nil, err
	}
	moved := a.await(ctx, v, a.Node, func(v *View) bool { return v.State == stateLabel(Active) })
	moved.Note = note
	return moved, nil
}

// hearOut tells a router's holder that it is about to be taken away. What stands
// in the way of that stops no move; the note says so.
func (a *Admin) hearOut(ctx context.Context, holder, name string) (note string) {
	if a.HearOut == nil || holder == "" {
		return ""
	}
	if err := a.HearOut(ctx, holder, Departure{Router: name, By: a.Node}); err != nil {
		return fmt.Sprintf("the holder %s could not be told before: some log lines may come twice: %v", holder, err)
	}
	return ""
}

// leave is the word of another member, or of an admin, that a router is about to
// be taken away.
func (a *Admin) leave(r *http.Request) (any, error) {
	v, err := a.view(r.Context(), r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	d, err := ParseDeparture(v.Name, r.URL.Query())
	if err != nil {
		return nil, conflict{err}
	}
	told := Told{Name: v.Name, Holds: v.Holder == a.Node}
	if told.Holds && a.HearOut != nil {
		err = a.HearOut(r.Context(), a.Node, d)
	}
	return told, err
}

// push has another node take it over.
func (a *Admin) push(ctx context.Context, v View, to string) (any, error) {
	known := false
	for _, member := range v.Order {
		known = known || member == to
	}
	if !known {
		return nil, conflict{fmt.Errorf("%s is no member of %s; its members are %s", to, v.Name, strings.Join(v.Order, ", "))}
	}
	byHand := fmt.Sprintf("type it there: ssh %s holdfast vip hold %s", to, v.Name)
	if a.Elsewhere == nil {
		return nil, conflict{fmt.Errorf("this unit reaches no other node; %s", byHand)}
	}
	heard, note := "", ""
	if v.Holder == a.Node {
		heard, note = a.Node, a.hearOut(ctx, a.Node, v.Name)
	}
	if v.Mode == ModeHeld { // two that were told to hold would have to compare their addresses
		if err := a.Routers.Release(ctx, v.Name); err != nil {
			return nil, err
		}
	}
	there, err := a.Elsewhere(ctx, to, v.Name, heard) // it tells the holder, if that is another
	if err != nil {
		return nil, fmt.Errorf("ask %s to take %s: %w; %s", to, v.Name, err, byHand)
	}
	moved := a.await(ctx, v, to, func(v *View) bool { return v.Holder == to })
	moved.Note = cmp.Or(note, there.Note)
	return moved, nil
}

// A move is looked at for so many intervals, and a little for a slow machine,
// but never longer than what somebody waits at a terminal: with a loop that gives
// no answer, awaitLongest and awaitSlack once more.
const (
	awaitIntervals = 5
	awaitSlack     = time.Second
	awaitLongest   = 20 * time.Second
	awaitEvery     = 20 * time.Millisecond
)

// await waits until an order has had its effect, and tells which. It looks once
// more when the time is over: this process may not have run meanwhile. It does not
// when ctx has ended: nobody is there to be told.
func (a *Admin) await(ctx context.Context, before View, to string, done func(*View) bool) Moved {
	begun := time.Now()
	limit := min(awaitIntervals*time.Duration(before.Interval)+awaitSlack, awaitLongest)
	end := time.NewTimer(limit)
	defer end.Stop()
	tick := time.NewTicker(awaitEvery)
	defer tick.Stop()
	moved := Moved{Name: before.Name, From: before.Holder}
	var failed error
	for over := false; ctx.Err() == nil; {
		// A loop that stands gives no answer. One that only does so late gives it.
		looking, cancel := context.WithTimeout(ctx, max(awaitLongest-time.Since(begun), awaitSlack))
		var v View
		v, failed = a.view(looking, before.Name)
		cancel()
		if failed == nil {
			moved.Holder, moved.Done = v.Holder, done(&v)
		}
		if moved.Done {
			moved.Text = fmt.Sprintf("%s holds %s", moved.Holder, before.Name)
			return moved
		}
		if over {
			break
		}
		select {
		case <-tick.C:
		case <-end.C:
		case <-ctx.Done():
		}
		over = time.Since(begun) >= limit
	}
	switch {
	case failed != nil:
		moved.Text = fmt.Sprintf("%s was told, and what came of it for %s is not known: %v; look at holdfast vip explain %s", cmp.Or(to, a.Node), before.Name, failed, before.Name)
	case to != "":
		moved.Text = fmt.Sprintf("%s holds %s, not yet %s after %v; look at holdfast vip explain %s there", orNobody(moved.Holder), before.Name, to, limit, before.Name)
	default:
		moved.Text = fmt.Sprintf("%s holds %s: nobody took it within %v; look at holdfast vip explain %s on the other members", orNobody(moved.Holder), before.Name, limit, before.Name)
	}
	return moved
}

// Released is a router after it was released.
type Released struct {
	View
	Note string `json:"note,omitempty"` // as of Moved
}

func (a *Admin) release(r *http.Request) (any, error) {
	ctx, name := r.Context(), r.PathValue("name")
	reports, err := a.Routers.Status(ctx)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(reports, func(r RouterReport) bool { return r.Settings.Name == name })
	if at < 0 {
		return nil, fmt.Errorf("%s: %w (%s)", name, ErrUnknown, a.Node)
	}
	note := a.hearOut(ctx, LosesByRelease(reports, name, a.Node), name)
	if err := a.Routers.Release(ctx, name); err != nil {
		return nil, err
	}
	v, err := a.view(ctx, name)
	return Released{v, note}, err
}
