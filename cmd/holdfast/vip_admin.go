package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"holdfast/api"
	"holdfast/cluster"
	"holdfast/internal/peer"
	"holdfast/vrrp"
)

// newVIPAdmin makes the admin tree of the virtual addresses: what net.sock and
// the API show below vrrp.AdminPath.
func newVIPAdmin(base *foundation, routers vrrp.Routers, leaving *handover) *vrrp.Admin {
	deps := vrrp.AdminDeps{Node: base.self.Name, Routers: routers, HearOut: leaving.HearOut, Kernel: vrrp.LiveKernel{}}
	if base.trust != nil && base.path != "" {
		deps.Elsewhere = func(ctx context.Context, node, router, heard string) (moved vrrp.Moved, err error) {
			args := url.Values{}
			if heard != "" {
				args.Set("heard", heard)
			}
			err = askNode(ctx, base, node, "hold/"+url.PathEscape(router), args, &moved)
			return moved, err
		}
	}
	return vrrp.NewAdmin(deps)
}

// askNode gives another node an order about a virtual address, over mutual TLS
// with this node's own certificate, and decodes the answer into found.
func askNode(ctx context.Context, base *foundation, node, order string, args url.Values, found any) error {
	file := base.source.Current()
	there, err := api.ConfigFrom(file, file.Section("api"), node, true)
	if err != nil {
		return err
	}
	if len(there.HTTPS) == 0 {
		return fmt.Errorf("the API has no HTTPS (api.https_port is 0)")
	}
	client, err := api.NewClient(api.ClientConfig{URL: "https://" + there.HTTPS[0].String(), TLS: base.trust.ClientOf(nodeRole(file, file.Node(node)), node)})
	if err != nil {
		return err
	}
	defer client.Close()
	return client.VIP(ctx, http.MethodPost, order, args, found)
}

// tellNode tells another node of a departure, and blocks until its log relay has heard
// its clients out.
type tellNode func(ctx context.Context, node string, d vrrp.Departure) error

// askToLeave tells a node of the cluster file that a router is about to be taken
// from it, if it runs logs; ask reaches it.
func askToLeave(base *foundation, ask tellNode) tellNode {
	return func(ctx context.Context, node string, d vrrp.Departure) error {
		file := base.source.Current()
		if there := file.Node(node); there == nil || !slices.Contains(file.Role(there.Role).Run, "logs") {
			return nil // it has no log relay of ours
		}
		return ask(ctx, node, d)
	}
}

// leaveByTLS reaches other nodes with this node's certificate.
func leaveByTLS(base *foundation) tellNode {
	return func(ctx context.Context, node string, d vrrp.Departure) error {
		if base.trust == nil {
			return errors.New("this agent has no certificate to ask with (--insecure)")
		}
		var told vrrp.Told
		if err := askNode(ctx, base, node, "leave/"+url.PathEscape(d.Router), d.Args(), &told); err != nil {
			return err
		}
		return wasTold(node, d, told)
	}
}

// wasTold is an error if a node that was told does not hold the router: then whoever
// does was not.
func wasTold(node string, d vrrp.Departure, told vrrp.Told) error {
	if !told.Holds {
		return fmt.Errorf("%s does not hold %s, as far as it knows", node, d.Router)
	}
	return nil
}

// A unit that moves addresses has no certificate, so core, beside it, asks other
// nodes for it: POST tellPath + NAME with ?node=NODE and a Departure's. It is an admin's to use: the
// certificate of another node is not let in here.
const tellPath = vrrp.AdminPath + "tell/"

// leaveByCore reaches other nodes without a certificate.
func leaveByCore(socket string) tellNode {
	return func(ctx context.Context, node string, d vrrp.Departure) error {
		client, err := api.NewClient(api.ClientConfig{Socket: socket})
		if err != nil {
			return err
		}
		defer client.Close()
		order := strings.TrimPrefix(tellPath, vrrp.AdminPath) + url.PathEscape(d.Router)
		args := d.Args()
		args.Set("node", node)
		return client.VIP(ctx, http.MethodPost, order, args, nil)
	}
}

// tellsOthers is the tree of a unit's virtual addresses as core has it: it passes
// all on to the unit, but asks other nodes itself.
func tellsOthers(ask tellNode, unit http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", unit)
	mux.HandleFunc("POST "+tellPath+"{name}", func(w http.ResponseWriter, r *http.Request) {
		d, err := vrrp.ParseDeparture(r.PathValue("name"), r.URL.Query())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), min(d.In, preemptLead)+handoverWithin)
		defer cancel()
		if err := ask(ctx, r.URL.Query().Get("node"), d); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintln(w, "{}")
	})
	return mux
}

// fellowMember tells whether a request's certificate, verified by TLS and of an
// authority that is still trusted, is that of a node that the cluster file of
// this moment lets hold a virtual address. That it is some node's is not enough:
// one that only sends logs has a certificate, too.
func fellowMember(trust *peer.Trust, file func() *cluster.File) func(r *http.Request, vip string) bool {
	return func(r *http.Request, vip string) bool {
		identity, err := trust.PeerIdentity(tlsState(r))
		return err == nil && (identity.Role == peer.RoleServer || identity.Role == peer.RoleAgent) &&
			slices.ContainsFunc(file().VIPs, func(v cluster.VIP) bool {
				return v.Name == vip && slices.Contains(v.Members, identity.Name)
			})
	}
}
