package raftstore

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/hashicorp/raft"

	"holdfast/internal/health"
	"holdfast/internal/state"
)

// maxRebuildHead bounds the line before the state, in bytes.
const maxRebuildHead = 4 << 10

// rebuildHere replaces this server's state by the one in body: a digest in
// JSON, a newline, and the majority's state after that digest's entry. What
// this server applied since is applied to it again, from its own log. It
// refuses when it leads, when the state is not the one that was promised, and
// when its own was the same.
func (s *Store) rebuildHere(ctx context.Context, body io.Reader) error {
	e := s.engine.Load()
	if e == nil || e.raft.State() == raft.Leader {
		return refuseRequest("this server leads, or its store is not running")
	}
	spool, want, err := s.spoolState(body)
	if err != nil {
		return err
	}
	defer os.Remove(spool.Name())
	defer spool.Close()
	own, err := s.verifier.at(ctx, want.Index)
	switch {
	case err != nil:
		return err
	case own.index != want.Index:
		return refuseRequest("this server is at a later mark, %d", own.index)
	case own.sum == want.Sum:
		return refuseRequest("this server has that state")
	}
	if err := s.fsm.rebuild(spool, want.Index, e.checked.read); err != nil {
		return fmt.Errorf("replace the state of %s: %w", s.config.Node, err)
	}
	s.verifier.mu.Lock()
	s.verifier.persist = true
	s.verifier.mu.Unlock()
	s.metrics.rebuilds.Inc()
	s.log.Error("this server's state was not that of the majority and was replaced", "index", want.Index, "was", own.sum, "is", want.Sum)
	s.board.Raise(conditionRebuilt, health.Warning, fmt.Sprintf(
		"after entry %d this server's state was another than the majority's; it was replaced, and this server serves on. A bit must have flipped: look at its memory and disk, then restart the agent", want.Index))
	return nil
}

// spoolState keeps what arrives in a file, as long as it may be, and sees to it
// that it is what was promised. The file is the caller's to remove.
func (s *Store) spoolState(body io.Reader) (_ *os.File, want digest, err error) {
	r := bufio.NewReaderSize(body, maxRebuildHead)
	line, err := r.ReadSlice('\n')
	if err != nil {
		return nil, want, fmt.Errorf("read the digest: %w", err)
	}
	if err := json.Unmarshal(line, &want); err != nil {
		return nil, want, fmt.Errorf("decode the digest: %w", err)
	}
	if want.ID != s.config.NodeID {
		return nil, want, refuseRequest("this is server %s, and the state is for %s", s.config.NodeID, want.ID)
	}
	spool, err := os.CreateTemp(s.config.dir(), spoolRebuild)
	if err != nil {
		return nil, want, fmt.Errorf("keep the state: %w", err)
	}
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(spool, h), r)
	if sum := hex.EncodeToString(h.Sum(nil)); err == nil && sum != want.Sum {
		err = fmt.Errorf("%w: the state that arrived is %s, and %s was promised", state.ErrInvalid, sum, want.Sum)
	}
	if err == nil {
		_, err = spool.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, want, errors.Join(err, spool.Close(), os.Remove(spool.Name()))
	}
	return spool, want, nil
}

// rebuild replaces the state by the one in r, which is that after entry index,
// and all entries that were applied since, which read gives. When it fails,
// nothing has changed.
func (f *fsm) rebuild(r io.Reader, index uint64, read func(uint64, *raft.Log) error) error {
	fresh := state.New()
	if err := fresh.Restore(r); err != nil {
		return err
	}
	f.applying.Lock() // until the old state is gone nothing may be added to it
	defer f.applying.Unlock()
	applied, err := f.progress()
	if err != nil {
		return err
	}
	for i := index + 1; i <= applied; i++ {
		var entry raft.Log
		if err := read(i, &entry); err != nil {
			return fmt.Errorf("apply entry %d again: %w", i, err)
		}
		if entry.Type != raft.LogCommand {
			continue
		}
		cmd, err := state.Decode(entry.Data)
		if unknown, ok := errors.AsType[*state.UnknownCommandError](err); ok && unknown.Skippable {
			continue
		}
		if err != nil {
			return fmt.Errorf("apply entry %d again: %w", i, err)
		}
		_ = fresh.Apply(i, cmd) // its result was told when it was applied first
	}
	from, to := io.Pipe()
	go func() {
		_, err := fresh.Snapshot().WriteTo(to)
		to.CloseWithError(err)
	}()
	defer from.Close()
	return f.state.Restore(from)
}
