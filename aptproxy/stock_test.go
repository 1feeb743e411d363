package aptproxy

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/state"
	"holdfast/lab/aptorigin"
)

func TestWarmingFetchesTheNewVersionsOfWhatNodesUse(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	if _, err := p.Warm(t.Context(), WarmRequest{}); !errors.Is(err, state.ErrNotFound) {
		t.Errorf("nothing was used yet: %v", err)
	}
	p.update(o)
	p.must(o, smallDeb)
	p.settled()
	add(t, o.repo, "small1", "2.0", 4<<10)
	add(t, o.repo, "small2", "2.0", 4<<10)
	publish(t, o.repo, aptorigin.Release{})
	p.clock.pass(time.Hour)
	p.update(o)
	newest := "pool/main/s/small1/small1_2.0_all.deb"
	report, err := p.Warm(t.Context(), WarmRequest{Suite: "test"})
	// Both versions are listed; the old one is here.
	if err != nil || report.Fetched != 1 || report.Here != 1 || len(report.Failed) != 0 || o.got(newest) != 1 {
		t.Fatalf("%+v, %v; the mirror was asked %d times", report, err, o.got(newest))
	}
	p.must(o, newest)
	if o.got(newest) != 1 {
		t.Error("what was warmed was fetched again")
	}
	if o.got("pool/main/s/small2/small2_2.0_all.deb") != 0 {
		t.Error("what nobody uses was fetched")
	}
	report, err = p.Warm(t.Context(), WarmRequest{Repository: "debian", Packages: []string{"large", "nosuch"}})
	if err != nil || report.Fetched != 1 || report.Bytes < 1<<20 || len(report.Unknown) != 1 || report.Unknown[0] != "nosuch" {
		t.Errorf("%+v, %v", report, err)
	}
	if _, err := p.Warm(t.Context(), WarmRequest{Suite: "sid", Packages: []string{"large"}}); !errors.Is(err, state.ErrNotFound) {
		t.Errorf("a suite that nobody uses: %v", err)
	}
}

func TestWarmingSaysWhatTheMirrorDoesNotHave(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	p.update(o)
	if err := os.Remove(filepath.Join(o.repo.Dir, largeDeb)); err != nil {
		t.Fatal(err)
	}
	report, err := p.Warm(t.Context(), WarmRequest{Packages: []string{"large", "small1"}})
	if err != nil || report.Fetched != 1 || len(report.Failed) != 1 || !strings.HasPrefix(report.Failed[0], largeDeb+": ") {
		t.Errorf("%+v, %v", report, err)
	}
}

func TestAnImportTakesWhatIsVouchedForAndNothingElse(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	cache := t.TempDir() // as apt-cacher-ng has it
	if _, err := p.Import(t.Context(), cache); !errors.Is(err, state.ErrNotFound) {
		t.Errorf("nothing is known yet: %v", err)
	}
	p.update(o)
	put := func(name string, data []byte) {
		t.Helper()
		path := filepath.Join(cache, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	large := o.file(t, largeDeb)
	put("debrep/"+largeDeb, large)
	put("debrep/"+largeDeb+".head", []byte("HTTP/1.1 200 OK\r\n"))
	flipped := bytes.Clone(o.file(t, smallDeb))
	flipped[100] ^= 1
	put("debrep/"+smallDeb, flipped)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, o.file(t, "pool/main/s/small2/small2_1.0_all.deb"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(cache, "link")); err != nil {
		t.Fatal(err)
	}
	report, err := p.Import(t.Context(), cache)
	if err != nil || report.Imported != 1 || report.Bytes != int64(len(large)) || report.Unknown != 2 || report.Failed != 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	p.must(o, largeDeb)
	if o.got(largeDeb) != 0 {
		t.Error("what was imported was fetched")
	}
	p.must(o, smallDeb)
	if again, err := p.Import(t.Context(), cache); err != nil || again.Imported != 0 || again.Here != 1 {
		t.Errorf("a second import: %+v, %v", again, err)
	}
	if _, err := p.Import(t.Context(), filepath.Join(cache, "nosuch")); !errors.Is(err, state.ErrInvalid) {
		t.Errorf("a directory that is not there: %v", err)
	}
}

func TestAPurgeRemovesWhatIsNamedOrNotNeeded(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	p.update(o)
	p.must(o, smallDeb)
	p.must(o, largeDeb)
	p.settled()
	report, err := p.Purge(t.Context(), PurgeRequest{Files: []string{"debian/" + smallDeb}})
	if err != nil || report.Removed != 1 {
		t.Fatalf("%+v, %v", report, err)
	}
	p.must(o, smallDeb)
	if o.got(smallDeb) != 2 {
		t.Errorf("the mirror was asked %d times for what was purged", o.got(smallDeb))
	}
	p.settled()
	for _, name := range []string{"debian/pool/nosuch.deb", "nosuch/" + smallDeb, "", "../../etc/passwd"} {
		if _, err := p.Purge(t.Context(), PurgeRequest{Files: []string{name}}); !errors.Is(err, state.ErrNotFound) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := p.store.Put([]byte("of a generation that is gone"), time.Time{}); err != nil {
		t.Fatal(err)
	}
	before := p.store.Stats().Blobs
	if report, err := p.Purge(t.Context(), PurgeRequest{Unreferenced: true}); err != nil || report.Removed != 1 || p.store.Stats().Blobs != before-1 {
		t.Errorf("%+v, %v: of %d there are %d", report, err, before, p.store.Stats().Blobs)
	}
	p.must(o, largeDeb)
	if o.got(largeDeb) != 1 {
		t.Error("a purge took what is needed")
	}
}

func TestAQuotaTakesWhatWasUsedLongestAgo(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), strings.Replace(oneRepository(o.repo.Keyring, o), "debian: {", "debian: {max: 30K, ", 1))
	p.update(o)
	names := []string{smallDeb}
	for i := range 5 {
		if i != 1 {
			names = append(names, fmt.Sprintf("pool/main/s/small%d/small%d_1.0_all.deb", i, i))
		}
	}
	for _, name := range names {
		p.must(o, name)
		p.settled() // a file is used, too, when it lands
		p.clock.pass(time.Minute)
	}
	p.must(o, smallDeb) // the first is now the last
	p.quotas()
	origins := p.Origins()
	if len(origins) != 1 || origins[0].Bytes > 30<<10 || origins[0].Max != 30<<10 {
		t.Errorf("%+v", origins)
	}
	if len(origins[0].Mirrors) != 1 || origins[0].Mirrors[0].Bytes < 5*8<<10 || origins[0].Mirrors[0].Requests < 7 {
		t.Errorf("%+v", origins[0].Mirrors)
	}
	p.must(o, smallDeb)
	if o.got(smallDeb) != 1 {
		t.Error("what was used last was removed")
	}
	p.must(o, names[1])
	if o.got(names[1]) != 2 {
		t.Error("what was used longest ago is still there")
	}
	p.update(o)
	if o.got(packages) > 1 {
		t.Error("the index that is in use was removed")
	}
}

func TestTopCountsByNodePackageAndRepository(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	p.update(o)
	p.must(o, smallDeb)
	p.must(o, smallDeb)
	p.must(o, largeDeb)
	// A request is counted behind its answer.
	eventually(t, "three requests for two packages", func() bool {
		list, err := p.recent.top("package")
		if err != nil {
			t.Fatal(err)
		}
		return len(list) == 2 && list[0].Name == "large" && list[1].Requests == 2 && list[1].Bytes >= 16<<10
	})
	for by, want := range map[string]string{"node": "127.0.0.1", "repository": "debian"} {
		if list, err := p.recent.top(by); err != nil || len(list) != 1 || list[0].Name != want {
			t.Errorf("by %s: %+v, %v", by, list, err)
		}
	}
	if _, err := p.recent.top("moon"); !errors.Is(err, state.ErrInvalid) {
		t.Error(err)
	}
}

func TestAClassOfClientsGetsNoMoreThanItsRate(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o)+"  limits: [{networks: [127.0.0.0/8], rate: 512K}]\n")
	p.update(o)
	p.must(o, largeDeb) // from the mirror
	began := time.Now()
	p.must(o, largeDeb) // 1 MiB from the store, of which a chunk is free
	if took := time.Since(began); took < 1500*time.Millisecond {
		t.Errorf("1 MiB at 512 KiB/s took %v", took)
	}
}

func TestFetchRateBoundsWhatComesFromMirrors(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o)+"  fetch_rate: 512K\n")
	p.update(o)
	began := time.Now()
	p.must(o, largeDeb)
	if took := time.Since(began); took < 1500*time.Millisecond {
		t.Errorf("1 MiB at 512 KiB/s took %v", took)
	}
	best := time.Hour
	for try := 0; try < 3 && best > time.Second; try++ { // the machine may stand still
		began = time.Now()
		p.must(o, largeDeb)
		best = min(best, time.Since(began))
	}
	if best > time.Second {
		t.Errorf("what is here is paced, too: %v", best)
	}
}

func TestTheAccessLogHasALineForEachRequest(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o)+"  access_log: true\n")
	p.update(o)
	p.must(o, largeDeb)
	p.must(o, largeDeb) // by sendfile
	if a := p.get("/debian/nosuch%0aforged"); a.status != http.StatusBadRequest && a.status != http.StatusNotFound {
		t.Errorf("status %d", a.status)
	}
	eventually(t, "five lines", func() bool { return len(p.logs.with("msg=access")) == 5 })
	if list := p.logs.with(fmt.Sprintf("bytes=%d ", len(o.file(t, largeDeb)))); len(list) != 2 || !strings.Contains(list[0], "client=127.0.0.1") {
		t.Errorf("the lines of the large file: %q", list)
	}
}
