package aptproxy

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"holdfast/lab/aptorigin"
)

func TestAptGetsSourcesThroughTheProxy(t *testing.T) {
	s := newSite(t)
	content := noise("source", 200<<10)
	if err := s.repo.AddSource(aptorigin.Source{Name: "labsource", Version: "1.0", Content: content}); err != nil {
		t.Fatal(err)
	}
	s.add(1, "1.0")
	publish(t, s.repo, aptorigin.Release{})
	s.sources("http://10.1.0.1:3142/debian")
	s.sh(`sed 's/^deb /deb-src /' -i /etc/apt/sources.list`)
	s.sh(apt + "update")
	s.sh("cd /tmp && " + apt + "source labsource")
	if out, want := s.sh("sha256sum </tmp/labsource-1.0/content"), fmt.Sprintf("%x", sha256.Sum256(content)); !strings.Contains(out, want) {
		t.Errorf("the source tree holds %s, want %s", out, want)
	}
}

func TestAptUpdatesByPatchesThroughTheProxy(t *testing.T) {
	s := newSite(t)
	s.add(200, "1.0")
	// apt tells generations apart by their date, which is of seconds.
	publish(t, s.repo, aptorigin.Release{Diffs: true, Date: time.Now().Add(-time.Minute)})
	s.sources("http://10.1.0.1:3142/debian")
	s.sh(apt + "update")
	for _, version := range []string{"2.0", "3.0"} { // two steps: patches follow each other
		add(t, s.repo, "lab000", version, 4<<10)
		publish(t, s.repo, aptorigin.Release{Diffs: true})
	}
	out := s.sh(apt + "-o Acquire::PDiffs=true update")
	if !strings.Contains(out, "T-lab-001.pdiff") {
		t.Errorf("apt did not patch its index:\n%s", out)
	}
	if out := s.sh("apt-cache policy lab000"); !strings.Contains(out, "Candidate: 3.0") {
		t.Errorf("after the patches: %s", out)
	}
}

// TestDebootstrapMakesATree: the first stage, which is all that debootstrap
// fetches; the second runs what the packages hold.
func TestDebootstrapMakesATree(t *testing.T) {
	needs(t, "debootstrap")
	s := newSite(t)
	names := []string{"apt"} // which it wants by name
	for i := range 9 {
		names = append(names, fmt.Sprintf("lab%03d", i))
	}
	for _, name := range names {
		err := s.repo.Add(aptorigin.Package{Name: name, Version: "1.0", Priority: "required", Content: noise(name, 5<<10)})
		if err != nil {
			t.Fatal(err)
		}
	}
	publish(t, s.repo, aptorigin.Release{})
	s.sh("mount -t tmpfs none /tmp && mkdir -p /tmp/tree/dev") // with devices; and base-files would bring its directory
	s.sh("gpg --batch --dearmor </etc/lab.asc >/tmp/lab.gpg")
	s.sh("timeout 280 debootstrap --foreign --variant=minbase --arch=amd64 --keyring=/tmp/lab.gpg test /tmp/tree http://10.1.0.1:3142/debian /usr/share/debootstrap/scripts/sid </dev/null || { tail -5 /tmp/tree/debootstrap/debootstrap.log; exit 1; }")
	if out := strings.TrimSpace(s.sh("ls /tmp/tree/var/cache/apt/archives/*.deb | wc -l")); out != "10" {
		t.Errorf("debootstrap got %s packages, want 10", out)
	}
}

// TestPushesInTheMiddleNeverBreakAClient: the origin changes again and again
// while a client updates and installs. apt's "Hash Sum mismatch" is what
// mirrors and caches answer then.
func TestPushesInTheMiddleNeverBreakAClient(t *testing.T) {
	s := newSite(t)
	s.add(40, "1.0")
	publish(t, s.repo, aptorigin.Release{NoByHash: true})
	s.sources("http://10.1.0.1:3142/debian")
	// What it shows while a push is under way it must have seen before.
	s.sh(apt + "-o APT::Update::Error-Mode=any update")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	pushed := make(chan error, 1)
	go func() {
		for n := 2; ctx.Err() == nil; n++ {
			err := s.repo.Add(aptorigin.Package{Name: "lab000", Version: fmt.Sprintf("%d.0", n), Content: noise(fmt.Sprint(n), 4<<10)})
			if err == nil {
				err = s.repo.Publish(ctx, aptorigin.Release{Suite: "test", NoByHash: true})
			}
			if err != nil && ctx.Err() == nil {
				pushed <- err
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
		pushed <- nil
	}()
	for range 10 {
		s.sh("rm -rf /var/cache/apt/archives/*.deb")
		s.sh(apt + "-o APT::Update::Error-Mode=any update")
		s.sh(apt + "install --download-only $(seq -f lab%03.0f 0 39)")
	}
	cancel()
	select {
	case err := <-pushed:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patience):
		t.Fatal("the pushes do not end")
	}
}
