package debian

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Modules finds the files, below ModuleDir, of modules and of all that they
// need, in the order in which to load them. A name is what modprobe takes, without aliases:
// "ip_vs_rr". One that is built into the kernel needs no file.
func (k *Kernel) Modules(names ...string) ([]string, error) {
	table, err := k.table()
	if err != nil {
		return nil, err
	}
	var files []string
	var missing []error
	for _, name := range names {
		name = canonical(name)
		if table.builtin[name] {
			continue
		}
		first, ok := table.needs[table.files[name]]
		if !ok {
			missing = append(missing, fmt.Errorf("the kernel %s has no module %q", k.Release, name))
			continue
		}
		// modules.dep lists what a module needs, the deepest last.
		for _, file := range append(reversed(first), table.files[name]) {
			if !slices.Contains(files, file) {
				files = append(files, file)
			}
		}
	}
	return files, errors.Join(missing...)
}

func reversed(list []string) []string {
	list = slices.Clone(list)
	slices.Reverse(list)
	return list
}

// moduleTable is what depmod wrote.
type moduleTable struct {
	files   map[string]string   // by module name
	needs   map[string][]string // by file
	builtin map[string]bool
}

func (k *Kernel) table() (*moduleTable, error) {
	t := &moduleTable{files: make(map[string]string), needs: make(map[string][]string), builtin: make(map[string]bool)}
	err := eachLine(filepath.Join(k.ModuleDir(), "modules.dep"), func(line string) {
		file, needs, _ := strings.Cut(line, ":")
		t.files[canonical(file)] = file
		t.needs[file] = strings.Fields(needs)
	})
	if err != nil {
		return nil, err
	}
	err = eachLine(filepath.Join(k.ModuleDir(), "modules.builtin"), func(line string) {
		t.builtin[canonical(line)] = true
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return t, nil
}

// canonical is a module's name, of its file or of what somebody calls it.
func canonical(name string) string {
	name, _, _ = strings.Cut(filepath.Base(name), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

func eachLine(path string, f func(string)) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		f(lines.Text())
	}
	return lines.Err()
}
