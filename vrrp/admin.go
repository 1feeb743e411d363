package vrrp

import (
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
	// (POST AdminPath + "hold/NAME" there, with ?heard=NODE if that node has been
	// told, which held it); nil: this unit reaches no other.
	Elsewhere func(ctx context.Context, node, router, heard string) (Moved, error)
	// HearOut has whoever must hear of a planned move before it be told on the
	// node that holds the router: this one, or by POST AdminPath + "leave/NAME"
	// there. It blocks until that is done, which it bounds; nil: nobody must.
	HearOut func(ctx context.Context, node string, d Departure) error
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
//	POST hold/NAME            Moved; with ?heard=NODE that has been told
//	POST leave/NAME           Told: a Departure, by a member that takes NAME
//	POST release/NAME         Released
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
