// Package archtest checks that the source tree is as docs/ARCHITECTURE.md says:
// who may import whom, which library lives where, and what no file may do. It
// reads source files only, so that it also sees those of other platforms, and
// takes milliseconds.
package archtest

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Violation is one place that breaks one rule.
type Violation struct {
	File string // below the root, with slashes
	Line int    // from 1; 0: the file as a whole
	What string // what is there
	Why  string // the rule, and what to do instead
}

func (v Violation) String() string {
	place := v.File
	if v.Line > 0 {
		place += ":" + strconv.Itoa(v.Line)
	}
	return place + ": " + v.What + ": " + v.Why
}

// Check returns every violation in the tree, in the order of its files. The
// module is the one that go.mod at the root names. Directories that the go
// command ignores (testdata, and names with a leading dot or underscore) are
// left out, and build, which holds products.
func Check(root fs.FS) ([]Violation, error) {
	mod, err := fs.ReadFile(root, "go.mod")
	if err != nil {
		return nil, fmt.Errorf("archtest: %w", err)
	}
	c := &checker{root: root, module: moduleName(mod)}
	if c.module == "" {
		return nil, fmt.Errorf("archtest: go.mod names no module")
	}
	if err := fs.WalkDir(root, ".", c.visit); err != nil {
		return nil, fmt.Errorf("archtest: %w", err)
	}
	for _, check := range []func() error{c.checkDocuments, c.checkLayout} {
		if err := check(); err != nil {
			return nil, fmt.Errorf("archtest: %w", err)
		}
	}
	return c.found, nil
}

func moduleName(mod []byte) string {
	for line := range strings.Lines(string(mod)) {
		if name, ok := strings.CutPrefix(line, "module "); ok {
			return strings.TrimSpace(name)
		}
	}
	return ""
}

type checker struct {
	root      fs.FS
	module    string
	found     []Violation
	documents []string // Markdown files
	folders   []string // with Go files
}

func (c *checker) report(file string, line int, what, why string) {
	c.found = append(c.found, Violation{File: file, Line: line, What: what, Why: why})
}

func (c *checker) visit(name string, entry fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	base := path.Base(name)
	hidden := name != "." && (base[0] == '.' || base[0] == '_')
	switch {
	case entry.IsDir() && (hidden || base == "testdata" || name == "build"):
		return fs.SkipDir
	case entry.IsDir():
		return c.checkFolder(name)
	case hidden:
		return nil
	case strings.HasSuffix(name, ".md"):
		c.documents = append(c.documents, name)
	case strings.HasSuffix(name, ".go"):
		if dir := path.Dir(name); !slices.Contains(c.folders, dir) {
			c.folders = append(c.folders, dir)
		}
		return c.checkFile(name)
	}
	return nil
}

func (c *checker) checkFile(name string) error {
	source, err := fs.ReadFile(c.root, name)
	if err != nil {
		return err
	}
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, name, source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	f := &goFile{
		checker: c, name: name, dir: path.Dir(name), files: files, ast: file,
		test: strings.HasSuffix(name, "_test.go"),
		main: file.Name.Name == "main",
	}
	if lines := bytes.Count(source, []byte("\n")); lines > maxLines && !ast.IsGenerated(file) {
		c.report(name, 0, fmt.Sprintf("%d lines", lines), fmt.Sprintf("a file has at most %d: split it by what it is about", maxLines))
	}
	f.checkImports()
	f.checkDeclarations()
	f.checkCalls()
	return nil
}

// goFile is a parsed source file on its way through the rules.
type goFile struct {
	*checker
	name, dir  string // dir is the package, below the module
	files      *token.FileSet
	ast        *ast.File
	test, main bool
}

func (f *goFile) at(node ast.Node, what, why string) {
	f.report(f.name, f.files.Position(node.Pos()).Line, what, why)
}

func (f *goFile) checkImports() {
	for _, spec := range f.ast.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue // the parser took it, so it can't be
		}
		ours, isOurs := strings.CutPrefix(imported, f.module+"/")
		for _, r := range importRules() {
			if f.test && r.exceptTests || within(f.dir, r.except...) || len(r.from) > 0 && !within(f.dir, r.from...) {
				continue
			}
			if isOurs && r.ours != nil && r.ours(f.dir, ours) || !isOurs && within(imported, r.foreign...) {
				f.at(spec, "imports "+imported, r.why)
			}
		}
	}
}

func (f *goFile) checkDeclarations() {
	for _, d := range f.ast.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if ok && fn.Recv == nil && fn.Name.Name == "init" {
			f.at(fn, "func init", "nothing happens at import: do it in main, or in a constructor")
		}
	}
}

// checkCalls looks for calls that end the process in a library, and for tests
// that sleep outside of virtual time.
func (f *goFile) checkCalls() {
	virtual := f.imports("testing/synctest") != ""
	for _, decl := range f.ast.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		isTest := ok && strings.HasPrefix(fn.Name.Name, "Test")
		ast.Inspect(decl, func(n ast.Node) bool {
			if f.isCall(n, "testing/synctest", "Test") && virtual {
				return false // a bubble, where time is virtual
			}
			switch {
			case !f.main && !f.test && f.endsProcess(n):
				f.at(n, "ends the process", "a library returns an error; only main ends the process")
			// A helper in a file of virtual time may be called in the bubble.
			case f.test && f.isCall(n, "time", "Sleep") && (isTest || !virtual):
				f.at(n, "time.Sleep", "a test polls with a deadline for a process or a socket, and uses testing/synctest for time")
			}
			return true
		})
	}
}

func (f *goFile) endsProcess(n ast.Node) bool {
	return f.isCall(n, "os", "Exit") || f.isCall(n, "syscall", "Exit") ||
		f.isCall(n, "log", "Fatal") || f.isCall(n, "log", "Fatalf") || f.isCall(n, "log", "Fatalln")
}

// isCall says whether the node calls a function of a package.
func (f *goFile) isCall(n ast.Node, pkg, function string) bool {
	call, ok := n.(*ast.CallExpr)
	if !ok {
		return false
	}
	selector, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || selector.Sel.Name != function {
		return false
	}
	ident, ok := selector.X.(*ast.Ident)
	return ok && ident.Name == f.imports(pkg)
}

// imports returns the name by which the file knows a package, "" when it
// doesn't import it.
func (f *goFile) imports(pkg string) string {
	for _, spec := range f.ast.Imports {
		if spec.Path.Value != strconv.Quote(pkg) {
			continue
		}
		if spec.Name != nil {
			return spec.Name.Name
		}
		return path.Base(pkg)
	}
	return ""
}

// within says whether a path is one of the trees or below one.
func within(name string, trees ...string) bool {
	return slices.ContainsFunc(trees, func(tree string) bool {
		return name == tree || strings.HasPrefix(name, tree+"/")
	})
}
