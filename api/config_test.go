package api

import (
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"holdfast/cluster"
)

// clusterFile is a small cluster with an api section.
func clusterFile(section string) string {
	return `schema: 1
cluster: foobar
domain: hpc.example.com
networks:
  administration: {prefix: 10.1.0.0/24}
  management: {prefix: 10.2.0.0/24, hostname: "mgt{node}"}
nodes:
  fbservice[1-3]:
    role: service
    addresses: {administration: "10.1.0.[1-3]", management: "10.2.0.[1-3]"}
  fbfront1: {role: frontend, addresses: {administration: 10.1.0.11}}
roles:
  service: {voters: 3}
  frontend: {}
` + section
}

func parse(text string) (*cluster.File, error) {
	return cluster.Parse("cluster.yaml", []byte(text), map[string]cluster.SectionValidator{"api": ValidateSection})
}

func TestConfigFromTheClusterFile(t *testing.T) {
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte(goodToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	group, err := user.LookupGroupId(strconv.Itoa(os.Getgid()))
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("this user's group has no name: %v", err)
		}
		t.Skipf("this user's group has no name: %v", err)
	}
	tests := map[string]struct {
		section, node string
		withTLS       bool
		want          func(*Config)
	}{
		"the defaults":   {"", "fbservice1", true, func(*Config) {}},
		"no certificate": {"", "fbservice1", false, func(c *Config) { c.HTTPS = nil }},
		"everything": {
			"api: {port: 18500, loopback: read, https_port: 18501, network: management, token: {file: " + token + "}, admin_group: " + group.Name + ", blocking_limit: 10, snapshot_limit_mib: 2}",
			"fbservice1", true, func(c *Config) {
				c.Listen = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:18500")}
				c.HTTPS = []netip.AddrPort{netip.MustParseAddrPort("10.2.0.1:18501")}
				c.Loopback, c.Token, c.AdminGroups = Read, goodToken, []uint32{uint32(os.Getgid())}
				c.MaxBlocking, c.MaxSnapshot = 10, 2<<20
			},
		},
		"nothing but the socket": {"api: {port: 0, https_port: 0}", "fbservice1", true, func(c *Config) { c.Listen, c.HTTPS = nil, nil }},
	}
	for name, test := range tests {
		file, err := parse(clusterFile(test.section))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := ConfigFrom(file, file.Section("api"), test.node, test.withTLS)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := Config{
			Node: "fbservice1", Datacenter: "foobar", Names: []string{"fbservice1", "fbservice1.hpc.example.com"},
			Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8500")}, HTTPS: []netip.AddrPort{netip.MustParseAddrPort("10.1.0.1:8501")},
			Loopback: Write,
		}.withDefaults()
		test.want(&want)
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestSectionMistakesAreAllToldWithTheirPlace(t *testing.T) {
	_, err := parse(clusterFile(`api:
  port: 70000
  https_port: -1
  loopback: operate
  network: nowhere
  token: {file: relative}
  blocking_limit: 0
  snapshot_limit_mib: 0
`))
	if err == nil {
		t.Fatal("no error")
	}
	for line, want := range []string{
		"port: 70000 is out of range: 0 to 65535; 0 turns plain HTTP off",
		"https_port: -1 is out of range: 0 to 65535; 0 turns HTTPS off",
		`loopback: "operate"; want read or write`,
		`network: there is no network "nowhere"`,
		"token: want {file: PATH} with an absolute path",
		"blocking_limit: 0 is out of range: 1 to 1000000 queries",
		"snapshot_limit_mib: 0 is out of range: 1 to 1048576 MiB",
	} {
		place := fmt.Sprintf("cluster.yaml:%d:", strings.Count(clusterFile(""), "\n")+2+line)
		found := false
		for _, told := range strings.Split(err.Error(), "\n") {
			found = found || (strings.HasPrefix(told, place) && strings.Contains(told, want))
		}
		if !found {
			t.Errorf("no line %q ... %q in:\n%v", place, want, err)
		}
	}
	if _, err := parse(clusterFile("api: {prot: 1}")); err == nil || !strings.Contains(err.Error(), "prot") {
		t.Errorf("an unknown key: %v", err)
	}
}

func TestConfigRefusesWhatTheNodeLacks(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := map[string]struct{ section, node, want string }{
		"no token file":        {"api: {token: {file: /nowhere}}", "fbservice1", "/nowhere: no such file"},
		"a token for everyone": {"api: {token: {file: " + write("open", goodToken, 0o644) + "}}", "fbservice1", "everyone may read"},
		"a short token":        {"api: {token: {file: " + write("short", "hunter2", 0o600) + "}}", "fbservice1", "holds 7 bytes; at least 16"},
		"a directory":          {"api: {token: {file: " + dir + "}}", "fbservice1", "token"},
		"no such group":        {"api: {admin_group: no-such-group-here}", "fbservice1", "no-such-group-here"},
		"no address there":     {"api: {network: management}", "fbfront1", "fbfront1 has no address on network management"},
		"no such node":         {"", "elsewhere", "node elsewhere is not in"},
	}
	for name, test := range tests {
		file, err := parse(clusterFile(test.section))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		_, err = ConfigFrom(file, file.Section("api"), test.node, true)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error shows the secret: %v", name, err)
		}
	}
}
