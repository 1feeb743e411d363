package acl

import (
	"strings"
	"testing"
)

const example = `
# what a web server's agent needs
key_prefix "app/" { policy = "read" }
key "app/lock" {
  policy = "write" // its own
}
key_prefix "app/secret/" { policy = "deny" }
service_prefix "" { policy = "read" }
service "web" { policy = "write" }
node "n1" { policy = "write" }
session_prefix "" { policy = "write" } /* any node's */
operator = "read"
`

func parsed(t *testing.T, text string) Rules {
	t.Helper()
	rules, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

func TestTheExactRuleThenTheLongestPrefixDecides(t *testing.T) {
	a := Merge(parsed(t, example))
	for _, test := range []struct {
		resource Resource
		name     string
		level    Level
		want     bool
	}{
		{Key, "app/a", Read, true},
		{Key, "app/a", Write, false},
		{Key, "app/lock", Write, true},
		{Key, "app/locks", Write, false},
		{Key, "app/secret/x", Read, false},
		{Key, "ap", Read, false},
		{Key, "APP/a", Read, false}, // keys are bytes
		{Service, "web", Write, true},
		{Service, "WEB", Write, true}, // names of the DNS are not
		{Service, "db", Read, true},
		{Service, "db", Write, false},
		{Node, "n1", Write, true},
		{Node, "n2", Read, false},
		{Session, "anything", Write, true},
		{Operator, "", Read, true},
		{Operator, "", Write, false},
		{Keyring, "", Read, false},
		{ACL, "", Read, false},
		{Agent, "n1", Read, false},
		{Event, "deploy", Read, false},
		{Key, "app/a", Unset, true}, // a question without a level asks for the least
		{Node, "n2", Unset, false},
	} {
		if got := a.May(test.resource, test.name, test.level); got != test.want {
			t.Errorf("%s %q %s: %t, want %t", test.resource, test.name, test.level, got, test.want)
		}
	}
}

func TestNobodyMayAnything(t *testing.T) {
	for name, a := range map[string]*Authorizer{"nil": nil, "zero": {}, "no policy": Merge(), "an empty policy": Merge(Rules{})} {
		for _, r := range append(named(), single()...) {
			if a.May(r, "x", Read) || a.MayTree(r, "", Read) {
				t.Errorf("%s may read %s", name, r)
			}
		}
	}
	if a := Everything(); !a.May(ACL, "", Write) || !a.MayTree(Key, "", Write) {
		t.Error("who may do everything may not")
	}
}

func TestDenyWinsOverWriteOverRead(t *testing.T) {
	read, write, deny := parsed(t, `key_prefix "a" { policy = "read" }`), parsed(t, `key_prefix "a" { policy = "write" }`), parsed(t, `key_prefix "a" { policy = "deny" }`)
	if !Merge(read, write).May(Key, "ab", Write) || !Merge(write, read).May(Key, "ab", Write) {
		t.Error("the order of policies decides")
	}
	if Merge(write, deny).May(Key, "ab", Read) || Merge(deny, write, read).May(Key, "ab", Read) {
		t.Error("a policy that denies was overruled")
	}
}

func TestATreeNeedsEveryRuleBelowIt(t *testing.T) {
	a := Merge(parsed(t, `
		key_prefix "app/" { policy = "write" }
		key_prefix "app/secret/" { policy = "read" }
		key "other/x" { policy = "write" }
		key_prefix "jobs/" { policy = "write" }
		key "jobs/fixed" { policy = "deny" }`))
	for prefix, want := range map[string]bool{
		"app/": false, "app/public/": true, "app/secret/": false, "other/": false, "other/x": false, "": false, "jobs/": false, "jobs/a": true,
	} {
		if got := a.MayTree(Key, prefix, Write); got != want {
			t.Errorf("%q: %t, want %t", prefix, got, want)
		}
	}
}

func TestConsulsJSONSaysTheSame(t *testing.T) {
	a := Merge(parsed(t, `{"key_prefix": {"app/": {"policy": "read"}, "": {"policy": "deny"}}, "service": {"web": {"policy": "write"}}, "acl": "write"}`))
	if !a.May(Key, "app/x", Read) || a.May(Key, "b", Read) || !a.May(Service, "web", Write) || !a.May(ACL, "", Write) {
		t.Errorf("%+v", a)
	}
}

func TestMistakesInRulesAreNamedWithTheirPlace(t *testing.T) {
	for text, want := range map[string]string{
		"key \"a\" {\n policy = \"raed\" }":                     `line 1, column 1: key "a": policy "raed": want deny, read or write`,
		"\n  kay \"a\" { policy = \"read\" }":                   `line 2, column 3: "kay": no such resource`,
		`key "a" { policy = "read"`:                             "the rules end where } is expected",
		`key "a" { policy "read" }`:                             "line 1, column 18: ",
		`key "a" { sentinel = "x" }`:                            `"sentinel" is not offered`,
		`key "a" { }`:                                           `key "a" has no policy`,
		`key "a" { policy = "read" policy = "write" }`:          "has two policies",
		`key "" { policy = "read" }`:                            `key_prefix "" means all of them`,
		`key = "read"`:                                          "key needs a name",
		`operator "x" { policy = "read" }`:                      "operator has no names",
		`operator_prefix "" { policy = "read" }`:                "no such resource",
		`query_prefix "" { policy = "read" }`:                   "not offered here",
		`service "a" { policy = "list" }`:                       `policy "list"`,
		`key "a`:                                                "the end of the text in quotes",
		"key \"a\nb\" { policy = \"read\" }":                    "on its line",
		`%`:                                                     "expected a word",
		`{"key": {"a": "read"}}`:                                `key "a": want {"policy": "read"}`,
		`{"key": {"a": {"policy": "read", "intentions": "x"}}}`: "nothing else",
		`{"operator": "read"} x`:                                "line 1",
		`{"key`:                                                 "line 1",
		strings.Repeat(" ", MaxRules+1):                         "at most 65536",
		strings.Repeat(`key "a"{policy="read"}`, 2900) + strings.Repeat(`acl="read"`, 2): "",
	} {
		_, err := Parse(text)
		if want == "" {
			if err != nil {
				t.Errorf("%.40q: %v", text, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %q", text, err, want)
		}
	}
}

// FuzzParse: whatever the text, the parser ends, and rules that it took never
// allow what no rule speaks of.
func FuzzParse(f *testing.F) {
	f.Add(example)
	f.Add(`{"key_prefix": {"app/": {"policy": "read"}}, "acl": "write"}`)
	f.Add("key \"\\u00e9\" { policy = \"read\" } /* open")
	f.Fuzz(func(t *testing.T, text string) {
		rules, err := Parse(text)
		a := Merge(rules)
		if err != nil && a.May(Key, "x", Read) {
			t.Fatal("a policy with a mistake allows something")
		}
		for _, r := range rules.list {
			got := a.level(r.resource, r.name)
			if got == Unset || r.level == Deny && !r.prefix && got != Deny {
				t.Fatalf("%+v: %s", r, got)
			}
		}
		if !strings.Contains(text, "acl") && a.May(ACL, "", Read) && !strings.Contains(text, `\`) {
			t.Fatalf("acl was given by %q", text)
		}
	})
}
