package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"holdfast/internal/admin"
	"holdfast/internal/peer"
	"holdfast/logrelay"
	"holdfast/vrrp"
)

// How long a planned move waits.
const (
	// handoverWithin bounds the wait for the log relay of this node or of another:
	// longer than the relay takes, and short to who types it.
	handoverWithin = 4 * time.Second
	// preemptLead is how long before this node takes an address from a worse one
	// the other is told, and preemptEvery how often it is looked whether that is soon,
	// but hardly while none runs that would have to be told of. Each look takes the
	// routers' time, so a preempt_delay that is about as short may end unseen.
	preemptLead  = logrelay.LeaveAhead
	preemptEvery = time.Second
	preemptNever = 10 * time.Second
)

// handover tells the log relay, if there is one, of the node that holds an address
// before that goes on purpose: at a move, a drain or this process's end, or where this
// node takes it by an order or after preempt_delay. Its clients then know what is
// stored of what they sent. Nothing that is not planned comes by here, and what a relay
// says stops no move. It is a run.Task: its end is before the routers'.
type handover struct {
	routers interface {
		Status(context.Context) ([]vrrp.RouterReport, error)
	}
	node  string // this one
	relay func(ctx context.Context, addrs []netip.Addr, d vrrp.Departure) error
	// ask tells another node that a router is about to be taken from it.
	ask func(ctx context.Context, node string, d vrrp.Departure) error
	log *slog.Logger
	// every is preemptEvery.
	every time.Duration
}

func (h *handover) String() string { return "handover" }

// Run tells worse holders before this node takes over from them, until the end;
// and then has the clients of all addresses heard out.
func (h *handover) Run(ctx context.Context, ready func()) error {
	ready()
	h.watch(ctx)
	h.said(h.before(context.WithoutCancel(ctx), vrrp.Departure{By: h.node}), h.node, "")
	return nil
}

// said logs what came of hearing out where nobody waits for an answer.
func (h *handover) said(err error, holder, router string) {
	if err != nil {
		h.log.Warn("clients of the log relay were not heard out before addresses move: some lines may come twice",
			"holder", holder, "router", router, "error", err)
	}
}

// together has the clients of several routers, and of their holders, heard out at the
// same time. It blocks until that is done, for handoverWithin at most.
func (h *handover) together(ctx context.Context, holders map[string]string) {
	var group sync.WaitGroup
	defer group.Wait()
	for router, holder := range holders {
		group.Go(func() { h.said(h.HearOut(ctx, holder, vrrp.Departure{Router: router, By: h.node}), holder, router) })
	}
}

// preemption is a takeover after preempt_delay.
type preemption struct {
	holder string
	at     time.Time
}

// watch tells each holder that this node is better than, and takes over from after
// preempt_delay, that it does so soon. It delays nothing: what is not said by then
// is left unsaid.
func (h *handover) watch(ctx context.Context) {
	var group sync.WaitGroup
	defer group.Wait()
	timer := time.NewTimer(h.every)
	defer timer.Stop()
	told := map[string]preemption{} // by router
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		reports, err := h.routers.Status(ctx)
		if err != nil {
			timer.Reset(h.every) // they have not begun
			continue
		}
		timer.Reset(h.nextLook(reports))
		for i := range reports {
			set, status := &reports[i].Settings, &reports[i].Status
			router, next := set.Name, preemption{set.Nodes[status.Active], status.PreemptAt}
			if next.at.IsZero() || next.holder == "" {
				delete(told, router)
				continue
			}
			in := time.Until(next.at)
			if last := told[router]; in > preemptLead || last.holder == next.holder && last.at.Equal(next.at) {
				continue
			}
			told[router] = next
			in = max(time.Nanosecond, in) // 0 would say that this node waits for the answer
			group.Go(func() {
				h.said(h.HearOut(ctx, next.holder, vrrp.Departure{Router: router, In: in, By: h.node}), next.holder, router)
			})
		}
	}
}

// nextLook is how long watch waits: what it looks at costs the routers time. Where no
// delay runs, none that begins meanwhile is to be told of sooner.
func (h *handover) nextLook(reports []vrrp.RouterReport) time.Duration {
	wait := preemptNever
	for i := range reports {
		delay := reports[i].Settings.PreemptDelay
		if delay == 0 {
			continue
		}
		soon := h.every
		if reports[i].Status.PreemptAt.IsZero() {
			soon = max(soon, delay-preemptLead)
		}
		wait = min(wait, soon)
	}
	return wait
}

// HearOut has the clients of a router's addresses heard out by the log relay of
// the node that holds it. It blocks until that is done, for d.In and handoverWithin
// at most.
func (h *handover) HearOut(ctx context.Context, node string, d vrrp.Departure) error {
	if node == h.node {
		return h.before(ctx, d)
	}
	ctx, cancel := context.WithTimeout(ctx, d.In+handoverWithin)
	defer cancel()
	return h.ask(ctx, node, d)
}

// before has the clients of a router's addresses heard out, and of those that go
// with it, if this node holds them; "" is every router. It blocks until that is
// done, for d.In and handoverWithin at most.
func (h *handover) before(ctx context.Context, d vrrp.Departure) error {
	ctx, cancel := context.WithTimeout(ctx, d.In+handoverWithin)
	defer cancel()
	reports, err := h.routers.Status(ctx)
	if err != nil {
		return nil // they hold nothing, or say so where they are asked
	}
	group := ""
	for i := range reports {
		if set := &reports[i].Settings; set.Name == d.Router {
			group = set.Group
		}
	}
	var addrs []netip.Addr
	for i := range reports {
		r := &reports[i]
		goes := d.Router == "" || r.Settings.Name == d.Router || group != "" && r.Settings.Group == group
		if goes && r.Status.State == vrrp.Active {
			for _, held := range r.Held {
				addrs = append(addrs, held.Prefix.Addr())
			}
		}
	}
	if len(addrs) == 0 {
		return nil
	}
	if err := h.relay(ctx, addrs, d); err != nil {
		return fmt.Errorf("the log relay of %s did not end its sessions at %v: %w", h.node, addrs, err)
	}
	return nil
}

// tellRelay has the log relay of this machine end its sessions at addresses. None
// runs where there is no socket.
func tellRelay(path string) func(ctx context.Context, addrs []netip.Addr, d vrrp.Departure) error {
	return func(ctx context.Context, addrs []netip.Addr, d vrrp.Departure) error {
		if _, err := os.Lstat(path); err != nil {
			return nil
		}
		args := d.Args()
		for _, a := range addrs {
			args.Add("address", a.String())
		}
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, admin.BaseURL+logrelay.LeavePath+"?"+args.Encode(), nil)
		if err != nil {
			return err
		}
		client := admin.Client(path)
		defer client.CloseIdleConnections()
		answer, err := client.Do(request)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(io.LimitReader(answer.Body, 1<<10))
		if err == nil && answer.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", answer.Status, strings.TrimSpace(string(text)))
		}
		return err
	}
}

// handsOver makes what stands before the routers. A unit that has no certificate
// asks other nodes by way of core.
func (c *agentCmd) handsOver(base *foundation, routers vrrp.Routers) *handover {
	reach := leaveByTLS(base)
	if c.Only == onlyNet {
		reach = leaveByCore(c.socket())
	}
	return &handover{
		routers: routers, node: base.self.Name, relay: tellRelay(filepath.Join(c.RunDir, "logs.sock")),
		ask: askToLeave(base, reach), log: base.log.With("service", "vrrp"), every: preemptEvery,
	}
}

// saidBy has who tells of a departure with a certificate be named by that, whatever
// the request says. Without trust there are none; nil stays nil.
func saidBy(trust *peer.Trust, vips http.Handler) http.Handler {
	if vips == nil || trust == nil {
		return vips
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, vrrp.AdminPath+"leave/") {
			if identity, err := trust.PeerIdentity(tlsState(r)); err == nil {
				args := r.URL.Query()
				args.Set("by", identity.Name)
				r = r.Clone(r.Context())
				r.URL.RawQuery = args.Encode()
			}
		}
		vips.ServeHTTP(w, r)
	})
}
