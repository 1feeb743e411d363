package dns

import (
	cryptorand "crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/dchest/siphash"
)

// Sizes of the COOKIE option's parts, in bytes (RFC 7873 §4).
const (
	clientCookieSize    = 8
	minServerCookieSize = 8
	maxServerCookieSize = 32
	serverCookieSize    = 16 // of ours (RFC 9018 §4)
	cookieSize          = clientCookieSize + serverCookieSize
)

// How old a server cookie may be, and how far in the future, before it counts
// as none (RFC 9018 §4.3). Clocks that step make cookies void, not clients.
const (
	maxCookieAge   = time.Hour
	maxCookieAhead = 5 * time.Minute
	renewCookie    = 30 * time.Minute
)

// cookieJar makes and knows server cookies: version 1 of RFC 9018. The secret
// is this process's own. A cookie of another node, behind whose virtual
// address the client is now, counts as none and is answered with a new one.
type cookieJar struct{ secret [16]byte }

func newCookieJar() *cookieJar {
	var j cookieJar
	_, _ = cryptorand.Read(j.secret[:]) // never fails (crypto/rand)
	return &j
}

// bake makes the server cookie for a client at a time. It does not allocate.
func (j *cookieJar) bake(client [clientCookieSize]byte, addr netip.Addr, now time.Time) (cookie [serverCookieSize]byte) {
	cookie[0] = 1 // the version; three reserved bytes follow
	binary.BigEndian.PutUint32(cookie[4:], uint32(now.Unix()))
	j.sign(&cookie, client, addr)
	return cookie
}

// sign fills in the hash: of the client's cookie, what stands before the hash,
// and the client's address (RFC 9018 §4.4).
func (j *cookieJar) sign(cookie *[serverCookieSize]byte, client [clientCookieSize]byte, addr netip.Addr) {
	var text [clientCookieSize + 8 + 16]byte
	n := copy(text[:], client[:])
	n += copy(text[n:], cookie[:8])
	if addr = addr.Unmap(); addr.Is4() {
		a := addr.As4()
		n += copy(text[n:], a[:])
	} else {
		a := addr.As16()
		n += copy(text[n:], a[:])
	}
	k0, k1 := binary.LittleEndian.Uint64(j.secret[:]), binary.LittleEndian.Uint64(j.secret[8:])
	binary.LittleEndian.PutUint64(cookie[8:], siphash.Hash(k0, k1, text[:n]))
}

// verdict is what a server cookie is worth.
type verdict int

const (
	unknownCookie verdict = iota // not ours, too old, or forged
	agingCookie                  // ours; time for a new one
	goodCookie
)

// judge tells what the cookie is worth that a client sent back.
func (j *cookieJar) judge(client [clientCookieSize]byte, server []byte, addr netip.Addr, now time.Time) verdict {
	if len(server) != serverCookieSize || server[0] != 1 {
		return unknownCookie
	}
	want := [serverCookieSize]byte(server)
	j.sign(&want, client, addr)
	if subtle.ConstantTimeCompare(want[:], server) != 1 {
		return unknownCookie
	}
	age := time.Duration(int32(uint32(now.Unix())-binary.BigEndian.Uint32(server[4:]))) * time.Second
	switch {
	case age > maxCookieAge || age < -maxCookieAhead:
		return unknownCookie
	case age > renewCookie:
		return agingCookie
	}
	return goodCookie
}

// exchange sees to the cookies of a query: who brings one of ours is known,
// whoever brings any takes one home.
func (j *cookieJar) exchange(q *query, addr netip.Addr, now time.Time) {
	if !q.hasCookie {
		return
	}
	client := [clientCookieSize]byte(q.cookie)
	v := j.judge(client, q.cookie[clientCookieSize:], addr, now)
	q.known = v != unknownCookie
	copy(q.reply[:], client[:])
	if v == goodCookie {
		copy(q.reply[clientCookieSize:], q.cookie[clientCookieSize:])
		return
	}
	fresh := j.bake(client, addr, now)
	copy(q.reply[clientCookieSize:], fresh[:])
}

// cookieFits tells whether a COOKIE option has a length that there can be.
func cookieFits(size int) bool {
	return size == clientCookieSize ||
		size >= clientCookieSize+minServerCookieSize && size <= clientCookieSize+maxServerCookieSize
}
