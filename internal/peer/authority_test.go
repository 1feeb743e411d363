package peer

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// newAuthority makes an authority in a directory of the test's own.
func newAuthority(t *testing.T, cluster string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	if err := Init(dir, cluster); err != nil {
		t.Fatal(err)
	}
	return dir
}

// issueTo issues for role and name and returns the directory.
func issueTo(t *testing.T, ca string, role Role, name string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), name)
	if err := Issue(ca, out, Request{Identity: Identity{Role: role, Name: name}}); err != nil {
		t.Fatal(err)
	}
	return out
}

func mustLoad(t *testing.T, dir string) *Trust {
	t.Helper()
	trust, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return trust
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestInitRefusesToOverwrite(t *testing.T) {
	dir := newAuthority(t, "foobar")
	before, _ := os.ReadFile(filepath.Join(dir, fileCAKey))
	err := Init(dir, "foobar")
	if !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "ca.crt exists") {
		t.Fatalf("second Init: %v, want fs.ErrExist naming ca.crt", err)
	}
	after, _ := os.ReadFile(filepath.Join(dir, fileCAKey))
	if string(before) != string(after) {
		t.Fatal("the second Init changed ca.key")
	}
}

func TestSecretsAreReadableByTheirOwnerOnly(t *testing.T) {
	ca := newAuthority(t, "foobar")
	node := issueTo(t, ca, RoleServer, "fb1")
	for _, path := range []string{
		filepath.Join(ca, fileCAKey), filepath.Join(ca, fileGossipKey),
		filepath.Join(node, fileNodeKey), filepath.Join(node, fileGossipKey),
	} {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %04o, want 0600", path, st.Mode().Perm())
		}
	}
}

func TestIssueGivesEachRoleWhatItNeeds(t *testing.T) {
	ca := newAuthority(t, "foobar")
	withGossip := []string{fileCA, fileGossipKey, fileNode, fileNodeKey}
	for role, want := range map[Role][]string{
		RoleServer: withGossip,
		RoleAgent:  withGossip,
		RoleAdmin:  {fileCA, fileNode, fileNodeKey},
	} {
		dir := issueTo(t, ca, role, "x1")
		if diff := cmp.Diff(want, names(t, dir)); diff != "" {
			t.Errorf("files of %s (-want +got):\n%s", role, diff)
		}
		trust := mustLoad(t, dir)
		if got := (Identity{"foobar", "x1", role}); trust.Identity() != got {
			t.Errorf("identity %v, want %v", trust.Identity(), got)
		}
		if has := len(trust.GossipKey()) == 32; has != (role != RoleAdmin) {
			t.Errorf("%s: gossip key of %d bytes", role, len(trust.GossipKey()))
		}
	}
}

func TestAllNodesGetTheSameGossipKey(t *testing.T) {
	ca := newAuthority(t, "foobar")
	one, two := mustLoad(t, issueTo(t, ca, RoleServer, "fb1")), mustLoad(t, issueTo(t, ca, RoleAgent, "fb2"))
	if !slices.Equal(one.GossipKey(), two.GossipKey()) {
		t.Fatal("two nodes of a cluster have different gossip keys")
	}
	other := mustLoad(t, issueTo(t, newAuthority(t, "foobar"), RoleServer, "fb1"))
	if slices.Equal(one.GossipKey(), other.GossipKey()) {
		t.Fatal("two clusters have the same gossip key")
	}
}

func TestCertificateCarriesNamesAndAddressesOfTheRequest(t *testing.T) {
	ca := newAuthority(t, "foobar")
	out := t.TempDir()
	err := Issue(ca, out, Request{
		Identity: Identity{Cluster: "foobar", Name: "fb1", Role: RoleServer},
		IPs:      []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00::1")},
		DNSNames: []string{"fb1.hpc.example.com"},
		Validity: 48 * time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	trust := mustLoad(t, out)
	leaf := trust.issued.Load().cert.Leaf
	for _, host := range []string{"10.1.0.1", "fd00::1", "fb1.hpc.example.com", "server.holdfast.internal"} {
		if err := leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	if !leaf.NotBefore.Equal(time.Unix(0, 0)) {
		t.Errorf("valid from %v, want the Unix epoch", leaf.NotBefore)
	}
	if left := time.Until(trust.Expires()); left < 47*time.Hour || left > 48*time.Hour {
		t.Errorf("expires in %v, want 48h", left)
	}
}

func TestIssueAgainRenewsInPlace(t *testing.T) {
	ca := newAuthority(t, "foobar")
	dir := issueTo(t, ca, RoleServer, "fb1")
	first := mustLoad(t, dir)
	if err := Issue(ca, dir, Request{Identity: Identity{Name: "fb1", Role: RoleServer}}); err != nil {
		t.Fatal(err)
	}
	if second := mustLoad(t, dir); second.issued.Load().cert.Leaf.Equal(first.issued.Load().cert.Leaf) {
		t.Fatal("the certificate was not renewed")
	}
	if got := names(t, dir); len(got) != 4 {
		t.Fatalf("files left in the directory: %v", got)
	}
}

func TestIssueRefuses(t *testing.T) {
	ca := newAuthority(t, "foobar")
	foreign := issueTo(t, newAuthority(t, "other"), RoleServer, "fb1")
	server := func(name string) Request { return Request{Identity: Identity{Name: name, Role: RoleServer}} }
	long := server("fb1")
	long.Validity = 40 * 365 * 24 * time.Hour
	otherCluster := server("fb1")
	otherCluster.Cluster = "other"
	badRole := server("fb1")
	badRole.Role = "ca"
	badDNS := server("fb1")
	badDNS.DNSNames = []string{"a b"}
	noIP := server("fb1")
	noIP.IPs = []netip.Addr{{}}
	for name, c := range map[string]struct {
		ca, out string
		r       Request
		now     time.Time
		want    string
	}{
		"no authority there":         {t.TempDir(), "", server("fb1"), time.Now(), "ca.crt is missing"},
		"longer than the authority":  {ca, "", long, time.Now(), "end before the authority does"},
		"another cluster":            {ca, "", otherCluster, time.Now(), "authority of cluster foobar, not of other"},
		"the authority's role":       {ca, "", badRole, time.Now(), "must be one of server, agent, admin"},
		"no name":                    {ca, "", server(""), time.Now(), "name is empty"},
		"a name that needs escaping": {ca, "", server("fb1/../x"), time.Now(), "only letters and digits"},
		"a clock in 1970":            {ca, "", server("fb1"), time.Unix(1000, 0), "clock says 1970-01-01"},
		"a directory of another CA":  {ca, foreign, server("fb1"), time.Now(), "certificate of another authority"},
		"a bad DNS name":             {ca, "", badDNS, time.Now(), "only letters and digits"},
		"an empty address":           {ca, "", noIP, time.Now(), "address of the request is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			out := c.out
			if out == "" {
				out = filepath.Join(t.TempDir(), "out")
			}
			err := issue(c.ca, out, c.r, c.now)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want one with %q", err, c.want)
			}
			if c.out != "" {
				mustLoad(t, c.out) // as it was
			} else if _, err := os.Stat(out); err == nil {
				t.Errorf("files were written: %v", names(t, out))
			}
		})
	}
}

func TestFailedWriteLeavesEverythingAsItWas(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "b"), 0o700); err != nil { // a file cannot replace it
		t.Fatal(err)
	}
	err := writeAll(dir, []file{{"b", modeSecret, []byte("x")}, {"c", modeSecret, []byte("y")}})
	if err == nil {
		t.Fatal("a file replaced a directory")
	}
	if diff := cmp.Diff([]string{"b"}, names(t, dir)); diff != "" {
		t.Errorf("left in the directory (-want +got):\n%s", diff)
	}
}

func TestLoadSaysWhatIsWrong(t *testing.T) {
	ca := newAuthority(t, "foobar")
	other := issueTo(t, newAuthority(t, "foobar"), RoleServer, "fb1")
	same := issueTo(t, ca, RoleServer, "fb2")
	copyFrom := func(dir, name string) func(t *testing.T, into string) {
		return func(t *testing.T, into string) {
			data, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			write(t, into, name, data)
		}
	}
	put := func(name, content string) func(*testing.T, string) {
		return func(t *testing.T, into string) { write(t, into, name, []byte(content)) }
	}
	remove := func(name string) func(*testing.T, string) {
		return func(t *testing.T, into string) { os.Remove(filepath.Join(into, name)) }
	}
	for name, c := range map[string]struct {
		spoil func(t *testing.T, dir string)
		want  string
	}{
		"no authority":             {remove(fileCA), "ca.crt is missing"},
		"no certificate":           {remove(fileNode), "node.crt is missing"},
		"no key":                   {remove(fileNodeKey), "node.key is missing"},
		"no gossip key":            {remove(fileGossipKey), "gossip.key is missing"},
		"key of another issue":     {copyFrom(same, fileNodeKey), "node.key is not the key of node.crt (server fb1 of cluster foobar)"},
		"authority of another":     {copyFrom(other, fileCA), "(server fb1 of cluster foobar) was not issued by the authority"},
		"a key that is no PEM":     {put(fileNodeKey, "secret words"), `node.key: does not hold a PEM block "PRIVATE KEY"`},
		"a key that is no key":     {put(fileNodeKey, "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"), "does not hold a PKCS #8"},
		"a certificate of rubbish": {put(fileNode, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "node.crt: not a certificate"},
		"two certificates": {func(t *testing.T, dir string) {
			data, _ := os.ReadFile(filepath.Join(dir, fileNode))
			write(t, dir, fileNode, append(data, data...))
		}, "more than one PEM block"},
		"a short gossip key":  {put(fileGossipKey, "c2hvcnQ="), "gossip.key: must be 32 bytes in base64"},
		"the CA as node":      {func(t *testing.T, dir string) { asNode(t, ca, dir) }, "authority's own certificate"},
		"a node as CA":        {func(t *testing.T, dir string) { copyAs(t, dir, fileNode, fileCA) }, "not the certificate of an authority"},
		"an enormous file":    {put(fileNode, strings.Repeat("x", maxFile+1)), "more than the"},
		"a key for everybody": {func(t *testing.T, dir string) { os.Chmod(filepath.Join(dir, fileNodeKey), 0o604) }, "can be read by everybody"},
		"a directory as a key": {func(t *testing.T, dir string) {
			remove(fileNodeKey)(t, dir)
			os.Mkdir(filepath.Join(dir, fileNodeKey), 0o700)
		}, "not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := issueTo(t, ca, RoleServer, "fb1")
			c.spoil(t, dir)
			_, err := Load(dir)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want one with %q", err, c.want)
			}
			for _, secret := range []string{"secret words", "c2VjcmV0", "c2hvcnQ"} {
				if strings.Contains(err.Error(), secret) {
					t.Fatalf("the error quotes a file's content: %v", err)
				}
			}
		})
	}
}

func write(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func copyAs(t *testing.T, dir, from, to string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, from))
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, to, data)
}

// asNode makes dir look as if the CA were a node.
func asNode(t *testing.T, ca, dir string) {
	t.Helper()
	for from, to := range map[string]string{fileCA: fileNode, fileCAKey: fileNodeKey} {
		data, err := os.ReadFile(filepath.Join(ca, from))
		if err != nil {
			t.Fatal(err)
		}
		write(t, dir, to, data)
	}
}

func TestLoadKnowsTimeOnlyOneWay(t *testing.T) {
	dir := issueTo(t, newAuthority(t, "foobar"), RoleServer, "fb1")
	if _, err := load(dir, time.Unix(0, 0)); err != nil {
		t.Errorf("with the clock at 1970: %v", err)
	}
	_, err := load(dir, time.Now().Add(DefaultValidity+time.Hour))
	if err == nil || !strings.Contains(err.Error(), "(server fb1 of cluster foobar) expired on ") {
		t.Errorf("after its end: %v, want expired", err)
	}
	_, err = load(dir, time.Now().Add(caValidity+time.Hour))
	if err == nil {
		t.Error("after the authority's end: no error")
	}
}
