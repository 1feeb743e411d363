package logrelay

import (
	"net"
	"sync"
	"time"

	"holdfast/logrelay/relp"
)

// opening closes a connection whose client does not say open: who says nothing
// keeps no other out. One that has ended closes nothing.
type opening struct {
	over bool // the reader's own: it has ended

	mu    sync.Mutex
	timer *time.Timer
	ended bool
}

func newOpening(s *Server, conn net.Conn) *opening {
	o := &opening{}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.timer = time.AfterFunc(s.openWithin, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		switch {
		case o.ended:
		case s.gate.held() != "":
			o.timer.Reset(s.openWithin) // it is not read
		default:
			s.log.Info("a client has not said open, and is left", "client", conn.RemoteAddr().String(), "within", s.openWithin)
			// Its reader hears of it. TLS would write, for seconds, and may panic.
			if tcp := below(conn); tcp != nil {
				_ = tcp.Close()
			} else {
				_ = conn.Close()
			}
		}
	})
	return o
}

// heard looks whether the client has said it. It belongs to the goroutine that
// reads.
func (o *opening) heard(session *relp.Server) {
	if !o.over && session.Opened() {
		o.over = true
		o.end()
	}
}

// end leaves the connection alone from then on.
func (o *opening) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	o.timer.Stop()
}
