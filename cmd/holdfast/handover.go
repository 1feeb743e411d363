package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/internal/admin"
	"holdfast/logrelay"
	"holdfast/vrrp"
)

// How long a planned move waits.
const (
	// handoverWithin bounds the wait for the log relay of this node or of another:
	// longer than the relay takes, and short to who types it.
	handoverWithin = 4 * time.Second
	// preemptLead is how long before this node takes an address from a worse one
	// the other is told: as long as its relay may take, and so short that it still
	// holds new clients then.
	preemptLead  = 4 * time.Second
	preemptEvery = time.Second
)

// handover is the virtual routers of a node, whose log relay, if there is one,
// hears of it before addresses are given away on purpose: at a move, a drain or
// this process's end. Its clients then know what is stored of what they sent. Where
// it is this node that takes an address away on purpose, the relay of the node that
// has it hears of it. Nothing that is not planned comes by here, and what a relay
// says stops no move. It is a run.Task: its end is before the routers'.
type handover struct {
	vrrp.Routers
	node  string // this one
	relay func(ctx context.Context, addrs []netip.Addr) error
	// ask tells another node that a router is about to be taken from it.
	ask func(ctx context.Context, node, router string) error
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
	h.said(h.before(context.WithoutCancel(ctx), ""), h.node, "")
	return nil
}

// said logs what came of hearing out where nobody waits for an answer.
func (h *handover) said(err error, holder, router string) {
	if err != nil {
		h.log.Warn("clients of the log relay were not heard out before addresses move: some lines may come twice",
			"holder", holder, "router", router, "error", err)
	}
}

// Yield hands a router over to a peer; see vrrp.Service.
func (h *handover) Yield(ctx context.Context, router string) error {
	h.said(h.before(ctx, router), h.node, router)
	return h.Routers.Yield(ctx, router)
}

// Release has priorities decide about a router again; see vrrp.Service. The
// address goes by that, if a better node gives it up or is this one.
func (h *handover) Release(ctx context.Context, router string) error {
	if holder := h.loses(ctx, router); holder != "" {
		h.said(h.HearOut(ctx, holder, router), holder, router)
	}
	return h.Routers.Release(ctx, router)
}

// loses is the node that a router goes from as soon as it is released here; ""
// none, as far as this one knows. Where it goes later, watch tells.
func (h *handover) loses(ctx context.Context, router string) string {
	reports, err := h.Status(ctx)
	if err != nil {
		return ""
	}
	at := slices.IndexFunc(reports, func(r vrrp.RouterReport) bool { return r.Settings.Name == router })
	if at < 0 {
		return ""
	}
	set, status := &reports[at].Settings, &reports[at].Status
	switch {
	case !set.Preempt || set.PreemptDelay > 0:
	case status.State == vrrp.Active && status.Pulled && len(set.Order) > 0 && set.Order[0] != h.node:
		return h.node
	case status.State == vrrp.Backup && status.Yielded && h.worse(set, status):
		return set.Nodes[status.Active]
	}
	return ""
}

// worse tells whether a router's holder is to hold it after this node.
func (h *handover) worse(set *vrrp.RouterSettings, status *vrrp.Status) bool {
	theirs := slices.Index(set.Order, set.Nodes[status.Active])
	return theirs > slices.Index(set.Order, h.node)
}

// watch tells each holder that this node is better than, and takes over from after
// preempt_delay, that it does so soon. It delays nothing: what is not said by then
// is left unsaid.
func (h *handover) watch(ctx context.Context) {
	var group sync.WaitGroup
	defer group.Wait()
	tick := time.NewTicker(h.every)
	defer tick.Stop()
	told := map[string]time.Time{} // by router: of which moment
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		reports, err := h.Status(ctx)
		if err != nil {
			continue // they have not begun
		}
		for i := range reports {
			set, status := &reports[i].Settings, &reports[i].Status
			router, holder := set.Name, set.Nodes[status.Active]
			if status.PreemptAt.IsZero() || holder == "" {
				delete(told, router)
				continue
			}
			if time.Until(status.PreemptAt) > preemptLead || told[router].Equal(status.PreemptAt) {
				continue
			}
			told[router] = status.PreemptAt
			group.Go(func() { h.said(h.HearOut(ctx, holder, router), holder, router) })
		}
	}
}

// HearOut has the clients of a router's addresses heard out by the log relay of
// the node that holds it. It blocks until that is done, for handoverWithin at most.
func (h *handover) HearOut(ctx context.Context, node, router string) error {
	if node == h.node {
		return h.before(ctx, router)
	}
	ctx, cancel := context.WithTimeout(ctx, handoverWithin)
	defer cancel()
	return h.ask(ctx, node, router)
}

// before has the clients of a router's addresses heard out, and of those that go
// with it, if this node holds them; "" is every router. It blocks until that is
// done, for handoverWithin at most.
func (h *handover) before(ctx context.Context, router string) error {
	ctx, cancel := context.WithTimeout(ctx, handoverWithin)
	defer cancel()
	reports, err := h.Status(ctx)
	if err != nil {
		return nil // they hold nothing, or say so where they are asked
	}
	group := ""
	for i := range reports {
		if set := &reports[i].Settings; set.Name == router {
			group = set.Group
		}
	}
	var addrs []netip.Addr
	for i := range reports {
		r := &reports[i]
		goes := router == "" || r.Settings.Name == router || group != "" && r.Settings.Group == group
		if goes && r.Status.State == vrrp.Active {
			for _, held := range r.Held {
				addrs = append(addrs, held.Prefix.Addr())
			}
		}
	}
	if len(addrs) == 0 {
		return nil
	}
	if err := h.relay(ctx, addrs); err != nil {
		return fmt.Errorf("the log relay of %s did not end its sessions at %v: %w", h.node, addrs, err)
	}
	return nil
}

// tellRelay has the log relay of this machine end its sessions at addresses. None
// runs where there is no socket.
func tellRelay(path string) func(ctx context.Context, addrs []netip.Addr) error {
	return func(ctx context.Context, addrs []netip.Addr) error {
		if _, err := os.Lstat(path); err != nil {
			return nil
		}
		args := url.Values{}
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
		Routers: routers, node: base.self.Name, relay: tellRelay(filepath.Join(c.RunDir, "logs.sock")),
		ask: askToLeave(base, reach), log: base.log.With("service", "vrrp"), every: preemptEvery,
	}
}
