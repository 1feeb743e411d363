package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"

	"holdfast/api"
	"holdfast/cluster"
	"holdfast/internal/peer"
	"holdfast/vrrp"
)

// newVIPAdmin makes the admin tree of the virtual addresses: what net.sock and
// the API show below vrrp.AdminPath.
func newVIPAdmin(base *foundation, routers *handover) *vrrp.Admin {
	deps := vrrp.AdminDeps{Node: base.self.Name, Routers: routers, Kernel: vrrp.LiveKernel{}}
	if base.trust != nil && base.path != "" {
		deps.Elsewhere = func(ctx context.Context, node, router string) error {
			routers.before(ctx, router)
			return holdElsewhere(ctx, base, node, router)
		}
	}
	return vrrp.NewAdmin(deps)
}

// holdElsewhere asks another node, over mutual TLS with this node's own
// certificate, to take a virtual address over.
func holdElsewhere(ctx context.Context, base *foundation, node, router string) error {
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
	return client.VIP(ctx, http.MethodPost, "hold/"+url.PathEscape(router), nil, nil)
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
