package logrelay

import (
	"fmt"
	"slices"
	"strings"

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
	to      []string // outputs that it is about; none: all
	// One of these; none: the line goes on, whatever the next rules say.
	drop  bool
	set   *change
	limit *limit
}

// change is what a rule makes of a line's parts; nil: they stay.
type change struct{ text, tag, host, severity *vm.Program }

// compile makes a condition of its text, such as
// `severity >= 7 && app == "slurmd"`.
func compile(text string) (*vm.Program, error) { return compileAs(text, expr.AsBool()) }

// compileAs makes an expression of its text. What it can call stands in the
// README.
func compileAs(text string, kind expr.Option) (*vm.Program, error) {
	options := []expr.Option{expr.Env(facts{}), kind, expr.DisableAllBuiltins(), expr.Function("replace", replace, strings.ReplaceAll)}
	for _, name := range []string{
		"len", "lower", "upper", "any", "all", "none", "trim", "trimPrefix", "trimSuffix", "split", "min", "max", "int", "string",
	} {
		options = append(options, expr.EnableBuiltin(name))
	}
	return expr.Compile(text, options...)
}

// replace is the library's, but for what it makes of a line that was sent to
// fill the memory.
func replace(args ...any) (any, error) {
	text, old, with := args[0].(string), args[1].(string), args[2].(string)
	if size := len(text) + strings.Count(text, old)*(len(with)-len(old)); size > maxLine {
		return nil, fmt.Errorf("replace makes %d bytes, want %d at most", size, maxLine)
	}
	return strings.ReplaceAll(text, old, with), nil
}

// rules are the rules, for one output: they belong to its goroutine.
type rules struct {
	list      []rule
	secrets   []*secret
	plain     []byte   // room to write a line
	covered   [][2]int // of that, what must not be written
	boundless bool     // limits leave nothing out
	machine   vm.VM
	facts     facts
	failed    int
	windows   [][2]window // of the rules' limits: of lines that came here, and to other nodes
	over      map[overKey]*over
}

// begin forgets what was counted: lines are judged anew, from where an output
// goes on.
func (r *rules) begin() {
	if r != nil {
		r.windows, r.over = nil, nil
	}
}

// verdict is what rules say about a line.
type verdict int

const (
	goes verdict = iota
	dropped
	limited
)

// judge tells whether a line goes to an output, and changes it. The first rule
// that fits and neither changes nor limits decides; a line that none fits goes
// everywhere. A rule that fails does not fit, and is counted: rather a line too
// much than one lost.
func (r *rules) judge(l *line, output string) verdict {
	if r == nil || len(r.list) == 0 {
		return goes
	}
	r.facts = factsOf(l)
	for i := range r.list {
		rule := &r.list[i]
		if len(rule.to) > 0 && !slices.Contains(rule.to, output) || !r.holds(rule.program) {
			continue
		}
		switch {
		case rule.set != nil:
			r.change(l, rule.set)
			r.facts = factsOf(l)
		case rule.limit == nil && rule.drop:
			return dropped
		case rule.limit == nil:
			return goes
		case !r.within(i, l):
			return limited
		}
	}
	return goes
}

// change gives a line the parts that a rule makes of what it was.
func (r *rules) change(l *line, c *change) {
	text, newText := r.text(c.text)
	tag, newTag := r.text(c.tag)
	host, newHost := r.text(c.host)
	severity, newSeverity := r.severity(c.severity)
	if newText {
		l.Text, l.BOM = []byte(text[:min(len(text), maxLine)]), false
	}
	if newTag {
		l.retag(tag)
	}
	if newHost && !l.rename(host) {
		r.failed++
	}
	if newSeverity {
		l.Priority = l.Priority&^7 | severity
	}
}

// text evaluates an expression of a text; false: there is none, or it failed.
func (r *rules) text(program *vm.Program) (string, bool) {
	if program == nil {
		return "", false
	}
	result, err := r.machine.Run(program, r.facts)
	text, ok := result.(string)
	if err != nil || !ok {
		r.failed++
		return "", false
	}
	return text, true
}

// severity evaluates an expression of 0 to 7; false as for text.
func (r *rules) severity(program *vm.Program) (uint8, bool) {
	if program == nil {
		return 0, false
	}
	result, err := r.machine.Run(program, r.facts)
	n, ok := result.(int)
	if err != nil || !ok || n < 0 || n > 7 {
		r.failed++
		return 0, false
	}
	return uint8(n), true
}

// failures are how often an expression failed since this was asked last.
func (r *rules) failures() (n int) {
	if r != nil {
		n, r.failed = r.failed, 0
	}
	return n
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
