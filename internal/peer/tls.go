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
	c.VerifyConnection = func(cs tls.ConnectionState) error { return t.admit(cs, "", roles) }
	return c
}

// ServerOptional is for HTTPS: a client may come without a certificate; one
// that it shows must be of our cluster, of any role. See PeerIdentity.
func (t *Trust) ServerOptional() *tls.Config {
	c := t.base()
	c.NextProtos = []string{"h2", "http/1.1"}
	c.ClientAuth = tls.VerifyClientCertIfGiven
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return nil
		}
		return t.admit(cs, "", []Role{RoleServer, RoleAgent, RoleAdmin})
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
	c.VerifyConnection = func(cs tls.ConnectionState) error { return t.admit(cs, name, []Role{role}) }
	return c
}

// base is what all connections have in common. Sessions are not resumed: a
// certificate is looked at each time, and so is our own, which Reload changes.
func (t *Trust) base() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &t.issued.Load().cert, nil },
		GetClientCertificate:   t.show,
		RootCAs:                t.roots,
		ClientCAs:              t.roots,
		Time:                   t.now,
		SessionTicketsDisabled: true,
	}
}

// show gives our certificate to a server that asks for one of our authority,
// and an empty one to others, as crypto/tls does with a certificate that never
// changes.
func (t *Trust) show(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	own := &t.issued.Load().cert
	if asked.SupportsCertificate(own) != nil {
		return new(tls.Certificate), nil
	}
	return own, nil
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
