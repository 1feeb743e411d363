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
	// pursues tells whether this server leads in the term and has the server id
	// in its configuration, at which address: while it does, there is a log to
	// be brought there.
	pursues func(term uint64, id raft.ServerID) (raft.ServerAddress, bool)
	leads   func(term uint64) bool // whether this server leads in the term at this moment; nil: not asked
	stands  func() error           // why this server asks for no votes; nil function: it always may
	ahead   *aheadLog              // what of the log is on this server's disk; nil: all
	wire    wire
	pace    pace                 // of each pipeline, but for waits
	expects func(id string) bool // whether a server waits for an answer of ours; nil: none
	pipes   pipelines

	// beside tells whether a heartbeat of a term can be taken up beside Raft's own
	// goroutine, and keeps it so until done is called; nil: none can.
	beside   func(term uint64) (done func(), ok bool)
	arrivals chan raft.RPC // to Raft; nil while ahead is
	patience time.Duration // for how long a heartbeat waits for Raft
}

// wire carries a message to a server (a server ID, or the address of its RPC
// port): tests put one in between that loses or holds them up. Nil sends.
type wire func(to string, send func() error) error

func (w wire) carry(to string, send func() error) error {
	if w == nil {
		return send()
	}
	return w(to, send)
}

// retryDial is how long a leader waits before it tries again to reach a
// server that its log is for.
const retryDial = 50 * time.Millisecond

// at joins ID and address into the key under which connections are pooled;
// streamLayer.Dial takes it apart.
func (t *transport) at(id raft.ServerID, target raft.ServerAddress) raft.ServerAddress {
	if now := t.locate(string(id)); now != "" {
		target = raft.ServerAddress(now)
	}
	return raft.ServerAddress(id) + "@" + target
}

func (t *transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	if t.wire != nil {
		return nil, raft.ErrPipelineReplicationNotSupported // Raft then sends message by message
	}
	p, err := t.NetworkTransport.AppendEntriesPipeline(id, t.at(id, target))
	if err != nil {
		return nil, err
	}
	pace := t.pace
	pace.id = id
	if t.expects != nil {
		pace.waits = func() bool { return t.expects(string(id)) }
	}
	d := newPipeline(p, pace, t.pipes.remove)
	d.mine = t.mine
	if t.ahead != nil {
		d.durable = t.ahead.durable
	}
	d.begin(t.pipes.answered(id))
	d.catchUp(t.pipes.add(d))
	return d, nil
}

// AppendEntries brings log entries patiently to a server that can't be
// reached. Raft itself pauses twice as long after each failure, up to 10 s,
// and a server that came back would wait as long for what it missed.
// Heartbeats are not patient: Raft paces them itself, closely.
func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if t.ahead != nil {
		args.LeaderCommitIndex = t.ahead.durable(args.LeaderCommitIndex)
	}
	withinReach(args)
	if !isHeartbeat(args) && !t.mine(args.Term) {
		return errDeposed
	}
	for {
		err := t.wire.carry(string(id), func() error {
			return t.NetworkTransport.AppendEntries(id, t.at(id, target), args, resp)
		})
		if err == nil && resp.Success && !isHeartbeat(args) {
			t.pipes.note(id, args)
		}
		if _, unreached := errors.AsType[*dialError](err); !unreached || isHeartbeat(args) {
			return err
		}
		now, pursued := t.pursues(args.Term, id)
		if !pursued {
			return err
		}
		target = now
		pause(retryDial)
	}
}

func (t *transport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if err := t.mayStand(args.LastLogIndex); err != nil {
		return err
	}
	return t.wire.carry(string(id), func() error { return t.NetworkTransport.RequestVote(id, t.at(id, target), args, resp) })
}

func (t *transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if err := t.mayStand(args.LastLogIndex); err != nil {
		return err
	}
	return t.wire.carry(string(id), func() error { return t.NetworkTransport.RequestPreVote(id, t.at(id, target), args, resp) })
}

// mayStand tells whether this server may ask for votes by a log up to last.
func (t *transport) mayStand(last uint64) error {
	if t.stands != nil {
		if err := t.stands(); err != nil {
			return err
		}
	}
	if t.ahead != nil {
		return t.ahead.ensure(last)
	}
	return nil
}

func (t *transport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if !t.mine(args.Term) {
		return errDeposed
	}
	return t.wire.carry(string(id), func() error { return t.NetworkTransport.InstallSnapshot(id, t.at(id, target), args, resp, data) })
}

func (t *transport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return t.wire.carry(string(id), func() error { return t.NetworkTransport.TimeoutNow(id, t.at(id, target), args, resp) })
}

// Consumer implements raft.Transport; Raft calls it once.
func (t *transport) Consumer() <-chan raft.RPC {
	if t.ahead == nil {
		return t.NetworkTransport.Consumer()
	}
	t.arrivals = make(chan raft.RPC)
	go t.admit(t.arrivals)
	return t.arrivals
}

// admit passes messages on to Raft until it ends. What would have this server
// answer for entries that it appended as a leader, and that are not on its disk,
// waits until they are, or is refused.
func (t *transport) admit(to chan<- raft.RPC) {
	for {
		select {
		case rpc := <-t.NetworkTransport.Consumer():
			args, ok := rpc.Command.(*raft.AppendEntriesRequest)
			if ok { // of a server of an earlier version
				withinReach(args)
				if err := ofOneLog(args); err != nil {
					rpc.Respond(nil, err)
					continue
				}
			}
			if ok && t.ahead.durable(reach(args)) != reach(args) {
				go func() { // ends when the disk answers, or is said not to
					if t.answerable(rpc, args) {
						t.pass(rpc, to)
					}
				}()
				continue
			}
			if !t.pass(rpc, to) {
				return
			}
		case <-t.ahead.ended:
			return
		}
	}
}

func (t *transport) pass(rpc raft.RPC, to chan<- raft.RPC) bool {
	select {
	case to <- rpc:
		return true
	case <-t.ahead.ended:
		return false
	}
}

// answerable refuses a message if this server's disk does not take what the
// answer would be for.
func (t *transport) answerable(rpc raft.RPC, args *raft.AppendEntriesRequest) bool {
	err := t.ahead.ensure(reach(args))
	if err != nil {
		rpc.Respond(&raft.AppendEntriesResponse{RPCHeader: raft.RPCHeader{ProtocolVersion: args.ProtocolVersion}, Term: args.Term, LastLog: t.ahead.durable(reach(args))}, nil)
	}
	return err == nil
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
	return l.net.dialRaft(ctx, target, id)
}

// isExhausted: the process ran out of something that will be freed again.
func isExhausted(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) ||
		errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.ECONNABORTED)
}

// pause is for loops that must not spin while something outside is amiss.
func pause(d time.Duration) { <-time.After(d) }
