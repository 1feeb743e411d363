package acl

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// parseHCL reads the part of HCL that policies are written in:
//
//	key_prefix "app/" { policy = "write" }   # a block with a name
//	operator = "read"                        // an attribute
func parseHCL(text string) ([]rule, error) {
	p := &parser{text: text}
	var list []rule
	for {
		p.space()
		if p.end() {
			return list, nil
		}
		start := p.at
		r, err := p.statement()
		if err != nil {
			if p.failed == 0 {
				p.failed = start
			}
			line, column := p.position(p.failed)
			return nil, fmt.Errorf("line %d, column %d: %w", line, column, err)
		}
		list = append(list, r)
	}
}

type parser struct {
	text   string
	at     int
	failed int // where the mistake is, when it is not at the statement's begin
}

func (p *parser) end() bool { return p.at >= len(p.text) }

func (p *parser) position(at int) (line, column int) {
	before := p.text[:min(at, len(p.text))]
	return 1 + strings.Count(before, "\n"), 1 + utf8.RuneCountInString(before[strings.LastIndexByte(before, '\n')+1:])
}

// space skips white space and comments: # and // to the line's end, /* */.
func (p *parser) space() {
	for !p.end() {
		rest := p.text[p.at:]
		switch {
		case strings.ContainsRune(" \t\r\n", rune(rest[0])):
			p.at++
		case rest[0] == '#' || strings.HasPrefix(rest, "//"):
			if p.skipTo("\n"); p.end() {
				return
			}
		case strings.HasPrefix(rest, "/*"):
			p.skipTo("*/")
		default:
			return
		}
	}
}

func (p *parser) skipTo(mark string) {
	if at := strings.Index(p.text[p.at:], mark); at >= 0 {
		p.at += at + len(mark)
		return
	}
	p.at = len(p.text)
}

func (p *parser) statement() (rule, error) {
	word, err := p.word()
	if err != nil {
		return rule{}, err
	}
	p.space()
	if p.accept('=') {
		return p.attribute(word)
	}
	name, err := p.quoted("a name in quotes, or =")
	if err != nil {
		return rule{}, err
	}
	if r, _, err := subject(word); err == nil && isSingle(r) {
		return rule{}, fmt.Errorf("%s has no names: write %s = \"read\"", word, word)
	}
	policy, err := p.block(word, name)
	if err != nil {
		return rule{}, err
	}
	return ruleFor(word, name, policy)
}

// attribute is the end of operator = "read".
func (p *parser) attribute(word string) (rule, error) {
	p.space()
	policy, err := p.quoted("a policy in quotes")
	if err != nil {
		return rule{}, err
	}
	r, _, err := subject(word)
	if err == nil && !isSingle(r) {
		return rule{}, fmt.Errorf("%s needs a name: write %s \"NAME\" { policy = %q }", word, word, policy)
	}
	return ruleFor(word, "", policy)
}

// block is { policy = "read" }.
func (p *parser) block(word, name string) (policy string, err error) {
	p.space()
	if !p.accept('{') {
		return "", p.expected("{")
	}
	given := false
	for {
		p.space()
		if p.accept('}') {
			break
		}
		if p.end() {
			return "", p.expected("}")
		}
		attribute, err := p.word()
		if err != nil {
			return "", err
		}
		if attribute != "policy" {
			return "", fmt.Errorf("%s %q: %q is not offered; a rule has a policy and nothing else", word, name, attribute)
		}
		if p.space(); !p.accept('=') {
			return "", p.expected("=")
		}
		p.space()
		if policy, err = p.quoted("a policy in quotes"); err != nil {
			return "", err
		}
		if given {
			return "", fmt.Errorf("%s %q has two policies", word, name)
		}
		given = true
	}
	if !given {
		return "", fmt.Errorf("%s %q has no policy", word, name)
	}
	return policy, nil
}

func (p *parser) accept(c byte) bool {
	if p.end() || p.text[p.at] != c {
		return false
	}
	p.at++
	return true
}

func (p *parser) expected(what string) error {
	p.failed = p.at
	if p.end() {
		return fmt.Errorf("the rules end where %s is expected", what)
	}
	return fmt.Errorf("%.20q: expected %s", p.text[p.at:min(len(p.text), p.at+20)], what)
}

// word is a bare or quoted identifier.
func (p *parser) word() (string, error) {
	if !p.end() && p.text[p.at] == '"' {
		return p.quoted("a word")
	}
	start := p.at
	for !p.end() && (p.text[p.at] == '_' || p.text[p.at]|0x20 >= 'a' && p.text[p.at]|0x20 <= 'z') {
		p.at++
	}
	if p.at == start {
		return "", p.expected("a word such as key_prefix")
	}
	return p.text[start:p.at], nil
}

// quoted is a string with the escapes of Go and of HCL.
func (p *parser) quoted(what string) (string, error) {
	if p.end() || p.text[p.at] != '"' {
		return "", p.expected(what)
	}
	for at := p.at + 1; at < len(p.text); at++ {
		switch p.text[at] {
		case '\\':
			at++
		case '\n':
			return "", p.expected("the end of the text in quotes, on its line")
		case '"':
			value, err := strconv.Unquote(p.text[p.at : at+1])
			if err != nil {
				return "", p.expected("a text in quotes with known escapes")
			}
			p.at = at + 1
			return value, nil
		}
	}
	return "", p.expected("the end of the text in quotes")
}

// parseJSON reads {"key_prefix": {"app/": {"policy": "read"}}, "operator": "read"}.
// Its rules come in the text's order.
func parseJSON(text string) ([]rule, error) {
	decoder := json.NewDecoder(strings.NewReader(text))
	var list []rule
	err := object(decoder, func(word string) error {
		r, _, err := subject(word)
		if err != nil {
			return err
		}
		if isSingle(r) {
			var policy string
			if err := decoder.Decode(&policy); err != nil {
				return fmt.Errorf("%s: want a policy in quotes", word)
			}
			made, err := ruleFor(word, "", policy)
			list = append(list, made)
			return err
		}
		return object(decoder, func(name string) error {
			var body map[string]string
			if err := decoder.Decode(&body); err != nil {
				return fmt.Errorf("%s %q: want {\"policy\": \"read\"}", word, name)
			}
			if policy, ok := body["policy"]; !ok || len(body) != 1 {
				return fmt.Errorf("%s %q: a rule has a policy and nothing else, not %q", word, name, policy)
			}
			made, err := ruleFor(word, name, body["policy"])
			list = append(list, made)
			return err
		})
	})
	if err == nil {
		if _, more := decoder.Token(); more != io.EOF {
			err = errTrailing
		}
	}
	if err != nil {
		line, column := (&parser{text: text}).position(int(decoder.InputOffset()))
		return nil, fmt.Errorf("line %d, column %d: %w", line, column, err)
	}
	return list, nil
}

// object calls each with the keys of the object that comes next; each reads
// the value.
func object(decoder *json.Decoder, each func(key string) error) error {
	if open, err := decoder.Token(); err != nil || open != json.Delim('{') {
		return fmt.Errorf("want an object")
	}
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return err
		}
		if err := each(key.(string)); err != nil { // a key of an object is a string
			return err
		}
	}
	_, err := decoder.Token()
	return err
}
