package check

import (
	"context"
	"errors"
	"fmt"
	"os/user"
	"strconv"
	"time"

	"holdfast/internal/kernel/command"
	"holdfast/internal/state"
)

// scriptProbe runs a program: 0 is passing, 1 is warning, the rest critical.
type scriptProbe struct {
	argv     []string
	user     string // "" means the agent's own
	limit    time.Duration
	commands Commander
}

func (p scriptProbe) Probe(ctx context.Context) Result {
	if p.commands == nil {
		return critical("%s: scripts are not run here", p.argv[0])
	}
	var as *command.User
	if p.user != "" {
		var err error
		if as, err = lookUp(p.user); err != nil {
			return critical("%s: %s", p.argv[0], err)
		}
	}
	done, err := p.commands.Run(ctx, command.Command{
		Argv:      p.argv,
		Env:       []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"},
		Timeout:   p.limit,
		MaxOutput: state.MaxOutput,
		User:      as,

		Unprivileged: true,
	})
	output := string(done.Stdout) + string(done.Stderr)
	var exit *command.ExitError
	switch {
	case err == nil:
		return Result{Status: state.Passing, Output: output}
	case errors.As(err, &exit) && exit.Code == 1:
		return Result{Status: state.Warning, Output: output}
	case errors.As(err, &exit) && exit.Signal == "":
		return critical("exit status %d: %s", exit.Code, output)
	case errors.As(err, &exit):
		return critical("ended by signal %s: %s", exit.Signal, output)
	case errors.Is(err, command.ErrTimeout), errors.Is(err, context.DeadlineExceeded):
		return critical("%s: not done within %s, killed: %s", p.argv[0], p.limit, output)
	}
	return critical("%s", err)
}

// lookUp finds a user of this machine with all of the groups that it is in. It
// is asked at every probe: users come and go.
func lookUp(name string) (*command.User, error) {
	found, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("user %q: %w", name, err)
	}
	groups, err := found.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("the groups of user %q: %w", name, err)
	}
	as := &command.User{}
	if as.UID, err = number(found.Uid); err != nil {
		return nil, err
	}
	if as.GID, err = number(found.Gid); err != nil {
		return nil, err
	}
	for _, group := range groups {
		gid, err := number(group)
		if err != nil {
			return nil, err
		}
		as.Groups = append(as.Groups, gid)
	}
	return as, nil
}

func number(id string) (uint32, error) {
	n, err := strconv.ParseUint(id, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("user or group number %q: %w", id, err)
	}
	return uint32(n), nil
}
