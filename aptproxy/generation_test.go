package aptproxy

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/lab/aptorigin"
)

func TestAPushInTheMiddleOfAClientsUpdateGivesItOneGeneration(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	p.update(o)
	old := o.file(t, packages)
	add(t, o.repo, "small1", "2.0", 4<<10)
	publish(t, o.repo, aptorigin.Release{NoByHash: true})
	if a := p.get("/debian/" + packages); !bytes.Equal(a.body, old) {
		t.Error("a client that saw the old Release got the new index")
	}
	p.clock.pass(time.Hour)
	p.update(o) // now it sees the new one, whole
	if bytes.Equal(o.file(t, packages), old) {
		t.Fatal("the push changed nothing")
	}
}

func TestANewGenerationIsShownOnlyWhenItsIndicesAreHere(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	p.update(o)
	old := o.file(t, inRelease)
	add(t, o.repo, "small1", "2.0", 4<<10)
	publish(t, o.repo, aptorigin.Release{})
	// The mirror has its new Release, and its indices not yet.
	o.spoiling(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "binary-amd64") {
			return false
		}
		http.NotFound(w, r)
		return true
	})
	p.clock.pass(time.Hour)
	if a := p.get("/debian/" + inRelease); a.status != http.StatusOK || !bytes.Equal(a.body, old) {
		t.Errorf("status %d; the incomplete generation is shown", a.status)
	}
	if st := p.Status(); len(st.Suites) != 1 || !strings.Contains(st.Suites[0].Trouble, "not complete") {
		t.Errorf("%+v", st.Suites)
	}
	o.spoiling(nil)
	p.clock.pass(time.Hour)
	p.update(o)
}

func TestReleasesThatNobodyShouldBelieveAreNotServed(t *testing.T) {
	stranger := newRepository(t)
	for name, spoil := range map[string]func(t *testing.T, repo *aptorigin.Repository) []byte{
		"signed by a stranger": func(t *testing.T, _ *aptorigin.Repository) []byte {
			data, err := os.ReadFile(filepath.Join(stranger.Dir, inRelease))
			if err != nil {
				t.Fatal(err)
			}
			return data
		},
		"older than the one before": func(t *testing.T, repo *aptorigin.Repository) []byte {
			publish(t, repo, aptorigin.Release{Date: time.Now().Add(-24 * time.Hour)})
			data, err := os.ReadFile(filepath.Join(repo.Dir, inRelease))
			if err != nil {
				t.Fatal(err)
			}
			return data
		},
		"a page": func(*testing.T, *aptorigin.Repository) []byte { return []byte("<html>Please log in</html>") },
		"empty":  func(*testing.T, *aptorigin.Repository) []byte { return nil },
		"without its signature": func(t *testing.T, repo *aptorigin.Repository) []byte {
			data, err := os.ReadFile(filepath.Join(repo.Dir, "dists/test/Release"))
			if err != nil {
				t.Fatal(err)
			}
			return data
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOrigin(t, newRepository(t))
			p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
			p.update(o)
			good := o.file(t, inRelease)
			bad := spoil(t, o.repo)
			o.spoiling(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, "InRelease") {
					return false
				}
				_, _ = w.Write(bad)
				return true
			})
			p.clock.pass(time.Hour)
			if a := p.get("/debian/" + inRelease); a.status != http.StatusOK || !bytes.Equal(a.body, good) {
				t.Errorf("status %d: %s", a.status, clip(string(a.body)))
			}
			// Without one from before there is nothing to serve.
			fresh := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
			if a := fresh.get("/debian/" + inRelease); a.status != http.StatusBadGateway && name != "older than the one before" {
				t.Errorf("a proxy that knows nothing answers %d: %s", a.status, clip(string(a.body)))
			}
		})
	}
}

func TestAnExpiredReleaseIsServedWithAWarning(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	publish(t, o.repo, aptorigin.Release{ValidFor: 24 * time.Hour})
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	if a := p.must(o, inRelease); a.header.Get("Warning") != "" {
		t.Errorf("warned of a valid one: %s", a.header.Get("Warning"))
	}
	o.Close() // offline
	p.clock.pass(48 * time.Hour)
	a := p.get("/debian/" + inRelease)
	if a.status != http.StatusOK || !strings.Contains(a.header.Get("Warning"), "expired 24h") {
		t.Errorf("status %d, warning %q", a.status, a.header.Get("Warning"))
	}
	if st := p.Status(); !st.Suites[0].Expired || st.Suites[0].Trouble == "" {
		t.Errorf("%+v", st.Suites)
	}
}

func TestReleaseAndItsSignatureBelongTogether(t *testing.T) {
	for _, inline := range []bool{true, false} {
		o := newOrigin(t, newRepository(t))
		publish(t, o.repo, aptorigin.Release{NoInline: !inline})
		p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
		if inline {
			p.must(o, inRelease)
		} else if a := p.get("/debian/" + inRelease); a.status != http.StatusNotFound {
			t.Errorf("InRelease that there is not: status %d", a.status)
		}
		p.must(o, "dists/test/Release")
		signature := o.file(t, "dists/test/Release.gpg")
		add(t, o.repo, "small1", "2.0", 4<<10)
		publish(t, o.repo, aptorigin.Release{NoInline: !inline})
		if a := p.get("/debian/dists/test/Release.gpg"); !bytes.Equal(a.body, signature) {
			t.Errorf("inline %v: the signature of another Release came after the push: status %d", inline, a.status)
		}
	}
}

func TestAfterARestartWithoutMirrorsEverythingThatWasSeenIsServed(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	dir := t.TempDir()
	p := startProxy(t, dir, oneRepository(o.repo.Keyring, o))
	p.update(o)
	p.must(o, smallDeb)
	p.stop()
	o.spoiling(func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, "down", http.StatusServiceUnavailable)
		return true
	})
	p = startProxy(t, dir, oneRepository(o.repo.Keyring, o))
	p.update(o)
	p.must(o, smallDeb)
	if a := p.get("/debian/" + largeDeb); a.status != http.StatusBadGateway {
		t.Errorf("a file that was never seen: status %d", a.status)
	}
	if a := p.get("/acng-report.html"); a.status != http.StatusServiceUnavailable || !strings.Contains(string(a.body), "mirror") {
		t.Errorf("the report with all mirrors down: %d %s", a.status, a.body)
	}
}

func TestAPackageIsProvenThoughItsClientHasItsIndicesFromBefore(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	p.must(o, inRelease) // "Hit": the client does not ask for indices
	o.spoiling(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, "/pool/") {
			return false
		}
		_, _ = w.Write([]byte("not the package"))
		return true
	})
	name := strings.Replace(smallDeb, "_all", "_all", 1)
	if a := p.get("/debian/" + name); a.err == nil && a.status == http.StatusOK {
		t.Errorf("served unproven: %s", a.body)
	}
}

func TestTheSameNameWithAnotherHashIsAnotherFile(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	p.update(o)
	p.must(o, smallDeb)
	if err := o.repo.Add(aptorigin.Package{Name: "small1", Version: "1.0", Content: []byte("published again")}); err != nil {
		t.Fatal(err)
	}
	publish(t, o.repo, aptorigin.Release{})
	p.clock.pass(time.Hour)
	p.update(o)
	p.must(o, smallDeb)
}

func TestAConditionSaysHowOldIsWhatIsServed(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	publish(t, o.repo, aptorigin.Release{ValidFor: 24 * time.Hour})
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	p.update(o)
	text := func(name string) string {
		p.observe()
		for _, c := range p.board.Conditions() {
			if c.Name == name {
				return c.Message
			}
		}
		return ""
	}
	// The server looks for itself, too, and may say in between what it saw before.
	says := func(what, name string, words ...string) {
		t.Helper()
		said := ""
		defer func() {
			if t.Failed() {
				t.Logf("%s: %q", what, said)
			}
		}()
		eventually(t, what, func() bool {
			said = text(name)
			return (said == "") == (len(words) == 0) && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(said, w) })
		})
	}
	says("all is well", "apt.offline.debian")
	says("nothing expired", "apt.expired.debian")
	o.spoiling(func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, "down", http.StatusServiceUnavailable)
		return true
	})
	p.clock.pass(30 * time.Hour)
	p.must(o, inRelease)
	says("no mirror answers", "apt.offline.debian", "dists/test of 20", "503")
	says("the Release expired", "apt.expired.debian", "dists/test expired at 20")
	o.spoiling(nil)
	publish(t, o.repo, aptorigin.Release{ValidFor: 48 * time.Hour})
	p.clock.pass(time.Hour)
	p.must(o, inRelease)
	says("all is well again", "apt.offline.debian")
	says("nothing is expired any more", "apt.expired.debian")
}
