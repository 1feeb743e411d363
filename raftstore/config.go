package raftstore

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/cluster"
	"holdfast/internal/health"
	"holdfast/internal/peer"
	"holdfast/internal/state"
)

// DefaultPort is the RPC port of a server: Raft and forwarded requests.
const DefaultPort = 8300

// Config is what a server of the store needs to know.
type Config struct {
	Node    string // this node's name, one of Servers
	NodeID  string // UUID of its data directory, new after that was wiped
	DataDir string // the store keeps its files in DataDir/raft

	Listen    netip.AddrPort // RPC port; port 0: any (tests)
	Advertise netip.AddrPort // where the other servers reach it; Listen when zero

	Cluster string   // the cluster's name
	Servers []string // all servers, in the order of the cluster file; just Node when empty
	Voters  int      // how many of them vote, ≥ 1; all when 0

	// Timing multiplies every timeout; 1 (also 0) is right for a LAN, where
	// the next leader is there within a second. Range 0.1–20.
	Timing float64

	Trust *peer.Trust // a server's; nil only with Insecure
	// Insecure sends everything in plain text and trusts everybody who can
	// connect. Only for a loopback address, unless AllowInsecureAddress.
	Insecure             bool
	AllowInsecureAddress bool

	// Feature is the highest feature level that this program reads;
	// state.FeatureLevel when 0.
	Feature int

	Version string // of the program: states are compared among servers of the same

	MaxSnapshot int64 // bytes a restored snapshot may have; 1 GiB when 0

	// Consumers are what else takes space on the disk of DataDir and can give
	// some back: when the disk runs low, the biggest is asked first.
	Consumers []Consumer

	Backups Backups // scheduled snapshots; none when Every is 0
	// BackupKey gives the secret with which a scheduled snapshot is sealed, at
	// least 16 bytes, whenever one is made: the key that encrypts the gossip at
	// that time. nil: the one that Trust had at the start.
	BackupKey func() ([]byte, error)

	// SetAside is called when the store is damaged and the others can spare
	// it: it is to see that SetAside moves the files away and that the node
	// begins anew with another ID. Run then returns ErrSetAside. When nil, an
	// admin must do it.
	SetAside func() error

	// Follow answers the nodes that are no servers, over the RPC port, by plain
	// HTTP within mutual TLS; FollowerOf tells who asks. nil: none is let in.
	Follow http.Handler

	// Announce is called with the ID of the store when this server belongs to
	// one: soon after a start, or when one was formed or joined. It must not
	// block. May be nil.
	Announce func(clusterID string)
}

// Deps is what a Store works with. A nil Log discards, nil Metrics register
// nowhere, a nil Board ignores.
type Deps struct {
	Log     *slog.Logger
	Metrics prometheus.Registerer
	Board   *health.Board
}

// complete fills in what may be left empty and refuses what cannot work.
func (c Config) complete() (Config, error) {
	if len(c.Servers) == 0 {
		c.Servers = []string{c.Node}
	}
	if c.Voters == 0 {
		c.Voters = len(c.Servers)
	}
	if c.Timing == 0 {
		c.Timing = 1
	}
	if !c.Advertise.IsValid() {
		c.Advertise = c.Listen
	}
	if c.Feature == 0 {
		c.Feature = state.FeatureLevel
	}
	if c.MaxSnapshot == 0 {
		c.MaxSnapshot = 1 << 30
	}
	if c.Backups.Directory == "" {
		c.Backups.Directory = filepath.Join(c.DataDir, "snapshots")
	}
	return c, c.validate()
}

func (c Config) validate() error {
	var errs []error
	refuse := func(format string, args ...any) { errs = append(errs, fmt.Errorf("raftstore: "+format, args...)) }
	if c.Node == "" || c.Cluster == "" || c.DataDir == "" {
		refuse("node %q, cluster %q, data directory %q: none may be empty", c.Node, c.Cluster, c.DataDir)
	}
	if !validUUID(c.NodeID) {
		refuse("node ID %q is not a UUID", c.NodeID)
	}
	if !slices.ContainsFunc(c.Servers, func(s string) bool { return foldName(s) == foldName(c.Node) }) {
		refuse("node %s is not among the servers of the cluster file, %v", c.Node, c.Servers)
	}
	if len(electorateOf(c.Servers)) != len(c.Servers) {
		refuse("a server is listed twice: %v", c.Servers)
	}
	if c.Voters < 1 || c.Voters > len(c.Servers) {
		refuse("%d voters: must be 1 to %d, the number of servers", c.Voters, len(c.Servers))
	}
	if err := validTiming(c.Timing); err != nil {
		refuse("%w", err)
	}
	if !c.Listen.IsValid() || c.Advertise.Addr().IsUnspecified() {
		refuse("listen on %v, advertise %v: both need an address, and the advertised one must be a real one", c.Listen, c.Advertise)
	}
	errs = append(errs, c.validateTrust())
	return errors.Join(errs...)
}

func (c Config) validateTrust() error {
	switch {
	case c.Insecure && !c.Listen.Addr().IsLoopback() && !c.AllowInsecureAddress:
		return fmt.Errorf("raftstore: refused to serve %v in plain text: without certificates only a loopback address is possible", c.Listen)
	case c.Insecure:
		return nil
	case c.Trust == nil:
		return errors.New("raftstore: no certificates: make them with \"holdfast pki init\" and \"holdfast pki issue\"")
	}
	id := c.Trust.Identity()
	if id.Role != peer.RoleServer || foldName(id.Name) != foldName(c.Node) || id.Cluster != c.Cluster {
		return fmt.Errorf("raftstore: the certificate is that of %v, needed is that of server %s of cluster %s", id, c.Node, c.Cluster)
	}
	return nil
}

func validTiming(t float64) error {
	if t < 0.1 || t > 20 || t != t {
		return fmt.Errorf("timing %v: must be 0.1 to 20; 1 suits a LAN, more makes elections slower and calmer", t)
	}
	return nil
}

// section is the optional "raft:" of the cluster file.
type section struct {
	Timing    float64         `yaml:"timing"`
	Snapshots snapshotSection `yaml:"snapshots"`
}

type snapshotSection struct {
	Directory string         `yaml:"directory"`
	Every     *time.Duration `yaml:"every"`
	Keep      *time.Duration `yaml:"keep"`
}

func (s snapshotSection) backups() Backups {
	b := defaultBackups()
	b.Directory = s.Directory
	if s.Every != nil {
		b.Every = *s.Every
	}
	b.Keep = max(b.Keep, b.Every)
	if s.Keep != nil {
		b.Keep = *s.Keep
	}
	return b
}

func decodeSection(s cluster.Section) (section, error) {
	v := section{Timing: 1}
	if s.IsZero() {
		return v, nil
	}
	if err := s.Decode(&v); err != nil {
		return v, err
	}
	if err := validTiming(v.Timing); err != nil {
		return v, s.Errorf("timing", "%v", err)
	}
	if err := v.Snapshots.backups().validate(); err != nil {
		return v, s.Errorf("snapshots", "%v", err)
	}
	return v, nil
}

// ValidateSection checks the "raft:" section; a cluster.SectionValidator.
func ValidateSection(_ *cluster.File, s cluster.Section) error {
	_, err := decodeSection(s)
	return err
}

// ConfigFrom takes from a cluster file what it says about the store: Cluster,
// Servers, Voters and Timing. The rest is the caller's to fill in.
func ConfigFrom(f *cluster.File, s cluster.Section) (Config, error) {
	v, err := decodeSection(s)
	if err != nil {
		return Config{}, err
	}
	c := Config{Cluster: f.Name, Voters: f.Voters(), Timing: v.Timing, Backups: v.Snapshots.backups()}
	for _, n := range f.Servers() {
		c.Servers = append(c.Servers, n.Name)
	}
	return c, nil
}

// timings are all delays of a Store, scaled.
type timings struct {
	heartbeat time.Duration // without contact until an election; election timeout too
	lease     time.Duration // a leader without a quorum steps down after it
	commit    time.Duration // Raft tells followers the commit index when nothing else did
	repeat    time.Duration // between two messages to a follower that say the same
	linger    time.Duration // a commit is told to a follower that waits for none
	transport time.Duration // dial, handshake, and one Raft message
	greet     time.Duration // a new connection must have introduced itself
	hold      time.Duration // a write waits for a leader
	outcome   time.Duration // a write that was taken waits for its result
	disk      time.Duration // a write to the log before the disk counts as hung
	noLeader  time.Duration // until the condition is raised
	tick      time.Duration // look at Raft's state
	fresh     time.Duration // between two proofs that the state is up to date
	plan      time.Duration // look at the membership without being told to
	patience  time.Duration // before the next server in order tries to form the store
	grace     time.Duration // for late servers once a majority was seen
	transfer  time.Duration // hand over the leadership before a stop
	calm      time.Duration // a disk must have been better for so long
	verify    time.Duration // between two comparisons of the servers' states
}

func (c Config) timings() timings {
	d := func(ms float64) time.Duration { return time.Duration(ms * c.Timing * float64(time.Millisecond)) }
	return timings{
		heartbeat: d(300), lease: d(200), commit: d(50), repeat: d(150), linger: d(3), transport: d(2000), greet: d(5000),
		hold: d(2000), outcome: d(10000), disk: d(2000), noLeader: d(3000),
		tick: d(100), fresh: d(250), plan: d(1000), patience: d(2000), grace: d(300), transfer: d(1500), verify: d(20000), calm: d(5000),
	}
}
