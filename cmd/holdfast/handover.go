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
	"strings"
	"time"

	"holdfast/internal/admin"
	"holdfast/logrelay"
	"holdfast/vrrp"
)

// handoverWithin bounds what a planned move waits for the log relay of this
// node: longer than the relay takes, and short to who types it.
const handoverWithin = 4 * time.Second

// handover is the virtual routers of a node, whose log relay, if there is one,
// hears of it before addresses are given away on purpose: at a move, a drain or
// this process's end. Its clients then know what is stored of what they sent.
// Nothing that is not planned comes by here, and what the relay says stops no
// move. It is a run.Task: its end is before the routers'.
type handover struct {
	vrrp.Routers
	relay func(ctx context.Context, addrs []netip.Addr) error
	log   *slog.Logger
}

func (h *handover) String() string { return "handover" }

// Run waits for the end, and then has the clients of all addresses heard out.
func (h *handover) Run(ctx context.Context, ready func()) error {
	ready()
	<-ctx.Done()
	h.before(context.WithoutCancel(ctx), "")
	return nil
}

// Yield hands a router over to a peer; see vrrp.Service.
func (h *handover) Yield(ctx context.Context, router string) error {
	h.before(ctx, router)
	return h.Routers.Yield(ctx, router)
}

// before has the clients of a router's addresses heard out, if this node holds
// them; "" is every router. It blocks until that is done, for handoverWithin at
// most.
func (h *handover) before(ctx context.Context, router string) {
	ctx, cancel := context.WithTimeout(ctx, handoverWithin)
	defer cancel()
	reports, err := h.Status(ctx)
	if err != nil {
		return // they hold nothing, or say so where they are asked
	}
	var addrs []netip.Addr
	for i := range reports {
		if r := &reports[i]; (router == "" || r.Settings.Name == router) && r.Status.State == vrrp.Active {
			for _, held := range r.Held {
				addrs = append(addrs, held.Prefix.Addr())
			}
		}
	}
	if len(addrs) == 0 {
		return
	}
	if err := h.relay(ctx, addrs); err != nil {
		h.log.Warn("the log relay did not end its sessions before addresses move: some lines may come twice", "addresses", addrs, "error", err)
	}
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

// handsOver makes what stands before the routers.
func (c *agentCmd) handsOver(base *foundation, routers vrrp.Routers) *handover {
	return &handover{routers, tellRelay(filepath.Join(c.RunDir, "logs.sock")), base.log.With("service", "vrrp")}
}
