package peer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Joining is a node's half of getting a certificate over the network: the key
// is made here and never leaves the node.
type Joining struct {
	key     []byte // PEM
	Request []byte // PKCS #10, DER (RFC 2986)
}

// NewJoining makes a key and the request to have it certified. Who the
// certificate is for does not stand in the request: the issuer says that.
func NewJoining() (*Joining, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	encoded, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return &Joining{key: encoded, Request: request}, nil
}

// Joined is what the issuer gives back. GossipKey is a secret.
type Joined struct {
	CA          []byte `json:"ca"`          // PEM
	Certificate []byte `json:"certificate"` // PEM
	GossipKey   []byte `json:"gossip_key"`  // as in gossip.key
}

// Install writes what Issue would have written to dir, which is created when
// absent. A directory of another authority is left alone. The caller has
// checked that j.CA is the cluster's.
func (n *Joining) Install(dir string, j Joined) error {
	if err := n.install(dir, j); err != nil {
		return fmt.Errorf("peer: install a certificate in %s: %w", dir, err)
	}
	return nil
}

func (n *Joining) install(dir string, j Joined) error {
	cert, err := parseCert(j.Certificate)
	if err != nil {
		return err
	}
	key, err := parseKey(n.key)
	if err != nil {
		return err
	}
	if !samePublic(cert, key) {
		return errors.New("the certificate is for another key than this node's")
	}
	if _, err := parseGossipKey(j.GossipKey); err != nil {
		return err
	}
	if err := sameAuthority(dir, j.CA); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	return writeAll(dir, []file{
		{fileCA, modePublic, j.CA}, {fileGossipKey, modeSecret, j.GossipKey},
		{fileNodeKey, modeSecret, n.key}, {fileNode, modePublic, j.Certificate},
	})
}

// ErrRequest: what a node sent is no request that can be certified.
var ErrRequest = errors.New("the request")

// Sign certifies another's key by the authority in caDir. The request's own
// names count for nothing; r says who the certificate is for. ErrRequest is the
// node's fault; other errors are of the authority.
func Sign(caDir string, request []byte, r Request) (Joined, error) {
	signed, err := sign(caDir, request, r, time.Now())
	if err != nil {
		return Joined{}, fmt.Errorf("peer: issue a certificate for %s %q: %w", r.Role, r.Name, err)
	}
	return signed, nil
}

func sign(caDir string, request []byte, r Request, now time.Time) (Joined, error) {
	asked, err := x509.ParseCertificateRequest(request)
	if err != nil {
		return Joined{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if err := asked.CheckSignature(); err != nil { // who asks must have the key
		return Joined{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	public, ok := asked.PublicKey.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return Joined{}, fmt.Errorf("%w: its key is not of the curve P-256", ErrRequest)
	}
	ca, err := loadAuthority(caDir)
	if err != nil {
		return Joined{}, err
	}
	if r.Cluster == "" {
		r.Cluster = ca.cluster
	}
	template, err := ca.template(r, now)
	if err != nil {
		return Joined{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, public, ca.key)
	if err != nil {
		return Joined{}, err
	}
	return Joined{CA: ca.pem, Certificate: encodeCert(der), GossipKey: ca.gossip}, nil
}

// AuthorityOf reads the certificates of an authority as a bare node fetches
// them, see JoinClient, and the fingerprint of the one that issues.
func AuthorityOf(dir string) (pem []byte, fingerprint string, err error) {
	ca, err := loadAuthority(dir)
	if err == nil {
		pem, err = ca.vouched(dir)
	}
	if err != nil {
		return nil, "", fmt.Errorf("peer: %w", err)
	}
	return pem, fingerprintOf(ca.cert), nil
}

// fingerprintOf is the hex SHA-256 of a certificate's DER; AuthorityID is its
// beginning.
func fingerprintOf(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// JoinClient trusts servers of the authority that has the fingerprint, which
// must be among what was fetched, and of those for which it vouches there. It
// shows no certificate: there is none yet.
func JoinClient(fetched []byte, fingerprint string) (*tls.Config, error) {
	cas, err := parseVouched(fetched, fingerprint)
	if err != nil {
		return nil, fmt.Errorf("peer: %w", err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: poolOf(cas), ServerName: tlsName(RoleServer)}, nil
}

// Holds tells whether a ca.crt has the authority with the fingerprint.
func Holds(ca []byte, fingerprint string) bool {
	cas, err := parseBundle(ca)
	return err == nil && named(cas, fingerprint) != nil
}

func named(cas []*x509.Certificate, fingerprint string) *x509.Certificate {
	for _, cert := range cas {
		if fingerprintOf(cert) == fingerprint {
			return cert
		}
	}
	return nil
}

// Believes tells whether a node's directory believes an authority of another
// directory, that of the cluster's authority.
func Believes(dir, caDir string) bool {
	data, err := os.ReadFile(filepath.Join(caDir, fileCA))
	return err == nil && sameAuthority(dir, data) == nil
}

// Installed tells whether dir holds a certificate that can be used as it is,
// and believes the authority with the fingerprint.
func Installed(dir, fingerprint string) bool {
	if _, err := Load(dir); err != nil {
		return false
	}
	pem, err := os.ReadFile(filepath.Join(dir, fileCA))
	return err == nil && Holds(pem, fingerprint)
}
