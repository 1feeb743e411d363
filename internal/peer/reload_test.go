package peer

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// served is the certificate that a connection to a server shows.
func served(t *testing.T, server, client *tls.Config) (serial string) {
	t.Helper()
	verify := client.VerifyConnection
	client.VerifyConnection = func(cs tls.ConnectionState) error {
		serial = cs.PeerCertificates[0].SerialNumber.String()
		return verify(cs)
	}
	if _, serverErr, clientErr := shake(t, server, client); serverErr != nil || clientErr != nil {
		t.Fatalf("server %v, client %v", serverErr, clientErr)
	}
	return serial
}

func TestCertificateIssuedAnewIsServedWithoutARestart(t *testing.T) {
	ca := newAuthority(t, "foobar")
	dir := issueTo(t, ca, RoleServer, "fb1")
	trust, other := mustLoad(t, dir), mustLoad(t, issueTo(t, ca, RoleServer, "fb2"))
	server := trust.Server(RoleServer) // made once, as a listener does
	first := served(t, server, other.Client("fb1"))
	if r, err := trust.Reload(); r.Changed() || err != nil {
		t.Errorf("nothing was issued: %+v, %v", r, err)
	}
	request := Request{Identity: Identity{Name: "fb1", Role: RoleServer}, Validity: 1000 * 24 * time.Hour}
	if err := Issue(ca, dir, request); err != nil {
		t.Fatal(err)
	}
	before := trust.Expires()
	if r, err := trust.Reload(); !r.Certificate || err != nil {
		t.Fatalf("after an issue: %+v, %v", r, err)
	}
	if second := served(t, server, other.Client("fb1")); second == first {
		t.Error("the listener serves the old certificate")
	}
	if !trust.Expires().Before(before) {
		t.Errorf("expires %v, and the old one %v", trust.Expires(), before)
	}
}

func TestWhatIsNotOursIsNotTakenUp(t *testing.T) {
	ca := newAuthority(t, "foobar")
	dir := issueTo(t, ca, RoleServer, "fb1")
	trust := mustLoad(t, dir)
	expires := trust.Expires()
	refused := func(what string) {
		t.Helper()
		if r, err := trust.Reload(); r.Changed() || err == nil || trust.Expires() != expires {
			t.Errorf("%s: %+v, %v", what, r, err)
		}
	}
	copyFiles := func(from string, names ...string) {
		t.Helper()
		for _, name := range names {
			data, err := os.ReadFile(filepath.Join(from, name))
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, name), data, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	agent := issueTo(t, ca, RoleAgent, "fb1")
	copyFiles(agent, fileNode)
	refused("a certificate without its key")
	copyFiles(agent, fileNodeKey)
	refused("an agent's certificate")
	copyFiles(issueTo(t, newAuthority(t, "foobar"), RoleServer, "fb1"), fileCA, fileNode, fileNodeKey)
	refused("another authority's")
}
