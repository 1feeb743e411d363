package aptproxy

import (
	"errors"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"testing"
)

func TestWhatIsServedIsTheOriginsAndAskedForOnce(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	p.update(o)
	for range 3 {
		p.must(o, largeDeb)
		p.must(o, smallDeb)
	}
	for _, name := range []string{inRelease, packages, largeDeb, smallDeb} {
		if n := o.got(name); n != 1 && name != packages {
			t.Errorf("%s was asked for %d times", name, n)
		}
	}
}

func TestAFileThatLandedMeanwhileIsNotFetchedAgain(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	p.update(o)
	p.must(o, largeDeb)
	p.settled()
	// Who looked in the store before it landed, and joins after.
	repo := p.active.Load().repositories[0]
	f, err := p.resolve(t.Context(), repo, "127.0.0.1", largeDeb)
	if err != nil {
		t.Fatal(err)
	}
	one, reader := p.fetch(p.wantOf(repo, f.vouched, f.paths))
	reader.close()
	<-one.done
	if err := one.body.failure(); err != nil || o.got(largeDeb) != 1 {
		t.Errorf("the mirror was asked %d times, %v", o.got(largeDeb), err)
	}
	p.must(o, largeDeb)
}

// TestWhoAsksAfterADownloadFailedGetsAnother: who was told of the failure may ask
// again before the download has left the list of those under way. The first error
// would be his answer once more, though the mirror may have come back.
func TestWhoAsksAfterADownloadFailedGetsAnother(t *testing.T) {
	list := flights{by: map[string]*flight{}}
	begin := func() *flight { return newFlight(nil) }
	failed, reader := list.join("x", begin)
	if same, _ := list.join("x", begin); same != failed {
		t.Error("two who ask at once get two downloads")
	}
	failed.body.end(errors.New("reset by the mirror"))
	if _, err := reader.next(t.Context(), make([]byte, 1)); err == nil {
		t.Error("a reader is not told of the failure")
	}
	again, _ := list.join("x", begin)
	if again == failed {
		t.Fatal("who asks again is given the download that failed")
	}
	list.leave("x", failed) // later than the other came
	again.body.end(nil)
	if same, _ := list.join("x", begin); same != again {
		t.Error("one that is whole, and on its way to the disk, is fetched again")
	}
}

func TestAsAProxyTheRepositoryIsKnownByItsURL(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	u, err := url.Parse(p.url)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(u)}}
	for _, name := range []string{inRelease, packages, smallDeb} {
		response, err := client.Get(o.URL + "/debian/" + name)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if response.StatusCode != http.StatusOK || response.Header.Get("Etag") == "" {
			t.Errorf("%s: %s", name, response.Status)
		}
	}
}

func TestAFlippedByteOnTheDiskIsNeverServed(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	p.update(o)
	p.must(o, largeDeb)
	p.settled()
	blobs, err := filepath.Glob(filepath.Join(p.config.Dir, "blobs", "*", "*"))
	if err != nil || len(blobs) == 0 {
		t.Fatal(err)
	}
	for _, blob := range blobs {
		data, err := os.ReadFile(blob)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 1
		if err := os.Chmod(blob, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(blob, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p.must(o, largeDeb)
	p.update(o)
	if n := o.got(largeDeb); n != 2 {
		t.Errorf("the damaged package was fetched %d times in all, want 2", n)
	}
}
