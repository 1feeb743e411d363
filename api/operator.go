package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
)

func (s *Server) statusLeader(c *call) error {
	_, address, ok := s.raft.Leader()
	if !ok {
		return s.reply(c, "")
	}
	return s.reply(c, address.String())
}

func (s *Server) statusPeers(c *call) error {
	found := []string{}
	for _, server := range s.raft.Status().Servers {
		found = append(found, server.Address)
	}
	return s.reply(c, found)
}

type raftServerJSON struct {
	ID              string
	Node            string
	Address         string
	Leader          bool
	ProtocolVersion string
	Voter           bool
	LastIndex       uint64
}

// raftConfiguration answers with what this node knows, leader or not: it is
// what an admin looks at when there is none.
func (s *Server) raftConfiguration(c *call) error {
	status := s.raft.Status()
	servers := []raftServerJSON{}
	for _, server := range status.Servers {
		name := server.Name
		if name == "" {
			name = "(unknown)" // Consul's word
		}
		servers = append(servers, raftServerJSON{
			ID: server.ID, Node: name, Address: server.Address, Leader: server.Leader,
			ProtocolVersion: "3", Voter: server.Voter, LastIndex: server.LastIndex,
		})
	}
	return s.reply(c, struct {
		Servers []raftServerJSON
		Index   uint64
	}{servers, status.CommitIndex})
}

func (s *Server) raftRemovePeer(c *call) error {
	id, address := c.args.Get("id"), c.args.Get("address")
	if (id == "") == (address == "") {
		return fault(http.StatusBadRequest, "Must specify either ?id with the server's ID or ?address with IP:port of peer to remove")
	}
	if address != "" {
		for _, server := range s.raft.Status().Servers {
			if server.Address == address {
				id = server.ID
			}
		}
		if id == "" {
			return fault(http.StatusInternalServerError, "address %q was not found in the Raft configuration", address)
		}
	}
	s.log.Info("removing a Raft server on an admin's request", "id", id)
	ctx, cancel := c.carriedOut()
	defer cancel()
	if err := s.raft.RemovePeer(ctx, id); err != nil {
		return fmt.Errorf("remove Raft server %s: %w", id, err)
	}
	return s.done(c)
}

func (s *Server) raftTransferLeader(c *call) error {
	to := c.args.Get("id")
	s.log.Info("transferring leadership on an admin's request", "to", to)
	ctx, cancel := c.carriedOut()
	defer cancel()
	if err := s.raft.TransferLeadership(ctx, to); err != nil {
		return fmt.Errorf("transfer leadership: %w", err)
	}
	return s.reply(c, struct{ Success bool }{true})
}

// storeOperation hands over to the store what it knows by name.
func (s *Server) storeOperation(c *call) error {
	write := c.Method == http.MethodPost
	ctx := c.Context()
	if write {
		s.log.Info("an operation of the store on an admin's request", "operation", c.rest, "server", c.args.Get("server"))
		var cancel context.CancelFunc
		ctx, cancel = c.carriedOut()
		defer cancel()
	}
	answer, err := s.raft.Operation(ctx, c.rest, c.args, write)
	if err != nil {
		return fmt.Errorf("%s: %w", c.rest, err)
	}
	return s.reply(c, answer)
}

func (s *Server) snapshotSave(c *call) error {
	if c.read.mode != stale {
		if _, _, ok := s.raft.Leader(); !ok {
			return fault(http.StatusInternalServerError, "%s: add ?stale to save what this node has", noLeader)
		}
		if err := s.barrier(c); err != nil {
			return err
		}
	}
	s.describe(c, s.state.Snapshot().Index())
	c.w.Header().Set("Content-Type", "application/octet-stream")
	err := s.raft.SaveSnapshot(c.Context(), patientWriter{c.w})
	if err == nil {
		return nil
	}
	if c.w.code != 0 {
		// Half of it is out: the broken connection is all that tells the
		// client, who must not take it for the whole.
		s.log.Warn("saving a snapshot failed half-way", "error", err)
	}
	return fmt.Errorf("save a snapshot: %w", err)
}

// patientWriter gives the client time for each piece, not for the whole.
type patientWriter struct{ w *recorder }

func (p patientWriter) Write(data []byte) (int, error) {
	p.w.extend(writeTimeout)
	return p.w.Write(data)
}

func (s *Server) snapshotRestore(c *call) error {
	if c.ContentLength > s.config.MaxSnapshot {
		return s.snapshotTooLarge()
	}
	s.log.Info("restoring a snapshot on an admin's request", "bytes", c.ContentLength)
	body := &patientReader{r: http.MaxBytesReader(c.w, c.Body, s.config.MaxSnapshot), call: c}
	err := s.raft.RestoreSnapshot(c.Context(), body)
	c.bodyRead(err)
	var oversize *http.MaxBytesError
	switch {
	case errors.As(err, &oversize):
		return s.snapshotTooLarge()
	case err != nil:
		return fmt.Errorf("restore the snapshot: %w", err)
	}
	return s.done(c)
}

func (s *Server) snapshotTooLarge() error {
	return s.refuse(&refusal{http.StatusRequestEntityTooLarge, "snapshot",
		fmt.Sprintf("the snapshot is larger than %d bytes: raise api.snapshot_limit_mib", s.config.MaxSnapshot)})
}

// patientReader gives the client time for each piece, not for the whole.
type patientReader struct {
	r    io.Reader
	call *call
}

func (p *patientReader) Read(data []byte) (int, error) {
	p.call.hurry(bodyTimeout)
	return p.r.Read(data)
}
