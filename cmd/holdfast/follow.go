package main

import (
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"time"

	"holdfast/cluster"
	"holdfast/discovery"
	"holdfast/internal/run"
	"holdfast/internal/state"
	"holdfast/internal/stream"
	"holdfast/raftstore"
	"holdfast/vrrp"
)

// nodePart is what a node that is no server sees: what any of its units may.
func nodePart() (part state.Part) {
	for _, of := range grants() {
		part.Kinds = append(part.Kinds, of.Kinds...)
	}
	slices.Sort(part.Kinds)
	return part
}

// mayFollow tells which node of the cluster file asks a server for the state, or
// why it gets none.
func mayFollow(file *cluster.File, name string) (string, error) {
	node := file.Node(name)
	if node == nil {
		return "", fmt.Errorf("the cluster file has no node %.64q", name)
	}
	switch role := file.Role(node.Role); {
	case !role.Agent:
		return "", fmt.Errorf("%s has role %s, which runs no agent", node.Name, node.Role)
	case role.Voters > 0:
		return "", fmt.Errorf("%s has role %s: it is a server and has the state itself", node.Name, node.Role)
	}
	return node.Name, nil
}

// nodeWrites tells why a node that is no server may not write a document: it
// drains itself, says who is logged in on it, leases the fenced addresses of which
// it is a member, and its package proxy, if its role runs one, keeps views.
func nodeWrites(file *cluster.File, name string, d state.PutDocument) error {
	kind := d.Document.Kind
	node := file.Node(name)
	switch {
	case kind == vrrp.KindLease:
		if fencedOn(file, name, d.Document.Key) {
			return nil
		}
	case slices.Contains(grants()[onlyNet].Kinds, kind) && state.Fold(d.Document.Key) == state.Fold(name):
		return nil
	case slices.Contains(grants()[onlyAPT].Kinds, kind) && node != nil && slices.Contains(file.Role(node.Role).Run, onlyAPT):
		return nil
	}
	return fmt.Errorf("is no server and may not write %q of kind %q: do that on a server", d.Document.Key, kind)
}

// fencedOn tells whether a node is a member of a fenced virtual router.
func fencedOn(file *cluster.File, node, router string) bool {
	settings, err := vrrp.SettingsFrom(file, node)
	return err == nil && slices.ContainsFunc(settings.Routers, func(r vrrp.RouterSettings) bool { return r.Name == router && r.Fenced })
}

// beFollower gives the agent the state from a server, whichever answers.
func (c *agentCmd) beFollower(base *foundation, h *heart, services []discovery.ServiceDefinition, end context.CancelFunc) (err error) {
	if h.follows, err = stream.New(stream.Config{
		Unit: stream.NodeUnit, Path: filepath.Join(c.DataDir, "state."+stream.NodeUnit), OwnGossip: true,
		Sources: func() []stream.Server { return c.servers(base, h.state) }, Web: c.serverWeb(base, h),
	}, stream.Deps{Log: base.log, Metrics: base.registry, Board: base.board}); err != nil {
		return err
	}
	h.state, h.proposer, h.leader = h.follows.Store(), h.follows, h.follows.Leader
	h.raft = noRaft{h.follows}
	if h.members, err = c.newMembers(base, h, h.raft.(noRaft), services); err != nil {
		return err
	}
	h.leave = departing{h.members, end}
	h.http.Elsewhere = elsewhere(base)
	h.tasks = []run.Task{h.follows, h.members}
	return nil
}

// elsewhere says who has what a node lacks that follows a server.
func elsewhere(base *foundation) string {
	text := "this node is no server and has no keys, sessions, tokens and Raft: ask a server"
	if file := base.source.Current(); len(file.Servers()) > 0 {
		text += ", such as " + file.Servers()[0].Name
	}
	return text
}

// servers lists the servers, each node beginning at another one. Where the gossip
// sees one counts more than the file.
func (c *agentCmd) servers(base *foundation, store *state.Store) []stream.Server {
	file := base.source.Current()
	var list []stream.Server
	for _, node := range file.Servers() {
		list = append(list, stream.Server{Name: node.Name, Base: "http://" + c.rpcOf(file, store, node).String()})
	}
	if len(list) == 0 {
		return nil
	}
	sum := fnv.New32a()
	_, _ = io.WriteString(sum, base.self.Name) // it never fails
	first := int(sum.Sum32() % uint32(len(list)))
	return slices.Concat(list[first:], list[:first])
}

func (c *agentCmd) rpcOf(file *cluster.File, store *state.Store, node cluster.Node) netip.AddrPort {
	if m, ok := store.Snapshot().Member(node.Name); ok && m.Liveness == state.Alive && m.RPC.IsValid() {
		return m.RPC
	}
	return netip.AddrPortFrom(node.Addresses[file.Main().Name], c.RPCPort)
}

// dialTime is how long a server may take to let a node in.
const dialTime = time.Second

// serverWeb reaches the servers, each by its own certificate.
func (c *agentCmd) serverWeb(base *foundation, h *heart) *http.Client {
	dialler := raftstore.Follower{Cluster: base.source.Current().Name, Node: base.self.Name, NodeID: h.nodeID, Trust: base.trust}
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, dialTime)
			defer cancel()
			for _, s := range c.servers(base, h.state) {
				if s.Base == "http://"+address {
					return dialler.Dial(ctx, address, s.Name)
				}
			}
			return nil, fmt.Errorf("%s is no server of the cluster", address)
		},
		MaxIdleConnsPerHost: 2, IdleConnTimeout: 15 * time.Second,
	}}
}

// departing takes a node that is no server out of the cluster.
type departing struct {
	*discovery.Agent
	end context.CancelFunc
}

// Leave returns before the agent has ended, so that whoever asked gets the answer.
func (d departing) Leave(ctx context.Context) error {
	if err := d.Agent.Leave(ctx); err != nil {
		return err
	}
	d.end()
	return nil
}

// noRaft is the store as a node sees it that follows a server.
type noRaft struct{ follows *stream.Replica }

var errNoServer = fmt.Errorf("%w: this node is no server: ask one", state.ErrInvalid)

func (n noRaft) Leader() (name string, address netip.AddrPort, ok bool) {
	if name = n.follows.Leader(); name == "" {
		return "", netip.AddrPort{}, false
	}
	m, ok := n.follows.Store().Snapshot().Member(name)
	return name, m.RPC, ok
}

func (n noRaft) IsLeader() bool { return false }

// LeaderChanged is closed, too, when another server streams: what could not be
// written may be written now.
func (n noRaft) LeaderChanged() <-chan struct{} { return n.follows.News() }

func (n noRaft) ReadBarrier(context.Context) error { return errNoServer }

func (n noRaft) Status() state.RaftStatus {
	s := n.follows.Status()
	return state.RaftStatus{State: "none", AppliedIndex: s.Position}
}

func (n noRaft) RemovePeer(context.Context, string) error         { return errNoServer }
func (n noRaft) TransferLeadership(context.Context, string) error { return errNoServer }
func (n noRaft) SaveSnapshot(context.Context, io.Writer) error    { return errNoServer }
func (n noRaft) RestoreSnapshot(context.Context, io.Reader) error { return errNoServer }

func (n noRaft) Operation(context.Context, string, url.Values, bool) (any, error) {
	return nil, errNoServer
}
