package ntpproxy

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"

	"holdfast/internal/durable"
	"holdfast/internal/kernel/clock"
)

// drift is what is remembered of an oscillator: the correction that it needs
// and the standard error of that, in parts per million. In the file the two
// stand on a line, as chronyd writes them.
type drift struct{ frequency, skew float64 }

// parseDrift reads a drift file. The error says what is wrong with it.
func parseDrift(text []byte) (d drift, err error) {
	if n, err := fmt.Sscan(string(text), &d.frequency, &d.skew); err != nil {
		return drift{}, fmt.Errorf("%d of 2 numbers: %w", n, err)
	}
	switch {
	case math.IsNaN(d.frequency) || math.Abs(d.frequency) > clock.MaxFrequency:
		return drift{}, fmt.Errorf("frequency %v ppm is out of range: -%d to %d", d.frequency, clock.MaxFrequency, clock.MaxFrequency)
	case !(d.skew > 0) || d.skew > clock.MaxFrequency:
		return drift{}, fmt.Errorf("skew %v ppm is out of range: above 0, to %d", d.skew, clock.MaxFrequency)
	}
	return d, nil
}

// readDrift reads a drift file; one that is missing is an unknown drift.
func readDrift(path string) (drift, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return drift{}, nil
	}
	if err != nil {
		return drift{}, err
	}
	d, err := parseDrift(text)
	if err != nil {
		return drift{}, fmt.Errorf("%s: %w", path, err)
	}
	return d, nil
}

func (d drift) write(path string) error {
	return durable.Replace(path, fmt.Appendf(nil, "%.6f %.6f\n", d.frequency, max(d.skew, 1e-6)), 0o644)
}
