package api

import (
	"fmt"
	"net/http"
	"net/http/pprof"
	"strconv"
)

// Paths of what is for whoever looks for a fault of the agent itself.
const (
	pprofPath     = "/debug/pprof/"
	recentLogPath = "/v1/holdfast/log"
)

// maxProfileSeconds bounds a profile that takes time: it slows the agent.
const maxProfileSeconds = 60

// profile answers as net/http/pprof does, for Consul's client and go tool
// pprof, but for the command line, which is nobody's affair.
func (s *Server) profile(c *call) error {
	if given := c.args.Get("seconds"); given != "" {
		seconds, err := strconv.Atoi(given)
		if err != nil || seconds < 1 || seconds > maxProfileSeconds {
			return fault(http.StatusBadRequest, "seconds: %.20q: want 1 to %d", given, maxProfileSeconds)
		}
	}
	c.blocked = true // it takes as long as it was asked to
	switch c.rest {
	case "profile":
		pprof.Profile(c.w, c.Request)
	case "trace":
		pprof.Trace(c.w, c.Request)
	case "allocs", "block", "goroutine", "heap", "mutex", "threadcreate":
		pprof.Handler(c.rest).ServeHTTP(c.w, c.Request)
	default:
		return fault(http.StatusNotFound, "there is no profile %.40q: want allocs, block, goroutine, heap, mutex, profile, threadcreate or trace", c.rest)
	}
	return nil
}

// recentLog answers with the last lines of the log.
func (s *Server) recentLog(c *call) error {
	if s.logs == nil {
		return fault(http.StatusNotFound, "this agent keeps no lines of its log: see journalctl -u holdfast")
	}
	header := c.w.Header()
	header.Set("Content-Type", "text/plain; charset=utf-8")
	header.Set("X-Content-Type-Options", "nosniff")
	c.w.extend(writeTimeout)
	for _, line := range s.logs.Recent() {
		if _, err := c.w.Write(line); err != nil {
			return fmt.Errorf("%w: %w", errGone, err)
		}
	}
	return nil
}
