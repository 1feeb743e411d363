package peer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

const (
	// DefaultValidity is how long a certificate lives unless the request says otherwise.
	DefaultValidity = 5 * 365 * 24 * time.Hour

	caValidity     = 30 * 365 * 24 * time.Hour
	gossipKeyBytes = 32 // AES-256, the longest that memberlist takes
)

// epoch is when every certificate begins; see the package comment.
func epoch() time.Time { return time.Unix(0, 0).UTC() }

// earliest is the oldest clock that can be right. A certificate issued by a
// machine that believes in 1970 would be long expired everywhere else.
func earliest() time.Time { return time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC) }

// Init makes the authority of a new cluster in dir, which is created when
// absent: ca.crt, ca.key and gossip.key. It refuses to touch a directory that
// already holds one of them.
func Init(dir, cluster string) error {
	if err := initAuthority(dir, cluster, time.Now()); err != nil {
		return fmt.Errorf("peer: make the authority of cluster %q: %w", cluster, err)
	}
	return nil
}

func initAuthority(dir, cluster string, now time.Time) error {
	if err := validName("cluster", cluster); err != nil {
		return err
	}
	if err := plausible(now); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, name := range []string{fileCA, fileCAKey, fileGossipKey} {
		_, err := os.Lstat(filepath.Join(dir, name))
		if err == nil {
			return fmt.Errorf("%s exists: every certificate of the cluster hangs on it; choose an empty directory: %w", filepath.Join(dir, name), fs.ErrExist)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	der, keyPEM, err := newAuthorityPair(cluster, "Holdfast CA of "+cluster, now)
	if err != nil {
		return err
	}
	return writeAll(dir, []file{
		{fileCAKey, modeSecret, keyPEM},
		{fileGossipKey, modeSecret, newGossipKey()},
		{fileCA, modePublic, encodeCert(der)},
	})
}

// newAuthorityPair makes an authority's certificate, in DER, and its key, in PEM.
func newAuthorityPair(cluster, name string, now time.Time) (der, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	id := Identity{Cluster: cluster, Name: cluster, Role: roleAuthority}
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: name, Organization: []string{"Holdfast"}},
		URIs:                  []*url.URL{id.uri()},
		NotBefore:             epoch(),
		NotAfter:              now.Add(caValidity).UTC(),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	if der, err = x509.CreateCertificate(rand.Reader, template, template, key.Public(), key); err != nil {
		return nil, nil, err
	}
	keyPEM, err = encodeKey(key)
	return der, keyPEM, err
}

// Request asks for a certificate.
type Request struct {
	Identity               // Cluster may be left empty: the authority's
	IPs      []netip.Addr  // for clients that check addresses, such as curl; may be empty
	DNSNames []string      // likewise; may be empty
	Validity time.Duration // from now; 0 means DefaultValidity; the authority's end bounds it
	// Client is for who only connects, such as a host that sends log lines over
	// TLS: Issue gives it no gossip key.
	Client bool
}

// Issue makes a key and a certificate by the authority in caDir and writes
// what their owner needs to outDir, which is created when absent: ca.crt,
// node.crt, node.key and, except for admins and clients, gossip.key. It replaces what a
// former Issue of the same authority left there, never that of another.
func Issue(caDir, outDir string, r Request) error {
	if err := issue(caDir, outDir, r, time.Now()); err != nil {
		return fmt.Errorf("peer: issue a certificate for %s %q: %w", r.Role, r.Name, err)
	}
	return nil
}

func issue(caDir, outDir string, r Request, now time.Time) error {
	ca, err := loadAuthority(caDir)
	if err != nil {
		return err
	}
	if r.Cluster == "" {
		r.Cluster = ca.cluster
	}
	template, err := ca.template(r, now)
	if err != nil {
		return err
	}
	if err := sameAuthority(outDir, ca.pem); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return err
	}
	files := []file{{fileCA, modePublic, ca.pem}}
	if r.Role != RoleAdmin && !r.Client {
		files = append(files, file{fileGossipKey, modeSecret, ca.gossip})
	}
	files = append(files, file{fileNodeKey, modeSecret, keyPEM}, file{fileNode, modePublic, encodeCert(der)})
	if err := os.MkdirAll(outDir, 0o750); err != nil {
		return err
	}
	return writeAll(outDir, files)
}

// authority is what Init wrote, read again; during a rotation also the other
// authority.
type authority struct {
	cluster string
	cas     []*x509.Certificate // the first issues
	cert    *x509.Certificate   // the one that issues
	key     crypto.Signer       // of it
	keyFile string              // where that was
	pem     []byte              // of all
	gossip  []byte
}

func loadAuthority(dir string) (*authority, error) {
	const advice = `make the cluster's authority with "holdfast pki init", or name the directory where it lies`
	a := &authority{}
	data, err := readFile(dir, fileCA, advice)
	if err != nil {
		return nil, err
	}
	if a.cas, err = parseBundle(data); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, fileCA), err)
	}
	a.cert, a.pem = a.cas[0], encodeBundle(a.cas)
	for _, cert := range a.cas {
		id, err := certIdentity(cert)
		if err != nil || id.Role != roleAuthority || a.cluster != "" && id.Cluster != a.cluster {
			return nil, fmt.Errorf("%s is not the authority of a Holdfast cluster", filepath.Join(dir, fileCA))
		}
		a.cluster = id.Cluster
	}
	if err := a.loadKey(dir, advice); err != nil {
		return nil, err
	}
	if a.gossip, err = readSecret(dir, fileGossipKey, advice); err != nil {
		return nil, err
	}
	if _, err := parseGossipKey(a.gossip); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, fileGossipKey), err)
	}
	return a, nil
}

// loadKey finds the key of the authority that issues. After the switch of a
// rotation it is in the file of the next one's.
func (a *authority) loadKey(dir, advice string) error {
	for _, name := range []string{fileCAKey, fileNextKey} {
		keyPEM, err := readSecret(dir, name, advice)
		if errors.Is(err, fs.ErrNotExist) && name == fileNextKey {
			break
		}
		if err != nil {
			return err
		}
		key, err := parseKey(keyPEM)
		if err != nil {
			return fmt.Errorf("%s: %w", filepath.Join(dir, name), err)
		}
		if samePublic(a.cert, key) {
			a.key, a.keyFile = key, name
			return nil
		}
	}
	return fmt.Errorf("%s is not the key of %s", filepath.Join(dir, fileCAKey), fileCA)
}

// template checks a request and turns it into a certificate to be signed.
func (a *authority) template(r Request, now time.Time) (*x509.Certificate, error) {
	if err := r.Identity.validate(); err != nil {
		return nil, err
	}
	if r.Cluster != a.cluster {
		return nil, fmt.Errorf("this is the authority of cluster %s, not of %s", a.cluster, r.Cluster)
	}
	if err := plausible(now); err != nil {
		return nil, err
	}
	validity := r.Validity
	if validity == 0 {
		validity = DefaultValidity
	}
	end := now.Add(validity).UTC()
	if validity < 0 || end.After(a.cert.NotAfter) {
		return nil, fmt.Errorf("validity %v: must be positive and end before the authority does, on %s", validity, a.cert.NotAfter.Format(time.DateOnly))
	}
	t := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: r.Name, Organization: []string{"Holdfast"}, OrganizationalUnit: []string{string(r.Role)}},
		URIs:                  []*url.URL{r.Identity.uri()},
		DNSNames:              append([]string(nil), r.DNSNames...),
		NotBefore:             epoch(),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if r.Role != RoleAdmin { // an admin is never the listening side
		t.DNSNames = append(t.DNSNames, tlsName(r.Role))
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, ip := range r.IPs {
		if !ip.IsValid() {
			return nil, errors.New("an address of the request is empty")
		}
		t.IPAddresses = append(t.IPAddresses, net.IP(ip.Unmap().AsSlice()))
	}
	for _, name := range r.DNSNames {
		if err := validName("DNS name", name); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// sameAuthority refuses a directory that belongs to another cluster: one that
// believes none of these authorities.
func sameAuthority(dir string, caPEM []byte) error {
	path := filepath.Join(dir, fileCA)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	ours, err := parseBundle(caPEM)
	if err != nil {
		return err
	}
	if there, err := parseBundle(data); err != nil || !shareAuthority(there, ours) {
		return fmt.Errorf("%s is the certificate of another authority: choose another directory, or remove it if that cluster is gone: %w", path, fs.ErrExist)
	}
	return nil
}

func plausible(now time.Time) error {
	if now.Before(earliest()) {
		return fmt.Errorf("this machine's clock says %s: set it first, or what is issued now has expired before it is used", now.UTC().Format(time.DateOnly))
	}
	return nil
}

// serial is 127 random bits: unique without a register (RFC 5280 §4.1.2.2
// allows 20 octets, positive).
func serial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b) // never fails since Go 1.24
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b)
}

func newGossipKey() []byte {
	b := make([]byte, gossipKeyBytes)
	rand.Read(b)
	return append([]byte(base64.StdEncoding.EncodeToString(b)), '\n')
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
