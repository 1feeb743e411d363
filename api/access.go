package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// Access is how much a request may do; each level holds those below it.
type Access int

// The levels.
const (
	None    Access = iota
	Read           // look, KV values included
	Write          // register services and checks, change keys
	Operate        // what can stop the cluster or undo it: leave, Raft's members, snapshots, reload
)

// origin is the listener by which a request came.
type origin int

const (
	fromLoopback origin = iota // plain HTTP on a loopback address
	fromSocket                 // the admin socket, where internal/admin asked the kernel who it is
	fromTLS                    // HTTPS on any address
)

// refusal says why a request is not served. reason is the metric's label.
type refusal struct {
	status int
	reason string
	text   string
}

// authorize decides what a request may do. It looks at where the request came
// from and at what it shows, never at what it asks for.
func (s *Server) authorize(r *http.Request, from origin) (caller, *refusal) {
	token, shown := tokenOf(r)
	if from == fromSocket {
		// The kernel said who asks; a token can only make it less.
		if who, ok := s.holder(token); shown && ok {
			return who, nil
		}
		return caller{access: Operate}, nil
	}
	if from == fromLoopback {
		if refused := s.checkHost(r); refused != nil {
			return caller{}, refused
		}
	}
	// A browser shows an admin's certificate to whatever page asks it to.
	if refused := checkSite(r); refused != nil {
		return caller{}, refused
	}
	if shown {
		if s.config.Token != "" && s.tokenMatches(token) {
			return caller{access: Operate}, nil
		}
		if who, ok := s.holder(token); ok {
			return who, nil
		}
		if s.config.Token != "" || s.haveTokens() {
			return caller{}, unknownToken()
		}
	}
	switch {
	case from == fromLoopback:
		return caller{access: s.config.Loopback}, nil
	case s.admin != nil && s.admin(r):
		return caller{access: Operate}, nil
	default:
		return caller{}, &refusal{http.StatusForbidden, "unauthenticated", "Permission denied: show an admin certificate or a token"}
	}
}

// holder is who has a token of the store.
func (s *Server) holder(secret string) (caller, bool) {
	if secret == "" {
		return caller{}, false
	}
	sum := sumOf(secret)
	rights, ok := s.tokens.of(s.state.Snapshot(), nil, sum, s.now())
	return caller{rights: rights, sum: sum}, ok
}

// haveTokens tells whether the store has any token: if none was ever made,
// what clients send on loopback means nothing, as with a Consul without ACLs.
func (s *Server) haveTokens() bool {
	snap := s.state.Snapshot()
	if mark, _ := snap.Document(nil, markKind, bootMark); mark != nil {
		return true
	}
	all, _ := snap.Documents(nil, tokenKind)
	return len(all) > 0
}

// tokenMatches compares in a time that does not depend on where the two
// differ, nor on their lengths.
func (s *Server) tokenMatches(token string) bool {
	given, want := sha256.Sum256([]byte(token)), sha256.Sum256([]byte(s.config.Token))
	return subtle.ConstantTimeCompare(given[:], want[:]) == 1
}

// tokenOf finds a token where Consul's clients put it. An empty one is none.
func tokenOf(r *http.Request) (string, bool) {
	if token := r.Header.Get("X-Consul-Token"); token != "" {
		return token, true
	}
	if scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") && token != "" {
		return strings.TrimSpace(token), true
	}
	if strings.Contains(r.URL.RawQuery, "token=") {
		token := r.URL.Query().Get("token")
		return token, token != ""
	}
	return "", false
}

// checkHost refuses, on the loopback listener, what a web page of someone else
// makes a browser on this machine send to a name of his that he lets resolve
// to 127.0.0.1 (DNS rebinding). Over TLS such a name fails by the certificate.
func (s *Server) checkHost(r *http.Request) *refusal {
	if r.Host != "" && !s.ownHost(r.Host) { // HTTP/1.0 may lack it; no browser does
		return &refusal{http.StatusForbidden, "host", "Permission denied: the Host header names another host; use localhost or the node's name"}
	}
	return nil
}

// checkSite refuses requests across sites, which browsers mark with
// Sec-Fetch-Site (Fetch Metadata) or Origin (RFC 6454 §7).
func checkSite(r *http.Request) *refusal {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
	default:
		return &refusal{http.StatusForbidden, "cross-site", "Permission denied: requests from other web sites are not served"}
	}
	if given := r.Header.Get("Origin"); given != "" {
		parsed, err := url.Parse(given)
		if err != nil || !strings.EqualFold(parsed.Host, r.Host) {
			return &refusal{http.StatusForbidden, "cross-site", "Permission denied: requests from other web sites are not served"}
		}
	}
	return nil
}

// ownHost tells whether a Host header means this node.
func (s *Server) ownHost(header string) bool {
	host := header
	if name, _, err := net.SplitHostPort(header); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.Trim(host, "[]"), ".")
	if strings.EqualFold(host, "localhost") {
		return true
	}
	if address, err := netip.ParseAddr(host); err == nil {
		return address.IsLoopback()
	}
	return slices.ContainsFunc(s.config.Names, func(name string) bool { return strings.EqualFold(name, host) })
}

func (a Access) String() string {
	switch a {
	case Read:
		return "read"
	case Write:
		return "write"
	case Operate:
		return "operate"
	default:
		return "none"
	}
}
