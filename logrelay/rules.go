package logrelay

import (
	"fmt"
	"regexp"
	"slices"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/vm"

	"holdfast/logrelay/syslog"
)

// facts are what a rule can ask of a line. Their names stand in the README.
type facts struct {
	Host     string `expr:"host"`   // whose line it is
	Claims   string `expr:"claims"` // the name that the message claims
	Source   string `expr:"source"` // the address that sent it
	Input    string `expr:"input"`  // relp, relp-tls, tcp, tls, udp
	App      string `expr:"app"`
	Proc     string `expr:"proc"`
	Facility int    `expr:"facility"` // 0 to 23
	Severity int    `expr:"severity"` // 0 (emerg) to 7 (debug)
	Level    string `expr:"level"`    // emerg to debug
	Text     string `expr:"text"`
}

// rule is a rule of the cluster file.
type rule struct {
	program *vm.Program
	drop    bool
	to      []string // outputs that it is about; none: all
}

// compile makes a condition of its text, such as
// `severity >= 7 && app == "slurmd"`.
func compile(text string) (*vm.Program, error) {
	return expr.Compile(text, expr.Env(facts{}), expr.AsBool(), expr.DisableAllBuiltins(), expr.EnableBuiltin("len"),
		expr.EnableBuiltin("lower"), expr.EnableBuiltin("upper"), expr.EnableBuiltin("any"), expr.EnableBuiltin("all"), expr.EnableBuiltin("none"))
}

// rules are the rules, for one output: they belong to its goroutine.
type rules struct {
	list    []rule
	secrets []*regexp.Regexp
	machine vm.VM
	facts   facts
	failed  int
}

// allow tells whether a line goes to an output: the first rule that fits
// decides; a line that none fits goes everywhere. A rule that fails does not
// fit, and is counted: rather a line too much than one lost.
func (r *rules) allow(l *line, output string) bool {
	if r == nil || len(r.list) == 0 {
		return true
	}
	r.facts = factsOf(l)
	for i := range r.list {
		rule := &r.list[i]
		if len(rule.to) > 0 && !slices.Contains(rule.to, output) {
			continue
		}
		if r.holds(rule.program) {
			return !rule.drop
		}
	}
	return true
}

// holds evaluates a condition about the facts.
func (r *rules) holds(program *vm.Program) bool {
	result, err := r.machine.Run(program, r.facts)
	if err != nil {
		r.failed++
		return false
	}
	fits, ok := result.(bool)
	return ok && fits
}

func factsOf(l *line) facts {
	f := facts{
		Host: l.host, Claims: string(l.Host), Input: inputName(l.record.Input),
		App: string(l.App), Proc: string(l.Proc), Facility: l.Facility(), Severity: l.Severity(),
		Level: syslog.SeverityName(l.Severity()), Text: string(l.Text),
	}
	if l.record.Source.IsValid() {
		f.Source = l.record.Source.String()
	}
	return f
}

// redact replaces what must not be written in a line that begins at from.
func (r *rules) redact(b []byte, from int) []byte {
	if r == nil {
		return b
	}
	for _, secret := range r.secrets {
		if secret.Match(b[from:]) {
			b = append(b[:from:from], secret.ReplaceAll(b[from:], []byte("[redacted]"))...)
		}
	}
	return b
}

// compileSecret reads a pattern of what is not to be written.
func compileSecret(text string) (*regexp.Regexp, error) {
	re, err := regexp.Compile(text)
	if err == nil && re.MatchString("") {
		return nil, fmt.Errorf("%q fits everywhere, between any two letters", text)
	}
	return re, err
}
