package cluster

import (
	"fmt"
	"strconv"
	"strings"
)

// MaxItems bounds what one node set or folded list may expand to.
const MaxItems = 65536

const (
	maxSetLength  = 64 << 10 // bytes of one set as written
	maxItemLength = 255      // bytes of one expanded item: a DNS name's length
	maxDigits     = 18       // of one number in brackets: fits an int64
)

// Groups resolves the "@name" of a node set to its members.
type Groups func(name string) (members []string, err error)

// Expand lists the members of a node set in ClusterShell's syntax:
//
//	fbservice[1-4]          brackets: numbers and ranges, zero padding kept
//	cn[001-512,600]         commas inside and outside brackets
//	n[0-8/2]                steps
//	r[1-2]n[01-04]          several brackets: every combination
//	@service                a group, resolved by groups (nil: there are none)
//	a,b  a!b  a&b  a^b      union, difference, intersection, symmetric
//	                        difference, worked from left to right
//
// Members come in the order written, each once; the empty set is no error.
// More than MaxItems members, counted over all operands, are one.
func Expand(set string, groups Groups) ([]string, error) {
	if len(set) > maxSetLength {
		return nil, fmt.Errorf("node set of %d bytes: at most %d are read", len(set), maxSetLength)
	}
	if strings.TrimSpace(set) == "" {
		return nil, nil
	}
	operands, operators, err := split(set, ",!&^")
	if err != nil {
		return nil, err
	}
	var result *nodes
	budget := MaxItems
	for i, operand := range operands {
		members, err := operandMembers(operand, groups, &budget)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			result = newNodes(members)
			continue
		}
		result = result.apply(operators[i], members)
	}
	return result.list(), nil
}

// ExpandList lists the items of a folded list, such as the addresses
// "10.1.0.[1-4]" or "aa:bb:cc:dd:ee:[00,0a]", in the order written and with
// repetitions, so that they pair with the members of a node set. Commas are
// its only operator; brackets take plain words beside numbers and ranges.
func ExpandList(list string) ([]string, error) {
	if len(list) > maxSetLength {
		return nil, fmt.Errorf("list of %d bytes: at most %d are read", len(list), maxSetLength)
	}
	operands, _, err := split(list, ",")
	if err != nil {
		return nil, err
	}
	var items []string
	budget := MaxItems
	for _, operand := range operands {
		p, err := parsePattern(operand, true)
		if err != nil {
			return nil, err
		}
		if items, err = p.expand(items, &budget); err != nil {
			return nil, err
		}
	}
	return items, nil
}

// split cuts a set at the operators that stand outside brackets. operators[i]
// is the one before operands[i]; the first is ','.
func split(set, operatorSet string) (operands []string, operators []byte, err error) {
	operators = []byte{','}
	start, open := 0, -1
	cut := func(end int) error {
		operand := strings.TrimSpace(set[start:end])
		if operand == "" {
			return fmt.Errorf("%q: nothing stands %s", set, besideOperator(set, start, end))
		}
		operands = append(operands, operand)
		return nil
	}
	for i := range len(set) {
		c := set[i]
		switch {
		case c == '[' && open >= 0:
			return nil, nil, fmt.Errorf("%q: bracket opened again before it is closed", set)
		case c == '[':
			open = i
		case c == ']' && open < 0:
			return nil, nil, fmt.Errorf("%q: closing bracket without an opening one", set)
		case c == ']':
			open = -1
		case open < 0 && strings.IndexByte(operatorSet, c) >= 0:
			if err := cut(i); err != nil {
				return nil, nil, err
			}
			operators, start = append(operators, c), i+1
		}
	}
	if open >= 0 {
		return nil, nil, fmt.Errorf("%q: bracket is not closed", set)
	}
	if err := cut(len(set)); err != nil {
		return nil, nil, err
	}
	return operands, operators, nil
}

// besideOperator says where an operand is missing.
func besideOperator(set string, start, end int) string {
	switch {
	case start == 0 && end == len(set):
		return "in it"
	case end < len(set):
		return fmt.Sprintf("before %q", set[end])
	}
	return fmt.Sprintf("after %q", set[start-1])
}

func operandMembers(operand string, groups Groups, budget *int) ([]string, error) {
	name, isGroup := strings.CutPrefix(operand, "@")
	p, err := parsePattern(name, false)
	if err != nil {
		return nil, err
	}
	names, err := p.expand(nil, budget)
	if err != nil || !isGroup {
		return names, err
	}
	if groups == nil {
		return nil, fmt.Errorf("%q: groups have no meaning here; write the names", operand)
	}
	var members []string
	for _, name := range names {
		of, err := groups(name)
		if err != nil {
			return nil, err
		}
		if *budget -= len(of); *budget < 0 {
			return nil, errTooMany(operand)
		}
		members = append(members, of...)
	}
	return members, nil
}

// pattern is one operand: literals[0] choices[0] literals[1] choices[1] ...
type pattern struct {
	source   string
	literals []string // one more than choices
	choices  [][]span
}

// span is a range of numbers inside brackets, or one word.
type span struct {
	word        string // "" for a range
	first, last int64
	step        int64
	width       int // zero padding
}

func (s span) count() int64 {
	if s.word != "" {
		return 1
	}
	return (s.last-s.first)/s.step + 1
}

// parsePattern reads one operand; words allows plain words in brackets.
func parsePattern(source string, words bool) (pattern, error) {
	p := pattern{source: source}
	if source == "" {
		return p, fmt.Errorf("empty name")
	}
	rest := source
	for {
		literal, after, found := strings.Cut(rest, "[")
		if i := strings.IndexFunc(literal, isForbidden); i >= 0 {
			return p, fmt.Errorf("%q: a name does not contain %q", source, literal[i:i+1])
		}
		if !found {
			p.literals = append(p.literals, literal)
			return p, nil
		}
		if literal == "" && len(p.choices) > 0 {
			return p, fmt.Errorf("%q: two brackets side by side; a letter must part them", source)
		}
		inside, tail, closed := strings.Cut(after, "]")
		if !closed {
			return p, fmt.Errorf("%q: bracket is not closed", source)
		}
		spans, err := parseSpans(inside, words)
		if err != nil {
			return p, fmt.Errorf("%q: %w", source, err)
		}
		p.literals, p.choices = append(p.literals, literal), append(p.choices, spans)
		rest = tail
	}
}

// isForbidden tells characters that no name, address or file path of a set
// holds, and that would not survive folding.
func isForbidden(r rune) bool {
	return r <= ' ' || r >= 0x7f || strings.ContainsRune(`[],!&^@`, r)
}

func parseSpans(inside string, words bool) ([]span, error) {
	if strings.TrimSpace(inside) == "" {
		return nil, fmt.Errorf("empty brackets")
	}
	var spans []span
	for item := range strings.SplitSeq(inside, ",") {
		item = strings.TrimSpace(item)
		if words && isWord(item) {
			spans = append(spans, span{word: item})
			continue
		}
		s, err := parseRange(item)
		if err != nil {
			return nil, err
		}
		spans = append(spans, s)
	}
	return spans, nil
}

// isWord tells a bracket item that stands for itself in a folded list.
func isWord(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return s != ""
}

// parseRange reads "7", "1-4" or "0-8/2".
func parseRange(item string) (span, error) {
	body, stepText, hasStep := strings.Cut(item, "/")
	from, to, isRange := strings.Cut(body, "-")
	if !isRange {
		to = from
	}
	from, to = strings.TrimSpace(from), strings.TrimSpace(to)
	s := span{step: 1}
	var err error
	if s.first, err = parseNumber(from, item); err != nil {
		return span{}, err
	}
	if s.last, err = parseNumber(to, item); err != nil {
		return span{}, err
	}
	if hasStep {
		if s.step, err = parseNumber(strings.TrimSpace(stepText), item); err != nil {
			return span{}, err
		}
	}
	switch {
	case s.step == 0:
		return span{}, fmt.Errorf("step 0 in %q; the least is 1", item)
	case s.last < s.first:
		return span{}, fmt.Errorf("range %q runs backwards; write %s-%s", item, to, from)
	case (padded(from) || padded(to)) && len(from) != len(to):
		return span{}, fmt.Errorf("range %q pads its ends to different lengths", item)
	}
	if padded(from) || padded(to) {
		s.width = len(from)
	}
	return s, nil
}

// padded tells a number with leading zeros.
func padded(number string) bool { return len(number) > 1 && number[0] == '0' }

func parseNumber(text, item string) (int64, error) {
	if text == "" {
		return 0, fmt.Errorf("a number is missing in %q", item)
	}
	for i := range len(text) {
		if text[i] < '0' || text[i] > '9' {
			return 0, fmt.Errorf("%q is not a decimal number or range", item)
		}
	}
	if len(text) > maxDigits {
		return 0, fmt.Errorf("number of %d digits; at most %d are read", len(text), maxDigits)
	}
	return strconv.ParseInt(text, 10, 64)
}

func errTooMany(source string) error {
	return fmt.Errorf("%q expands to more than %d items", source, MaxItems)
}

// expand appends every combination, the last bracket turning fastest, and
// takes their number from the budget before it makes the first.
func (p pattern) expand(items []string, budget *int) ([]string, error) {
	total := int64(1)
	for _, spans := range p.choices {
		var n int64
		for _, s := range spans {
			if n += s.count(); n > MaxItems {
				return nil, errTooMany(p.source)
			}
		}
		if total *= n; total > int64(*budget) {
			return nil, errTooMany(p.source)
		}
	}
	if total > int64(*budget) {
		return nil, errTooMany(p.source)
	}
	if n := p.longest(); n > maxItemLength {
		return nil, fmt.Errorf("%q: an item of %d bytes; at most %d are read", clip(p.source), n, maxItemLength)
	}
	*budget -= int(total)
	heads := []string{p.literals[0]}
	for i, spans := range p.choices {
		var next []string
		for _, head := range heads {
			for _, s := range spans {
				next = s.appendTo(next, head, p.literals[i+1])
			}
		}
		heads = next
	}
	return append(items, heads...), nil
}

// longest is the length in bytes of the longest item.
func (p pattern) longest() int {
	length := 0
	for _, literal := range p.literals {
		length += len(literal)
	}
	for _, spans := range p.choices {
		widest := 0
		for _, s := range spans {
			widest = max(widest, len(s.word), s.width, decimals(s.last))
		}
		length += widest
	}
	return length
}

func decimals(n int64) int { return len(strconv.FormatInt(n, 10)) }

func (s span) appendTo(items []string, head, tail string) []string {
	if s.word != "" {
		return append(items, head+s.word+tail)
	}
	for n := s.first; n <= s.last; n += s.step {
		items = append(items, head+fmt.Sprintf("%0*d", s.width, n)+tail)
	}
	return items
}

// nodes is an ordered set of names.
type nodes struct {
	order []string
	has   map[string]bool
}

func newNodes(names []string) *nodes {
	s := &nodes{has: make(map[string]bool, len(names))}
	for _, name := range names {
		s.add(name)
	}
	return s
}

func (s *nodes) add(name string) {
	if !s.has[name] {
		s.has[name] = true
		s.order = append(s.order, name)
	}
}

func (s *nodes) list() []string { return s.order }

// apply gives s OPERATOR other.
func (s *nodes) apply(operator byte, members []string) *nodes {
	other := newNodes(members)
	result := newNodes(nil)
	for _, name := range s.order {
		keep := operator == ',' || (operator == '&') == other.has[name]
		if keep {
			result.add(name)
		}
	}
	if operator == ',' || operator == '^' {
		for _, name := range other.order {
			if operator == ',' || !s.has[name] {
				result.add(name)
			}
		}
	}
	return result
}
