package state

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"
)

// line is one line of a script: a verb, words, and name=value options.
type line struct {
	verb  string
	words []string
	opts  map[string]string
	order []string // names of opts
	text  string
}

func (l line) String() string { return l.text }

// parseLine splits at spaces; a part may be quoted as in Go, or a value after
// its equals sign.
func parseLine(t *testing.T, text string) line {
	t.Helper()
	l := line{text: strings.TrimSpace(text), opts: map[string]string{}}
	for _, f := range fields(t, text) {
		name, value, isOpt := strings.Cut(f, "=")
		switch {
		case l.verb == "":
			l.verb = f
		case isOpt && name != "" && !strings.HasPrefix(f, `"`):
			l.opts[name] = unquote(t, value)
			l.order = append(l.order, name)
		default:
			l.words = append(l.words, unquote(t, f))
		}
	}
	return l
}

func fields(t *testing.T, text string) []string {
	var out []string
	for text = strings.TrimSpace(text); text != ""; text = strings.TrimSpace(text) {
		end := 0
		for end < len(text) && text[end] != ' ' {
			if text[end] != '"' {
				end++
				continue
			}
			q, err := strconv.QuotedPrefix(text[end:])
			if err != nil {
				t.Fatalf("script: %q: %v", text, err)
			}
			end += len(q)
		}
		out = append(out, text[:end])
		text = text[end:]
	}
	return out
}

func unquote(t *testing.T, s string) string {
	if !strings.HasPrefix(s, `"`) {
		return s
	}
	u, err := strconv.Unquote(s)
	if err != nil {
		t.Fatalf("script: %s: %v", s, err)
	}
	return u
}

// shift makes the first word the verb.
func (l line) shift(t *testing.T) line {
	return parseLine(t, strings.TrimSpace(strings.TrimPrefix(l.text, l.verb)))
}

func (l line) word(i int) string {
	if i < len(l.words) {
		return l.words[i]
	}
	return ""
}

func (l line) number(t *testing.T, opt string) uint64 {
	if l.opts[opt] == "" {
		return 0
	}
	n, err := strconv.ParseUint(l.opts[opt], 10, 64)
	if err != nil {
		t.Fatalf("script: %s: %v", l, err)
	}
	return n
}

func (l line) addr(t *testing.T) netip.Addr {
	if l.opts["addr"] == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(l.opts["addr"])
	if err != nil {
		t.Fatalf("script: %s: %v", l, err)
	}
	return a
}

func (l line) list(opt string) []string {
	if l.opts[opt] == "" {
		return nil
	}
	return strings.Split(l.opts[opt], ",")
}

func (l line) meta() map[string]string {
	m := map[string]string{}
	for name, value := range l.opts {
		if k, ok := strings.CutPrefix(name, "meta."); ok {
			m[k] = value
		}
	}
	return m
}

// parseCommand reads a command of these, or tells that it is none:
//
//	register NODE [addr=] [id=] [meta.K=V], then indented lines:
//	  service NAME [id=] [port=] [addr=] [tags=A,B] [meta.K=V] [weights=P,W]
//	  check ID [STATUS] [service=ID] [output=] [notes=] [type=] [name=]
//	deregister NODE [services=A,B] [checks=A,B] [id=]
//	update-check NODE ID STATUS [output=]
//	set|delete KEY [VALUE] [flags=]    cas|delete-cas KEY [VALUE] index=N
//	delete-tree PREFIX
//	document VERB KIND KEY [VALUE] [index=]
//	set-cluster ID [name=] [feature=]
//	acquire|release KEY SESSION [VALUE]
//	create-session ID NODE [name=] [checks=A,B] [services=A,B] [behavior=] [ttl=] [delay=]
//	destroy-session ID [renewed=N]    renew-session ID    end-delay KEY index=N
//	transact, then indented lines: VERB KEY [VALUE] [session=] [index=]
func parseCommand(t *testing.T, l line, rest []string) (Command, bool) {
	switch l.verb {
	case "register":
		return parseRegister(t, l, rest), true
	case "deregister":
		return Deregister{Node: l.word(0), Services: l.list("services"), Checks: l.list("checks"), NodeID: l.opts["id"]}, true
	case "update-check":
		u := CheckState{ID: l.word(1), Status: Status(l.word(2)), Output: l.opts["output"]}
		return UpdateCheck{Node: l.word(0), Updates: []CheckState{u}}, true
	case "set", "cas", "delete", "delete-cas", "delete-tree":
		e := Entry{Key: l.word(0), Flags: l.number(t, "flags"), ModifyIndex: l.number(t, "index")}
		if len(l.words) > 1 {
			e.Value = []byte(l.words[1])
		}
		return KV{Verb: Verb(l.verb), Entry: e}, true
	case "acquire", "release":
		e := Entry{Key: l.word(0), Session: l.word(1), Value: []byte(l.word(2))}
		return KV{Verb: Verb(l.verb), Entry: e}, true
	case "create-session":
		return CreateSession{Session{ID: l.word(0), Node: l.word(1), Name: l.opts["name"], NodeChecks: l.list("checks"), ServiceChecks: l.list("services"),
			Behavior: Behavior(l.opts["behavior"]), TTL: l.duration(t, "ttl"), LockDelay: l.duration(t, "delay")}}, true
	case "destroy-session":
		return DestroySession{ID: l.word(0), RenewIndex: l.number(t, "renewed")}, true
	case "renew-session":
		return RenewSession{ID: l.word(0)}, true
	case "end-delay":
		return EndDelay{Key: l.word(0), Index: l.number(t, "index")}, true
	case "transact":
		return parseTransact(t, rest), true
	case "document":
		if len(l.words) < 3 {
			return nil, false // the query
		}
		d := Document{Kind: l.word(1), Key: l.word(2), Value: []byte(l.word(3)), ModifyIndex: l.number(t, "index")}
		return PutDocument{Verb: Verb(l.word(0)), Document: d}, true
	case "set-cluster":
		c := Cluster{ID: l.word(0), Name: l.opts["name"], Feature: int(l.number(t, "feature"))}
		return SetCluster{Cluster: c}, true
	}
	return nil, false
}

func parseTransact(t *testing.T, rest []string) Transact {
	var c Transact
	for _, text := range rest {
		l := parseLine(t, text)
		e := Entry{Key: l.word(0), Session: l.opts["session"], ModifyIndex: l.number(t, "index")}
		if len(l.words) > 1 {
			e.Value = []byte(l.words[1])
		}
		c.Ops = append(c.Ops, KV{Verb: Verb(l.verb), Entry: e})
	}
	return c
}

func (l line) duration(t *testing.T, opt string) time.Duration {
	if l.opts[opt] == "" {
		return 0
	}
	d, err := time.ParseDuration(l.opts[opt])
	if err != nil {
		t.Fatalf("script: %s: %v", l, err)
	}
	return d
}

func parseRegister(t *testing.T, l line, rest []string) Register {
	r := Register{Node: Node{Name: l.word(0), ID: l.opts["id"], Address: l.addr(t), Meta: l.meta()}}
	for _, text := range rest {
		switch l := parseLine(t, text); l.verb {
		case "service":
			s := Service{Node: l.opts["node"], ID: l.opts["id"], Name: l.word(0), Tags: l.list("tags"), Address: l.addr(t),
				Port: uint16(l.number(t, "port")), Meta: l.meta()}
			if w := l.list("weights"); len(w) == 2 {
				p, err1 := strconv.ParseUint(w[0], 10, 16)
				q, err2 := strconv.ParseUint(w[1], 10, 16)
				if err1 != nil || err2 != nil {
					t.Fatalf("script: %s: weights", l)
				}
				s.Weights = Weights{uint16(p), uint16(q)}
			}
			r.Services = append(r.Services, s)
		case "check":
			r.Checks = append(r.Checks, Check{Node: l.opts["node"], ID: l.word(0), Name: l.opts["name"], Status: Status(l.word(1)),
				ServiceID: l.opts["service"], Output: l.opts["output"], Notes: l.opts["notes"], Type: l.opts["type"]})
		default:
			t.Fatalf("script: %s", text)
		}
	}
	return r
}

// parseMembers reads "members NODE=LIVENESS ...".
func parseMembers(t *testing.T, l line) []Member {
	var members []Member
	for _, name := range l.order {
		members = append(members, Member{Name: name, Liveness: Liveness(l.opts[name])})
	}
	return members
}
