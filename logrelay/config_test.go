package logrelay

import (
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"holdfast/cluster"
)

const clusterHead = `schema: 1
cluster: c
domain: hpc.example.com
networks: {main: {prefix: 192.0.2.0/24}}
nodes:
  fb1: {role: service, addresses: {main: 192.0.2.1}}
`

// example is the configuration that the README shows, with the nodes of the
// cluster file that the guide shows.
func example(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("README.md")
	site, err2 := os.ReadFile("../examples/scibian.yaml")
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "```yaml\nroles:\n")
	role, rest, _ := strings.Cut(rest, "\n")
	yaml, _, ok := strings.Cut(rest, "```")
	its := regexp.MustCompile(`(?m)^  service: .*$`)
	if !ok || !its.MatchString(role) || !its.Match(site) {
		t.Fatal("README.md has no example that begins with the role service, or examples/scibian.yaml no such role")
	}
	return its.ReplaceAllLiteralString(string(site), role) + yaml
}

func parse(text string) error {
	_, err := cluster.Parse("cluster.yaml", []byte(text), map[string]cluster.SectionValidator{Section: ValidateSection, "dns": nil, "vips": nil})
	return err
}

func TestTheExampleOfTheREADMEIsInOrder(t *testing.T) {
	if err := parse(example(t)); err != nil {
		t.Error(err)
	}
}

func TestMistakesAreNamedWithTheirPlace(t *testing.T) {
	for section, want := range map[string]string{
		`{relp: [nowhere]}`:                                                      "logs.relp[0]",
		`{relays: [10.0.0.1/8]}`:                                                 "logs.relays[0]",
		`{unix: [log]}`:                                                          "logs.unix[0]",
		`{hosts: 0}`:                                                             "logs.hosts: 0 is out of range: 1 to 100000",
		`{files: {dir: relative}}`:                                               "no absolute path",
		`{files: {rotate_every: 1s}}`:                                            "logs.files.rotate_every",
		`{forward: {files: {tcp: "h:1"}}}`:                                       "can't name a target",
		`{forward: {a: {tcp: "h:1", relp: "h:1"}}}`:                              "2 of relp, relp_tls, tcp and tls",
		`{forward: {a: {tcp: h}}}`:                                               "no HOST:PORT",
		`{forward: {a: {tcp: ["h:1", h]}}}`:                                      "no HOST:PORT",
		`{forward: {a: {tcp: {h: 1}}}}`:                                          "logs.forward.a.tcp",
		`{forward: {a: {tcp: "h:1", ca: /ca}}}`:                                  "are for relp_tls and tls",
		`{forward: {a: {tls: "h:1", name: n}}}`:                                  "want ca",
		`{forward: {a: {tls: "h:1", ca: ca.pem}}}`:                               "no absolute path",
		`{forward: {a: {tls: "h:1", ca: /c, key: {file: /k}}}}`:                  "want both",
		`{forward: {a: {tcp: "h:1", format: json}}}`:                             "no format",
		`{forward: {a: {tcp: "h:1", backlog_mib: -1}}}`:                          "logs.forward.a.backlog_mib: -1 is out of range: 0 to 1048576",
		`{forward: {a: {tcp: "h:1", backlog_policy: keep}}}`:                     "want drop or wait",
		`{forward: {replica: {tcp: "h:1"}}}`:                                     "can't name a target",
		`{rules: [{if: "severity <"}]}`:                                          "logs.rules[0].if",
		`{rules: [{if: "nonsense == 1"}]}`:                                       "unknown name nonsense",
		`{rules: [{if: "severity"}]}`:                                            "expected bool",
		`{rules: [{if: "severity > 1", to: [nobody]}]}`:                          "is no output",
		`{rules: [{if: "true", drop: true, set: {tag: app}}]}`:                   "more than one of drop, set and limit",
		`{rules: [{if: "true", set: {tag: app}, limit: {lines: 1, every: 1s}}]}`: "more than one of drop, set and limit",
		`{rules: [{if: "true", set: {}}]}`:                                       "logs.rules[0].set: nothing is set",
		`{rules: [{if: "true", set: {text: severity}}]}`:                         "logs.rules[0].set.text",
		`{rules: [{if: "true", set: {tag: "repeat(app, 9)"}}]}`:                  "logs.rules[0].set.tag",
		`{rules: [{if: "true", set: {host: "hosts"}}]}`:                          "unknown name hosts",
		`{rules: [{if: "true", set: {severity: "8"}}]}`:                          "logs.rules[0].set.severity: 8 is out of range: 0 (emerg) to 7 (debug)",
		`{rules: [{if: "true", set: {severity: level}}]}`:                        "logs.rules[0].set.severity",
		`{rules: [{if: "true", limit: {lines: 0, every: 1s}}]}`:                  "logs.rules[0].limit.lines: 0 is out of range: 1 to 1000000000",
		`{rules: [{if: "true", limit: {lines: 5}}]}`:                             "logs.rules[0].limit.every: 0s is out of range: 1s to 24h0m0s",
		`{rules: [{if: "true", limit: {lines: 5, every: 1s, per: severity}}]}`:   "logs.rules[0].limit.per",
		`{files: {path: "{app}.log"}}`:                                           `logs.files.path: "{app}.log": {host} is missing`,
		`{files: {path: ""}}`:                                                    "logs.files.path",
		`{files: {path: "../{host}.log"}}`:                                       `logs.files.path: "../{host}.log": ".." begins with a dot`,
		`{files: {format: text}}`:                                                `logs.files.format: "text": is no format`,
		`{files: {format: ""}}`:                                                  "logs.files.format",
		`{files: {apps: 0}}`:                                                     "logs.files.apps: 0 is out of range: 1 to 1000",
		`{hosts: 20000, files: {path: "{host}/{app}.log", apps: 501}}`:           "logs.files.apps: 501 programs of each of 20000 hosts",
		`{files: {owner: "a b"}}`:                                                "logs.files.owner",
		`{files: {owner: "4294967295"}}`:                                         "logs.files.owner",
		`{files: {group: "-x"}}`:                                                 "logs.files.group",
		`{files: {mode: "0666"}}`:                                                "logs.files.mode",
		`{files: {mode: "0440"}}`:                                                "logs.files.mode",
		`{files: {mode: "0740"}}`:                                                "logs.files.mode",
		`{files: {mode: "rw"}}`:                                                  "logs.files.mode",
		`{redact: ["("]}`:                                                        "logs.redact[0]",
		`{redact: ["x*"]}`:                                                       "fits everywhere",
	} {
		err := parse(clusterHead + "roles: {service: {voters: 1}}\nlogs: " + section + "\n")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", section, err, want)
		}
	}
}
