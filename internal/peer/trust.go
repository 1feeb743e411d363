package peer

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"
)

// Trust is one owner's certificate and key, with whom it believes. Whom it is
// for and whom it believes never changes; Reload takes up a certificate that
// was issued anew. The methods may be called from any goroutine.
type Trust struct {
	dir      string
	identity Identity
	issued   *atomic.Pointer[issued]
	ca       *x509.Certificate
	roots    *x509.CertPool
	gossip   []byte
	now      func() time.Time // nil: the system's clock; tests set it
}

// issued is what an Issue left, and the next replaces.
type issued struct {
	cert    tls.Certificate
	expires time.Time
}

// Load reads a directory that Issue made. It fails with a sentence when a file
// is missing or unreadable, when key and certificate do not belong together,
// when the certificate is another authority's, and when it has expired. A
// clock in 1970 is no obstacle.
func Load(dir string) (*Trust, error) {
	t, err := load(dir, time.Now())
	if err != nil {
		return nil, fmt.Errorf("peer: load certificates: %w", err)
	}
	return t, nil
}

func load(dir string, now time.Time) (*Trust, error) {
	const advice = `issue one with "holdfast pki issue" where the authority lies and copy the directory here`
	caPEM, err := readFile(dir, fileCA, advice)
	if err != nil {
		return nil, err
	}
	ca, err := parseCert(caPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, fileCA), err)
	}
	if !ca.IsCA {
		return nil, fmt.Errorf("%s is not the certificate of an authority", filepath.Join(dir, fileCA))
	}
	t := &Trust{dir: dir, ca: ca, roots: x509.NewCertPool(), issued: new(atomic.Pointer[issued])}
	t.roots.AddCert(ca)
	cert, err := t.loadPair(dir, advice)
	if err != nil {
		return nil, err
	}
	if err := t.verifyOwn(filepath.Join(dir, fileNode), ca, cert.Leaf, now); err != nil {
		return nil, err
	}
	expires := cert.Leaf.NotAfter
	if ca.NotAfter.Before(expires) {
		expires = ca.NotAfter
	}
	t.issued.Store(&issued{cert, expires})
	if t.identity.Role == RoleAdmin {
		return t, nil
	}
	text, err := readSecret(dir, fileGossipKey, advice)
	if err != nil {
		return nil, err
	}
	if t.gossip, err = parseGossipKey(text); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, fileGossipKey), err)
	}
	return t, nil
}

// loadPair reads node.crt and node.key, and whose they are into t.
func (t *Trust) loadPair(dir, advice string) (cert tls.Certificate, err error) {
	certPEM, err := readFile(dir, fileNode, advice)
	if err != nil {
		return cert, err
	}
	leaf, err := parseCert(certPEM)
	if err != nil {
		return cert, fmt.Errorf("%s: %w", filepath.Join(dir, fileNode), err)
	}
	if t.identity, err = certIdentity(leaf); err != nil {
		return cert, fmt.Errorf("%s: %w", filepath.Join(dir, fileNode), err)
	}
	if t.identity.Role == roleAuthority {
		return cert, fmt.Errorf("%s is the authority's own certificate", filepath.Join(dir, fileNode))
	}
	keyPEM, err := readSecret(dir, fileNodeKey, advice)
	if err != nil {
		return cert, err
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return cert, fmt.Errorf("%s: %w", filepath.Join(dir, fileNodeKey), err)
	}
	if !samePublic(leaf, key) {
		return cert, fmt.Errorf("%s is not the key of %s (%v): copy both files from the same issue", filepath.Join(dir, fileNodeKey), fileNode, t.identity)
	}
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// verifyOwn checks our own certificate as a peer will, so that a mistake
// shows at the start of the node that made it, not on all the others.
func (t *Trust) verifyOwn(path string, ca, leaf *x509.Certificate, now time.Time) error {
	if now.After(leaf.NotAfter) {
		return fmt.Errorf("%s (%v) expired on %s: issue it again", path, t.identity, leaf.NotAfter.Format(time.DateOnly))
	}
	if now.After(ca.NotAfter) {
		return fmt.Errorf("the authority of %s (%v) expired on %s: the cluster needs a new one", path, t.identity, ca.NotAfter.Format(time.DateOnly))
	}
	opts := x509.VerifyOptions{Roots: t.roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if _, err := leaf.Verify(opts); err != nil {
		return fmt.Errorf("%s (%v) was not issued by the authority in %s, %q: %w", path, t.identity, fileCA, ca.Subject.CommonName, err)
	}
	if id, err := certIdentity(ca); err != nil || id.Cluster != t.identity.Cluster {
		return fmt.Errorf("%s (%v) was issued by the authority of another cluster, %q", path, t.identity, ca.Subject.CommonName)
	}
	return nil
}

// Identity is whom the directory was issued for.
func (t *Trust) Identity() Identity { return t.identity }

// GossipKey is the key that encrypts the gossip, 32 bytes; nil for admins.
func (t *Trust) GossipKey() []byte { return slices.Clone(t.gossip) }

// Expires is when the certificate, or the authority if that is earlier, ends.
func (t *Trust) Expires() time.Time { return t.issued.Load().expires }

// Reload reads the directory again, and tells whether another certificate of
// the same authority for the same owner is there now: every connection from
// then on has that one, those that stand go on. What can't be loaded, also
// because only half of it was copied yet, and what is another owner's or
// authority's changes nothing and is an error. The gossip's key is read at the
// start only.
func (t *Trust) Reload() (changed bool, err error) {
	now := time.Now
	if t.now != nil {
		now = t.now
	}
	next, err := load(t.dir, now())
	switch {
	case err != nil:
		return false, fmt.Errorf("peer: load certificates again: %w", err)
	case next.identity != t.identity:
		return false, fmt.Errorf("peer: load certificates again: %s is that of %v now, and this is %v", t.dir, next.identity, t.identity)
	case !next.ca.Equal(t.ca):
		return false, fmt.Errorf("peer: load certificates again: %s has another authority: restart to take it up", t.dir)
	}
	was := t.issued.Swap(next.issued.Load())
	return !was.cert.Leaf.Equal(t.issued.Load().cert.Leaf), nil
}

func parseCert(data []byte) (*x509.Certificate, error) {
	der, err := onePEM(data, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("not a certificate: %w", err)
	}
	return cert, nil
}

// parseKey reads a private key. Its errors say nothing about the content:
// they end up in logs.
func parseKey(data []byte) (crypto.Signer, error) {
	der, err := onePEM(data, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, errors.New("does not hold a PKCS #8 private key")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("holds a key that cannot sign")
	}
	return signer, nil
}

// ReadGossipKey reads the key that encrypts the gossip from its file, gossip.key
// in the directory of a node or of the authority.
func ReadGossipKey(path string) ([]byte, error) {
	text, err := readSecret(filepath.Dir(path), filepath.Base(path), "it is in the directory of the authority and in each node's")
	if err != nil {
		return nil, fmt.Errorf("peer: read the gossip key: %w", err)
	}
	key, err := parseGossipKey(text)
	if err != nil {
		return nil, fmt.Errorf("peer: %s: %w", path, err)
	}
	return key, nil
}

func parseGossipKey(text []byte) ([]byte, error) {
	key, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil || len(key) != gossipKeyBytes {
		return nil, fmt.Errorf("must be %d bytes in base64", gossipKeyBytes)
	}
	return key, nil
}

// samePublic tells whether key is the certificate's.
func samePublic(cert *x509.Certificate, key crypto.Signer) bool {
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && pub.Equal(cert.PublicKey)
}
