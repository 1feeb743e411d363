package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"holdfast/api"
	"holdfast/internal/kernel/command"
	"holdfast/internal/state"
	"holdfast/raftstore"
)

type operatorCmd struct {
	FeatureLevel featureCmd `cmd:"" help:"Which commands the servers can read, and which may be written."`

	RollingRestart rollingCmd `cmd:"" help:"Restart the servers one after the other, and stop rather than lose the quorum or the last instance of a service."`
}

type rollingCmd struct {
	connection
	Only     []string      `help:"Only these servers, by name; all unless said. May be repeated." placeholder:"NODE"`
	Accept   []string      `help:"A service that may have no healthy instance for a moment. May be repeated." placeholder:"SERVICE"`
	Patience time.Duration `default:"2m" help:"How long a server may take to be back and well."`
	DryRun   bool          `help:"Say what would be done and whether the first restart would be refused."`
	Command  []string      `arg:"" optional:"" passthrough:"" help:"Restarts the agent of the node {}, and ends when it did. The program is an absolute path; there is no shell."`
}

func (*rollingCmd) Help() string {
	return "Examples:\n" +
		"  holdfast operator rolling-restart -- /usr/bin/ssh {} systemctl restart holdfast\n" +
		"  holdfast operator rolling-restart --only fbservice2 --accept licenses -- /usr/bin/ssh {} holdfast restart\n" +
		"  holdfast operator rolling-restart --dry-run\n\n" +
		"The leader comes last. Before each restart all servers must be well, those that stay must be a majority, and of every\n" +
		"service that the node has a healthy instance of there must be one elsewhere; else the command says why not and ends.\n" +
		"After each it waits until the server was started anew, is well, and its services are as healthy as before."
}

func (c *rollingCmd) Run(con *console) error {
	argv := c.Command
	if len(argv) > 0 && argv[0] == "--" {
		argv = argv[1:]
	}
	if len(argv) == 0 && !c.DryRun {
		return &exitError{exitUsage, errors.New("rolling-restart: say how a node is restarted, such as: -- /usr/bin/ssh {} systemctl restart holdfast")}
	}
	r := roller{
		look: c.look, accept: c.Accept, patience: c.Patience, pause: 250 * time.Millisecond,
		tell: func(format string, args ...any) { fmt.Fprintf(con.out, format+"\n", args...) },
	}
	if c.DryRun {
		return r.rehearse(con.ctx, c.Only)
	}
	runner, err := command.New(argv[0])
	if err != nil {
		return &exitError{exitUsage, err}
	}
	r.restart = func(ctx context.Context, node string) error {
		_, err := runner.Run(ctx, command.Command{Argv: restartArgv(argv, node), Env: restartEnv(os.Getenv), Timeout: c.Patience})
		return err
	}
	return r.run(con.ctx, c.Only)
}

func restartArgv(argv []string, node string) []string {
	argv = slices.Clone(argv)
	for i := 1; i < len(argv); i++ {
		argv[i] = strings.ReplaceAll(argv[i], "{}", node)
	}
	return argv
}

// restartEnv is what ssh needs of the admin's environment.
func restartEnv(getenv func(string) string) []string {
	env := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, name := range []string{"HOME", "USER", "SSH_AUTH_SOCK", "KRB5CCNAME"} {
		if value := getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// look asks the agent for what decides about a restart.
func (c *rollingCmd) look(ctx context.Context) (v clusterView, err error) {
	err = c.ask(func(client *api.Client) error {
		if err := client.StoreOperation(ctx, "peers", nil, false, &v.peers); err != nil {
			return err
		}
		if err := client.StoreOperation(ctx, "autopilot", nil, false, &v.pilot); err != nil {
			return err
		}
		v.services, err = client.Services(ctx)
		return err
	})
	return v, err
}

// clusterView is what decides whether a server may be restarted.
type clusterView struct {
	peers    []raftstore.Peer
	pilot    raftstore.PilotState
	services []api.ServiceStatus
}

// next chooses the server that is restarted first: the leader last, so that the
// leadership moves once.
func (v clusterView) next(left []string) string {
	leads := func(name string) bool {
		return slices.ContainsFunc(v.pilot.Servers, func(s raftstore.PilotServer) bool { return s.Leader && s.Name == name })
	}
	if i := slices.IndexFunc(left, func(n string) bool { return !leads(n) }); i >= 0 {
		return left[i]
	}
	return left[0]
}

// chosen are the servers to restart: those named, or all, in the order of the
// cluster file.
func (v clusterView) chosen(names []string) ([]string, error) {
	var all []string
	for _, s := range v.pilot.Servers {
		all = append(all, s.Name)
	}
	for _, name := range names {
		if !slices.Contains(all, name) {
			return nil, &exitError{exitNotFound, fmt.Errorf("%s is no server of this cluster; they are %s", name, strings.Join(all, ", "))}
		}
	}
	if len(names) == 0 {
		return all, nil
	}
	return slices.DeleteFunc(all, func(n string) bool { return !slices.Contains(names, n) }), nil
}

// refusal says why a server must not be restarted now; nil: it may.
func (v clusterView) refusal(node string, accept []string) error {
	voters, others := 0, 0
	votes := false
	for _, s := range v.pilot.Servers {
		if s.Name != node && !(s.Healthy && s.Stable) {
			return fmt.Errorf("%s is not well: bring it back first (holdfast raft autopilot state)", s.Name)
		}
		if !s.Voter {
			continue
		}
		voters++
		if s.Name == node {
			votes = true
		} else {
			others++
		}
	}
	if votes && 2*others <= voters {
		return fmt.Errorf("without %s there is no majority: of %d voters %d would stay", node, voters, others)
	}
	if last := lastOf(v.services, node, accept); len(last) > 0 {
		return fmt.Errorf("%s has the last healthy instance of %s: bring up another one, or name it with --accept", node, strings.Join(last, ", "))
	}
	return nil
}

// lastOf are the services of which a node has healthy instances, and no other
// has; but for those that are accepted.
func lastOf(services []api.ServiceStatus, node string, accept []string) (last []string) {
	for _, s := range services {
		if here, elsewhere := passing(s, node); here > 0 && elsewhere == 0 && !slices.Contains(accept, s.Name) {
			last = append(last, s.Name)
		}
	}
	return last
}

// passing counts the healthy instances of a service on a node and elsewhere.
func passing(s api.ServiceStatus, node string) (here, elsewhere int) {
	for _, i := range s.Instances {
		switch {
		case i.Status != state.Passing:
		case i.Node == node:
			here++
		default:
			elsewhere++
		}
	}
	return here, elsewhere
}

// missing says what a restarted server lacks of how it was before; nil: it is
// back.
func (v clusterView) missing(node string, before clusterView) error {
	was, now := before.run(node), v.run(node)
	if now == "" || now == was {
		return errors.New("its store was not started anew")
	}
	for _, s := range v.pilot.Servers {
		if !s.Healthy || !s.Stable {
			return fmt.Errorf("%s is not well yet", s.Name)
		}
	}
	if len(v.pilot.Servers) < len(before.pilot.Servers) || v.pilot.Voters < before.pilot.Voters {
		return fmt.Errorf("there are %d servers with %d votes, and were %d with %d", len(v.pilot.Servers), v.pilot.Voters, len(before.pilot.Servers), before.pilot.Voters)
	}
	for _, s := range before.services {
		had, _ := passing(s, node)
		has := 0
		for _, t := range v.services {
			if t.Name == s.Name {
				has, _ = passing(t, node)
			}
		}
		if has < had {
			return fmt.Errorf("of %s it has %d healthy instances, and had %d", s.Name, has, had)
		}
	}
	return nil
}

// run names the present start of a server's store.
func (v clusterView) run(node string) string {
	for _, p := range v.peers {
		if p.Name == node && p.Reachable {
			return p.Run
		}
	}
	return ""
}

// roller restarts servers one after the other.
type roller struct {
	look            func(context.Context) (clusterView, error)
	restart         func(ctx context.Context, node string) error
	tell            func(format string, args ...any)
	accept          []string
	patience, pause time.Duration
}

func (r roller) rehearse(ctx context.Context, names []string) error {
	v, err := r.look(ctx)
	if err != nil {
		return err
	}
	left, err := v.chosen(names)
	if err != nil || len(left) == 0 {
		return err
	}
	first := v.next(left)
	if why := v.refusal(first, r.accept); why != nil {
		return fmt.Errorf("%s would not be restarted: %w", first, why)
	}
	r.tell("would restart %s, then of %s one after the other, the leader last", first, strings.Join(left, ", "))
	return nil
}

// run blocks until all are restarted and well, or the first that is not.
func (r roller) run(ctx context.Context, names []string) error {
	v, err := r.look(ctx)
	if err != nil {
		return err
	}
	left, err := v.chosen(names)
	if err != nil {
		return err
	}
	for len(left) > 0 {
		node := v.next(left)
		if why := v.refusal(node, r.accept); why != nil {
			return fmt.Errorf("%s was not restarted: %w; still to do: %s", node, why, strings.Join(left, ", "))
		}
		r.tell("restarting %s", node)
		if err := r.restart(ctx, node); err != nil {
			return fmt.Errorf("restart %s: %w; still to do: %s", node, err, strings.Join(left, ", "))
		}
		start := time.Now()
		if v, err = r.await(ctx, node, v); err != nil {
			return fmt.Errorf("%s is not back: %w; still to do after it: %s", node, err, strings.Join(left, ", "))
		}
		r.tell("%s is back and well after %v", node, time.Since(start).Round(time.Millisecond))
		left = slices.DeleteFunc(left, func(n string) bool { return n == node })
	}
	r.tell("all are restarted")
	return nil
}

// await waits until a restarted server is as it was. The agent that is asked may
// be the one that restarts.
func (r roller) await(ctx context.Context, node string, before clusterView) (clusterView, error) {
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	for {
		v, err := r.look(ctx)
		if err == nil {
			err = v.missing(node, before)
		}
		if err == nil {
			return v, nil
		}
		select {
		case <-time.After(r.pause):
		case <-ctx.Done():
			return v, fmt.Errorf("%w (%w)", err, ctx.Err())
		}
	}
}
