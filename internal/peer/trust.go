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

// Trust is one owner's certificate and key, with whom it believes: one
// authority, or two while the cluster goes from one to the next. Whom it is for
// never changes; Reload takes up a certificate that was issued anew, and
// authorities that were added or dropped. The methods may be called from any
// goroutine.
type Trust struct {
	dir      string
	identity Identity
	issued   *atomic.Pointer[issued]
	gossip   []byte
	accepted *accepted
	renewed  *signal
	now      func() time.Time // nil: the system's clock; tests set it
}

// issued is what an Issue left, and the next replaces.
type issued struct {
	cert   tls.Certificate
	cas    []*x509.Certificate // whom this node believes
	roots  *x509.CertPool      // the same
	issuer *x509.Certificate   // of cert, one of cas
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
	cas, err := parseBundle(caPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, fileCA), err)
	}
	t := &Trust{dir: dir, issued: new(atomic.Pointer[issued]), accepted: newAccepted(), renewed: newSignal()}
	cert, err := t.loadPair(dir, advice)
	if err != nil {
		return nil, err
	}
	own := &issued{cert: cert, cas: cas, roots: poolOf(cas)}
	if err := t.verifyOwn(filepath.Join(dir, fileNode), own, now); err != nil {
		return nil, err
	}
	t.issued.Store(own)
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
// shows at the start of the node that made it, not on all the others. It notes
// which authority issued it.
func (t *Trust) verifyOwn(path string, own *issued, now time.Time) error {
	leaf := own.cert.Leaf
	if now.After(leaf.NotAfter) {
		return fmt.Errorf("%s (%v) expired on %s: issue it again", path, t.identity, leaf.NotAfter.Format(time.DateOnly))
	}
	for _, ca := range own.cas {
		if leaf.CheckSignatureFrom(ca) == nil {
			own.issuer = ca
		}
	}
	if own.issuer == nil {
		return fmt.Errorf("%s (%v) was not issued by the authority in %s, %s: issue it again and copy all files of the directory", path, t.identity, fileCA, nameAll(own.cas))
	}
	if now.After(own.issuer.NotAfter) {
		return fmt.Errorf("the authority of %s (%v) expired on %s: the cluster needs a new one", path, t.identity, own.issuer.NotAfter.Format(time.DateOnly))
	}
	opts := x509.VerifyOptions{Roots: own.roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if _, err := leaf.Verify(opts); err != nil {
		return fmt.Errorf("%s (%v) was not issued by the authority in %s, %s: %w", path, t.identity, fileCA, nameAll(own.cas), err)
	}
	for _, ca := range own.cas {
		if id, err := certIdentity(ca); err != nil || id.Cluster != t.identity.Cluster {
			return fmt.Errorf("%s (%v): %s holds the authority of another cluster, %q", path, t.identity, fileCA, ca.Subject.CommonName)
		}
	}
	return nil
}

// Identity is whom the directory was issued for.
func (t *Trust) Identity() Identity { return t.identity }

// GossipKey is the key that encrypts the gossip, 32 bytes; nil for admins.
func (t *Trust) GossipKey() []byte { return slices.Clone(t.gossip) }

// Expires is when the certificate ends; its authority never ends earlier.
func (t *Trust) Expires() time.Time { return t.issued.Load().cert.Leaf.NotAfter }

// AuthorityExpires is when the authority of our certificate ends. Nothing that
// it issues lasts longer.
func (t *Trust) AuthorityExpires() time.Time { return t.issued.Load().issuer.NotAfter }

// Authorities names whom this node believes, see AuthorityID, and by which of
// them its own certificate is.
func (t *Trust) Authorities() (trusted []string, issuer string) {
	own := t.issued.Load()
	return idsOf(own.cas), AuthorityID(own.issuer)
}

// Reloaded is what a Reload changed.
type Reloaded struct {
	Certificate bool     // our own is another
	Added       []string // authorities that are believed from now on, by AuthorityID
	Dropped     []string // and that are not any more
	Closed      int      // connections that we had accepted by certificates of those
}

// Changed tells whether there was anything new.
func (r Reloaded) Changed() bool { return r.Certificate || len(r.Added)+len(r.Dropped) > 0 }

// Reload reads the directory again: every connection from then on is made and
// judged by what is there. Those that stand go on, but for those that we
// accepted by a certificate of an authority that is gone: they are closed. Who
// dialled is told by Renewed and dials anew.
//
// What can't be loaded, also because only half of it was copied yet, and what
// is another owner's changes nothing and is an error; so are authorities none of
// which is believed now: that is another cluster's directory, or this node
// slept through a change of the authority, which a restart takes up. The
// gossip's key is read at the start only.
func (t *Trust) Reload() (Reloaded, error) {
	now := time.Now
	if t.now != nil {
		now = t.now
	}
	next, err := load(t.dir, now())
	if err != nil {
		return Reloaded{}, fmt.Errorf("peer: load certificates again: %w", err)
	}
	if next.identity != t.identity {
		return Reloaded{}, fmt.Errorf("peer: load certificates again: %s is that of %v now, and this is %v", t.dir, next.identity, t.identity)
	}
	was, is := t.issued.Load(), next.issued.Load()
	if !shareAuthority(was.cas, is.cas) {
		return Reloaded{}, fmt.Errorf("peer: load certificates again: %s has another authority, %s, and none that is in force here: "+
			"if the cluster's was changed meanwhile, restart to take it up", t.dir, nameAll(is.cas))
	}
	t.issued.Store(is)
	r := Reloaded{Certificate: !was.cert.Leaf.Equal(is.cert.Leaf), Added: idsOf(missing(is.cas, was.cas)), Dropped: idsOf(missing(was.cas, is.cas))}
	if len(r.Dropped) > 0 {
		r.Closed = t.accepted.closeBut(is.cas)
	}
	if r.Certificate || len(r.Dropped) > 0 {
		t.renewed.tell()
	}
	return r, nil
}

// Renewed is closed at the next Reload after which connections that we dialled
// are to be made anew: our certificate is another, or an authority is gone.
func (t *Trust) Renewed() <-chan struct{} { return t.renewed.next() }

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
