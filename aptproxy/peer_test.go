package aptproxy

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// besides makes other the only peer of p.
func besides(p, other *proxy) {
	a := *p.active.Load()
	a.peers = []*mirror{{base: target{host: strings.TrimPrefix(other.url, "http://"), path: peerPath}}}
	a.upstream = newUpstream(a.settings, a.peers, p.stall)
	p.active.Store(&a)
}

func TestWhatNoMirrorHasAnyMoreComesFromAnotherServiceNode(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	one, two := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o)), startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	besides(two, one)
	one.update(o)
	two.update(o)
	one.must(o, largeDeb)
	one.settled()
	want := o.file(t, largeDeb)
	if err := os.Remove(filepath.Join(o.repo.Dir, largeDeb)); err != nil { // superseded
		t.Fatal(err)
	}
	if a := two.get("/debian/" + largeDeb); a.err != nil || a.status != http.StatusOK || string(a.body) != string(want) {
		t.Fatalf("status %d, %d bytes, %v", a.status, len(a.body), a.err)
	}
	one.stop()
	if a := two.get("/debian/" + largeDeb); a.status != http.StatusOK {
		t.Errorf("what came from the other node was not kept: %d", a.status)
	}
}

func TestAnotherServiceNodeIsBelievedNoMoreThanAMirror(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	two := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	two.update(o)
	liar := newOrigin(t, o.repo)
	asked := ""
	liar.spoiling(func(w http.ResponseWriter, r *http.Request) bool {
		asked = r.URL.Path
		_, _ = w.Write(noise("a lie", len(o.file(t, smallDeb))))
		return true
	})
	besides(two, &proxy{url: liar.URL})
	if err := os.Remove(filepath.Join(o.repo.Dir, largeDeb)); err != nil {
		t.Fatal(err)
	}
	if a := two.get("/debian/" + largeDeb); a.err == nil && a.status == http.StatusOK {
		t.Errorf("a lie was served: %d bytes", len(a.body))
	}
	if !strings.HasPrefix(asked, peerPath+"/") {
		t.Errorf("the peer was asked for %q", asked)
	}
}

func TestANodeGivesOthersOnlyWhatItHas(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	for path, want := range map[string]int{
		peerPath + "/" + strings.Repeat("0", 64): http.StatusNotFound,
		peerPath + "/../../../etc/passwd":        http.StatusBadRequest,
		peerPath + "/short":                      http.StatusBadRequest,
	} {
		if a := p.get(path); a.status != want {
			t.Errorf("%s: status %d, want %d", path, a.status, want)
		}
	}
}
