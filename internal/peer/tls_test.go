package peer

import (
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// shake makes a TLS connection in memory and returns what each side says.
// With TLS 1.3 the client learns of a refusal by its first read.
func shake(t *testing.T, server, client *tls.Config) (peer Identity, serverErr, clientErr error) {
	t.Helper()
	a, b := net.Pipe()
	deadline := time.Now().Add(time.Minute)
	for _, c := range []net.Conn{a, b} {
		if err := c.SetDeadline(deadline); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	go func() {
		c := tls.Client(b, client)
		err := c.Handshake()
		if err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		b.Close()
		done <- Explain(err)
	}()
	s := tls.Server(a, server)
	serverErr = Explain(s.Handshake())
	if serverErr == nil {
		peer, _ = PeerIdentity(s.ConnectionState())
		_, serverErr = s.Write([]byte("!"))
	}
	a.Close()
	return peer, serverErr, <-done
}

func TestWhoMayConnect(t *testing.T) {
	ca := newAuthority(t, "foobar")
	server := mustLoad(t, issueTo(t, ca, RoleServer, "fb1"))
	second := mustLoad(t, issueTo(t, ca, RoleServer, "FB2"))
	agent := mustLoad(t, issueTo(t, ca, RoleAgent, "front1"))
	admin := mustLoad(t, issueTo(t, ca, RoleAdmin, "alice"))
	foreign := mustLoad(t, issueTo(t, newAuthority(t, "other"), RoleServer, "fb2"))
	namesake := mustLoad(t, issueTo(t, newAuthority(t, "foobar"), RoleServer, "fb2"))

	anonymous := second.Client("")
	anonymous.GetClientCertificate = nil
	old := second.Client("fb1")
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12

	for name, c := range map[string]struct {
		server, client *tls.Config
		peer           Identity
		serverErr      string
		clientErr      string
	}{
		"a server at a server":            {server.Server(RoleServer), second.Client("fb1"), second.Identity(), "", ""},
		"any server will do":              {server.Server(RoleServer), second.Client(""), second.Identity(), "", ""},
		"case does not matter":            {second.Server(RoleServer), server.Client("fb2"), server.Identity(), "", ""},
		"an agent at a port for agents":   {server.Server(RoleServer, RoleAgent), agent.Client("fb1"), agent.Identity(), "", ""},
		"an agent at the Raft port":       {server.Server(RoleServer), agent.Client("fb1"), Identity{}, "certificate of agent front1 of cluster foobar refused: this port is for servers only", "bad certificate"},
		"an admin at the Raft port":       {server.Server(RoleServer), admin.Client("fb1"), Identity{}, "certificate of admin alice of cluster foobar refused", "bad certificate"},
		"nobody at the Raft port":         {server.Server(RoleServer), anonymous, Identity{}, "client didn't provide a certificate", "certificate required"},
		"another server than expected":    {server.Server(RoleServer), second.Client("fb3"), Identity{}, "bad certificate", "certificate of server fb1 of cluster foobar refused: expected server fb3 of cluster foobar"},
		"an agent that plays the server":  {agent.Server(RoleServer), second.Client("front1"), Identity{}, "bad certificate", "agent front1"},
		"an admin that plays the server":  {admin.Server(RoleServer), second.Client(""), Identity{}, "bad certificate", "admin alice"},
		"another cluster as client":       {server.Server(RoleServer), foreign.Client("fb1"), Identity{}, "", `"Holdfast CA of foobar": `},
		"another cluster as server":       {foreign.Server(RoleServer), server.Client("fb2"), Identity{}, "", `certificate that claims to be server fb2 of cluster other, issued by "Holdfast CA of other"`},
		"another CA of the same name":     {namesake.Server(RoleServer), server.Client("fb2"), Identity{}, "", "certificate that claims to be server fb2 of cluster foobar"},
		"TLS 1.2":                         {server.Server(RoleServer), old, Identity{}, "unsupported versions", "protocol version"},
		"HTTPS without a certificate":     {server.ServerOptional(), anonymous, Identity{}, "", ""},
		"HTTPS by an admin":               {server.ServerOptional(), admin.Client("fb1"), admin.Identity(), "", ""},
		"HTTPS by another cluster":        {server.ServerOptional(), blind(foreign), Identity{}, `claims to be server fb2 of cluster other`, "unknown certificate authority"},
		"Raft by another cluster, blind":  {server.Server(RoleServer), blind(foreign), Identity{}, `claims to be server fb2 of cluster other`, "unknown certificate authority"},
		"Raft by a namesake's CA, blind":  {server.Server(RoleServer), blind(namesake), Identity{}, `claims to be server fb2 of cluster foobar`, "unknown certificate authority"},
		"Raft, the client expired":        {after(second, server).Server(RoleServer), second.Client("fb1"), Identity{}, "expired", "expired"},
		"Raft, the server expired":        {server.Server(RoleServer), after(server, second).Client("fb1"), Identity{}, "", "expired"},
		"Raft with both clocks in 1970":   {at(server, time.Unix(0, 0)).Server(RoleServer), at(second, time.Unix(1, 0)).Client("fb1"), second.Identity(), "", ""},
		"Raft with one clock in 1970":     {at(server, time.Unix(0, 0)).Server(RoleServer), second.Client("fb1"), second.Identity(), "", ""},
		"Raft with the other clock there": {server.Server(RoleServer), at(second, time.Unix(0, 0)).Client("fb1"), second.Identity(), "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			peer, serverErr, clientErr := shake(t, c.server, c.client)
			refused := c.serverErr != "" || c.clientErr != ""
			if !refused && (serverErr != nil || clientErr != nil) {
				t.Fatalf("refused: server says %v, client says %v", serverErr, clientErr)
			}
			if refused && serverErr == nil && clientErr == nil {
				t.Fatal("accepted")
			}
			contains(t, "server", serverErr, c.serverErr)
			contains(t, "client", clientErr, c.clientErr)
			if diff := cmp.Diff(c.peer, peer); !refused && diff != "" {
				t.Errorf("peer (-want +got):\n%s", diff)
			}
		})
	}
}

// blind is a client that takes any server and shows its certificate also when
// the server names other authorities, as an attacker's would.
func blind(t *Trust) *tls.Config {
	c := t.Client("")
	c.InsecureSkipVerify, c.VerifyConnection = true, nil
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &t.issued.Load().cert, nil }
	return c
}

func at(t *Trust, now time.Time) *Trust {
	moved := *t
	moved.now = func() time.Time { return now }
	return &moved
}

// after is judge once the certificate of judged has expired.
func after(judged, judge *Trust) *Trust { return at(judge, judged.Expires().Add(time.Second)) }

func contains(t *testing.T, who string, err error, want string) {
	t.Helper()
	if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("%s says %v, want %q", who, err, want)
	}
}

func TestRefusalNamesTheIdentity(t *testing.T) {
	ca := newAuthority(t, "foobar")
	server := mustLoad(t, issueTo(t, ca, RoleServer, "fb1"))
	admin := mustLoad(t, issueTo(t, ca, RoleAdmin, "alice"))
	_, err, _ := shake(t, server.Server(RoleServer), admin.Client("fb1"))
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Peer != admin.Identity() {
		t.Fatalf("error %v, want a RefusedError with %v", err, admin.Identity())
	}
}

func TestPeerIdentityNeedsAVerifiedCertificate(t *testing.T) {
	trust := mustLoad(t, issueTo(t, newAuthority(t, "foobar"), RoleServer, "fb1"))
	if _, err := PeerIdentity(tls.ConnectionState{}); err == nil {
		t.Error("an identity without a certificate")
	}
	cs := tls.ConnectionState{}
	cs.PeerCertificates = append(cs.PeerCertificates, trust.issued.Load().cert.Leaf)
	if _, err := PeerIdentity(cs); err == nil || !strings.Contains(err.Error(), "not verified") {
		t.Errorf("unverified certificate: %v", err)
	}
}
