package logrelay

import (
	"errors"
	"fmt"
	"slices"
)

// failures are errors of many files, as where each has one of its own: the first
// few of them, and how many there are beside.
type failures struct {
	first []error
	more  int
}

const firstFailures = 5

// add notes an error; nil is none.
func (f *failures) add(err error) {
	switch {
	case err == nil:
	case len(f.first) < firstFailures:
		f.first = append(f.first, err)
	default:
		f.more++
	}
}

// err is what was noted, nil if nothing was.
func (f *failures) err() error {
	if f.more == 0 {
		return errors.Join(f.first...)
	}
	return errors.Join(append(slices.Clip(f.first), fmt.Errorf("and %d more", f.more))...)
}
