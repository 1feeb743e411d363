package ntpproxy

import (
	"encoding/binary"
	"net/netip"
	"time"

	"holdfast/internal/ntp"
)

// outcome is what becomes of a datagram.
type outcome uint8

const (
	served      outcome = iota // the time, in basic mode
	interleaved                // the time, in interleaved mode
	kissDeny                   // a stranger who is not to be served was told so
	kissRate                   // a stranger who asks too often was told so
	refusedPeer                // symmetric mode: refused
	refusedCtrl                // a question of ntpq's: refused
	dropDenied                 // who is not to be served, and was told so lately
	dropRate                   // who asks too often
	dropShort                  // no NTP packet by its length
	dropVersion                // a version that we don't speak
	dropMode                   // neither a request nor a control message
	dropLeap                   // came in the seconds in which the kernel makes a leap second that is smeared
	dropMAC                    // wants a reply signed with a key; we have none
	outcomes
)

// String is the label in the metrics.
func (o outcome) String() string {
	return [...]string{
		"served", "interleaved", "kiss_deny", "kiss_rate", "symmetric", "control",
		"denied", "rate", "malformed", "version", "mode", "leap", "mac",
	}[o]
}

// reply is what to do about a datagram.
type reply struct {
	outcome outcome
	size    int           // of the reply; 0 none
	stamp   bool          // T3 is to be written at the last moment
	pair    bool          // the client speaks interleaved mode: remember when this reply leaves
	client  uint64        // its key
	arrived ntp.Timestamp // T2
}

// policy is what a reply depends on beside its request; it is replaced whole.
type policy struct {
	standing  Standing
	access    access
	limiter   *limiter
	precision int8
	smear     *smearing // nil: the clock's own times are served
}

// responder is the pure core of the server: it turns a datagram into a reply.
// It has no clock but what it is told, and does not allocate. It belongs to
// one goroutine; pairs and clients may be shared.
type responder struct {
	pairs   *pairs
	clients *clients
	policy  *policy
	header  ntp.Packet // of a reply, as of prepare
	elapsed time.Duration
}

// prepare tells what replies depend on from now on. elapsed is a time by a
// clock that never goes back.
func (r *responder) prepare(p *policy, now time.Time, elapsed time.Duration) {
	r.policy, r.elapsed = p, elapsed
	r.header = p.standing.header(now)
	r.header.Precision, r.header.Mode = p.precision, ntp.ModeServer
}

// respond writes the reply to a datagram. arrived is when it arrived, in
// nanoseconds since 1970.
func (r *responder) respond(out *[ntp.Size]byte, payload []byte, from netip.Addr, arrived int64) reply {
	if len(payload) > 0 && payload[0]&7 >= byte(ntp.ModeControl) {
		return r.control(out, payload, from)
	}
	p, err := ntp.Parse(payload)
	switch {
	case err != nil:
		return reply{outcome: dropShort}
	case p.Version < 1 || p.Version > ntp.Version:
		return reply{outcome: dropVersion}
	case p.Mode != ntp.ModeClient && p.Mode != ntp.ModeActive:
		return reply{outcome: dropMode}
	}
	client := clientKey(from)
	class := r.policy.access.class(from)
	switch {
	case class == denied:
		return r.refuse(out, &p, client, arrived, kissDeny, dropDenied)
	case p.Mode == ntp.ModeActive:
		return r.refuse(out, &p, client, arrived, refusedPeer, dropRate)
	case ntp.HasMAC(payload[ntp.Size:]):
		return reply{outcome: dropMAC}
	}
	if class == stranger {
		if excess := r.policy.limiter.take(client, r.elapsed); excess > 0 {
			switch excess % leakEvery {
			case 0: // answered
			case 1:
				return r.kiss(out, &p, client, arrived, kissRate)
			default:
				return reply{outcome: dropRate}
			}
		}
	} else { // strangers can't push the cluster's own out of the table
		r.clients.see(from, p.Transmit, ntp.FromUnixNano(arrived), p.Version, r.elapsed)
	}
	return r.serve(out, &p, client, arrived)
}

// leakEvery is how many requests above the limit one reply and one kiss of
// death go to: who forges an address can slow its owner down, but not keep the
// time from him.
const leakEvery = 8

// serve answers with the time.
func (r *responder) serve(out *[ntp.Size]byte, p *ntp.Packet, client uint64, arrived int64) reply {
	a := r.header
	a.Version, a.Poll = p.Version, p.Poll
	a.Receive = someTime(ntp.FromUnixNano(arrived))
	a.Origin = p.Transmit
	re := reply{outcome: served, size: ntp.Size, stamp: true, client: client, arrived: a.Receive}
	// Who names one of our times of arrival as the origin speaks interleaved
	// mode (RFC 9769 §2). Who names anything may do so the next time: today's
	// basic clients leave these fields zero.
	if p.Origin != 0 && p.Receive != p.Transmit {
		re.pair = true
		if left, ok := r.pairs.take(client, p.Origin); ok {
			a.Origin, a.Transmit = p.Receive, left
			re.outcome, re.stamp = interleaved, false
		}
	}
	a.Put(out)
	return re
}

// someTime is t, or the time 0.2 ns later in the first instant of an era, whose
// own number means that there is no time.
func someTime(t ntp.Timestamp) ntp.Timestamp { return max(t, 1) }

// refuse sends a kiss of death, but not too often.
func (r *responder) refuse(out *[ntp.Size]byte, p *ntp.Packet, client uint64, arrived int64, said, silent outcome) reply {
	if r.policy.limiter.take(client, r.elapsed) > 0 {
		return reply{outcome: silent}
	}
	return r.kiss(out, p, client, arrived, said)
}

// kiss is a kiss of death (RFC 5905 §7.4).
func (r *responder) kiss(out *[ntp.Size]byte, p *ntp.Packet, client uint64, arrived int64, o outcome) reply {
	a := ntp.Packet{
		Leap: ntp.LeapUnknown, Version: p.Version, Mode: ntp.ModeServer, Poll: max(p.Poll, kissPoll),
		Precision: r.policy.precision, ReferenceID: ntp.KissDeny,
		Origin: p.Transmit, Receive: ntp.FromUnixNano(arrived),
	}
	a.Reference = a.Receive
	switch o {
	case kissRate:
		a.ReferenceID = ntp.KissRate
	case refusedPeer:
		a.Mode = ntp.ModePassive // who is active listens to nothing else
	}
	a.Put(out)
	return reply{outcome: o, size: ntp.Size, stamp: true, client: client, arrived: a.Receive}
}

// kissPoll is how rarely who gets a kiss of death is asked to come, in log2
// seconds.
const kissPoll = 6

// Of a control message (RFC 9327 §2).
const (
	controlHeader   = 12
	controlResponse = 0x80 // response bit
	controlError    = 0x40 // error bit
	controlOpcode   = 0x1f
	adminProhibited = 7 // error code, in the upper byte of the status
)

// control refuses ntpq's questions (mode 6) in as many bytes as they have at
// least, and is silent to ntpdc's (mode 7).
func (r *responder) control(out *[ntp.Size]byte, b []byte, from netip.Addr) reply {
	switch {
	case b[0]&7 != byte(ntp.ModeControl):
		return reply{outcome: dropMode}
	case len(b) < controlHeader || b[1]&controlResponse != 0:
		return reply{outcome: dropShort}
	}
	client := clientKey(from)
	if r.policy.access.class(from) == denied || r.policy.limiter.take(client, r.elapsed) > 0 {
		return reply{outcome: dropDenied}
	}
	*out = [ntp.Size]byte{}
	copy(out[:controlHeader], b)
	out[0] &= 0x3f // no leap warning
	out[1] = controlResponse | controlError | b[1]&controlOpcode
	binary.BigEndian.PutUint16(out[4:], adminProhibited<<8)
	binary.BigEndian.PutUint32(out[8:], 0) // offset and count
	return reply{outcome: refusedCtrl, size: controlHeader}
}
