package raftstore

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// plainLayer is a stream layer without greetings.
type plainLayer struct{ net.Listener }

func (plainLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	_, target, _ := strings.Cut(string(address), "@")
	return net.DialTimeout("tcp", target, timeout)
}

func newPlainTransport(t *testing.T) *transport {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &transport{
		NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: plainLayer{l}, MaxPool: 1, Timeout: 5 * time.Second, Logger: hclog.NewNullLogger()}),
		locate:           func(string) string { return "" },
	}
	t.Cleanup(func() {
		n.Close()
		n.CloseStreams()
	})
	return n
}

// A sender must not hang when nobody takes the answers any more.
func TestPipelineOutlivesItsConsumer(t *testing.T) {
	leader, follower := newPlainTransport(t), newPlainTransport(t)
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case rpc := <-follower.Consumer():
				rpc.Respond(&raft.AppendEntriesResponse{Term: 9}, nil)
			case <-done:
				return
			}
		}
	}()
	p, err := leader.AppendEntriesPipeline("id", follower.LocalAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	sent := make(chan error, 1)
	go func() {
		for range 20 { // raft's consumer would have gone after the first answer
			if _, err := p.AppendEntries(&raft.AppendEntriesRequest{Term: 1}, new(raft.AppendEntriesResponse)); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	if first := <-p.Consumer(); first.Response().Term != 9 {
		t.Errorf("the first answer has term %d", first.Response().Term)
	}
	select {
	case err := <-sent:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("AppendEntries hangs because nobody takes the answers")
	}
}
