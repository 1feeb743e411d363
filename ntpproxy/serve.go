package ntpproxy

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"holdfast/internal/kernel/sockopt"
	"holdfast/internal/ntp"
)

// worker answers what arrives at one socket; it belongs to one goroutine.
type worker struct {
	server *Server
	batch  *sockopt.Stamped
	core   responder
	out    [ntp.Size]byte
	awake  time.Duration // by elapsed, when it last had something to do
	seen   time.Duration // by elapsed, when Go's scheduler last saw it
	cold   bool          // it slept since, and so did its way to the network
	way    [2]sendDelay  // warm, cold
	shift  int64         // what is added to the clock's times, in nanoseconds
	quiet  bool          // nobody is answered now
	unseen int           // warm replies since one whose way was measured
	last   struct {      // reply with a kernel's time of leaving
		arrived ntp.Timestamp // T2
		left    int64         // T3 as first taken, in nanoseconds since 1970
		way     *sendDelay
	}
}

// measureEvery is of how many warm replies one has its way to the network
// measured, which costs as much as two thirds of a reply.
const measureEvery = 64

// seenEvery is how often a worker passes through Go's scheduler. A goroutine
// that did not for 10 ms is taken for one that computes, though it slept in the
// kernel all the time: the runtime's monitor, which the first datagram after a
// pause wakes, sends its thread a signal at once, in the middle of the reply.
const seenEvery = 8 * time.Millisecond

// coldAfter is how long a worker sleeps until the caches are others'.
const coldAfter = time.Millisecond

func (s *Server) newWorker(conn *net.UDPConn) (*worker, error) {
	w := &worker{server: s, core: responder{pairs: &s.pairs, clients: &s.clients}}
	var err error
	w.batch, err = sockopt.NewStamped(conn, batchSize, maxDatagram, w.departed)
	return w, err
}

// serve answers until Stop.
func (w *worker) serve() error {
	for {
		n, err := w.batch.Receive()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil && !transient(err):
			return fmt.Errorf("ntpproxy: receive: %w", err)
		}
		elapsed := w.server.elapsed()
		if elapsed-w.seen >= seenEvery {
			w.seen = elapsed
			runtime.Gosched()
		}
		w.cold = n == 1 && elapsed-w.awake > coldAfter
		policy, now := w.server.policy.Load(), w.server.now()
		answering := false
		w.shift, answering = policy.smear.shift(now)
		w.quiet = !answering
		w.core.prepare(policy, now, elapsed)
		for i := range n {
			w.answer(i)
		}
		w.awake = elapsed
	}
}

// answer answers one datagram of the batch. A panic is a bug that costs its
// datagram only.
func (w *worker) answer(i int) {
	defer func() {
		if bug := recover(); bug != nil {
			w.server.metrics.panics.Inc()
			w.server.log.Error("handling a datagram panicked: please report this bug", "panic", bug, "stack", string(debug.Stack()))
		}
	}()
	d := w.batch.Datagram(i)
	if d.From.Port() == 0 {
		w.server.metrics.byOutcome[dropShort].Inc()
		return
	}
	if d.Arrived == 0 {
		d.Arrived = w.server.now().UnixNano()
	}
	if w.quiet {
		w.server.metrics.byOutcome[dropLeap].Inc()
		return
	}
	r := w.core.respond(&w.out, d.Payload, d.From.Addr(), d.Arrived+w.shift)
	w.server.metrics.byOutcome[r.outcome].Inc()
	if r.size == 0 {
		return
	}
	way, measured := &w.way[0], r.pair
	if w.cold {
		way, measured = &w.way[1], true
	} else if w.unseen++; w.unseen >= measureEvery {
		w.unseen, measured = 0, true
	}
	w.batch.Prepare(i, w.out[:r.size], measured)
	if w.cold {
		w.batch.Warm(i)
	}
	// T3 is taken at the last moment, for each reply of a batch anew.
	left := w.server.now().UnixNano()
	if r.stamp {
		ntp.PutTransmit(&w.out, someTime(ntp.FromUnixNano(left+w.shift+int64(way.expected()))))
	}
	if err := w.batch.Send(i); err != nil {
		w.server.metrics.failed.Inc()
		return
	}
	if r.pair {
		w.core.pairs.put(r.client, r.arrived, ntp.FromUnixNano(left+w.shift))
	}
	if measured {
		w.last.arrived, w.last.left, w.last.way = r.arrived, left, way
		w.batch.ReadDepartures()
	}
}

// maxDeparture is how long after it was stamped a reply leaves at most; what
// the kernel says beyond that speaks of a clock that was stepped.
const maxDeparture = 10 * time.Millisecond

// departed takes the kernel's word for when a reply left.
func (w *worker) departed(packet []byte, left int64) {
	if len(packet) < ntp.Size {
		return
	}
	p, err := ntp.Parse(packet[len(packet)-ntp.Size:])
	if err != nil {
		return
	}
	w.core.pairs.correct(p.Receive, ntp.FromUnixNano(left+w.shift), maxDeparture)
	if p.Receive == w.last.arrived {
		w.last.way.took(time.Duration(left - w.last.left))
	}
}

// transient tells whether an error of a receive concerns one datagram and not
// the socket: ICMP errors, and want of memory.
func transient(err error) bool {
	for _, e := range []error{syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ENOBUFS, syscall.ENOMEM, syscall.EINTR, syscall.EAGAIN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
