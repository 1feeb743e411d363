package vm

import (
	"bytes"
	"strings"
	"sync"
)

// consoleLength is how much of what a console or a process printed is kept, in
// bytes: the end of it.
const consoleLength = 256 << 10

// ending keeps the end of what is written to it.
type ending struct {
	mu   sync.Mutex
	data []byte
}

func (e *ending) Write(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.data = append(e.data, p...)
	if extra := len(e.data) - consoleLength; extra > 0 {
		e.data = append(e.data[:0], e.data[extra:]...)
	}
	return len(p), nil
}

func (e *ending) String() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return string(e.data)
}

// last returns the last lines that have something in them, without the control
// sequences of firmware and terminals.
func (e *ending) last(lines int) string {
	text := bytes.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' {
			return -1
		}
		return r
	}, []byte(e.String()))
	var kept []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimRight(line, " \t\n"); line != "" {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept[max(0, len(kept)-lines):], "\n")
}
