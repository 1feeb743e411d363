package logrelay

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"holdfast/cluster"
	"holdfast/logrelay/journal"
)

// settingsOf reads a section of a cluster file.
func settingsOf(t *testing.T, yaml string) settings {
	t.Helper()
	text := clusterHead + "roles: {service: {voters: 1, run: [dns, logs]}}\nlogs: " + yaml + "\n"
	file, err := cluster.Parse("cluster.yaml", []byte(text), map[string]cluster.SectionValidator{Section: ValidateSection})
	if err != nil {
		t.Fatal(err)
	}
	set, err := decode(file.Section(Section))
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// rulesOf are the rules of a list in YAML; there is a target "siem".
func rulesOf(t *testing.T, yaml string) *rules {
	t.Helper()
	return &rules{list: settingsOf(t, `{forward: {siem: {relp: "siem:20514"}}, rules: [`+yaml+`]}`).rules}
}

// lineOf is a line that the relay of testNames sent, received at a time.
func lineOf(text string, received time.Time) *line {
	var l line
	l.read(journal.Record{Time: received.UnixNano(), Source: netip.MustParseAddr("10.1.0.9"), Input: viaRELP, Data: []byte(text)}, testNames())
	return &l
}

// TestRulesChangeALine: what they make of one, in the files; and how often an
// expression failed, which leaves its part as it was.
func TestRulesChangeALine(t *testing.T) {
	const line = "<30>Nov 25 12:00:00 cn02 sshd[12]: Accepted key for root"
	const same = "cn02 daemon.info sshd[12]: Accepted key for root"
	for _, test := range []struct {
		rules, want string
		failed      int
	}{
		{`{if: 'app == "sshd"', set: {severity: "4"}}`, "cn02 daemon.warning sshd[12]: Accepted key for root", 0},
		{`{if: 'app == "su"', set: {severity: "4"}}`, same, 0},
		{`{if: 'true', to: [siem], set: {severity: "4"}}`, same, 0},
		{`{if: 'severity == 6'}, {if: 'true', set: {severity: "4"}}`, same, 0}, // the first has decided
		{`{if: 'true', set: {text: 'replace(text, "root", "admin")'}}`, "cn02 daemon.info sshd[12]: Accepted key for admin", 0},
		{`{if: 'true', set: {text: '"one"'}}`, "cn02 daemon.info sshd[12]: one", 0},
		{`{if: 'true', set: {text: '"one\ntwo"'}}`, "cn02 daemon.info sshd[12]: one#012two", 0}, // still one line
		{`{if: 'true', set: {tag: 'upper(app)'}}`, "cn02 daemon.info SSHD: Accepted key for root", 0},
		{`{if: 'true', set: {tag: '"login[" + proc + "]:"'}}`, "cn02 daemon.info login[12]: Accepted key for root", 0},
		{`{if: 'true', set: {tag: '"log in: x"'}}`, "cn02 daemon.info log_in__x: Accepted key for root", 0},
		{`{if: 'true', set: {tag: '""'}}`, "cn02 daemon.info  Accepted key for root", 0},
		{`{if: 'true', set: {host: 'upper(host) + ".site/../x"'}}`, "cn02.site_.._x daemon.info sshd[12]: Accepted key for root", 0},
		{`{if: 'true', set: {tag: 'text', text: 'app'}}`, "cn02 daemon.info _Accepted_key_for_root: sshd", 0},                                     // of what it was
		{`{if: 'true', set: {severity: "5"}}, {if: 'severity == 5', set: {tag: 'level'}}`, "cn02 daemon.notice notice: Accepted key for root", 0}, // the next sees that
		{`{if: 'true', set: {text: 'split(text, " ")[99]', severity: 'severity - 2'}}`, "cn02 daemon.warning sshd[12]: Accepted key for root", 1},
		{`{if: 'true', set: {severity: 'severity - 7'}}`, same, 1},
		{`{if: 'true', set: {severity: 'severity + 2'}}`, same, 1},
		{`{if: 'true', set: {host: '"..."'}}`, same, 1},
		{`{if: 'split(text, " ")[99] == "x"', set: {severity: "4"}}`, same, 1},
	} {
		r, l := rulesOf(t, test.rules), lineOf(line, time.Now())
		if v := r.judge(l, "files"); v != goes {
			t.Errorf("%s: verdict %d", test.rules, v)
		}
		_, got, _ := strings.Cut(string(l.appendFile(nil)), " ")
		if failed := r.failures(); got != test.want || failed != test.failed || r.failures() != 0 {
			t.Errorf("%s: %q, %d failed; want %q, %d", test.rules, got, failed, test.want, test.failed)
		}
	}
}

// TestAChangedLineIsWhatTheNextRulesSee: it is dropped for what it was made, and
// goes into the file of the host that it was given to.
func TestAChangedLineIsWhatTheNextRulesSee(t *testing.T) {
	r := rulesOf(t, `{if: 'app == "chatty"', set: {severity: "7"}}, {if: 'severity == 7', drop: true, to: [siem]}, {if: 'app == "switch"', set: {host: '"sw-" + claims'}}`)
	chatty := "<13>Nov 25 12:00:00 cn02 chatty: x"
	if v := r.judge(lineOf(chatty, time.Now()), "siem"); v != dropped {
		t.Errorf("siem: verdict %d", v)
	}
	if v := r.judge(lineOf(chatty, time.Now()), "files"); v != goes {
		t.Errorf("files: verdict %d", v)
	}
	l := lineOf("<13>Nov 25 12:00:00 3 switch[7]: x", time.Now())
	if v := r.judge(l, "files"); v != goes || l.host != "sw-3" {
		t.Errorf("verdict %d, in the file of %s", v, l.host)
	}
	if got := string(l.append5424(nil)); !strings.HasSuffix(got, " sw-3 switch 7 - - x") {
		t.Errorf("by RFC 5424: %q", got)
	}
}

// TestNewNamesOfHostsAreBoundedToo: a rule that takes them from lines makes no
// more files than there may be.
func TestNewNamesOfHostsAreBoundedToo(t *testing.T) {
	r, names := rulesOf(t, `{if: 'true', set: {host: 'text'}}`), testNames()
	seen := map[string]bool{}
	for i := range 1000 {
		var l line
		l.read(journal.Record{Source: netip.MustParseAddr("10.1.0.31"), Data: []byte("<13>Nov 25 12:00:00 cn01 test: h" + itoa(i))}, names)
		r.judge(&l, "files")
		seen[l.host] = true
	}
	if len(seen) > names.most+1 || !seen[overflow] {
		t.Errorf("%d files, want %d at most", len(seen), names.most+1)
	}
}

// TestALineIsNotMadeToFillTheMemory: a sender chooses the text that a rule
// makes longer.
func TestALineIsNotMadeToFillTheMemory(t *testing.T) {
	r := rulesOf(t, `{if: 'true', set: {text: 'replace(text, "a", "aaaaaaaa")'}}`)
	long := strings.Repeat("a", maxLine/4)
	l := lineOf("<13>Nov 25 12:00:00 cn02 test: "+long, time.Now())
	r.judge(l, "files")
	if got := strings.TrimSpace(string(l.Text)); got != long || r.failures() != 1 {
		t.Errorf("%d bytes became %d", len(long), len(got))
	}
	twice := rulesOf(t, `{if: 'true', set: {text: 'text + text + text + text + text'}}`)
	if twice.judge(l, "files"); len(l.Text) != maxLine {
		t.Errorf("%d bytes, want it cut at %d", len(l.Text), maxLine)
	}
}

// TestATextThatARuleMadeIsMarkedAsNothing: the byte order mark says of the text
// that came that it is in UTF-8. It fails if the mark outlives that text.
func TestATextThatARuleMadeIsMarkedAsNothing(t *testing.T) {
	l := lineOf("<13>1 2026-11-25T12:00:00Z cn02 app - - - \xef\xbb\xbfold", time.Now())
	if got := string(l.append5424(nil)); got != "<13>1 2026-11-25T12:00:00Z cn02 app - - - \xef\xbb\xbfold" {
		t.Errorf("%q", got)
	}
	rulesOf(t, `{if: 'true', set: {text: '"new"'}}`).judge(l, "files")
	if got := string(l.append5424(nil)); got != "<13>1 2026-11-25T12:00:00Z cn02 app - - - new" {
		t.Errorf("%q", got)
	}
}
