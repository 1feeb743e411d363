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
	"time"
)

// Trust is one owner's certificate and key, with whom it believes. It is
// immutable; the methods may be called from any goroutine.
type Trust struct {
	identity Identity
	cert     tls.Certificate
	roots    *x509.CertPool
	gossip   []byte
	expires  time.Time
	now      func() time.Time // nil: the system's clock; tests set it
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
	t := &Trust{roots: x509.NewCertPool()}
	t.roots.AddCert(ca)
	leaf, err := t.loadPair(dir, advice)
	if err != nil {
		return nil, err
	}
	if err := t.verifyOwn(filepath.Join(dir, fileNode), ca, leaf, now); err != nil {
		return nil, err
	}
	t.expires = leaf.NotAfter
	if ca.NotAfter.Before(t.expires) {
		t.expires = ca.NotAfter
	}
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

// loadPair reads node.crt and node.key into t.
func (t *Trust) loadPair(dir, advice string) (*x509.Certificate, error) {
	certPEM, err := readFile(dir, fileNode, advice)
	if err != nil {
		return nil, err
	}
	leaf, err := parseCert(certPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, fileNode), err)
	}
	if t.identity, err = certIdentity(leaf); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, fileNode), err)
	}
	if t.identity.Role == roleAuthority {
		return nil, fmt.Errorf("%s is the authority's own certificate", filepath.Join(dir, fileNode))
	}
	keyPEM, err := readSecret(dir, fileNodeKey, advice)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, fileNodeKey), err)
	}
	if !samePublic(leaf, key) {
		return nil, fmt.Errorf("%s is not the key of %s (%v): copy both files from the same issue", filepath.Join(dir, fileNodeKey), fileNode, t.identity)
	}
	t.cert = tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	return leaf, nil
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
func (t *Trust) Expires() time.Time { return t.expires }

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
