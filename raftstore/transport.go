package raftstore

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// transport is Raft's, with one addition: every connection is meant for one
// server ID, which stands in its greeting. Raft itself addresses a server by
// host and port, so that a wiped server would receive, and grant, the vote
// requests for what it was; an election could then be won without a committed
// entry. It also finds a server that moved by its gossip.
type transport struct {
	*raft.NetworkTransport
	// locate gives the address at which a server is now; "" unknown.
	locate func(id string) string
}

// at joins ID and address into the key under which connections are pooled;
// streamLayer.Dial takes it apart.
func (t *transport) at(id raft.ServerID, target raft.ServerAddress) raft.ServerAddress {
	if now := t.locate(string(id)); now != "" {
		target = raft.ServerAddress(now)
	}
	return raft.ServerAddress(id) + "@" + target
}

func (t *transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	return t.NetworkTransport.AppendEntriesPipeline(id, t.at(id, target))
}

func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	return t.NetworkTransport.AppendEntries(id, t.at(id, target), args, resp)
}

func (t *transport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return t.NetworkTransport.RequestVote(id, t.at(id, target), args, resp)
}

func (t *transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return t.NetworkTransport.RequestPreVote(id, t.at(id, target), args, resp)
}

func (t *transport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	return t.NetworkTransport.InstallSnapshot(id, t.at(id, target), args, resp, data)
}

func (t *transport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return t.NetworkTransport.TimeoutNow(id, t.at(id, target), args, resp)
}

var (
	_ raft.Transport   = (*transport)(nil)
	_ raft.WithPreVote = (*transport)(nil)
	_ raft.WithClose   = (*transport)(nil)
)

// streamLayer gives Raft's transport its connections.
type streamLayer struct {
	*streamQueue
	net *network
}

func (l streamLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	id, target, ok := strings.Cut(string(address), "@")
	if !ok {
		return nil, errors.New("raft address without a server ID: " + string(address))
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return l.net.dial(ctx, kindRaft, target, "", id)
}

// isExhausted: the process ran out of something that will be freed again.
func isExhausted(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) ||
		errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.ECONNABORTED)
}

// pause is for the accept loop of a process without free file descriptors.
func pause(d time.Duration) { <-time.After(d) }
