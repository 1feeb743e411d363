package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/cluster"
	"holdfast/internal/health"
	"holdfast/internal/peer"
	"holdfast/internal/run"
	"holdfast/internal/telemetry"
)

const defaultClusterFile = "/etc/holdfast/cluster.yaml"

type agentCmd struct {
	ClusterFile   string `name:"config" type:"path" default:"/etc/holdfast/cluster.yaml" env:"HOLDFAST_CONFIG" help:"The cluster file. Without one at the default place the node is a cluster of its own."`
	Node          string `env:"HOLDFAST_NODE" help:"Which node of the cluster file this is; the hostname unless said." placeholder:"NAME"`
	DataDir       string `type:"path" default:"/var/lib/holdfast" env:"HOLDFAST_DATA_DIR" help:"Where the store is kept."`
	RunDir        string `type:"path" default:"/run/holdfast" env:"HOLDFAST_RUN_DIR" help:"Where the admin socket is."`
	PKI           string `name:"pki" type:"path" default:"/etc/holdfast/pki" env:"HOLDFAST_PKI" help:"This node's certificate and keys (holdfast pki issue)."`
	JoinAuthority string `name:"join-authority" type:"path" env:"HOLDFAST_JOIN_AUTHORITY" help:"The cluster's authority (holdfast pki init): this agent lets bare nodes join (holdfast join). Whoever has this directory can make himself any node." placeholder:"DIR"`
	Insecure      bool   `env:"HOLDFAST_INSECURE" help:"Plain text between nodes. For labs on loopback only."`

	RPCPort     uint16   `name:"rpc-port" default:"8300" env:"HOLDFAST_RPC_PORT" help:"Port of Raft and RPC."`
	GossipPort  uint16   `default:"8301" env:"HOLDFAST_GOSSIP_PORT" help:"Port of the gossip, TCP and UDP."`
	DNSListen   []string `name:"dns-listen" env:"HOLDFAST_DNS_LISTEN" help:"Where to answer DNS; port 53 of all addresses unless said here or in the cluster file." placeholder:"ADDR:PORT"`
	NTPListen   []string `name:"ntp-listen" env:"HOLDFAST_NTP_LISTEN" help:"Where to answer NTP, when the node's role runs it; port 123 of all addresses unless said here or in the cluster file." placeholder:"ADDR:PORT"`
	APTListen   []string `name:"apt-listen" env:"HOLDFAST_APT_LISTEN" help:"Where to serve packages, when the node's role runs it; port 3142 of all addresses unless said here or in the cluster file." placeholder:"ADDR:PORT"`
	RELPListen  []string `name:"relp-listen" env:"HOLDFAST_RELP_LISTEN" help:"Where to take log lines by RELP, when the node's role runs logs; port 20514 of all addresses unless said here or in the cluster file." placeholder:"ADDR:PORT"`
	LogsDir     string   `name:"logs-dir" type:"path" env:"HOLDFAST_LOGS_DIR" help:"Where the hosts' log files go, instead of where the cluster file says." placeholder:"DIR"`
	HTTPListen  []string `name:"http-listen" env:"HOLDFAST_HTTP_LISTEN" help:"Where to answer plain HTTP, loopback only; 127.0.0.1:8500 unless said here or in the cluster file." placeholder:"ADDR:PORT"`
	HTTPSListen []string `name:"https-listen" env:"HOLDFAST_HTTPS_LISTEN" help:"Where to answer HTTPS; port 8501 of the node's address unless said here or in the cluster file." placeholder:"ADDR:PORT"`
	NodeFile    string   `name:"node-file" type:"path" default:"/etc/holdfast/node.yaml" env:"HOLDFAST_NODE_FILE" help:"What this node sets for itself: these flags by their names, a line each, such as rpc-port: 8300." placeholder:"FILE"`

	Only string `enum:",core,dns,ntp,apt,logs,net,scripts" default:"" help:"Run this unit alone: core (store, gossip, checks, API), dns, ntp, apt, logs, net (virtual addresses, load balancer): they follow core, and go on without it; scripts (the script checks of services): it runs what core asks for, as the cluster file says." placeholder:"UNIT"`

	ScriptsSocket string `name:"scripts-socket" type:"path" env:"HOLDFAST_SCRIPTS_SOCKET" help:"Where the unit scripts answers; scripts.sock in the run directory unless said." placeholder:"PATH"`

	LogLevel  string `default:"info" env:"HOLDFAST_LOG_LEVEL" enum:"debug,info,warn,error" help:"debug, info, warn or error."`
	LogFormat string `default:"text" env:"HOLDFAST_LOG_FORMAT" enum:"text,json" help:"text or json."`
}

func (*agentCmd) Help() string {
	return "Examples:\n" +
		"  holdfast agent                                   # /etc/holdfast/cluster.yaml, or a cluster of one node\n" +
		"  holdfast agent --config lab.yaml --node fbservice1 --data-dir /tmp/a\n" +
		"  holdfast agent --only core                       # the units in processes of their own:\n" +
		"  holdfast agent --only dns                        # each goes on when another ends\n\n" +
		"Each flag can be set in the environment and in the node's own file, too; the command line counts first, then the environment.\n" +
		"SIGTERM ends the agent (a leader hands over first); SIGHUP reloads the cluster file and the certificates."
}

// foundation is what every task of the agent stands on.
type foundation struct {
	log      *slog.Logger
	tail     *telemetry.Tail // for who follows the log
	registry *prometheus.Registry
	board    *health.Board
	path     string // of the cluster file; "" for a node that is a cluster of its own
	source   *cluster.Source
	self     cluster.Node
	trust    *peer.Trust // nil: insecure

	certificates *certificates // of trust; nil with it
	end          func()        // ends the agent
	anew         atomic.Bool   // it ends to begin anew
}

func (c *agentCmd) Run(con *console) error {
	hangup := make(chan os.Signal, 1) // from the start: unheard, it would end us
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	switch c.Only {
	case onlyNet:
		return c.runNet(con, hangup)
	case onlyScripts:
		return c.runScripts(con, hangup)
	case onlyDNS, onlyNTP, onlyAPT, onlyLogs:
		return c.runUnit(con, hangup)
	}
	base, err := c.lay(con)
	if err != nil {
		return err
	}
	dir, err := claim(c.DataDir, base.self.Name)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	defer dir.release()
	if err := c.trusting(base); err != nil {
		return err
	}
	if err := runsAgent(base); err != nil {
		return &exitError{exitUsage, err}
	}
	if err := dir.keep(); err != nil {
		return err
	}
	ctx, end := context.WithCancel(con.ctx)
	defer end()
	base.end = end
	agent, err := c.assemble(base, end)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	base.log.Info("starting", "version", version, "node", base.self.Name, "cluster", base.source.Current().Name, "role", base.self.Role)

	tasks := append(agent.tasks, run.Func("reload", func(ctx context.Context, ready func()) error {
		ready()
		return agent.reload.follow(ctx, hangup)
	}))
	tasks = append(tasks, base.renewing()...)
	err = base.run(ctx, tasks)
	if agent.network != nil {
		err = errors.Join(err, agent.network.ended())
	}
	return errors.Join(err, base.endedAnew())
}

// trusting opens this node's certificates, with what takes up newer ones.
func (c *agentCmd) trusting(base *foundation) (err error) {
	if base.trust, err = c.openTrust(base); err != nil {
		return &exitError{exitUsage, err}
	}
	if base.trust != nil {
		base.certificates, err = newCertificates(base.trust, base.board, base.log, base.registry)
	}
	return err
}

// renewing is the task that takes up newer certificates; none without any.
func (b *foundation) renewing() []run.Task {
	if b.certificates == nil {
		return nil
	}
	return []run.Task{run.Func("certificate", func(ctx context.Context, ready func()) error {
		ready()
		return b.certificates.watch(ctx)
	})}
}

// lay reads the configuration and opens what the tasks share.
func (c *agentCmd) lay(con *console) (*foundation, error) {
	plain, _, err := telemetry.NewLogger(con.err, c.LogFormat, c.LogLevel)
	if err != nil {
		return nil, &exitError{exitUsage, err}
	}
	tail := telemetry.NewTail(plain.Handler())
	log := slog.New(tail)
	base := &foundation{log: log, tail: tail, registry: telemetry.NewRegistry(version)}
	if !c.embedded() {
		base.path = c.ClusterFile
	}
	base.board = health.NewBoard(time.Now,
		func(h health.Condition) {
			log.Warn("condition", "name", h.Name, "severity", h.Severity, "message", h.Message)
		},
		func(h health.Condition) {
			log.Info("condition ended", "name", h.Name, "lasted", time.Since(h.Since).Round(time.Millisecond))
		})
	if err := c.makeDataDir(log); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if c.Only != "" && c.Only != onlyScripts { // its socket may be elsewhere
		if err := os.MkdirAll(c.RunDir, 0o755); err != nil {
			return nil, fmt.Errorf("run directory: %w", err)
		}
	}
	hostname, err := c.hostname()
	if err != nil {
		return nil, err
	}
	if base.source, err = c.openSource(base, hostname); err != nil {
		return nil, &exitError{exitUsage, err}
	}
	self, err := base.source.Current().Self(hostname)
	if err != nil {
		return nil, &exitError{exitUsage, err}
	}
	base.self = *self
	return base, nil
}

// makeDataDir makes the data directory. One unit has no use for it, and one can
// do without.
func (c *agentCmd) makeDataDir(log *slog.Logger) error {
	if c.Only == onlyScripts {
		return nil
	}
	err := os.MkdirAll(c.DataDir, 0o700)
	if err != nil && c.Only == onlyNet {
		log.Error("the state can't be kept on the disk", "error", err)
		return nil
	}
	return err
}

func (c *agentCmd) hostname() (string, error) {
	if c.Node != "" {
		return c.Node, nil
	}
	return os.Hostname()
}

// embedded tells whether the node is a cluster of its own: no cluster file at
// the default place, and none was ever there.
func (c *agentCmd) embedded() bool {
	if c.ClusterFile != defaultClusterFile {
		return false
	}
	for _, path := range []string{c.ClusterFile, c.lastGood()} { // the latter may be ""
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return true
}

// lastGood is where the last good cluster file is kept. The unit scripts keeps
// none: whoever could write to it could become the users of the scripts.
func (c *agentCmd) lastGood() string {
	switch c.Only {
	case onlyScripts:
		return ""
	case "", onlyCore:
		return filepath.Join(c.DataDir, "cluster.last-good.yaml")
	case onlyNet:
		return filepath.Join(c.RunDir, "cluster.last-good.yaml")
	}
	return filepath.Join(c.DataDir, "cluster.last-good."+c.Only+".yaml") // units don't write each other's files
}

func (c *agentCmd) openSource(base *foundation, hostname string) (*cluster.Source, error) {
	if base.path == "" {
		base.log.Info("no cluster file: this node is a cluster of its own", "looked_for", c.ClusterFile)
		return cluster.NewSource(cluster.Single(hostname, netip.AddrFrom4([4]byte{127, 0, 0, 1}))), nil
	}
	return cluster.OpenSource(c.ClusterFile, c.lastGood(), sections(), base.board)
}

// openTrust loads the node's certificate. The embedded default makes an
// authority of its own, so that even one node alone speaks TLS.
func (c *agentCmd) openTrust(base *foundation) (*peer.Trust, error) {
	if c.Insecure {
		base.log.Warn("INSECURE: nodes talk in plain text and trust everyone who can reach them; for labs on loopback only")
		return nil, nil
	}
	if base.path != "" {
		return peer.Load(c.PKI)
	}
	dir := filepath.Join(c.DataDir, "pki")
	trust, err := peer.Load(dir)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return trust, err
	}
	file := base.source.Current()
	authority := filepath.Join(c.DataDir, "pki-authority")
	for _, made := range []string{authority, dir} { // by a start that was cut short
		if err := os.RemoveAll(made); err != nil {
			return nil, err
		}
	}
	if err := peer.Init(authority, file.Name); err != nil {
		return nil, err
	}
	if err := peer.Issue(authority, dir, nodeRequest(file, base.self, 20*365*24*time.Hour)); err != nil {
		return nil, err
	}
	return peer.Load(dir)
}
