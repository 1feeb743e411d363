package main

import (
	"context"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"

	"holdfast/internal/run"
)

// run runs the tasks of a process until ctx ends, and tells the log and systemd
// what becomes of it: ready, or not and why (sd_notify(3)).
func (b *foundation) run(ctx context.Context, tasks []run.Task) error {
	tell := func(state string) { _, _ = daemon.SdNotify(false, state) } // nobody listens, mostly
	defer context.AfterFunc(ctx, func() {
		b.log.Info("stopping")
		tell(daemon.SdNotifyStopping)
	})()
	group := run.Group{Log: b.log, Board: b.board, Late: func(waiting []string) {
		b.log.Warn("not ready", "waits_for", waiting)
		tell("STATUS=not ready: " + b.reasons(waiting))
	}}
	err := group.Run(ctx, func() {
		b.log.Info("ready")
		tell(daemon.SdNotifyReady + "\nSTATUS=ready")
	}, tasks...)
	b.log.Info("ended")
	return err
}

// reasons are why tasks are not ready, as far as it is known, on one line: a
// second would be another assignment to systemd.
func (b *foundation) reasons(waiting []string) string {
	why := map[string]string{}
	for _, c := range b.board.Conditions() {
		why[c.Name] = c.Message
	}
	list := make([]string, len(waiting))
	for i, name := range waiting {
		list[i] = "waits for " + name
		if reason := why["task."+name]; reason != "" {
			list[i], _, _ = strings.Cut(reason, "\n")
		}
	}
	return strings.Join(list, "; ")
}
