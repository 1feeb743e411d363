package peer

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"
)

// Role is what the owner of a certificate may do.
type Role string

// The roles. Only servers may speak Raft; only admins run the CLI over HTTPS;
// agents are the nodes that take part in the gossip without a vote.
const (
	RoleServer Role = "server"
	RoleAgent  Role = "agent"
	RoleAdmin  Role = "admin"

	roleAuthority Role = "ca" // the CA's own certificate; never given to anybody
)

// Identity says who somebody is: the subject of a certificate.
type Identity struct {
	Cluster string // name of the cluster, as in the cluster file
	Name    string // node, or person for an admin; compared without regard to case
	Role    Role
}

// String reads well in a sentence: `server fbservice1 of cluster foobar`.
func (id Identity) String() string {
	return fmt.Sprintf("%s %s of cluster %s", id.Role, id.Name, id.Cluster)
}

const (
	uriScheme = "holdfast"
	maxName   = 253 // a DNS name's length, RFC 1035 §2.3.4
)

// uri is the identity as it stands in a certificate.
func (id Identity) uri() *url.URL {
	return &url.URL{Scheme: uriScheme, Host: id.Cluster, Path: "/" + string(id.Role) + "/" + id.Name}
}

// validate tells whether the identity can be given to somebody.
func (id Identity) validate() error {
	if err := validName("cluster", id.Cluster); err != nil {
		return err
	}
	if err := validName("name", id.Name); err != nil {
		return err
	}
	switch id.Role {
	case RoleServer, RoleAgent, RoleAdmin:
		return nil
	}
	return fmt.Errorf("role %q: must be one of server, agent, admin", id.Role)
}

// validName accepts what can stand in a URI's host and in a path element
// without any escaping, so that one identity has exactly one spelling.
func validName(what, s string) error {
	if s == "" {
		return fmt.Errorf("%s is empty", what)
	}
	if len(s) > maxName {
		return fmt.Errorf("%s has %d characters, at most %d are possible", what, len(s), maxName)
	}
	for i, c := range []byte(s) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		inside := i > 0 && i < len(s)-1
		separator := (c == '-' || c == '_' || c == '.') && inside && !(c == '.' && s[i-1] == '.')
		if !alnum && !separator {
			return fmt.Errorf("%s %q: only letters and digits, and between them '-', '_' and single '.'", what, s)
		}
	}
	return nil
}

// parseIdentity reads an identity's URI; the exact inverse of uri.
func parseIdentity(u *url.URL) (Identity, error) {
	if u.Scheme != uriScheme {
		return Identity{}, fmt.Errorf("%q is no %s:// URI", u, uriScheme)
	}
	role, name, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	id := Identity{Cluster: u.Host, Name: name, Role: Role(role)}
	if !ok || u.String() != id.uri().String() {
		return Identity{}, fmt.Errorf("%q is not of the form %s://CLUSTER/ROLE/NAME", u, uriScheme)
	}
	if id.Role == roleAuthority {
		return id, validName("cluster", id.Cluster)
	}
	return id, id.validate()
}

// certIdentity reads the identity out of a certificate. Whether the
// certificate can be trusted is another question.
func certIdentity(cert *x509.Certificate) (Identity, error) {
	var found []Identity
	for _, u := range cert.URIs {
		if u.Scheme != uriScheme {
			continue
		}
		id, err := parseIdentity(u)
		if err != nil {
			return Identity{}, err
		}
		found = append(found, id)
	}
	if len(found) != 1 {
		return Identity{}, fmt.Errorf("certificate %q carries %d holdfast identities instead of one", cert.Subject.CommonName, len(found))
	}
	return found[0], nil
}
