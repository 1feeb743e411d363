package peer

import (
	"crypto/tls"
	"crypto/x509"
	"sync"
)

// maxKnown is how many identities are remembered. They keep their certificates,
// of some kilobytes each.
const maxKnown = 256

// identities remembers what certificates say of their owners, since a connection
// is asked about with each of its requests. A certificate that was parsed never
// changes, and crypto/tls gives the same one for as long as a connection lasts.
// Whether it can be trusted is not remembered.
type identities struct {
	mu  sync.RWMutex
	all map[*x509.Certificate]Identity
}

func newIdentities() *identities { return &identities{all: map[*x509.Certificate]Identity{}} }

// of is PeerIdentity of the package.
func (k *identities) of(cs tls.ConnectionState) (Identity, error) {
	if len(cs.PeerCertificates) == 0 || len(cs.VerifiedChains) == 0 {
		return PeerIdentity(cs) // an error
	}
	leaf := cs.PeerCertificates[0]
	k.mu.RLock()
	id, ok := k.all[leaf]
	k.mu.RUnlock()
	if ok {
		return id, nil
	}
	id, err := PeerIdentity(cs)
	if err != nil {
		return Identity{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.all) >= maxKnown {
		clear(k.all) // those that are asked about come back
	}
	k.all[leaf] = id
	return id, nil
}
