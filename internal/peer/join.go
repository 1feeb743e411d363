package peer

import (
	"bytes"
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

// Sign certifies another's key by the authority in caDir. The request's own
// names count for nothing; r says who the certificate is for.
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
		return Joined{}, fmt.Errorf("the request: %w", err)
	}
	if err := asked.CheckSignature(); err != nil { // who asks must have the key
		return Joined{}, fmt.Errorf("the request: %w", err)
	}
	public, ok := asked.PublicKey.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return Joined{}, errors.New("the request: its key is not of the curve P-256")
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

// AuthorityOf reads the certificate of an authority and its fingerprint.
func AuthorityOf(dir string) (pem []byte, fingerprint string, err error) {
	ca, err := loadAuthority(dir)
	if err != nil {
		return nil, "", fmt.Errorf("peer: %w", err)
	}
	fingerprint, err = Fingerprint(ca.pem)
	return ca.pem, fingerprint, err
}

// Fingerprint is the hex SHA-256 of the DER of the certificates in ca.crt: of
// one mostly, of two while the authority is changed.
func Fingerprint(pem []byte) (string, error) {
	cas, err := parseBundle(pem)
	if err != nil {
		return "", fmt.Errorf("peer: %w", err)
	}
	hash := sha256.New()
	for _, cert := range cas {
		hash.Write(cert.Raw)
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// JoinClient trusts servers of the authority alone. It shows no certificate:
// there is none yet.
func JoinClient(caPEM []byte) (*tls.Config, error) {
	cas, err := parseBundle(caPEM)
	if err != nil {
		return nil, fmt.Errorf("peer: %w", err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: poolOf(cas), ServerName: tlsName(RoleServer)}, nil
}

// Believes tells whether a node's directory believes an authority of another
// directory, that of the cluster's authority.
func Believes(dir, caDir string) bool {
	data, err := os.ReadFile(filepath.Join(caDir, fileCA))
	return err == nil && sameAuthority(dir, data) == nil
}

// Installed tells whether dir holds a certificate that can be used as it is,
// and of which authority.
func Installed(dir, fingerprint string) bool {
	if _, err := Load(dir); err != nil {
		return false
	}
	pem, err := os.ReadFile(filepath.Join(dir, fileCA))
	if err != nil {
		return false
	}
	there, err := Fingerprint(bytes.TrimSpace(pem))
	return err == nil && there == fingerprint
}
