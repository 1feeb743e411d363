package peer

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// maxAuthorities is how many a node may believe: two during a change, and some
// room for one that was left half done.
const maxAuthorities = 8

// parseBundle reads ca.crt: the certificates of one or more authorities, each
// once. The first is the one that issues.
func parseBundle(data []byte) ([]*x509.Certificate, error) {
	var list []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("holds a PEM block %q: only certificates of authorities belong there", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("not a certificate: %w", err)
		}
		if !cert.IsCA {
			return nil, errors.New("is not the certificate of an authority")
		}
		if has(list, cert) {
			return nil, fmt.Errorf("holds authority %s twice", AuthorityID(cert))
		}
		if list = append(list, cert); len(list) > maxAuthorities {
			return nil, fmt.Errorf("holds more than %d authorities", maxAuthorities)
		}
	}
	if len(list) == 0 {
		return nil, errors.New(`does not hold a PEM block "CERTIFICATE"`)
	}
	return list, nil
}

func encodeBundle(list []*x509.Certificate) (data []byte) {
	for _, cert := range list {
		data = append(data, encodeCert(cert.Raw)...)
	}
	return data
}

// AuthorityID names an authority: the first 64 bits of the SHA-256 of its
// certificate, in hex.
func AuthorityID(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:8])
}

func idsOf(list []*x509.Certificate) []string {
	ids := make([]string, len(list))
	for i, cert := range list {
		ids[i] = AuthorityID(cert)
	}
	return ids
}

// nameAll is for sentences.
func nameAll(list []*x509.Certificate) string {
	names := make([]string, len(list))
	for i, cert := range list {
		names[i] = strconv.Quote(cert.Subject.CommonName) + " (" + AuthorityID(cert) + ")"
	}
	return strings.Join(names, " and ")
}

func poolOf(list []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, cert := range list {
		pool.AddCert(cert)
	}
	return pool
}

func has(list []*x509.Certificate, cert *x509.Certificate) bool {
	return slices.ContainsFunc(list, cert.Equal)
}

// missing are those of some that others lack.
func missing(some, others []*x509.Certificate) []*x509.Certificate {
	return slices.DeleteFunc(slices.Clone(some), func(c *x509.Certificate) bool { return has(others, c) })
}

func shareAuthority(a, b []*x509.Certificate) bool { return len(missing(a, b)) < len(a) }

// root is the authority that a verified connection's certificate is by; nil
// when none was verified.
func root(cs tls.ConnectionState) *x509.Certificate {
	if len(cs.VerifiedChains) == 0 {
		return nil
	}
	chain := cs.VerifiedChains[0]
	return chain[len(chain)-1]
}

// accepted remembers the connections that our listeners took, with whose
// authority, so that they end with it. One that was closed is forgotten when the
// list has doubled.
type accepted struct {
	mu    sync.Mutex
	of    map[net.Conn]*x509.Certificate
	prune int
}

// pruneFirst is how many connections are remembered before it is looked which
// of them are closed.
const pruneFirst = 64

func newAccepted() *accepted {
	return &accepted{of: map[net.Conn]*x509.Certificate{}, prune: pruneFirst}
}

// note remembers a connection whose handshake is about to end well. An authority
// that was dropped during the handshake is refused: closeBut has been by.
func (t *Trust) note(conn net.Conn, cs tls.ConnectionState) error {
	a, authority := t.accepted, root(cs)
	if _, ok := bare(conn).(syscall.Conn); !ok {
		return nil // it would not tell when it is closed, and be remembered for ever
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !has(t.issued.Load().cas, authority) {
		return errors.New("peer: the other end's authority was dropped this moment")
	}
	if len(a.of) >= a.prune {
		for other := range a.of {
			if closed(other) {
				delete(a.of, other)
			}
		}
		a.prune = max(pruneFirst, 2*len(a.of))
	}
	a.of[conn] = authority
	return nil
}

// closeBut closes what hangs on other authorities than these, and counts it.
func (a *accepted) closeBut(cas []*x509.Certificate) (count int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for conn, authority := range a.of {
		if has(cas, authority) {
			continue
		}
		if !closed(conn) {
			count++
		}
		conn.Close()
		delete(a.of, conn)
	}
	return count
}

// closed tells whether our side closed a connection.
func closed(conn net.Conn) bool {
	s, ok := bare(conn).(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := s.SyscallConn()
	return err != nil || raw.Control(func(uintptr) {}) != nil
}

// bare is the connection below those that wrap it.
func bare(conn net.Conn) net.Conn {
	for {
		wrapped, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			return conn
		}
		conn = wrapped.NetConn()
	}
}

// signal tells any number of listeners that something happened.
type signal struct {
	mu sync.Mutex
	ch chan struct{}
}

func newSignal() *signal { return &signal{ch: make(chan struct{})} }

func (s *signal) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ch
}

func (s *signal) tell() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.ch)
	s.ch = make(chan struct{})
}
