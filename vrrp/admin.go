package vrrp

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// AdminPath is below what the admin tree stands, on the net unit's socket as
// in the API.
const AdminPath = "/v1/holdfast/vip/"

// Routers are the virtual routers that an Admin speaks of: *Service.
type Routers interface {
	Status(context.Context) ([]RouterReport, error)
	Yield(ctx context.Context, router string) error
	Pull(ctx context.Context, router string) error
	Release(ctx context.Context, router string) error
	Plan(context.Context) ([]Change, error)
	Guard() GuardReport
}

// AdminDeps is what an Admin needs. Elsewhere, HearOut and Kernel may be nil.
type AdminDeps struct {
	Node    string // this node's name
	Routers Routers
	// Elsewhere asks the net unit of another node to take a router over now
	// (POST AdminPath + "hold/NAME" there, with ?heard=true if its holder has been
	// told); nil: this unit reaches no other.
	Elsewhere func(ctx context.Context, node, router string, heard bool) (Moved, error)
	// HearOut has whoever must hear of a planned move before it be told on the
	// node that holds the router: this one, or by POST AdminPath + "leave/NAME"
	// there. It blocks until that is done, which it bounds; nil: nobody must.
	HearOut func(ctx context.Context, node, router string) error
	Kernel  Kernel // what Probe looks at; nil: only what the routers know
	Now     func() time.Time
}

// Admin is the HTTP tree of the virtual routers: JSON, 404 for a VIP that
// this node is no member of, 409 for what can't be done as things are. Errors
// are a line of text. Whoever reaches it may do everything: who that is, is
// the socket's and the API's to decide.
//
//	GET  list                 []View
//	GET  show/NAME            View
//	GET  explain/NAME         Explanation
//	GET  plan                 []PlanLine
//	GET  probe, probe/NAME    []Finding
//	POST move/NAME[?to=NODE]  Moved
//	POST hold/NAME            Moved; with ?heard=true its holder has been told
//	POST leave/NAME           Told: NAME is about to be taken away by a member
//	POST release/NAME         View
type Admin struct {
	AdminDeps
	mux *http.ServeMux
}

// NewAdmin makes the tree.
func NewAdmin(deps AdminDeps) *Admin {
	if deps.Now == nil {
		deps.Now = time.Now
	}
	a := &Admin{AdminDeps: deps, mux: http.NewServeMux()}
	for pattern, serve := range map[string]func(*http.Request) (any, error){
		"GET list":            a.list,
		"GET show/{name}":     a.show,
		"GET explain/{name}":  a.explain,
		"GET plan":            a.plan,
		"GET probe":           a.probe,
		"GET probe/{name}":    a.probe,
		"POST move/{name}":    a.move,
		"POST hold/{name}":    a.hold,
		"POST leave/{name}":   a.leave,
		"POST release/{name}": a.release,
	} {
		method, path, _ := strings.Cut(pattern, " ")
		a.mux.HandleFunc(method+" "+AdminPath+path, func(w http.ResponseWriter, r *http.Request) { answer(w, r, serve) })
	}
	return a
}

// ServeHTTP implements http.Handler.
func (a *Admin) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

// conflict is what can't be done as things are.
type conflict struct{ error }

func answer(w http.ResponseWriter, r *http.Request, serve func(*http.Request) (any, error)) {
	found, err := serve(r)
	var refused conflict
	switch {
	case errors.Is(err, ErrUnknown):
		http.Error(w, err.Error(), http.StatusNotFound)
	case errors.As(err, &refused):
		http.Error(w, err.Error(), http.StatusConflict)
	case errors.Is(err, ErrStopped):
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(found) // who asked is gone
	}
}

func (a *Admin) views(ctx context.Context) ([]View, error) {
	reports, err := a.Routers.Status(ctx)
	if err != nil {
		return nil, err
	}
	views := make([]View, len(reports))
	for i := range reports {
		views[i] = viewOf(a.Node, &reports[i])
	}
	return views, nil
}

func (a *Admin) view(ctx context.Context, name string) (View, error) {
	views, err := a.views(ctx)
	if err != nil {
		return View{}, err
	}
	for i := range views {
		if views[i].Name == name {
			return views[i], nil
		}
	}
	return View{}, fmt.Errorf("%s: %w (%s)", name, ErrUnknown, a.Node)
}

func (a *Admin) list(r *http.Request) (any, error) { return a.views(r.Context()) }

func (a *Admin) show(r *http.Request) (any, error) { return a.view(r.Context(), r.PathValue("name")) }

func (a *Admin) explain(r *http.Request) (any, error) {
	v, err := a.view(r.Context(), r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	return explain(v, a.Now()), nil
}

func (a *Admin) plan(r *http.Request) (any, error) {
	changes, err := a.Routers.Plan(r.Context())
	if err != nil {
		return nil, err
	}
	lines := []PlanLine{}
	for _, c := range changes {
		lines = append(lines, planLine(c))
	}
	if a.Kernel == nil {
		return lines, nil
	}
	reports, err := a.Routers.Status(r.Context())
	if err != nil {
		return nil, err
	}
	return append(lines, a.sysctlLines(r.Context(), reports)...), nil
}

// sysctlLines are the settings of the kernel that stand in the way, each once.
func (a *Admin) sysctlLines(ctx context.Context, reports []RouterReport) []PlanLine {
	var lines []PlanLine
	said := map[string]bool{}
	for i := range reports {
		p := prober{ctx: ctx, kernel: a.Kernel, report: &reports[i], view: viewOf(a.Node, &reports[i]), now: a.Now()}
		if p.view.Link.Name == "" {
			continue
		}
		p.sysctls()
		for _, f := range p.findings {
			if f.Level != OK && !said[f.Remedy] {
				said[f.Remedy] = true
				lines = append(lines, PlanLine{Router: f.Router, Kind: "sysctl", Command: f.Remedy, Why: f.Text})
			}
		}
	}
	return lines
}

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
		return a.pull(ctx, v, false)
	case to != "":
		return a.push(ctx, v, to)
	case v.State != stateLabel(Active):
		return nil, conflict{fmt.Errorf("%s does not hold %s, %s does: type it there, or say where it shall go: holdfast vip move %s --to NODE", a.Node, name, orNobody(v.Holder), name)}
	}
	if err := a.Routers.Yield(ctx, name); err != nil {
		return nil, err
	}
	return a.await(ctx, v, "", func(v *View) bool { return v.State != stateLabel(Active) && v.Holder != "" && v.Holder != a.Node }), nil
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
	return a.pull(r.Context(), v, r.URL.Query().Get("heard") == "true")
}

// pull takes it over here; heard: the holder has been told.
func (a *Admin) pull(ctx context.Context, v View, heard bool) (any, error) {
	if v.State == stateLabel(Fault) {
		return nil, conflict{fmt.Errorf("%s can't hold %s: %s", a.Node, v.Name, v.Reason)}
	}
	note := ""
	if v.Holder != a.Node && !heard {
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
	if err := a.HearOut(ctx, holder, name); err != nil {
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
	told := Told{Name: v.Name, Holds: v.Holder == a.Node}
	if told.Holds && a.HearOut != nil {
		err = a.HearOut(r.Context(), a.Node, v.Name)
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
	here, note := v.Holder == a.Node, ""
	if here {
		note = a.hearOut(ctx, a.Node, v.Name)
	}
	if v.Mode == ModeHeld { // two that were told to hold would have to compare their addresses
		if err := a.Routers.Release(ctx, v.Name); err != nil {
			return nil, err
		}
	}
	there, err := a.Elsewhere(ctx, to, v.Name, here) // it tells the holder, if that is a third
	if err != nil {
		return nil, fmt.Errorf("ask %s to take %s: %w; %s", to, v.Name, err, byHand)
	}
	moved := a.await(ctx, v, to, func(v *View) bool { return v.Holder == to })
	moved.Note = cmp.Or(note, there.Note)
	return moved, nil
}

// A move is looked at for so many intervals, and a little for a slow machine,
// but never longer than what somebody waits at a terminal.
const (
	awaitIntervals = 5
	awaitSlack     = time.Second
	awaitLongest   = 20 * time.Second
	awaitEvery     = 20 * time.Millisecond
)

// await waits until an order has had its effect, and tells which.
func (a *Admin) await(ctx context.Context, before View, to string, done func(*View) bool) Moved {
	limit := min(awaitIntervals*time.Duration(before.Interval)+awaitSlack, awaitLongest)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(awaitEvery)
	defer tick.Stop()
	moved := Moved{Name: before.Name, From: before.Holder}
	for {
		v, err := a.view(ctx, before.Name)
		if err == nil {
			moved.Holder, moved.Done = v.Holder, done(&v)
		}
		if moved.Done {
			moved.Text = fmt.Sprintf("%s holds %s", moved.Holder, before.Name)
			return moved
		}
		select {
		case <-tick.C:
			continue
		case <-ctx.Done():
		}
		moved.Text = fmt.Sprintf("%s holds %s: nobody took it within %v; look at holdfast vip explain %s on the other members", orNobody(moved.Holder), before.Name, limit, before.Name)
		if to != "" {
			moved.Text = fmt.Sprintf("%s holds %s, not yet %s after %v; look at holdfast vip explain %s there", orNobody(moved.Holder), before.Name, to, limit, before.Name)
		}
		return moved
	}
}

func (a *Admin) release(r *http.Request) (any, error) {
	name := r.PathValue("name")
	if _, err := a.view(r.Context(), name); err != nil {
		return nil, err
	}
	if err := a.Routers.Release(r.Context(), name); err != nil {
		return nil, err
	}
	return a.view(r.Context(), name)
}
