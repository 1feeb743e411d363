package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"holdfast/cluster"
)

// readmes are what a newcomer reads, by path.
func readmes(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("../../*/README.md")
	if err != nil || len(paths) < 8 {
		t.Fatalf("found %v: %v", paths, err)
	}
	texts := map[string]string{}
	for _, path := range append(paths, "../../README.md", "../../docs/guide.md", "../../CHANGELOG.md") {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		texts[path] = string(text)
	}
	return texts
}

// TestExamplesOfTheREADMEsSpeakOfOneCluster: each either is a cluster file, or
// works as a part of examples/scibian.yaml, with the names that are there. A
// node, network or VIP that the example lacks would fail here, and so would a
// key that no service knows.
func TestExamplesOfTheREADMEsSpeakOfOneCluster(t *testing.T) {
	site, err := os.ReadFile("../../examples/scibian.yaml")
	if err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("sixteen bytes and more"), 0o600); err != nil {
		t.Fatal(err)
	}
	sections := sections()
	parts := 0
	for path, text := range readmes(t) {
		for _, block := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(text, -1) {
			example := undent(block[1])
			if !strings.HasPrefix(example, "schema:") {
				example = overlay(string(site), example)
				parts++
			}
			example = regexp.MustCompile(`/etc/holdfast/secrets/[a-z.-]+`).ReplaceAllString(example, secret)
			if _, err := cluster.Parse(path, []byte(example), sections); err != nil {
				t.Error(err)
			}
		}
	}
	if parts < 6 {
		t.Errorf("only %d examples are parts of a cluster file", parts)
	}
}

// undent takes what stands before the first line's key from all lines: an example
// in a list is indented.
func undent(text string) string {
	indent := text[:len(text)-len(strings.TrimLeft(text, " "))]
	return strings.ReplaceAll(strings.TrimPrefix(text, indent), "\n"+indent, "\n")
}

// overlay puts the sections of part in the place of those of whole that have
// the same names; of the roles only those that part has.
func overlay(whole, part string) string {
	sections := split(whole, "")
	for _, ours := range split(part, "") {
		at := slices.IndexFunc(sections, func(s section) bool { return s.name == ours.name })
		switch {
		case at < 0:
			sections = append(sections, ours)
		case ours.name == "roles":
			roles := split(sections[at].text, "  ")
			for _, role := range split(ours.text, "  ") {
				i := slices.IndexFunc(roles, func(r section) bool { return r.name == role.name })
				if i < 0 {
					i, roles = len(roles), append(roles, section{})
				}
				roles[i] = role
			}
			sections[at].text = "roles:\n" + join(roles)
		default:
			sections[at] = ours
		}
	}
	return join(sections)
}

// section is what stands under one key in a text.
type section struct{ name, text string }

// split cuts a text before each key that stands behind indent alone. What is
// before the first is left out.
func split(text, indent string) (sections []section) {
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, indent)
		name, _, key := strings.Cut(rest, ":")
		switch {
		case ok && key && !strings.ContainsAny(name, " #"):
			sections = append(sections, section{name, line})
		case len(sections) > 0:
			sections[len(sections)-1].text += line
		}
	}
	return sections
}

func join(sections []section) string {
	var b strings.Builder
	for _, s := range sections {
		b.WriteString(s.text)
	}
	return b.String()
}

// TestCommandsThatDocumentsShowExist: subcommands and flags, also of the examples
// in the commands' own help, and in what the product says of a trouble. What a person
// would copy must not be refused as unknown.
func TestCommandsThatDocumentsShowExist(t *testing.T) {
	tree, err := kong.New(&cli{}, kong.Name("holdfast"))
	if err != nil {
		t.Fatal(err)
	}
	code := regexp.MustCompile("(?s)```[a-z]*\n.*?```|`[^`\n]+`")
	command := regexp.MustCompile("(?:^|[^-_a-z0-9])holdfast ([a-z][^`\n#;&>']*)")
	shown := 0
	check := func(where, text string) {
		t.Helper()
		for _, found := range command.FindAllStringSubmatch(text, -1) {
			shown++
			if wrong := unknown(tree.Model.Node, strings.Fields(found[1])); wrong != "" {
				t.Errorf("%s: holdfast %s: %s", where, found[1], wrong)
			}
		}
	}
	for path, text := range readmes(t) {
		text = strings.ReplaceAll(text, `\|`, "|")
		for _, span := range code.FindAllString(text, -1) {
			check(path, span)
		}
	}
	err = kong.Visit(tree.Model, func(node kong.Visitable, next kong.Next) error {
		if n, ok := node.(*kong.Node); ok {
			_, examples, _ := strings.Cut(n.Detail, "Example")
			check("the help of "+n.FullPath(), examples)
		}
		return next(nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	sentence := regexp.MustCompile(`holdfast [a-z][^"(),:;?]*`) // up to where it goes on
	for path, literals := range sources(t) {
		for _, text := range literals {
			for _, words := range sentence.FindAllString(text, -1) {
				words, _, _ = strings.Cut(words, " and ")
				if name := strings.Fields(words)[1]; slices.ContainsFunc(tree.Model.Children, func(n *kong.Node) bool { return n.Name == name }) {
					check(path, words)
				}
			}
		}
	}
	if shown < 300 {
		t.Errorf("only %d commands were found", shown)
	}
	for words, want := range map[string]string{"vip hop": `no command "hop"`, "vip show|hide": `no command "hide"`, "vip list --al": `no flag --al`, "lb drain NODE [--for 2h]": "no flag --for"} {
		if got := unknown(tree.Model.Node, strings.Fields(words)); got != want {
			t.Errorf("%s: %q, want %q", words, got, want)
		}
	}
}

// sources are the texts in the product's source, by file: what it says to people.
func sources(t *testing.T) map[string][]string {
	t.Helper()
	texts := map[string][]string{}
	err := filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		switch name := entry.Name(); {
		case err != nil:
			return err
		case entry.IsDir() && (slices.Contains([]string{"lab", "chaos", "bench", "hack", "build", "testdata"}, name) || len(name) > 2 && name[0] == '.'):
			return fs.SkipDir
		case !strings.HasSuffix(name, ".go"), strings.HasSuffix(name, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if literal, ok := n.(*ast.BasicLit); ok && literal.Kind == token.STRING {
				if text, err := strconv.Unquote(literal.Value); err == nil {
					texts[path] = append(texts[path], text)
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return texts
}

// unknown tells what of a command line there is not, below a node of the command
// tree. a|b is two commands; what begins with "--" and what is in brackets, too,
// are flags; "--" ends what is ours.
func unknown(node *kong.Node, words []string) string {
	for _, word := range words {
		word = strings.Trim(word, "[]().,")
		flag, isFlag := strings.CutPrefix(word, "--")
		switch {
		case word == "--":
			return ""
		case isFlag:
			flag, _, _ = strings.Cut(flag, "=")
			known := slices.ContainsFunc(slices.Concat(node.AllFlags(false)...), func(f *kong.Flag) bool {
				return f.Name == flag || f.Tag.Negatable != "" && "no-"+f.Name == flag
			})
			if !known && flag != "help" {
				return "no flag --" + flag
			}
		case len(node.Children) > 0:
			parent := node
			for one := range strings.SplitSeq(word, "|") {
				at := slices.IndexFunc(parent.Children, func(n *kong.Node) bool { return n.Name == one })
				if at < 0 {
					return "no command " + strconv.Quote(one)
				}
				node = parent.Children[at]
			}
		}
	}
	return ""
}
