package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// defaultNodeFile is what a node sets for itself alone, beside the cluster
// file that is the same everywhere: the agent's flags by their names.
const defaultNodeFile = "/etc/holdfast/node.yaml"

// nodeFile gives the agent the flags that its node's file sets. What the
// command line or the environment says counts before it. It is a kong.Resolver.
type nodeFile struct {
	path   string
	values map[string]setting
}

// setting is a value of the file: a text, or a list of texts.
type setting struct {
	value any
	line  int
}

// openNodeFile reads the file that args or the environment name, or the one at
// the default place, which may be absent.
func openNodeFile(args []string, getenv func(string) string) (*nodeFile, error) {
	path, named := nodeFilePath(args, getenv)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return &nodeFile{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the node's file: %w", err)
	}
	values, err := parseNodeFile(data)
	if err != nil {
		return nil, fmt.Errorf("%s:%w", path, err)
	}
	return &nodeFile{path: path, values: values}, nil
}

// nodeFilePath looks for --node-file before the command line is parsed: what
// is in the file is needed for that.
func nodeFilePath(args []string, getenv func(string) string) (path string, named bool) {
	const flag = "--node-file"
	for i, arg := range args {
		if value, ok := strings.CutPrefix(arg, flag+"="); ok {
			return value, true
		}
		if arg == flag && i+1 < len(args) {
			return args[i+1], true
		}
	}
	if value := getenv("HOLDFAST_NODE_FILE"); value != "" {
		return value, true
	}
	return defaultNodeFile, false
}

// parseNodeFile reads a mapping of names to texts, numbers, truths, or lists of
// them. Errors begin with the line and column.
func parseNodeFile(data []byte) (map[string]setting, error) {
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return nil, fmt.Errorf(" %w", err)
	}
	values := map[string]setting{}
	if len(file.Docs) == 0 || file.Docs[0].Body == nil {
		return values, nil
	}
	if len(file.Docs) > 1 {
		return nil, errors.New("1:1: there is more than one document in it")
	}
	var pairs []*ast.MappingValueNode
	switch body := file.Docs[0].Body.(type) {
	case *ast.MappingNode:
		pairs = body.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{body}
	case *ast.CommentGroupNode:
	default:
		return nil, errors.New("1:1: want lines of \"flag: value\", such as \"rpc-port: 8300\"")
	}
	for _, pair := range pairs {
		at := pair.Key.GetToken().Position
		name := strings.ReplaceAll(strings.Trim(pair.Key.String(), `"'`), "_", "-")
		value, ok := nodeValue(pair.Value)
		if !ok {
			return nil, fmt.Errorf("%d:%d: %s: want a value or a list of values", at.Line, at.Column, name)
		}
		if _, twice := values[name]; twice {
			return nil, fmt.Errorf("%d:%d: %s is set twice", at.Line, at.Column, name)
		}
		values[name] = setting{value, at.Line}
	}
	return values, nil
}

func nodeValue(node ast.Node) (any, bool) {
	switch n := node.(type) {
	case *ast.SequenceNode:
		list := []any{}
		for _, element := range n.Values {
			text, ok := scalar(element)
			if !ok {
				return nil, false
			}
			list = append(list, text)
		}
		return list, true
	default:
		return scalar(node)
	}
}

func scalar(node ast.Node) (string, bool) {
	switch n := node.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.IntegerNode, *ast.BoolNode, *ast.FloatNode:
		return node.GetToken().Value, true
	default:
		return "", false
	}
}

// Validate tells of names that are no flags of the agent.
func (f *nodeFile) Validate(app *kong.Application) error {
	known := map[string]bool{}
	for _, command := range app.Children {
		if command.Name != "agent" {
			continue
		}
		for _, flag := range command.Flags {
			known[flag.Name] = true
		}
	}
	for name, s := range f.values {
		if !known[name] || name == "node-file" {
			return fmt.Errorf("%s:%d: %s: the agent has no such flag; see holdfast agent --help", f.path, s.line, name)
		}
	}
	return nil
}

// Resolve is asked for each flag that the command line does not set. Where the
// agent's sockets are counts for who looks for all of them, too.
func (f *nodeFile) Resolve(_ *kong.Context, parent *kong.Path, flag *kong.Flag) (any, error) {
	if parent.Command == nil || parent.Command.Name != "agent" && parent.Command.Name != "units" {
		return nil, nil
	}
	for _, name := range flag.Envs {
		if _, set := os.LookupEnv(name); set {
			return nil, nil
		}
	}
	if s, ok := f.values[flag.Name]; ok {
		return s.value, nil
	}
	return nil, nil
}
