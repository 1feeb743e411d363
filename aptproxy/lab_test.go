package aptproxy

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/lab"
	"holdfast/lab/aptorigin"
)

// site is an origin, a proxy and a client, each on a host of its own.
type site struct {
	starts                int // of the proxy
	t                     *testing.T
	repo                  *aptorigin.Repository
	origin, proxy, client *lab.Host
	serving               *lab.Proc
}

const siteFile = `schema: 1
cluster: c
domain: hpc.example.com
networks: {main: {prefix: 10.1.0.0/24}}
roles: {service: {voters: 1, run: [apt]}, compute: {}}
nodes:
  server: {role: service, addresses: {main: 10.1.0.1}}
  client: {role: compute, addresses: {main: 10.1.0.9}}
apt:
  reserve: 0K
  repositories:
    debian: {mirrors: ["http://10.1.0.80/"], aliases: ["http://deb.example.com/debian"], keyring: [/etc/holdfast/keyring.asc]}
`

// newSite makes a site; prepare is run on the proxy's host before it starts.
func newSite(t *testing.T, prepare ...string) *site {
	t.Helper()
	lab.Require(t)
	needs(t, "apt-ftparchive", "apt-get")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := &site{t: t}
	if s.repo, err = aptorigin.New(dir); err != nil {
		t.Fatal(err)
	}
	l := lab.NewTest(t, lab.Options{Networks: []string{"adm"}, Expose: []string{filepath.Dir(self), dir}})
	host := func(name, addr string) *lab.Host {
		h, err := l.AddHost(name, lab.On("adm", addr))
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	s.origin, s.proxy, s.client = host("origin", "10.1.0.80/24"), host("server", "10.1.0.1/24"), host("client", "10.1.0.9/24")
	if _, err := s.origin.Start(lab.Cmd{Args: []string{self}, Name: "origin", Env: []string{originEnv + "=" + s.repo.Dir}}); err != nil {
		t.Fatal(err)
	}
	s.write(s.proxy, "/etc/holdfast/cluster.yaml", siteFile)
	key, err := os.ReadFile(s.repo.Keyring)
	if err != nil {
		t.Fatal(err)
	}
	s.write(s.proxy, "/etc/holdfast/keyring.asc", string(key))
	s.write(s.client, "/etc/lab.asc", string(key))
	for _, script := range prepare {
		if _, err := s.proxy.Run(t.Context(), "sh", "-c", script); err != nil {
			t.Fatal(err)
		}
	}
	s.start(self)
	return s
}

func (s *site) write(h *lab.Host, path, text string) {
	s.t.Helper()
	if err := h.Write(path, []byte(text)); err != nil {
		s.t.Fatal(err)
	}
}

// start starts the proxy and waits until it serves.
func (s *site) start(self string) {
	s.t.Helper()
	p, err := s.proxy.Start(lab.Cmd{Args: []string{self}, Name: "apt", Env: []string{serveEnv + "=/etc/holdfast/cluster.yaml"}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.serving = p
	s.starts++
	s.eventually("the proxy is ready", func() error {
		out, err := os.ReadFile(p.StdoutPath()) // what those before it said too
		if err == nil && strings.Count(string(out), "ready") < s.starts {
			err = errors.New("not yet")
		}
		return err
	})
}

// eventually polls until try succeeds.
func (s *site) eventually(what string, try func() error) {
	s.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			s.t.Fatalf("%s: %v", what, err)
		}
	}
}

// sources makes the client's only repository the one at a URL.
func (s *site) sources(url string) {
	s.t.Helper()
	s.sh(`rm -rf /etc/apt/sources.list.d/* /etc/apt/apt.conf.d/* /var/lib/apt/lists/* /var/cache/apt/archives/*.deb`)
	s.write(s.client, "/etc/apt/sources.list", "deb [signed-by=/etc/lab.asc] "+url+" test main\n")
}

// sh runs a script on the client.
func (s *site) sh(script string) string {
	s.t.Helper()
	out, err := s.try(script)
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return out
}

func (s *site) try(script string) (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Minute)
	defer cancel()
	return s.client.RunCmd(ctx, lab.Cmd{Args: []string{"sh", "-c", script + " 2>&1"}, Env: []string{"DEBIAN_FRONTEND=noninteractive", "LC_ALL=C"}})
}

// apt are apt-get's options for a client that shows what it got.
const apt = "apt-get -y -q -o Acquire::Retries=0 -o APT::Keep-Downloaded-Packages=true -o APT::Sandbox::User=root "

func (s *site) add(n int, version string) {
	s.t.Helper()
	for i := range n {
		add(s.t, s.repo, fmt.Sprintf("lab%03d", i), version, 3<<10+i*97)
	}
	add(s.t, s.repo, "lablarge", version, 5<<20)
}

// sums are the hashes of what the client downloaded and of its indices.
func (s *site) sums() string {
	return s.sh("cd /var/cache/apt/archives && sha256sum *.deb; cd /var/lib/apt/lists && cat *Packages | sha256sum")
}

func TestAptGetsTheSameThroughTheProxyAsDirectly(t *testing.T) {
	s := newSite(t)
	s.add(120, "1.0")
	publish(t, s.repo, aptorigin.Release{})
	names := "lablarge $(seq -f lab%03.0f 0 119)"
	s.sources("http://10.1.0.80/")
	s.sh(apt + "update")
	s.sh(apt + "install --download-only " + names)
	direct := s.sums()
	if n := strings.Count(direct, ".deb"); n != 121 {
		t.Fatalf("%d packages came directly", n)
	}
	for name, test := range map[string]struct{ url, conf string }{
		"path":       {"http://10.1.0.1:3142/debian", ""},
		"alias":      {"http://10.1.0.1:3142/deb.example.com/debian", ""},
		"proxy":      {"http://deb.example.com/debian", `Acquire::http::Proxy "http://10.1.0.1:3142";`},
		"no by-hash": {"http://10.1.0.1:3142/debian", `Acquire::By-Hash "no";`},
	} {
		t.Run(name, func(t *testing.T) {
			s := &site{t: t, repo: s.repo, client: s.client}
			s.sources(test.url)
			s.write(s.client, "/etc/apt/apt.conf.d/99lab", test.conf+"\n")
			s.sh(apt + "update")
			s.sh(apt + "install --download-only " + names)
			if got := s.sums(); got != direct {
				t.Errorf("through the proxy:\n%s\ndirectly:\n%s", got, direct)
			}
		})
	}
	s.sh(apt + "install lab007 lablarge")
	if got, want := s.sh("sha256sum </usr/share/doc/lablarge/content"), fmt.Sprintf("%x", sha256.Sum256(noise("lablarge1.0", 5<<20))); !strings.Contains(got, want) {
		t.Errorf("installed %s, want %s", got, want)
	}
}

func TestAptWorksWhenTheDiskIsFull(t *testing.T) {
	s := newSite(t, "mkdir -p /var/lib/holdfast/apt && mount -t tmpfs -o size=600k none /var/lib/holdfast/apt")
	s.add(20, "1.0") // with 5 MB in one package
	publish(t, s.repo, aptorigin.Release{})
	s.sources("http://10.1.0.1:3142/debian")
	for range 2 {
		s.sh("rm -f /var/cache/apt/archives/*.deb")
		s.sh(apt + "update")
		s.sh(apt + "install --download-only lablarge $(seq -f lab%03.0f 0 19)")
		s.sh("test $(ls /var/cache/apt/archives/*.deb | wc -l) = 21")
	}
	if out := s.sh("curl -s -o /dev/null -w %{http_code} http://10.1.0.1:3142/acng-report.html"); out != "200" {
		t.Errorf("the report answers %s, and packages can be had", out)
	}
}

func TestAptWorksWhenTheDiskCanOnlyBeRead(t *testing.T) {
	s := newSite(t, "mkdir -p /var/lib/holdfast/apt && mount -t tmpfs -o size=1m,ro none /var/lib/holdfast/apt")
	s.add(20, "1.0")
	publish(t, s.repo, aptorigin.Release{})
	s.sources("http://10.1.0.1:3142/debian")
	s.sh(apt + "update")
	s.sh(apt + "install --download-only lablarge lab001")
	if out := s.sh("curl -s -o /dev/null -w %{http_code} http://10.1.0.1:3142/acng-report.html"); out != "503" {
		t.Errorf("the report answers %s, and nothing can be stored", out)
	}
}

func TestAptUpgradesAfterAPushAndSurvivesKills(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t)
	s.add(30, "1.0")
	// apt tells generations apart by their date, which is of seconds.
	publish(t, s.repo, aptorigin.Release{Date: time.Now().Add(-time.Minute)})
	s.sources("http://10.1.0.1:3142/debian")
	s.sh(apt + "update")
	s.sh(apt + "install lab001")
	s.add(30, "2.0")
	publish(t, s.repo, aptorigin.Release{})
	s.sh(apt + "update")
	if err := s.serving.Kill(); err != nil {
		t.Fatal(err)
	}
	<-s.serving.Done()
	s.start(self)
	s.sh(apt + "update")
	s.sh(apt + "upgrade lab001")
	if out := s.sh("dpkg-query -W -f '${Version} ' lab001"); out != "2.0 " {
		t.Errorf("after the upgrade: %s", out)
	}
}
