package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	bbolterrors "go.etcd.io/bbolt/errors"

	"holdfast/internal/durable"
	"holdfast/internal/run"
)

const (
	logName       = "log.db"
	logCache      = 512 // entries
	keepSnapshots = 2
	// A snapshot is considered every 30 to 60 s and taken after so many new
	// entries: a restart replays no more than these, about 0.2 s of work.
	snapshotInterval = 30 * time.Second
	snapshotEntries  = 16384
	// After a snapshot so many entries stay, for servers that were away a moment.
	trailingEntries = 10240
	stopTimeout     = 10 * time.Second
	// So many entries share one write of the log and one message. Raft makes room
	// for as many with each message and each commit, however few there are: with
	// 512 a third of all memory that a leader allocated was for that. 256 writers
	// have 30 at a time.
	raftEntries = 128
)

// engine is what one Run works with.
type engine struct {
	store     *Store
	run       string // names this start
	advertise string
	record    *recordFile
	bolt      *raftboltdb.BoltStore
	front     *front        // bolt's newest entries, before they get there
	checked   *checkedLog   // the entries, with their checksums
	stable    checkedStable // bolt's terms and votes, with theirs
	ahead     *aheadLog     // a leader's newest, before they are written
	logs      raft.LogStore // what raft reads and writes: a cache before ahead before a watchdog before checked
	snapshots raft.SnapshotStore
	net       *network
	trans     *transport
	terms     termStable
	raft      *raft.Raft
	rpc       *rpcServer
	follow    *followServer // nil: nobody may follow the state
	client    *rpcClient
	running   atomic.Pointer[raft.Raft] // raft, for those who may be called before it is set
	tracker   *tracker
	objection atomic.Pointer[string] // why the last attempt to form a store found no consent
	quiet     atomic.Bool            // Raft is being stopped
	disk      *diskHealth
	asked     time.Time     // see askWhy
	ended     chan struct{} // closed when Raft is to end
	damage    chan error    // found on the disk; ends the engine
	questions run.Gate      // whether we lead
	proofs    rounds        // the answers to them
	expects   expectant     // servers that wait for an answer of ours
	forwards  *forwarder

	cancel   context.CancelFunc
	unwatch  context.CancelFunc // ends the watch over the disk
	group    sync.WaitGroup
	mayLead  sync.Mutex // held while the configuration is changed
	restores sync.Mutex // held while a snapshot is restored
	observed chan raft.Observation
	observer *raft.Observer
}

// open takes the files and the port and makes Raft; nothing is left open when
// it fails.
func (s *Store) open(ctx context.Context) (_ *engine, err error) {
	e := &engine{
		store: s, run: newUUID(), tracker: newTracker(), observed: make(chan raft.Observation, 64),
		damage: make(chan error, 1), ended: make(chan struct{}), disk: &diskHealth{judge: diskJudge{calm: s.times.calm}},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.stop())
		}
	}()
	if err := os.MkdirAll(s.config.dir(), 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	e.beginDiskWatch(ctx)
	if err := e.missLog(); err != nil {
		return nil, err
	}
	if err := e.openLog(ctx); err != nil {
		return nil, err
	}
	e.sweep()
	if e.record, err = openRecord(s.config.DataDir, s.config.NodeID); err != nil {
		return nil, err
	}
	if err := e.noteLog(); err != nil {
		return nil, err
	}
	if err := e.openSnapshots(); err != nil {
		return nil, err
	}
	if err := e.examine(ctx); err != nil {
		return nil, err
	}
	if err := e.listen(ctx); err != nil {
		return nil, err
	}
	if err := e.makeRaft(); err != nil {
		return nil, err
	}
	return e, e.takeUp() // before anybody can ask for a vote
}

// missLog refuses to go on without the log that the record speaks of, before
// openLog makes a new one. It holds this server's votes and what it
// acknowledged: without it this server could break its word to the others.
func (e *engine) missLog() error {
	c := e.store.config
	f, err := openRecord(c.DataDir, c.NodeID)
	if err != nil {
		return err
	}
	st, err := os.Stat(filepath.Join(c.dir(), logName))
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("open the log: %w", err)
	case f.get().HasLog && (err != nil || st.Size() == 0): // bolt would make a new log of an empty file
		return fmt.Errorf("the log in %s is gone, but this server had one and could have voted: wipe the whole data directory %s, then the others take it back under a new ID", c.dir(), c.DataDir)
	}
	return nil
}

// openLog opens the log before the record counts: its lock keeps a second
// process out.
func (e *engine) openLog(ctx context.Context) (err error) {
	path := filepath.Join(e.store.config.dir(), logName)
	read := func(do func() error) error { return e.patiently(ctx, do) }
	e.bolt, err = openBoltWith(path, boltOptions(), read)
	if errors.Is(err, bbolterrors.ErrTimeout) {
		return fmt.Errorf("open %s: another process has it open", path)
	}
	if errors.Is(err, ErrDamaged) {
		return e.refuse(err)
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	e.front, err = openLogReading(e.store.config.dir(), e.bolt, read)
	switch {
	case errors.Is(err, ErrDamaged):
		return e.refuse(err)
	case errors.Is(err, errNoChecksums):
		return fmt.Errorf("the log %s: %w; wipe the whole data directory %s, then the others take this server back under a new ID", path, err, e.store.config.DataDir)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("the log %s: %w; nothing is lost: make room there and start again", path, err)
	case err != nil:
		return fmt.Errorf("the log %s: %w", path, err)
	}
	e.checked, e.stable = &checkedLog{LogStore: e.front, onDamage: e.damaged}, checkedStable{e.bolt}
	if e.store.disk != nil {
		e.checked.LogStore = e.store.disk(e.front)
	}
	guarded := &watchdog{LogStore: timedLog{e.checked, e.store.stalled}, limit: e.store.times.disk, onHung: e.diskHung, onAnswer: e.diskAnswers, onFail: e.disk.wrote, ended: e.ended}
	e.ahead = newAheadLog(&suffixLog{LogStore: guarded, stale: e.stands}, e.appends, e.writeSomething, e.ended)
	e.logs, err = raft.NewLogCache(logCache, e.ahead)
	return err
}

// appends tells whether Raft leads at this moment, maybe in a term that is over
// elsewhere.
func (e *engine) appends() bool {
	r := e.running.Load()
	return r != nil && r.State() == raft.Leader
}

// writeSomething has a leader write to its log, so that it hears from there; it
// blocks a moment at most.
func (e *engine) writeSomething() {
	if e.appends() {
		e.running.Load().Barrier(retryWrite)
	}
}

// noteLog remembers for good that there is a log, and refuses one that nobody
// remembers: what was promised while the store was formed is gone then.
func (e *engine) noteLog() error {
	c, r := e.store.config, e.record.get()
	if r.ClusterID == "" {
		used, err := raft.HasExistingState(e.checked, e.stable, raft.NewDiscardSnapshotStore())
		if err != nil {
			return fmt.Errorf("look into the log in %s: %w", c.dir(), err)
		}
		if used {
			return fmt.Errorf("there is a log in %s, but the record of the store it belongs to, %s, is gone: put it back, or wipe the whole data directory %s, then the others take it back under a new ID",
				c.dir(), e.record.path, c.DataDir)
		}
	}
	if r.HasLog {
		return nil
	}
	if err := durable.SyncDir(c.dir()); err != nil {
		return fmt.Errorf("keep the log in %s: %w", c.dir(), err)
	}
	return e.record.update(func(r *record) bool {
		r.HasLog = true
		return true
	})
}

func (e *engine) diskHung() {
	e.store.metrics.hungWrites.Inc()
	e.store.log.Error("the disk of the log does not answer", "limit", e.store.times.disk, "path", e.store.config.dir())
	e.disk.hangs(true)
	e.tellDisk(diskSick, diskSick, look{})
}

func (e *engine) diskAnswers() {
	e.store.log.Info("the disk of the log answers again", "path", e.store.config.dir())
	e.disk.hangs(false)
}

func (e *engine) listen(ctx context.Context) error {
	s := e.store
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", s.config.Listen.String())
	if err != nil {
		return fmt.Errorf("listen on the RPC port: %w", err)
	}
	e.advertise = s.config.Advertise.String()
	if s.config.Advertise.Port() == 0 { // any port: the one we got
		e.advertise = net.JoinHostPort(s.config.Advertise.Addr().String(), portOf(listener.Addr()))
	}
	addr, err := net.ResolveTCPAddr("tcp", e.advertise)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	ending, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	e.net = &network{
		ending: ending, cancel: hangUp,
		self: e.self, trust: s.config.Trust, times: s.times, log: s.log, metrics: s.metrics,
		limit: newLimiter(time.Minute), adopt: e.adopt, stranger: s.stranger, distrusted: s.distrusted,
		listener: listener, raft: newStreamQueue(addr), rpc: newStreamQueue(addr),
		greeting: map[string]int{}, follows: map[string]int{}, open: map[*stream]struct{}{},
	}
	if s.config.Insecure {
		e.net.trust = nil
	}
	e.client = newRPCClient(func(ctx context.Context, address string) (net.Conn, error) {
		return e.net.dial(ctx, kindRPC, address, s.nameAt(address), "")
	}, s.times)
	e.client.wire = s.wire
	e.rpc = newRPCServer(s, s.config.MaxSnapshot, &e.expects, s.log)
	e.forwards = &forwarder{client: e.client, ctx: ending, timings: s.times}
	if s.config.Follow != nil {
		e.net.follow = newStreamQueue(addr)
		e.follow = newFollowServer(s.config.Follow, s.log)
	}
	return nil
}

func portOf(a net.Addr) string {
	_, port, _ := net.SplitHostPort(a.String())
	return port
}

// self is how we introduce ourselves.
func (e *engine) self() hello {
	c := e.store.config
	return hello{Cluster: c.Cluster, Name: c.Node, ID: c.NodeID, Store: e.record.get().ClusterID, levels: e.store.levelsOf()}
}

// adopt makes this server part of the store that sent for it.
func (e *engine) adopt(id string) error {
	if err := e.record.setClusterID(id); err != nil {
		return err
	}
	e.store.log.Info("joined the store", "store", id)
	e.announce()
	return nil
}

func (e *engine) announce() {
	if id := e.record.get().ClusterID; id != "" && e.store.config.Announce != nil {
		e.store.config.Announce(id)
	}
}

func (e *engine) openSnapshots() error {
	files, err := raft.NewFileSnapshotStoreWithLogger(e.store.config.dir(), keepSnapshots, newRaftLog(e.store.log, &e.quiet))
	if err != nil {
		return fmt.Errorf("open the snapshots: %w", err)
	}
	snapshots := snapshotStore{files, filepath.Join(e.store.config.dir(), snapshotsDir)}
	e.snapshots, e.front.covered = snapshots, snapshots.covers // before anybody writes
	return nil
}

func (e *engine) makeRaft() (err error) {
	s := e.store
	log := newRaftLog(s.log, &e.quiet)
	e.trans = &transport{
		NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: streamLayer{e.net.raft, e.net}, MaxPool: 3, MaxRPCsInFlight: rpcsInFlight, Timeout: s.times.transport, Logger: log,
		}),
		locate: s.addressOf, pursues: e.pursues, leads: e.leadsIn, stands: e.mayStand, wire: s.wire, ahead: e.ahead,
		pace: pace{repeat: s.times.repeat, linger: s.times.linger}, expects: e.expects.has, beside: e.terms.beside, patience: s.times.transport,
	}
	s.fsm.attach(e.ahead.await, e.trans.pipes.tell)
	e.terms.StableStore, e.terms.raft = &voteStable{StableStore: steadyStable{e.stable, e.ended, e.disk.wrote}}, e.running.Load
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(s.config.NodeID)
	c.HeartbeatTimeout, c.ElectionTimeout = s.times.heartbeat, s.times.heartbeat
	c.LeaderLeaseTimeout, c.CommitTimeout = s.times.lease, s.times.commit
	c.SnapshotInterval, c.SnapshotThreshold, c.TrailingLogs = snapshotInterval, snapshotEntries, trailingEntries
	c.MaxAppendEntries = raftEntries
	c.ShutdownOnRemove = false
	c.NoLegacyTelemetry = true
	c.Logger = log
	if e.raft, err = raft.NewRaft(c, s.fsm, steadyLog{e.logs, func() bool { return e.running.Load() != nil }, e.ended}, &e.terms, e.snapshots, e.trans); err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	e.running.Store(e.raft)
	e.observer = raft.NewObserver(e.observed, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.RaftState:
			return true
		}
		return false
	})
	e.raft.RegisterObserver(e.observer)
	return nil
}

// start runs the engine's goroutines; the channel gives what made one fail.
func (e *engine) start(ctx context.Context) <-chan error {
	ctx, e.cancel = context.WithCancel(context.WithoutCancel(ctx))
	failed := make(chan error, 6)
	e.group.Go(func() {
		if err := e.net.serve(); err != nil {
			failed <- err
		}
	})
	e.group.Go(func() {
		if err := e.rpc.serve(e.net.rpc); err != nil {
			failed <- fmt.Errorf("serve requests: %w", err)
		}
	})
	if e.follow != nil {
		e.group.Go(func() {
			if err := e.follow.serve(e.net.follow); err != nil {
				failed <- fmt.Errorf("serve the nodes that follow: %w", err)
			}
		})
	}
	e.group.Go(func() {
		if err := e.formStore(ctx); err != nil {
			failed <- err
		}
	})
	e.group.Go(func() {
		select {
		case err := <-e.damage:
			failed <- err
		case <-ctx.Done():
		}
	})
	e.group.Go(func() { e.watch(ctx) })
	e.group.Go(func() { e.followTrust(ctx) })
	e.group.Go(func() { e.watchProcessor(ctx) })
	e.group.Go(func() { e.keepFresh(ctx) })
	e.group.Go(func() { e.keepDigests(ctx) })
	e.group.Go(func() { e.backUp(ctx) })
	e.announce()
	return failed
}

// drain lets requests under way end, so that their callers need not wonder
// what became of them.
func (e *engine) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), e.store.times.heartbeat)
	defer cancel()
	if e.follow != nil {
		e.follow.http.Close() // they go to another server at once
	}
	if err := e.rpc.http.Shutdown(ctx); err != nil {
		e.store.log.Debug("requests were still under way", "error", err)
	}
}

// stop ends everything that open and start began, as far as it got.
func (e *engine) stop() error {
	if e.cancel != nil {
		e.cancel()
	}
	if e.unwatch != nil {
		e.unwatch()
	}
	var errs []error
	e.quiet.Store(true)
	if e.raft != nil {
		e.raft.DeregisterObserver(e.observer)
		errs = append(errs, bounded("end the questions to raft", func() error { e.questions.Close(); return nil }))
		e.net.hangUp()
	}
	close(e.ended) // Raft may have failed to start, with what serves it under way
	if e.raft != nil {
		errs = append(errs, bounded("stop raft", func() error { return e.raft.Shutdown().Error() }))
	}
	if e.trans != nil {
		errs = append(errs, e.trans.Close())
		e.trans.CloseStreams()
	}
	if e.rpc != nil {
		e.client.stop()
		errs = append(errs, bounded("close the connections", func() error { e.net.stop(); return nil }))
		errs = append(errs, bounded("end the requests under way", func() error { e.rpc.stop(); return nil }))
		if e.follow != nil {
			errs = append(errs, bounded("end the streams of the state", func() error { e.follow.stop(); return nil }))
		}
	}
	errs = append(errs, bounded("end what runs in the background", func() error { e.group.Wait(); return nil }))
	if e.bolt != nil {
		errs = append(errs, bounded("close the log", e.closeLog))
	}
	return errors.Join(errs...)
}

func (e *engine) closeLog() error {
	if e.ahead != nil {
		e.ahead.close()
	}
	var err error
	if e.front != nil {
		err = e.front.Close()
	}
	return errors.Join(err, e.bolt.Close())
}

// bounded gives up on what a hung disk can hold forever.
func bounded(what string, f func() error) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := await(ctx, f); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// pursues implements transport.pursues.
func (e *engine) pursues(term uint64, id raft.ServerID) (raft.ServerAddress, bool) {
	if !e.leadsIn(term) {
		return "", false
	}
	for _, server := range e.running.Load().GetConfiguration().Configuration().Servers {
		if server.ID == id {
			return server.Address, true
		}
	}
	return "", false
}

// configuration is Raft's latest.
func (e *engine) configuration() raft.Configuration {
	f := e.raft.GetConfiguration()
	if f.Error() != nil {
		return raft.Configuration{}
	}
	return f.Configuration()
}

func (e *engine) voters() int {
	n := 0
	for _, server := range e.configuration().Servers {
		if server.Suffrage == raft.Voter {
			n++
		}
	}
	return n
}
