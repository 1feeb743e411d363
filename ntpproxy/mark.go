package ntpproxy

import (
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"holdfast/internal/kernel/clock"
)

// markFile says, until the machine restarts, that it was us who left the
// kernel's clock synchronised, and at which frequency: lines of parts per
// million. Two, when the kernel is about to be told another one: whoever is
// killed in between left one of them.
const markFile = "ntp.steering"

// mark notes what the kernel is about to be told, and what it has, in ppm.
func (s *Server) mark(next, has float64) error {
	if s.config.RunDir == "" {
		return nil
	}
	text := strconv.FormatFloat(next, 'f', 6, 64) + "\n" + strconv.FormatFloat(has, 'f', 6, 64) + "\n"
	// Whole, or not at all; it need not survive a power cut, nor does the clock.
	path := filepath.Join(s.config.RunDir, markFile)
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// marked tells whether the kernel's clock is as we left it: another daemon that
// steered it since, while we were not there, left another frequency. A mark
// without any, as former versions made it, is believed.
func (s *Server) marked(k clock.State) bool {
	text, err := os.ReadFile(filepath.Join(s.config.RunDir, markFile))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		ppm, err := strconv.ParseFloat(strings.TrimSpace(line), 64)
		if err == nil && math.Abs(ppm-k.Frequency) <= interference {
			return true
		}
	}
	return len(text) == 0
}

// unmark says that the clock is another's. The mark may never have been there.
func (s *Server) unmark() { _ = os.Remove(filepath.Join(s.config.RunDir, markFile)) }
