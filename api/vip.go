package api

import "net/http"

const (
	storePath    = "/v1/holdfast/store/"
	vipPath      = "/v1/holdfast/vip/"
	vipHoldPath  = vipPath + "hold/"
	vipLeavePath = vipPath + "leave/"
	logsPath     = "/v1/holdfast/logs/"
)

// holdfastVIP hands over to the admin tree of the virtual addresses, whose
// paths are the same.
func (s *Server) holdfastVIP(c *call) error {
	if s.vips == nil {
		return fault(http.StatusNotFound, "this agent moves no virtual addresses: ask the unit that does, on its net.sock")
	}
	s.vips.ServeHTTP(c.w, c.Request)
	return nil
}

// holdfastLogs hands over to the tree of the log relay.
func (s *Server) holdfastLogs(c *call) error {
	if s.relay == nil {
		return fault(http.StatusNotFound, "this agent relays no logs: ask a node whose role runs them")
	}
	s.relay.ServeHTTP(c.w, c.Request)
	return nil
}

// fromServer tells whether another server asks for log lines, with its
// certificate: an admin on it wants those of all nodes. Servers hold each
// other's lines anyway.
func (s *Server) fromServer(c *call, found route) bool {
	return c.from == fromTLS && found.path == logsPath && c.Method == http.MethodGet && s.peer != nil && s.peer(c.Request) &&
		checkSite(c.Request) == nil
}

// fromNode tells whether a request that nobody else would be allowed is one
// that another member of a virtual address may make with its certificate: to
// have this node take it over, for `holdfast vip move --to`, and to say that it
// is about to take it from this node. It is the least that will do: a node can't
// look, release, or have one yielded, and one that is no member, such as a client
// that only sends logs, can't do this either.
func (s *Server) fromNode(c *call, found route) bool {
	return c.from == fromTLS && (found.path == vipHoldPath || found.path == vipLeavePath) && c.Method == http.MethodPost &&
		s.member != nil && s.member(c.Request, c.rest) && checkSite(c.Request) == nil
}
