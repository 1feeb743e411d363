package cluster

import (
	"fmt"

	"github.com/goccy/go-yaml/token"
)

// guard keeps from the YAML parser what would take it quadratic time: deep
// nesting, many documents, many keys in one block mapping. It reads the tokens,
// which are made in linear time.
type guard struct {
	depth   int         // of flow brackets
	dashes  int         // "- - -" in a row
	keys    map[int]int // of the open block mappings, by column
	content bool        // something stood in the document
	ended   bool        // by "..."
}

// check finds the first token that must not reach the parser; message is ""
// when there is none.
func check(tokens token.Tokens) (at position, message string) {
	g := guard{keys: map[int]int{}}
	for _, t := range tokens {
		if message := g.step(t); message != "" {
			return tokenPosition(t), message
		}
	}
	return position{}, ""
}

func (g *guard) step(t *token.Token) string {
	if t.Type == token.CommentType {
		return ""
	}
	if g.ended || g.content && t.Type == token.DocumentHeaderType {
		return "a second YAML document; the cluster file is one"
	}
	g.content, g.ended = true, t.Type == token.DocumentEndType
	g.dashes++
	switch t.Type {
	case token.MappingStartType, token.SequenceStartType:
		g.depth++
		g.dashes = 0
	case token.MappingEndType, token.SequenceEndType:
		g.depth = max(0, g.depth-1)
		g.dashes = 0
	case token.SequenceEntryType, token.MappingKeyType:
	case token.MappingValueType:
		g.dashes = 0
		if g.depth == 0 && g.countKey(t.Prev) > maxKeys {
			return fmt.Sprintf("more than %d keys in one mapping; fold nodes that are alike into node sets", maxKeys)
		}
	default:
		g.dashes = 0
	}
	if g.depth > maxDepth || g.dashes > maxDepth {
		return fmt.Sprintf("more than %d levels inside each other", maxDepth)
	}
	return ""
}

// countKey counts the keys of the block mapping that a key belongs to. A key
// further left ends the mappings right of it.
func (g *guard) countKey(key *token.Token) int {
	column := tokenPosition(key).column
	for open := range g.keys {
		if open > column {
			delete(g.keys, open)
		}
	}
	g.keys[column]++
	return g.keys[column]
}
