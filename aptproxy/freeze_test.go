package aptproxy

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/aptproxy/deb"
	"holdfast/internal/state"
	"holdfast/lab/aptorigin"
)

// aptUpdate runs the real apt-get update over a tree of its own.
func aptUpdate(t *testing.T, url, keyring string) (string, error) {
	t.Helper()
	needs(t, "apt-get")
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // apt's own checks run as another user
		t.Fatal(err)
	}
	for _, sub := range []string{"etc/apt/preferences.d", "lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "status"), "")
	write(t, filepath.Join(dir, "sources.list"), fmt.Sprintf("deb [signed-by=%s] %s test main\n", keyring, url))
	args := []string{"-q", "-o", "APT::Update::Error-Mode=any", "-o", "Acquire::Retries=0", "-o", "APT::Sandbox::User=root",
		"-o", "Acquire::Check-Valid-Until=true", "-o", "Acquire::Check-Date=true"} // what a machine may have switched off
	for key, path := range map[string]string{
		"Dir::Etc": "etc/apt", "Dir::Etc::SourceList": "sources.list", "Dir::Etc::SourceParts": "-", "Dir::State::Lists": "lists",
		"Dir::State::Status": "status", "Dir::Cache": "cache", "Dir::Etc::Trusted": "none", "Dir::Etc::TrustedParts": "none",
	} {
		if path != "-" {
			path = filepath.Join(dir, path)
		}
		args = append(args, "-o", key+"="+path)
	}
	out, err := exec.CommandContext(t.Context(), "apt-get", append(args, "update")...).CombinedOutput()
	return string(out), err
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// withKey is a proxy beside a store that has a key to sign with.
func withKey(t *testing.T, store *shared, o *origin) *proxy {
	t.Helper()
	signer, err := deb.NewSigner("the cluster", time.Now().Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	key, err := signer.Private()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key.asc")
	write(t, path, string(key))
	return startShared(t, store, oneRepository(o.repo.Keyring, o)+"  sign_key: {file: "+path+"}\n")
}

func TestAFrozenReleaseThatExpiredIsBelievedWhenTheClusterSignsIt(t *testing.T) {
	repo := newRepository(t)
	publish(t, repo, aptorigin.Release{Date: time.Now().Add(-10 * 24 * time.Hour), ValidFor: 7 * 24 * time.Hour})
	o := newOrigin(t, repo)
	store := &shared{Store: state.New(), index: 10}
	p := withKey(t, store, o)
	other := startShared(t, store, oneRepository(o.repo.Keyring, o)) // has no key, and never saw the suite
	if out, err := aptUpdate(t, p.url+"/debian", o.repo.Keyring); err == nil || !strings.Contains(out, "expired") {
		t.Fatalf("apt takes a Release that expired: %v\n%s", err, out)
	}
	list, err := p.Freeze(t.Context(), FreezeRequest{View: "all", Resign: true})
	if err != nil || len(list) != 1 || !list[0].Resigned || list[0].Trouble != "" {
		t.Fatalf("%+v, %v", list, err)
	}
	other.compileViews()
	for name, server := range map[string]*proxy{"the node that froze it": p, "another": other} {
		answer := server.get(keyringPath)
		if answer.status != http.StatusOK {
			t.Fatalf("%s gives no keyring: %d %s", name, answer.status, answer.body)
		}
		keyring := filepath.Join(t.TempDir(), "cluster.asc")
		if err := os.WriteFile(keyring, answer.body, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Dir(filepath.Dir(keyring)), 0o755); err != nil {
			t.Fatal(err)
		}
		if out, err := aptUpdate(t, server.url+"/debian", keyring); err != nil || strings.Contains(out, "W:") {
			t.Errorf("%s: apt refuses what the cluster signed: %v\n%s", name, err, out)
		}
		if out, err := aptUpdate(t, server.url+"/debian", o.repo.Keyring); err == nil {
			t.Errorf("%s: apt takes it under the repository's own key:\n%s", name, out)
		}
		for _, file := range []string{"Release", "Release.gpg"} { // for clients that ask for these
			if a := server.get("/debian/dists/test/" + file); a.status != http.StatusOK || bytes.Contains(a.body, []byte("Valid-Until")) {
				t.Errorf("%s: %s: status %d\n%s", name, file, a.status, a.body)
			}
		}
	}
}

func TestWhatIsSignedAnewMustBeWhatTheRepositorySigned(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	store := &shared{Store: state.New(), index: 10}
	p := withKey(t, store, o)
	p.update(o)
	if _, err := p.Freeze(t.Context(), FreezeRequest{View: "all", Resign: true}); err != nil {
		t.Fatal(err)
	}
	repo := p.active.Load().repositories[0]
	doc := p.views.Load().list[0].docs[[2]string{"debian", "dists/test"}]
	if _, err := p.thawed("debian", "dists/test", doc); err != nil {
		t.Fatal(err)
	}
	text, err := doc.text(repo)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := loadSigner(p.active.Load().settings.signKey)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := p.resign(signer, append(bytes.Clone(text), " 0000000000000000000000000000000000000000000000000000000000000000 1 main/evil\n"...))
	if err != nil {
		t.Fatal(err)
	}
	spoilt := doc
	spoilt.Resigned = forged
	if _, err := p.thawed("debian", "dists/test", spoilt); err == nil {
		t.Error("a text that the repository never signed is served under the cluster's key")
	}
	spoilt.Resigned = &resigned{doc.Resigned.Inline, forged.Signature, doc.Resigned.Key}
	if _, err := p.thawed("debian", "dists/test", spoilt); err == nil {
		t.Error("a signature of another text is served")
	}
}

func TestAKeyThatOthersCanReadSignsNothing(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := withKey(t, &shared{Store: state.New(), index: 10}, o)
	p.update(o)
	path := p.active.Load().settings.signKey
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Freeze(t.Context(), FreezeRequest{View: "all", Resign: true}); !errors.Is(err, state.ErrInvalid) || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("%v", err)
	}
	without := startShared(t, &shared{Store: state.New(), index: 10}, oneRepository(o.repo.Keyring, o))
	without.update(o)
	if _, err := without.Freeze(t.Context(), FreezeRequest{View: "all", Resign: true}); !errors.Is(err, state.ErrInvalid) || !strings.Contains(err.Error(), "signing-key") {
		t.Errorf("%v", err)
	}
	if a := without.get(keyringPath); a.status != http.StatusNotFound {
		t.Errorf("a keyring of nothing: %d %s", a.status, a.body)
	}
}

func TestRollbackGoesBackToWhatAViewHeldBefore(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startShared(t, &shared{Store: state.New(), index: 10}, oneRepository(o.repo.Keyring, o))
	p.update(o)
	if _, err := p.Rollback(t.Context(), "all"); !errors.Is(err, state.ErrNotFound) {
		t.Errorf("there is nothing to go back to: %v", err)
	}
	freeze := func() string {
		t.Helper()
		list, err := p.Freeze(t.Context(), FreezeRequest{View: "all"})
		if err != nil {
			t.Fatal(err)
		}
		return list[0].Generation
	}
	first := freeze()
	add(t, o.repo, "small1", "2.0", 4<<10)
	publish(t, o.repo, aptorigin.Release{})
	if err := p.Thaw(t.Context(), "all"); err != nil {
		t.Fatal(err)
	}
	p.clock.pass(time.Hour)
	p.update(o)
	if list, err := p.Rollback(t.Context(), "all"); err != nil || len(list) != 1 || list[0].Generation != first {
		t.Fatalf("a thaw undone: %+v, %v", list, err)
	}
	second := freeze()
	if first == second {
		t.Fatal("the repository did not change")
	}
	for _, want := range []string{first, second, first} { // a rollback is undone by another
		list, err := p.Rollback(t.Context(), "all")
		if err != nil || len(list) != 1 || list[0].Generation != want {
			t.Fatalf("want %s: %+v, %v", short(want), list, err)
		}
	}
	if a := p.get("/debian/" + inRelease); a.status != http.StatusOK {
		t.Errorf("status %d", a.status)
	}
}

func short(id string) string { return id[:12] }
