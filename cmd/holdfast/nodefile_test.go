package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// parseAgent parses a command line as execute does, without running it.
func parseAgent(t *testing.T, args ...string) (*agentCmd, *kong.Kong, error) {
	t.Helper()
	own, err := openNodeFile(args, os.Getenv)
	if err != nil {
		return nil, nil, err
	}
	var c cli
	parser, err := kong.New(&c, kong.Name("holdfast"), kong.Resolvers(own), kong.Writers(&bytes.Buffer{}, &bytes.Buffer{}))
	if err != nil {
		t.Fatal(err)
	}
	_, err = parser.Parse(args)
	return &c.Agent, parser, err
}

// Several agents share a machine when nothing of them is fixed.
func TestEveryFlagOfTheAgentCanBeSetInTheEnvironment(t *testing.T) {
	_, parser, err := parseAgent(t, "agent", "--node-file", nodeFileOf(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range parser.Model.Children {
		if command.Name != "agent" {
			continue
		}
		for _, flag := range command.Flags {
			if len(flag.Envs) == 0 && flag.Name != "only" {
				t.Errorf("--%s has no variable", flag.Name)
			}
		}
	}
}

func nodeFileOf(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "node.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTheCommandLineCountsBeforeTheEnvironmentBeforeTheNodesFile(t *testing.T) {
	path := nodeFileOf(t, `# this node's own
rpc-port: 18300
gossip_port: 18301
http-listen: [127.0.0.1:18500, "[::1]:18500"]
https-listen: 127.0.0.1:18501
dns-listen:
  - 127.0.0.1:15353
data-dir: /srv/a
run-dir: /run/a
insecure: true
`)
	t.Setenv("HOLDFAST_GOSSIP_PORT", "28301")
	t.Setenv("HOLDFAST_RUN_DIR", "/run/b")
	c, _, err := parseAgent(t, "agent", "--node-file="+path, "--run-dir", "/run/c")
	if err != nil {
		t.Fatal(err)
	}
	if c.RPCPort != 18300 || c.GossipPort != 28301 || c.RunDir != "/run/c" || c.DataDir != "/srv/a" || !c.Insecure ||
		!slices.Equal(c.HTTPListen, []string{"127.0.0.1:18500", "[::1]:18500"}) ||
		!slices.Equal(c.HTTPSListen, []string{"127.0.0.1:18501"}) || !slices.Equal(c.DNSListen, []string{"127.0.0.1:15353"}) {
		t.Errorf("%+v", c)
	}
	t.Setenv("HOLDFAST_NODE_FILE", path)
	if c, _, err := parseAgent(t, "agent"); err != nil || c.RPCPort != 18300 {
		t.Errorf("by its variable: %v %v", c, err)
	}
}

func TestTheNodesFileIsOfTheAgentAlone(t *testing.T) {
	t.Setenv("HOLDFAST_NODE_FILE", nodeFileOf(t, "pki: /nowhere\n"))
	own, err := openNodeFile([]string{"status"}, os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	var c cli
	parser, err := kong.New(&c, kong.Name("holdfast"), kong.Resolvers(own))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse([]string{"status"}); err != nil || c.Status.PKI == "/nowhere" {
		t.Errorf("status took the agent's: %v %q", err, c.Status.PKI)
	}
}

func TestMistakesInTheNodesFileAreNamedWithTheirLine(t *testing.T) {
	for text, want := range map[string]string{
		"rpc-port: 8300\nhtp-listen: x\n":    "node.yaml:2: htp-listen: the agent has no such flag",
		"node-file: /x\n":                    "no such flag",
		"rpc-port: {a: 1}\n":                 "node.yaml:1:1: rpc-port: want a value or a list of values",
		"rpc-port: 1\nrpc_port: 2\n":         "",
		"- a\n":                              `want lines of "flag: value"`,
		"rpc-port: many\n":                   "rpc-port",
		"rpc-port: 70000\n":                  "70000",
		"a: [\n":                             "node.yaml:",
		"rpc-port: 8300\n---\nrpc-port: 1\n": "more than one document",
	} {
		_, _, err := parseAgent(t, "agent", "--node-file", nodeFileOf(t, text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if _, _, err := parseAgent(t, "agent", "--node-file", "/nowhere/node.yaml"); err == nil {
		t.Error("a file that was asked for and is not there")
	}
}

func FuzzParseNodeFile(f *testing.F) {
	f.Add([]byte("rpc-port: 8300\nhttp-listen: [a, b]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		values, err := parseNodeFile(data)
		if err == nil && values == nil {
			t.Fatal("neither values nor an error")
		}
	})
}
