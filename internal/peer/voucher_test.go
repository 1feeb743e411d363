package peer

import (
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// fetched is what a bare node gets before it knows anybody.
func fetched(t *testing.T, ca string) (list []byte, fingerprint string) {
	t.Helper()
	list, fingerprint, err := AuthorityOf(ca)
	if err != nil {
		t.Fatal(err)
	}
	return list, fingerprint
}

// A token names one authority. As long as the cluster has that one, a bare node
// finds it, whichever of the two the server has its certificate by.
func TestABareNodeFindsItsClusterThroughEveryStepOfARotation(t *testing.T) {
	r := newRotating(t, "fb1")
	listen := r.trust["fb1"].ServerOptional()
	finds := func(when, token string) {
		t.Helper()
		list, _ := fetched(t, r.ca)
		client, err := JoinClient(list, token)
		if err == nil {
			err = r.talk(client, listen)
		}
		if err != nil {
			t.Errorf("%s: a node with the token of %.8s: %v", when, token, err)
		}
	}
	_, before := fetched(t, r.ca)
	finds("before", before)
	at := r.step(RotateBegin, RotationBegun)
	finds("begun", before)
	r.install("fb1")
	finds("begun, and the server has got its files", before)
	if !Installed(r.dirs["fb1"], before) {
		t.Error("a node with a disk asks again for what it has")
	}
	if _, made := fetched(t, r.ca); made != before {
		t.Errorf("a token made now names %s, want the issuing %s", made, before)
	}
	r.step(RotateSwitch, RotationSwitched)
	_, after := fetched(t, r.ca)
	if before[:16] != at.Old || after[:16] != at.New {
		t.Errorf("tokens name %s and %s, want %s and %s", before, after, at.Old, at.New)
	}
	for _, token := range []string{before, after} {
		finds("switched", token)
	}
	r.install("fb1")
	for _, token := range []string{before, after} {
		finds("switched, and the server has got its files", token)
		if !Installed(r.dirs["fb1"], token) {
			t.Errorf("a node with a disk and the token of %.8s asks again for what it has", token)
		}
	}
	r.step(RotateFinish, RotationNone)
	finds("finished", after)
	r.install("fb1")
	finds("finished, and the server has got its files", after)
	if list, _ := fetched(t, r.ca); Holds(list, before) {
		t.Error("the old authority is still there")
	}
	list, _ := fetched(t, r.ca)
	if _, err := JoinClient(list, before); err == nil {
		t.Error("a token of the authority that was dropped is taken")
	}
	if Installed(r.dirs["fb1"], before) {
		t.Error("the certificate is taken for one of the old authority")
	}
}

// Who stands between a bare node and its cluster can add an authority of his
// own to what is fetched, and say of himself what he likes.
func TestAStrangerInTheListIsNotBelieved(t *testing.T) {
	r := newRotating(t, "fb1")
	alone, token := fetched(t, r.ca)
	r.step(RotateBegin, RotationBegun)
	both, _ := fetched(t, r.ca)
	strange := newAuthority(t, "foobar")
	stranger := mustLoad(t, issueTo(t, strange, RoleServer, "fb1"))
	own, strangeToken := fetched(t, strange)
	forge := func(parts ...[]byte) []byte { return slices.Concat(parts...) }
	// His voucher for the list of the cluster's authority and his own.
	list := forge(alone, own)
	cas, err := parseBundle(list)
	if err != nil {
		t.Fatal(err)
	}
	a, err := loadAuthority(strange)
	if err != nil {
		t.Fatal(err)
	}
	a.cas, a.pem = cas, list
	vouched, err := a.vouched(strange)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := parseVouched(vouched, strangeToken); err != nil || len(got) != 2 {
		t.Fatalf("his voucher does not even count for himself: %d, %v", len(got), err)
	}
	for name, list := range map[string][]byte{
		"added":                              list,
		"with a voucher of his own":          vouched,
		"with the cluster's for another":     forge(own, both),
		"behind the cluster's for another":   forge(both, own),
		"with the cluster's, in another row": forge(own, alone, both[len(mustRead(t, filepath.Join(r.ca, fileCA))):]),
	} {
		client, err := JoinClient(list, token)
		if err != nil {
			t.Errorf("%s: the cluster is not found: %v", name, err)
			continue
		}
		if err := r.talk(client, stranger.ServerOptional()); err == nil {
			t.Errorf("%s: the stranger is believed", name)
		}
		if err := r.talk(client, r.trust["fb1"].ServerOptional()); err != nil {
			t.Errorf("%s: the cluster's server is not believed: %v", name, err)
		}
	}
	if _, err := JoinClient(own, token); err == nil {
		t.Error("the stranger alone is believed")
	}
}

// FuzzVouched: nothing that is fetched makes the parser fail otherwise than by
// an error, or believe more than the authority of the token without its word.
func FuzzVouched(f *testing.F) {
	dir := filepath.Join(f.TempDir(), "ca")
	if err := Init(dir, "foobar"); err != nil {
		f.Fatal(err)
	}
	one, token, err := AuthorityOf(dir)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := RotateBegin(dir); err != nil {
		f.Fatal(err)
	}
	two, _, err := AuthorityOf(dir)
	if err != nil {
		f.Fatal(err)
	}
	bundle, err := os.ReadFile(filepath.Join(dir, fileCA))
	if err != nil {
		f.Fatal(err)
	}
	good, err := parseVouched(two, token)
	if err != nil || len(good) != 2 {
		f.Fatalf("%d, %v", len(good), err)
	}
	bogus := pem.EncodeToMemory(&pem.Block{Type: voucherType, Bytes: []byte("none")})
	for _, seed := range [][]byte{one, two, bundle, slices.Concat(bundle, bogus), bogus, nil} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		cas, err := parseVouched(data, token)
		if err != nil {
			return
		}
		if named(cas, token) == nil || len(cas) > 1 && !slices.Equal(idsOf(cas), idsOf(good)) {
			t.Errorf("believes %v", idsOf(cas))
		}
	})
}
