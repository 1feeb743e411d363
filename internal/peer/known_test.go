package peer

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"
)

// verifiedAs is a connection of a node's certificate.
func verifiedAs(t *Trust) tls.ConnectionState {
	own := t.issued.Load()
	return tls.ConnectionState{PeerCertificates: []*x509.Certificate{own.cert.Leaf}, VerifiedChains: [][]*x509.Certificate{{own.cert.Leaf, own.issuer}}}
}

// A certificate whose text is read anew for each request, as if nothing was
// remembered, takes memory.
func TestWhoAsksIsReadOnceAConnection(t *testing.T) {
	ca := newAuthority(t, "foobar")
	server, cs := mustLoad(t, issueTo(t, ca, RoleServer, "fb1")), verifiedAs(mustLoad(t, issueTo(t, ca, RoleAdmin, "alice")))
	want := Identity{"foobar", "alice", RoleAdmin}
	if n := testing.AllocsPerRun(100, func() {
		if id, err := server.PeerIdentity(cs); err != nil || id != want {
			t.Fatalf("%v, %v; want %v", id, err, want)
		}
	}); n > 0 {
		t.Errorf("to know a connection again takes %v allocations, want none", n)
	}
}

// What is remembered is what a certificate says, not that it was believed: were
// it looked for before the connection is, each of these would be alice.
func TestARememberedCertificateIsNotBelievedForThat(t *testing.T) {
	ca := newAuthority(t, "foobar")
	server, cs := mustLoad(t, issueTo(t, ca, RoleServer, "fb1")), verifiedAs(mustLoad(t, issueTo(t, ca, RoleAdmin, "alice")))
	if _, err := server.PeerIdentity(cs); err != nil {
		t.Fatal(err)
	}
	unverified, foreign, other := cs, cs, cs
	unverified.VerifiedChains = nil
	stranger := mustLoad(t, issueTo(t, newAuthority(t, "foobar"), RoleAdmin, "mallory")).issued.Load()
	foreign.VerifiedChains = [][]*x509.Certificate{{cs.PeerCertificates[0], stranger.issuer}}
	other.PeerCertificates = []*x509.Certificate{stranger.cert.Leaf}
	other.VerifiedChains = [][]*x509.Certificate{{stranger.cert.Leaf, stranger.issuer}}
	for what, c := range map[string]struct {
		cs   tls.ConnectionState
		want string
	}{
		"not verified":         {unverified, "not verified"},
		"of another authority": {foreign, "not trusted any more"},
		"a namesake's":         {other, "mallory"},
		"of nobody":            {tls.ConnectionState{VerifiedChains: cs.VerifiedChains}, "showed no certificate"},
	} {
		if id, err := server.PeerIdentity(c.cs); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("a connection %s is %v, %v; want an error with %q", what, id, err, c.want)
		}
	}
}

// Who connects again and again comes with another certificate each time.
func TestCertificatesAreNotRememberedWithoutEnd(t *testing.T) {
	server := mustLoad(t, issueTo(t, newAuthority(t, "foobar"), RoleServer, "fb1"))
	cs := verifiedAs(server)
	for range 3 * maxKnown {
		again := *cs.PeerCertificates[0]
		cs.PeerCertificates = []*x509.Certificate{&again}
		if id, err := server.PeerIdentity(cs); err != nil || id.Name != "fb1" {
			t.Fatal(id, err)
		}
	}
	if n := len(server.known.all); n > maxKnown {
		t.Errorf("%d are remembered, want at most %d", n, maxKnown)
	}
}
