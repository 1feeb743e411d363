package archtest

import (
	"errors"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

// checkFolder wants of a service what every service has.
func (c *checker) checkFolder(dir string) error {
	if !slices.Contains(services(), dir) {
		return nil
	}
	entries, err := fs.ReadDir(c.root, dir)
	if err != nil {
		return err
	}
	has := func(name string) bool {
		return slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == name })
	}
	if !has("service.go") {
		return nil
	}
	for _, name := range []string{"README.md", "DESIGN.md", "config.go"} {
		if !has(name) {
			c.report(dir, 0, "has service.go and no "+name, "who knows one service folder knows all")
		}
	}
	return nil
}

// layoutFile is the document that says what each folder is for.
const layoutFile = "docs/ARCHITECTURE.md"

// checkLayout holds the layout of docs/ARCHITECTURE.md against the tree: the
// first block below "## Layout" has a line for every folder with Go files
// ("internal/kernel/*" and "lab" stand for what is below them), and for none
// that is not there.
func (c *checker) checkLayout() error {
	text, err := fs.ReadFile(c.root, layoutFile)
	if errors.Is(err, fs.ErrNotExist) {
		c.report(layoutFile, 0, "is missing", "it says what each folder is for")
		return nil
	}
	if err != nil {
		return err
	}
	_, after, _ := strings.Cut(string(text), "## Layout\n")
	before, block, _ := strings.Cut(after, "```\n")
	block, _, _ = strings.Cut(block, "```")
	first := strings.Count(string(text[:len(text)-len(after)])+before, "\n") + 2
	var named []string
	for line := range strings.Lines(block) {
		if fields := strings.Fields(line); len(fields) > 0 && line[0] != ' ' {
			folder := strings.TrimSuffix(fields[0], "/*")
			named = append(named, folder)
			if _, err := fs.Stat(c.root, folder); err != nil {
				c.report(layoutFile, first, "has "+fields[0]+" in its layout", "there is no such folder")
			}
		}
		first++
	}
	for _, folder := range c.folders {
		if !within(folder, named...) {
			c.report(layoutFile, 0, "has no "+folder+" in its layout", "say in a line what it is for")
		}
	}
	return nil
}

// checkDocuments wants that what the documents name exists: the files they
// link to, and the targets of make.
func (c *checker) checkDocuments() error {
	targets, err := c.makeTargets()
	if err != nil {
		return err
	}
	link := regexp.MustCompile(`\]\(([^)\s#]+)(?:#[^)]*)?\)`)
	target := regexp.MustCompile("`make ([a-z][a-z0-9-]*)")
	for _, name := range c.documents {
		text, err := fs.ReadFile(c.root, name)
		if err != nil {
			return err
		}
		line := 0
		for content := range strings.Lines(string(text)) {
			line++
			for _, m := range link.FindAllStringSubmatch(content, -1) {
				if !c.exists(name, m[1]) {
					c.report(name, line, "links to "+m[1], "there is no such file")
				}
			}
			for _, m := range target.FindAllStringSubmatch(content, -1) {
				if !slices.Contains(targets, m[1]) {
					c.report(name, line, "says make "+m[1], "the Makefile has no such target")
				}
			}
		}
	}
	return nil
}

// exists says whether a link of a document leads to a file of the tree, or out
// of the tree on purpose.
func (c *checker) exists(document, link string) bool {
	if strings.Contains(link, "://") || strings.HasPrefix(link, "mailto:") {
		return true
	}
	_, err := fs.Stat(c.root, path.Join(path.Dir(document), link))
	return err == nil
}

func (c *checker) makeTargets() ([]string, error) {
	text, err := fs.ReadFile(c.root, "Makefile")
	if err != nil {
		return nil, err
	}
	var targets []string
	for _, m := range regexp.MustCompile(`(?m)^([a-z][a-z0-9-]*):`).FindAllStringSubmatch(string(text), -1) {
		targets = append(targets, m[1])
	}
	return targets, nil
}
