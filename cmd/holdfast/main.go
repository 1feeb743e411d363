// Command holdfast is what the service nodes of a cluster run (holdfast agent)
// and what its admins type.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
)

// version is set by the build: -ldflags "-X main.version=1.2.3".
var version = "0.1.0-dev"

// Exit statuses that scripts can rely on. They stand in the README.
const (
	exitOK          = 0
	exitFailed      = 1   // the operation was tried and failed or was refused
	exitUsage       = 2   // the command line or the configuration is wrong
	exitUnreachable = 3   // no agent answered
	exitNotFound    = 4   // what was asked for does not exist
	exitNoLeader    = 5   // no quorum: nothing was written
	exitDegraded    = 6   // status and others that look: something is failing or differs
	exitLost        = 7   // lock: the lock was lost and the command killed
	exitRestart     = 75  // agent: ended for a restart; whoever supervises it starts it again (EX_TEMPFAIL)
	exitKeeper      = 125 // lock: the command could not be started
)

// exitError carries an exit status up to main; its cause is printed.
type exitError struct {
	status int
	cause  error
}

func (e *exitError) Error() string { return e.cause.Error() }
func (e *exitError) Unwrap() error { return e.cause }

type cli struct {
	Agent    agentCmd      `cmd:"" help:"Run the agent: what a node of the cluster runs."`
	Status   statusCmd     `cmd:"" help:"One screen: nodes, leader, who answers what, what is failing and since when."`
	Units    unitsCmd      `cmd:"" help:"The processes of this node that have no store of their own: from where each has the state, and how old that is."`
	Members  membersCmd    `cmd:"" help:"List the members of the gossip as this node sees them."`
	Services servicesCmd   `cmd:"" help:"List services with their instances and health."`
	Explain  explainCmd    `cmd:"" help:"Tell why a service's name or a virtual address gives what it gives, with the evidence and the history."`
	NTP      ntpCmd        `cmd:"" name:"ntp" help:"Look at the cluster's time servers."`
	KV       kvCmd         `cmd:"" name:"kv" help:"Read and write keys."`
	Lock     lockCmd       `cmd:"" help:"Run a command while holding a lock that nobody else can have meanwhile."`
	Keeper   lockKeeperCmd `cmd:"" name:"lock-keeper" hidden:""`
	Watch    watchCmd      `cmd:"" help:"Follow a key, a service or checks, and run a program at each change."`
	Event    eventCmd      `cmd:"" help:"Tell the members of something by gossip, and hear what was told."`
	Monitor  monitorCmd    `cmd:"" help:"Follow the agent's log, at any level."`
	Debug    debugCmd      `cmd:"" help:"Collect what is needed to find a fault of the agent, without secrets, in one archive."`
	Raft     raftCmd       `cmd:"" help:"Look at Raft and change its membership."`
	Operator operatorCmd   `cmd:"" help:"What concerns all servers at once: restart them one by one."`
	Keyring  keyringCmd    `cmd:"" help:"Change the key that encrypts the gossip, while it runs."`
	Snapshot snapshotCmd   `cmd:"" help:"Save, restore and inspect snapshots of the store."`
	DNS      dnsCmd        `cmd:"" name:"dns" help:"Records, zones and the cache of this node's DNS server."`
	Config   configCmd     `cmd:"" help:"Check, show and reload the cluster file."`
	PKI      pkiCmd        `cmd:"" name:"pki" help:"Make the cluster's certificate authority and node certificates."`
	VIP      vipCmd        `cmd:"" name:"vip" help:"Look at virtual addresses and move them."`
	LB       lbCmd         `cmd:"" name:"lb" help:"Look at the load balancer; take nodes out of it and back."`
	Node     nodeCmd       `cmd:"" name:"node" help:"Take this node out of all that it does, and put it back."`
	Restart  restartCmd    `cmd:"" help:"Restart the agent so that its virtual addresses stay where they are."`
	Join     joinCmd       `cmd:"" help:"Give this bare node its certificate and its cluster file, by a token."`
	JoinTok  joinTokenCmd  `cmd:"" name:"join-token" help:"Make and take back the tokens that let bare nodes join."`
	Leave    leaveCmd      `cmd:"" help:"Take this node out of the cluster for good: deregister, leave the gossip and Raft, end the agent."`
	Version  versionCmd    `cmd:"" help:"Print the version."`
	Apt      aptCmd        `cmd:"" name:"apt" help:"The package proxy: what it serves, and what clients are held at."`
	Logs     logsCmd       `cmd:"" help:"Look at the log relay of this node, and hold it."`
}

// console is where commands print, and how.
type console struct {
	ctx    context.Context
	out    io.Writer
	err    io.Writer
	in     io.Reader
	isTerm bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := execute(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// execute runs one command line and returns the exit status.
func execute(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	var c cli
	ended := -1
	own, err := openNodeFile(args, os.Getenv)
	if err != nil {
		fmt.Fprintf(errOut, "holdfast: %v\n", err)
		return exitUsage
	}
	parser, err := kong.New(&c,
		kong.Resolvers(own),
		kong.Name("holdfast"),
		kong.Description("The service nodes of a cluster in one program: names, virtual addresses, time, packages and log lines, and the store they stand on."),
		kong.UsageOnError(),
		kong.Writers(out, errOut),
		kong.Exit(func(status int) { ended = status }), // --help
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
	)
	if err != nil {
		panic(err) // a broken command tree
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	if slices.Equal(args, []string{"--version"}) {
		args = []string{"version"}
	}
	parsed, err := parser.Parse(args)
	if ended >= 0 {
		return ended
	}
	if err != nil {
		fmt.Fprintf(errOut, "holdfast: %v%s\n", err, hint(err))
		return exitUsage
	}
	file, ok := out.(*os.File)
	err = parsed.Run(&console{ctx: ctx, in: in, out: out, err: errOut, isTerm: ok && isTerminal(file)})
	return report(errOut, err)
}

// hint says where the commands are listed, to who typed one that is not there.
func hint(err error) string {
	if text := err.Error(); strings.HasPrefix(text, "unexpected argument") || strings.HasPrefix(text, "expected one of") {
		return " (holdfast --help lists the commands)"
	}
	return ""
}

// report prints err and returns the exit status it stands for.
func report(errOut io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(errOut, "holdfast: %v\n", err)
	if e, ok := errors.AsType[*exitError](err); ok {
		return e.status
	}
	return exitFailed
}

type versionCmd struct {
	JSON bool `help:"Print JSON."`
}

func (c *versionCmd) Run(con *console) error {
	if c.JSON {
		return con.json(map[string]string{"version": version})
	}
	_, err := fmt.Fprintln(con.out, version)
	return err
}
