package peer

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// tlsName is the DNS name that every certificate of a role carries beside its
// own, so that the standard verification applies unchanged between nodes,
// whatever names and addresses they have. (.internal is reserved for private
// use and never resolves.)
func tlsName(r Role) string { return string(r) + ".holdfast.internal" }

// Server is for a listener between nodes: TLS 1.3, and a certificate of our
// cluster with one of the roles is required of the client.
func (t *Trust) Server(roles ...Role) *tls.Config {
	c := t.base()
	c.ClientAuth = tls.RequireAndVerifyClientCert
	return t.perConnection(c, func(cs tls.ConnectionState) error { return t.admit(cs, "", roles) })
}

// ServerOptional is for HTTPS: a client may come without a certificate; one
// that it shows must be of our cluster, of any role. See PeerIdentity.
func (t *Trust) ServerOptional() *tls.Config {
	c := t.base()
	c.NextProtos = []string{"h2", "http/1.1"}
	c.ClientAuth = tls.VerifyClientCertIfGiven
	return t.perConnection(c, func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return nil
		}
		return t.admit(cs, "", []Role{RoleServer, RoleAgent, RoleAdmin})
	})
}

// perConnection has every connection judged by the authorities that are
// believed when it is made, and remembers whose it is.
func (t *Trust) perConnection(c *tls.Config, admit func(tls.ConnectionState) error) *tls.Config {
	judged := c.Clone() // what crypto/tls or net/http add to c is not in it
	c.VerifyConnection = admit
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		one := judged.Clone()
		one.ClientCAs = t.issued.Load().roots
		one.VerifyConnection = func(cs tls.ConnectionState) error {
			if err := admit(cs); err != nil {
				return err
			}
			if len(cs.VerifiedChains) == 0 {
				return nil
			}
			return t.note(hello.Conn, cs)
		}
		return one, nil
	}
	return c
}

// Client is for dialling a server: the other end must be the server called
// name of our cluster, any server of it when name is "".
func (t *Trust) Client(name string) *tls.Config { return t.ClientOf(RoleServer, name) }

// ClientOf is Client for a node of another role: the API of one that is no server.
func (t *Trust) ClientOf(role Role, name string) *tls.Config {
	c := t.base()
	c.ServerName = tlsName(role)
	// The configuration may be older than the authorities: crypto/tls would
	// verify by those that were believed when it was made. So we verify, the
	// same, by those of now.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		chains, err := t.verifyServer(cs, role)
		if err != nil {
			return err
		}
		cs.VerifiedChains = chains
		return t.admit(cs, name, []Role{role})
	}
	return c
}

// verifyServer is what crypto/tls does of itself: a chain to an authority that
// is believed, for a server, of the name of this role, at this time.
func (t *Trust) verifyServer(cs tls.ConnectionState, role Role) ([][]*x509.Certificate, error) {
	opts := x509.VerifyOptions{
		Roots: t.issued.Load().roots, DNSName: tlsName(role), Intermediates: x509.NewCertPool(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if t.now != nil {
		opts.CurrentTime = t.now()
	}
	if len(cs.PeerCertificates) == 0 {
		return nil, errors.New("peer: the other end showed no certificate")
	}
	for _, cert := range cs.PeerCertificates[1:] {
		opts.Intermediates.AddCert(cert)
	}
	chains, err := cs.PeerCertificates[0].Verify(opts)
	if err != nil {
		return nil, &tls.CertificateVerificationError{UnverifiedCertificates: cs.PeerCertificates, Err: err}
	}
	return chains, nil
}

// base is what all connections have in common. Sessions are not resumed: a
// certificate is looked at each time, and so is our own, which Reload changes.
func (t *Trust) base() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &t.issued.Load().cert, nil },
		GetClientCertificate:   t.show,
		ClientCAs:              t.issued.Load().roots,
		Time:                   t.now,
		SessionTicketsDisabled: true,
	}
}

// show gives our certificate to a server that asks for one, whatever authorities
// it names: we have verified by then that it is one of ours. One that does not
// believe our authority then says so, instead of missing a certificate.
func (t *Trust) show(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return &t.issued.Load().cert, nil
}

// admit decides about a peer whose certificate has been verified.
func (t *Trust) admit(cs tls.ConnectionState, name string, roles []Role) error {
	id, err := PeerIdentity(cs)
	if err != nil {
		return err
	}
	if id.Cluster != t.identity.Cluster {
		return &RefusedError{Peer: id, Reason: "we are of cluster " + t.identity.Cluster}
	}
	if !slices.Contains(roles, id.Role) {
		return &RefusedError{Peer: id, Reason: fmt.Sprintf("this port is for %s only", joinRoles(roles))}
	}
	if name != "" && !strings.EqualFold(name, id.Name) {
		return &RefusedError{Peer: id, Reason: "expected " + Identity{t.identity.Cluster, name, RoleServer}.String()}
	}
	return nil
}

// RefusedError says that a valid certificate is not the right one here.
type RefusedError struct {
	Peer   Identity
	Reason string
}

// Error names whose certificate it was and why it was refused.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("peer: certificate of %v refused: %s", e.Peer, e.Reason)
}

// PeerIdentity tells who is at the other end of a connection. The certificate
// must have been verified, as by all configurations of Trust.
func PeerIdentity(cs tls.ConnectionState) (Identity, error) {
	if len(cs.PeerCertificates) == 0 {
		return Identity{}, errors.New("peer: the other end showed no certificate")
	}
	if len(cs.VerifiedChains) == 0 {
		return Identity{}, errors.New("peer: the other end's certificate was not verified")
	}
	id, err := certIdentity(cs.PeerCertificates[0])
	if err != nil {
		return Identity{}, fmt.Errorf("peer: the other end's certificate: %w", err)
	}
	if id.Role == roleAuthority {
		return Identity{}, errors.New("peer: the other end showed the authority's own certificate")
	}
	return id, nil
}

// PeerIdentity is PeerIdentity of the package, for a connection that may be
// older than the authorities that are believed: whose authority is gone is
// nobody any more.
func (t *Trust) PeerIdentity(cs tls.ConnectionState) (Identity, error) {
	id, err := PeerIdentity(cs)
	if err != nil {
		return Identity{}, err
	}
	if !has(t.issued.Load().cas, root(cs)) {
		return Identity{}, &RefusedError{Peer: id, Reason: "its authority is not trusted any more"}
	}
	return id, nil
}

// Explain is Explain of the package, and says what helps when a certificate of
// our cluster is by an authority that is not, or no longer, believed here.
func (t *Trust) Explain(err error) error {
	explained := Explain(err)
	v, ok := errors.AsType[*tls.CertificateVerificationError](err)
	if !ok || len(v.UnverifiedCertificates) == 0 || !Distrusted(err) {
		return explained
	}
	id, failed := certIdentity(v.UnverifiedCertificates[0])
	if failed != nil || id.Cluster != t.identity.Cluster {
		return explained
	}
	return fmt.Errorf("%w; this node trusts %s: if the authority was changed, one of the two nodes has not got the new files yet (holdfast pki rotate status)",
		explained, nameAll(t.issued.Load().cas))
}

// Distrusted tells whether a handshake failed because one of the ends does not
// believe the authority of the other. What the other end said crypto/tls gives
// as a text only.
func Distrusted(err error) bool {
	if err == nil {
		return false
	}
	_, ours := errors.AsType[x509.UnknownAuthorityError](err)
	return ours || strings.Contains(err.Error(), "remote error: tls: unknown certificate authority")
}

// Explain adds to a handshake's error whose certificate was not believed. An
// error of another kind is returned as it is.
func Explain(err error) error {
	var v *tls.CertificateVerificationError
	if !errors.As(err, &v) || len(v.UnverifiedCertificates) == 0 {
		return err
	}
	cert := v.UnverifiedCertificates[0]
	return fmt.Errorf("peer: certificate %s: %w", claims(cert), err)
}

// claims says what a certificate pretends to be.
func claims(cert *x509.Certificate) string {
	if id, err := certIdentity(cert); err == nil {
		return fmt.Sprintf("that claims to be %v, issued by %q", id, cert.Issuer.CommonName)
	}
	return fmt.Sprintf("%q, issued by %q", cert.Subject.CommonName, cert.Issuer.CommonName)
}

func joinRoles(roles []Role) string {
	names := make([]string, len(roles))
	for i, r := range roles {
		names[i] = string(r) + "s"
	}
	return strings.Join(names, " and ")
}
