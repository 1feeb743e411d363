package lb

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
)

// saved is what sysctls were before we set them, in a file below the run
// directory, so that a successor can restore what its predecessor changed. A
// line is "BOOT-ID NAME VALUE"; those of another boot say nothing any more.
type saved struct {
	path   string
	boot   string
	values map[string]int
}

// openSaved reads the file. Lines that can't be read are left out: a sysctl
// then stays as it was set.
func openSaved(path, boot string) (*saved, error) {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return &saved{path: path, boot: boot, values: parseSaved(text, boot)}, nil
}

func parseSaved(text []byte, boot string) map[string]int {
	values := map[string]int{}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) != 3 || fields[0] != boot {
			continue
		}
		if value, err := strconv.Atoi(fields[2]); err == nil {
			values[fields[1]] = value
		}
	}
	return values
}

// remember keeps the first value of a name.
func (s *saved) remember(name string, value int) error {
	if _, known := s.values[name]; known {
		return nil
	}
	s.values[name] = value
	if err := s.write(); err != nil {
		delete(s.values, name)
		return err
	}
	return nil
}

func (s *saved) forget(name string) error {
	delete(s.values, name)
	return s.write()
}

func (s *saved) write() error {
	var text []byte
	for _, name := range slices.Sorted(maps.Keys(s.values)) {
		text = fmt.Appendf(text, "%s %s %d\n", s.boot, name, s.values[name])
	}
	temporary := s.path + ".new"
	err := os.WriteFile(temporary, text, 0o600)
	if err == nil {
		err = os.Rename(temporary, s.path)
	}
	if err != nil {
		return fmt.Errorf("lb: remember what sysctls were: %w", err)
	}
	return nil
}
