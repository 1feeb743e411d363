package discovery

import (
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/serf/serf"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/state"
)

func TestNewSaysEverythingThatIsWrong(t *testing.T) {
	b := newBed(t)
	tests := []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"node", func(c *Config) { c.Node = "" }, `node name ""`},
		{"node ID", func(c *Config) { c.NodeID = "1" }, `node ID "1": must be a UUID`},
		{"address", func(c *Config) { c.Address = netip.IPv4Unspecified() }, "address 0.0.0.0: must be one that the other nodes can reach"},
		{"RPC", func(c *Config) { c.RPC = netip.AddrPort{} }, "a server needs one"},
		{"cluster", func(c *Config) { c.Cluster = strings.Repeat("x", 64) }, "must have 1 to 63 bytes"},
		{"no key", func(c *Config) { c.Key = nil }, "plain text must be asked for"},
		{"short key", func(c *Config) { c.Key = []byte("secret-key") }, "has 10 bytes, must have 32"},
		{"directory", func(c *Config) { c.DataDir = "data" }, "absolute path"},
		{"version", func(c *Config) { c.Version = strings.Repeat("9", 65) }, "at most 64 bytes"},
		{"timing", func(c *Config) { c.Timing = 1000 }, "timing 1000: must be 0.1 to 100"},
		{"meta", func(c *Config) { c.Meta = map[string]string{"": "x"} }, "metadata key"},
		{"services", func(c *Config) { c.Services = []ServiceDefinition{{}} }, "empty"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			config := b.config(1)
			test.change(&config)
			_, err := New(config, Deps{State: state.New()})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %v, want %q", err, test.want)
			}
			if strings.Contains(err.Error(), "secret-key") {
				t.Error("the key stands in the error")
			}
		})
	}
	config := b.config(1)
	config.Node, config.Cluster, config.Timing = "", "", -1
	_, err := New(config, Deps{State: state.New()})
	for _, want := range []string{"node name", "cluster name", "timing"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in %q", want, err)
		}
	}
}

func TestTagsFitIntoTheGossip(t *testing.T) {
	uuid := newUUID()
	m := state.Member{
		ID: uuid, Server: true, RPC: netip.MustParseAddrPort("[2001:db8:1111:2222:3333:4444:5555:6666]:65535"),
		ClusterID: uuid, Version: strings.Repeat("v", maxVersion), Feature: 1000, ConfigSum: strings.Repeat("f", 64),
	}
	size := 1
	for k, v := range encodeTags(strings.Repeat("c", maxClusterName), m) {
		size += len(k) + len(v) + 2*3 // msgpack's lengths
	}
	if size > 512 {
		t.Errorf("the largest tags take %d bytes; memberlist sends 512", size)
	}
}

func TestTagsRoundTrip(t *testing.T) {
	for _, want := range []state.Member{
		{},
		{ID: newUUID(), Server: true, RPC: netip.MustParseAddrPort("10.1.0.1:8300"), ClusterID: newUUID(), Version: "1.0", Feature: 3, ConfigSum: "ab"},
	} {
		var got state.Member
		decodeTags(&got, encodeTags("foobar", want))
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}), cmpopts.IgnoreFields(state.Member{}, "Tags")); diff != "" {
			t.Errorf("member (-want +got):\n%s", diff)
		}
	}
}

func FuzzDecodeTags(f *testing.F) {
	f.Add("id", "1", "10.1.0.1:8300", "store", "1.0", "3", "sum")
	f.Add("", "yes", "nowhere", "", "", "-1", "")
	f.Fuzz(func(t *testing.T, id, server, rpc, store, version, feature, sum string) {
		tags := map[string]string{
			tagID: id, tagServer: server, tagRPC: rpc, tagStore: store, tagVersion: version, tagFeature: feature, tagConfig: sum,
		}
		var m state.Member
		decodeTags(&m, tags)
		// What was understood is said again the same way.
		said := encodeTags("c", m)
		var again state.Member
		decodeTags(&again, maps.Clone(said))
		again.Tags, m.Tags = nil, nil
		if diff := cmp.Diff(m, again, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" {
			t.Errorf("member changed (-first +second):\n%s", diff)
		}
		if m.Feature < 0 {
			t.Errorf("feature %d", m.Feature)
		}
	})
}

func TestLivenessOfEveryStatus(t *testing.T) {
	for status, want := range map[serf.MemberStatus]state.Liveness{
		serf.StatusAlive: state.Alive, serf.StatusLeaving: state.Leaving, serf.StatusLeft: state.Left,
		serf.StatusFailed: state.Failed, serf.StatusNone: state.Failed,
	} {
		if got := liveness(status); got != want {
			t.Errorf("%s is %s, want %s", status, got, want)
		}
	}
}

func TestLogLinesAreClassified(t *testing.T) {
	tests := []struct {
		line    string
		level   slog.Level
		refused refusal
		message string
	}{
		{"[DEBUG] memberlist: Stream connection from=1.2.3.4:5", slog.LevelDebug, "", "memberlist: Stream connection from=1.2.3.4:5"},
		{"[INFO] serf: EventMemberJoin: a 10.1.0.1", slog.LevelDebug, "", "serf: EventMemberJoin: a 10.1.0.1"},
		{"[WARN] memberlist: Was able to connect to b over TCP but UDP probes failed, network may be misconfigured", slog.LevelWarn, "", "memberlist: Was able to connect to b over TCP but UDP probes failed, network may be misconfigured"},
		{"[ERR] memberlist: Decrypt packet failed: No installed keys could decrypt the message from=10.1.0.9:8301", slog.LevelWarn, refusedKey, "memberlist: Decrypt packet failed: No installed keys could decrypt the message from=10.1.0.9:8301"},
		{"[ERR] memberlist: failed to receive: Encryption is configured but remote state is not encrypted from=10.1.0.9:1", slog.LevelWarn, refusedKey, "memberlist: failed to receive: Encryption is configured but remote state is not encrypted from=10.1.0.9:1"},
		{"[ERR] memberlist: Received invalid msgType (7) from=10.1.0.9:1", slog.LevelWarn, refusedMalformed, "memberlist: Received invalid msgType (7) from=10.1.0.9:1"},
		{"[WARN] serf: Shutdown without a Leave", slog.LevelDebug, "", "serf: Shutdown without a Leave"},
		{"[WARN] memberlist: ignoring alive message for 'x': member x at 10.1.0.9:8301 is of cluster \"b\", not \"a\"", slog.LevelDebug, "", "memberlist: ignoring alive message for 'x': member x at 10.1.0.9:8301 is of cluster \"b\", not \"a\""},
		{"Err: Could not set the deadline: x", slog.LevelInfo, "", "Err: Could not set the deadline: x"},
		{"[odd", slog.LevelInfo, "", "[odd"},
	}
	for _, test := range tests {
		class, message := classify(test.line)
		if class.level != test.level || class.refused != test.refused || message != test.message {
			t.Errorf("%q: %s, refused %q, %q", test.line, class.level, class.refused, message)
		}
	}
}

// Lines hold what strangers sent.
func FuzzClassify(f *testing.F) {
	f.Add("[ERR] memberlist: Decrypt packet failed: x from=10.1.0.9:8301")
	f.Add("[")
	f.Add("[] ")
	f.Fuzz(func(t *testing.T, line string) {
		class, message := classify(line)
		if !strings.HasSuffix(line, message) {
			t.Errorf("%q became %q", line, message)
		}
		if class.refused != "" && class.level < slog.LevelWarn {
			t.Errorf("%q: refused as %s, and only %s", line, class.refused, class.level)
		}
		std := newStdLogger(slog.New(slog.DiscardHandler), func(refusal) {})
		std.Print(line)
		std.Print(line)
	})
}

func TestARepeatedWarningIsSaidOnce(t *testing.T) {
	var lines strings.Builder
	refused := 0
	std := newStdLogger(slog.New(slog.NewTextHandler(&lines, nil)), func(refusal) { refused++ })
	for _, port := range []string{"1", "2", "3"} { // a new connection each time
		std.Printf("[ERR] memberlist: Received invalid msgType (7) from=10.1.0.9:%s", port)
	}
	std.Printf("[ERR] memberlist: Received invalid msgType (7) from=10.1.0.8:1")
	if n := strings.Count(lines.String(), "\n"); n != 2 {
		t.Errorf("%d lines, want one for each of two senders:\n%s", n, lines.String())
	}
	if refused != 4 {
		t.Errorf("%d refusals counted, want 4", refused)
	}
}

func TestMetricsPassTheLinter(t *testing.T) {
	registry := prometheus.NewRegistry()
	m := newMetrics(registry)
	m.syncRuns.WithLabelValues("ok")
	m.commands.WithLabelValues(bySync, "ok")
	m.joins.WithLabelValues("ok")
	problems, err := testutil.GatherAndLint(registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}
