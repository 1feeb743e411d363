package api

import (
	"context"

	"holdfast/internal/admin"
)

// Socket answers at the admin socket. It is a run.Task beside that of the Server,
// so that an admin is told why addresses can't be had.
type Socket struct{ server *Server }

// Socket is the task of the admin socket, which Config names. Run does not need
// it.
func (s *Server) Socket() *Socket { return &Socket{s} }

// String names the task.
func (*Socket) String() string { return "admin core" }

// Run answers until ctx ends, as Run of the Server does. That another agent
// answers there is an error.
func (a *Socket) Run(ctx context.Context, ready func()) error {
	s := a.server
	server, err := admin.New(admin.Config{
		Unit: "core",
		Path: s.config.Socket,
		GIDs: s.config.AdminGroups,
	}, admin.Deps{
		Handler: s.handler(fromSocket, ctx.Done()),
		Log:     s.log,
		Metrics: s.registerer,
	})
	if err != nil {
		return err
	}
	defer s.watch.follow()()
	return server.Run(ctx, func() {
		s.log.Info("answering", "socket", s.config.Socket)
		ready()
	})
}
