package vrrp

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/cluster"
	"holdfast/internal/check"
)

var updateConfig = flag.Bool("update-config", false, "rewrite the golden files of the configuration")

func validators() map[string]cluster.SectionValidator {
	return map[string]cluster.SectionValidator{
		"vips": ValidateVIPs, Section: ValidateSection,
		"dns": func(*cluster.File, cluster.Section) error { return nil },
	}
}

func goldenConfig(t *testing.T, path, got string) {
	t.Helper()
	if *updateConfig {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("%s (-want +got; -update-config rewrites it):\n%s", path, diff)
	}
}

func TestMistakesAreAllNamedWithTheirPlaces(t *testing.T) {
	data, err := os.ReadFile("testdata/config/bad.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, err = cluster.Parse("bad.yaml", data, validators())
	if err == nil {
		t.Fatal("accepted")
	}
	goldenConfig(t, "testdata/config/bad.want", err.Error()+"\n")
}

// small is a cluster of three service nodes; vips is what stands below vips.
func small(t *testing.T, vips, rest string) *cluster.File {
	t.Helper()
	text := `schema: 1
cluster: foobar
domain: hpc.example.com
networks:
  administration: {prefix: 10.1.0.0/24, interface: bradm}
  storage: {prefix: "fd00:1::/64"}
roles: {service: {voters: 3, run: [dns]}, frontend: {}}
nodes:
  fbservice[1-3]: {role: service, addresses: {administration: "10.1.0.[1-3]", storage: "fd00:1::[1-3]"}}
  fbfront1: {role: frontend, addresses: {administration: 10.1.0.11}}
services:
  apt: {on: "@service", port: 3142, check: {http: /, every: 10s, timeout: 500ms}}
  nhc: {on: "@service", port: 1, check: {script: [/usr/sbin/nhc, -q], every: 1m, timeout: 20s}}
vips:
` + vips + rest
	file, err := cluster.Parse("cluster.yaml", []byte(text), validators())
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func settings(t *testing.T, file *cluster.File, node string) Settings {
	t.Helper()
	set, err := SettingsFrom(file, node)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// rank is fbservice1's place in the order.
func (r RouterSettings) rank() int { return slices.Index(r.Order, "fbservice1") }

func addrs(texts ...string) []netip.Addr {
	var list []netip.Addr
	for _, text := range texts {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}

func prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

func equal(t *testing.T, what string, want, got any) {
	t.Helper()
	if !reflect.DeepEqual(want, got) {
		t.Errorf("%s: %+v, want %+v", what, got, want)
	}
}

func TestWhatTheFileDoesNotSayHasItsDefault(t *testing.T) {
	set := settings(t, small(t, `  web: {network: administration, address: 10.1.0.101, vrid: 7, members: "@service", prefer: fbservice2, preempt_delay: 30s}
`, ""), "fbservice2")
	if len(set.Routers) != 1 {
		t.Fatalf("%+v", set)
	}
	want := RouterSettings{
		Router: Router{
			Name: "web", Interface: "bradm", Version: 3, VRID: 7, Priority: 253, Interval: time.Second,
			Source: netip.MustParseAddr("10.1.0.2"), Advertised: addrs("10.1.0.101"), Held: prefixes("10.1.0.101/32"),
			Preempt: true, PreemptDelay: 30 * time.Second,
		},
		Home: netip.MustParseAddr("10.1.0.2"), Network: "administration", MinTTL: 255,
		Nodes:    map[netip.Addr]string{netip.MustParseAddr("10.1.0.1"): "fbservice1", netip.MustParseAddr("10.1.0.3"): "fbservice3"},
		Order:    set.Routers[0].Order,
		Announce: Announcements{Repeat: 5, Every: time.Second, Refresh: time.Minute},
		Hooks:    Hooks{Timeout: 30 * time.Second},
	}
	equal(t, "router", want, set.Routers[0])
	equal(t, "order", "fbservice2", set.Routers[0].Order[0])
	if again := settings(t, small(t, `  web: {network: administration, address: 10.1.0.101, vrid: 7, members: "@service", prefer: fbservice2, preempt_delay: 30s}
`, ""), "fbservice2"); !reflect.DeepEqual(set, again) {
		t.Error("the same file gives other settings")
	}
	if none := settings(t, small(t, "  {}\n", ""), "fbfront1"); len(none.Routers) != 0 {
		t.Errorf("a node that is no member has %+v", none.Routers)
	}
	if _, err := SettingsFrom(small(t, "  {}\n", ""), "fbservice9"); err == nil {
		t.Error("a node that the file lacks has settings")
	}
}

func TestEveryKeyArrives(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("ninechars\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	set := settings(t, small(t, fmt.Sprintf(`  web:
    network: administration
    address: 10.1.0.101
    vrid: 7
    version: 2
    members: "@service"
    vrrp:
      priority: {fbservice3: 200}
      preempt: false
      startup_delay: 5s
      unicast: true
      auth: {file: %s}
      prefix_length: 24
      interface: eth9
      addresses: [10.1.0.102, 10.1.0.103/24]
      excluded: ["fd00:1::9/64"]
      sync: front
      announce: {repeat: 3, every: 500ms, refresh: 1m}
      debounce: 250ms
      notify: {script: [/usr/local/sbin/notify, -v], master: /etc/hpc/notify_master.d, stop: /etc/hpc/notify_stop.d/, user: nobody, timeout: 10s}
`, secret), "vrrp: {realtime: 50, notify: {backup: /etc/hpc/notify_backup.d}}\n"), "fbservice1")
	r := set.Routers[0]
	if r.Order[r.rank()] != "fbservice1" || r.Priority != []uint8{253, 250, 200}[r.rank()] {
		t.Errorf("priority %d in the order %v", r.Priority, r.Order)
	}
	equal(t, "last of the order", "fbservice3", r.Order[2])
	equal(t, "preempt", false, r.Preempt)
	equal(t, "startup_delay", 5*time.Second, r.StartupDelay)
	equal(t, "unicast", addrs("10.1.0.2", "10.1.0.3"), r.Peers)
	equal(t, "auth", "ninechar", string(r.Password[:]))
	equal(t, "held", prefixes("10.1.0.101/24", "10.1.0.102/32", "10.1.0.103/24", "fd00:1::9/64"), r.Held)
	equal(t, "advertised", addrs("10.1.0.101", "10.1.0.102", "10.1.0.103"), r.Advertised)
	equal(t, "interface", "eth9", r.Interface)
	equal(t, "sync", "front", r.Group)
	equal(t, "announce", Announcements{Repeat: 3, Every: 500 * time.Millisecond, Refresh: time.Minute}, r.Announce)
	equal(t, "debounce", 250*time.Millisecond, r.Debounce)
	equal(t, "notify", Hooks{
		Notify: []string{"/usr/local/sbin/notify", "-v"}, User: "nobody", Timeout: 10 * time.Second,
		Dirs: map[string]string{"master": "/etc/hpc/notify_master.d", "stop": "/etc/hpc/notify_stop.d"},
	}, r.Hooks)
	equal(t, "hooks of all", Hooks{Dirs: map[string]string{"backup": "/etc/hpc/notify_backup.d"}, Timeout: 30 * time.Second}, set.Hooks)
	equal(t, "realtime", 50, set.Realtime)
	equal(t, "programs", []string{"/etc/hpc/notify_backup.d/", "/etc/hpc/notify_master.d/", "/etc/hpc/notify_stop.d/", "/usr/local/sbin/notify"}, set.Programs())
	if len(set.Warnings) != 1 || !strings.Contains(set.Warnings[0], "8 bytes") || strings.Contains(set.Warnings[0], "nine") {
		t.Errorf("warnings %q", set.Warnings)
	}
}

func TestASecretThatCannotBeReadIsNamed(t *testing.T) {
	file := small(t, `  web: {network: administration, address: 10.1.0.101, vrid: 7, version: 2, members: "@service", vrrp: {auth: {file: /nonexistent/vrrp}}}
`, "")
	if _, err := SettingsFrom(file, "fbservice1"); err == nil || !strings.Contains(err.Error(), "password of web") || !strings.Contains(err.Error(), "/nonexistent/vrrp") {
		t.Errorf("%v", err)
	}
}

func TestIPv6ComesFromTheLinkLocalAddressUnlessUnicast(t *testing.T) {
	set := settings(t, small(t, `  multi: {network: storage, address: "fd00:1::101", vrid: 7, members: "@service", vrrp: {addresses: ["fe80::101/64"]}}
  uni: {network: storage, address: "fd00:1::102", vrid: 8, members: "@service", vrrp: {unicast: true}}
`, ""), "fbservice1")
	multi, uni := set.Routers[0], set.Routers[1]
	if multi.Source.IsValid() || multi.Peers != nil || multi.Home != netip.MustParseAddr("fd00:1::1") {
		t.Errorf("multicast: source %v, peers %v, home %v", multi.Source, multi.Peers, multi.Home)
	}
	equal(t, "advertised, link-local first", addrs("fe80::101", "fd00:1::101"), multi.Advertised)
	equal(t, "unicast source", netip.MustParseAddr("fd00:1::1"), uni.Source)
	equal(t, "unicast peers", addrs("fd00:1::2", "fd00:1::3"), uni.Peers)
}

func TestTrackedServicesAreAskedAtTheNodeItself(t *testing.T) {
	set := settings(t, small(t, `  web:
    network: administration
    address: 10.1.0.101
    vrid: 7
    members: "@service"
    track: [dns, apt]
    vrrp:
      track:
        - {interface: eth1, weight: -20}
        - {service: nhc, weight: 5, reverse: true}
        - {script: [/usr/local/sbin/ok, "a b"], every: 2s, rise: 3, fall: 4, weight: 10}
        - {file: /run/weight}
        - {process: haproxy, every: 3s, weight: -5}
        - {check: {tcp: "127.0.0.1:80", every: 5s}}
  web2: {network: administration, address: 10.1.0.102, vrid: 8, members: "@service", track: [dns], vrrp: {track: [{service: apt, every: 3s}]}}
`, ""), "fbservice2")
	equal(t, "tracks", []Track{
		{Name: "service dns"}, {Name: "service apt"}, {Name: "interface eth1", Weight: -20},
		{Name: "service nhc", Weight: 5, Reverse: true}, {Name: "script /usr/local/sbin/ok a b", Weight: 10},
		{Name: "file /run/weight", Weight: 1, Number: true}, {Name: "process haproxy", Weight: -5}, {Name: "check 127.0.0.1:80"},
	}, set.Routers[0].Tracks)
	equal(t, "tracks of the second", []Track{{Name: "service dns"}, {Name: "service apt (2)"}}, set.Routers[1].Tracks)
	equal(t, "watches", []Watch{
		{Name: "interface eth1", Kind: WatchInterface, Target: "eth1"},
		{Name: "file /run/weight", Kind: WatchFile, Target: "/run/weight", Every: time.Second},
		{Name: "process haproxy", Kind: WatchProcess, Target: "haproxy", Every: 3 * time.Second},
	}, set.Watches)
	byID := map[string]check.Definition{}
	for _, d := range set.Checks {
		if err := d.Validate(); err != nil {
			t.Errorf("%s: %v", d.ID, err)
		}
		byID[d.ID] = d
	}
	for id, want := range map[string]string{
		"service dns":                   "10.1.0.2:53 virtual. SOA 1s 1s 2 2",
		"service apt":                   "http://10.1.0.2:3142/ 1s 500ms 2 2",
		"service apt (2)":               "http://10.1.0.2:3142/ 3s 500ms 2 2",
		"service nhc":                   "/usr/sbin/nhc -q 1m0s 20s 2 2",
		"script /usr/local/sbin/ok a b": "/usr/local/sbin/ok a b 2s 2s 3 4",
		"check 127.0.0.1:80":            "127.0.0.1:80 5s 5s 2 2",
	} {
		d := byID[id]
		got := strings.Join(strings.Fields(fmt.Sprint(d.DNS, " ", d.Query, " ", d.HTTP, " ", d.TCP, " ", strings.Join(d.Script, " "), " ", d.Interval, " ", d.Timeout, " ", d.Rise, " ", d.Fall)), " ")
		equal(t, id, want, got)
	}
	equal(t, "checks", 6, len(set.Checks))
	equal(t, "programs", []string{"/usr/local/sbin/ok", "/usr/sbin/nhc"}, set.Programs())
}

func TestDNSIsAskedWhereTheNodeAnswersIt(t *testing.T) {
	const vip = `  web: {network: administration, address: 10.1.0.101, vrid: 7, members: "@service", track: [dns]}
`
	for listen, want := range map[string]string{
		"[10.1.0.1, 10.1.0.2]":             "10.1.0.2:53",
		`["10.1.0.2:5353"]`:                "10.1.0.2:5353",
		"[10.1.0.101, 127.0.0.1]":          "127.0.0.1:53",
		`["0.0.0.0:5300"]`:                 "10.1.0.2:5300",
		"[10.1.0.101]":                     "10.1.0.2:53",
		`["[fd00:1::2]:5353", "10.1.0.2"]`: "[fd00:1::2]:5353",
	} {
		set := settings(t, small(t, vip, "dns: {listen: "+listen+"}\n"), "fbservice2")
		equal(t, listen, want, set.Checks[0].DNS)
	}
}

func TestSyncGroupsHaveOneOrder(t *testing.T) {
	set := settings(t, small(t, `  a: {network: administration, address: 10.1.0.101, vrid: 7, members: "@service", vrrp: {sync: g, priority: {fbservice3: 240}}}
  b: {network: administration, address: 10.1.0.102, vrid: 8, members: "fbservice[3,2,1]", advertise: 100ms, vrrp: {sync: g, priority: {fbservice3: 240}}}
  c: {network: administration, address: 10.1.0.103, vrid: 9, members: "@service"}
`, ""), "fbservice1")
	equal(t, "order", set.Routers[0].Order, set.Routers[1].Order)
	equal(t, "priority", set.Routers[0].Priority, set.Routers[1].Priority)
	equal(t, "the pinned one's place", "fbservice3", set.Routers[0].Order[1])
}

// TestNodesAgreeOnEveryOrder: what each node finds for itself fits together.
func TestNodesAgreeOnEveryOrder(t *testing.T) {
	file, err := cluster.Load("../examples/scibian.yaml", map[string]cluster.SectionValidator{
		"vips": ValidateVIPs, Section: ValidateSection, "dns": nil, "api": nil, "raft": nil,
	})
	if err != nil {
		t.Fatal(err)
	}
	priorities := map[string]map[uint8]string{}
	orders := map[string][]string{}
	for _, node := range []string{"fbservice1", "fbservice2", "fbservice3", "fbservice4"} {
		for _, r := range settings(t, file, node).Routers {
			if priorities[r.Name] == nil {
				priorities[r.Name], orders[r.Name] = map[uint8]string{}, r.Order
			}
			if other, taken := priorities[r.Name][r.Priority]; taken {
				t.Errorf("%s: %s and %s both have priority %d", r.Name, other, node, r.Priority)
			}
			priorities[r.Name][r.Priority] = node
			equal(t, r.Name, orders[r.Name], r.Order)
		}
	}
	if len(orders) == 0 {
		t.Error("the example has no VIPs")
	}
}

// TestReadmesExampleIsReadAndDescribesEveryKey runs what the README shows.
func TestReadmesExampleIsReadAndDescribesEveryKey(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(readme), "```yaml\n")
	example, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("README.md has no example")
	}
	secret := filepath.Join(t.TempDir(), "vrrp")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	site, err := os.ReadFile("../examples/scibian.yaml")
	if err != nil {
		t.Fatal(err)
	}
	before, after, _ := strings.Cut(string(site), "\nvip_defaults:")
	_, after, ok = strings.Cut(after, "\nservices:") // the example stands for all VIPs of the file
	if !ok {
		t.Fatal("examples/scibian.yaml has no services behind its VIPs")
	}
	example = strings.ReplaceAll(example, "/etc/holdfast/secrets/vrrp", secret)
	file, err := cluster.Parse("README.md", []byte(before+"\n"+example+"services:"+after), validators())
	if err != nil {
		t.Fatal(err)
	}
	if set := settings(t, file, "fbfront1"); len(set.Routers) != 1 || set.Routers[0].Priority != 200 {
		t.Errorf("%+v", set.Routers)
	}
	old := settings(t, file, "fbservice1").Routers
	if i := slices.IndexFunc(old, func(r RouterSettings) bool { return r.Name == "old" }); i < 0 || old[i].Password[0] != 's' {
		t.Errorf("%+v", old)
	}
	for _, section := range []any{vipSection{}, trackSection{}, announceSection{}, notifySection{}, nodeSection{}} {
		kind := reflect.TypeOf(section)
		for i := range kind.NumField() {
			key := kind.Field(i).Tag.Get("yaml")
			if !strings.Contains(string(readme), "`"+key+"`") {
				t.Errorf("README.md does not describe %s", key)
			}
			if !strings.Contains(example, key+":") && key != "reverse" {
				t.Errorf("the example lacks %s", key)
			}
		}
	}
}

// TestReadmeListsEveryMetric reads the names from the source, since a vector
// without a series is not gathered.
func TestReadmeListsEveryMetric(t *testing.T) {
	source, err := os.ReadFile("metrics.go")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, found := range regexp.MustCompile(`(?:counter|single)\("([a-z_]+)"|Name: "holdfast_vrrp_([a-z_]+)"`).FindAllStringSubmatch(string(source), -1) {
		name := "holdfast_vrrp_" + found[1] + found[2]
		known[name] = true
		if !strings.Contains(string(readme), "`"+name) {
			t.Errorf("README.md does not list %s", name)
		}
	}
	for _, found := range regexp.MustCompile("`(holdfast_vrrp_[a-z_]+)").FindAllStringSubmatch(string(readme), -1) {
		if !known[found[1]] {
			t.Errorf("README.md lists %s, which is no metric", found[1])
		}
	}
	if len(known) < 10 {
		t.Errorf("found only %d metrics in metrics.go", len(known))
	}
}

// TestFilesThatClusterRefusesDoNotBreakTheValidators: they see what could be
// read of such a file.
func TestFilesThatClusterRefusesDoNotBreakTheValidators(t *testing.T) {
	bad, err := filepath.Glob("../cluster/testdata/bad/*.yaml")
	if err != nil || len(bad) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, path := range bad {
		if _, err := cluster.Load(path, validators()); err == nil {
			t.Errorf("%s was accepted", path)
		}
	}
	broken := `schema: 1
cluster: foobar
domain: hpc.example.com
networks: {lan: {prefix: 10.1.0.0/24}, six: nonsense}
roles: {service: {voters: 1, run: [dns]}}
nodes: {fb1: {role: service, addresses: {lan: 10.1.0.1}}, "fb[": {role: service}}
vips:
  a: {network: six, address: nowhere, vrid: x, members: "@nobody", prefer: fb9, track: [dns, apt], vrrp: {priority: {fb1: 3, fb9: 4}, sync: g, track: [{service: apt}]}}
  b: {network: lan, address: 10.1.0.101, vrid: 1, members: "@service", vrrp: {sync: g, addresses: "10.1.0.[102-103]", track: {}}}
  c:
services: {apt: {on: "@service", port: 1, check: {tcp: nonsense}}}
`
	if _, err := cluster.Parse("broken.yaml", []byte(broken), validators()); err == nil {
		t.Error("accepted")
	} else {
		t.Log(err)
	}
}

func TestUnitWithoutAServiceToAskIsRefused(t *testing.T) {
	file, err := cluster.Parse("cluster.yaml", []byte(`schema: 1
cluster: lab
domain: lab.example.com
networks:
  adm: {prefix: 10.1.0.0/16}
roles:
  service: {voters: 1, run: [ntp]}
nodes:
  a: {role: service, addresses: {adm: 10.1.0.1}}
vips:
  time: {network: adm, address: 10.1.0.9, vrid: 9, members: "a", track: [ntp]}
`), validators())
	if err == nil {
		_, err = SettingsFrom(file, "a")
	}
	if err == nil || !strings.Contains(err.Error(), "declare a service ntp with a check") {
		t.Errorf("%v", err)
	}
}
