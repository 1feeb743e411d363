//go:build !holdfast_future

package state

// FeatureLevel is the highest feature level that this program can read.
const FeatureLevel = 1

// futureLevelOf knows no other kinds; see level_future.go.
func futureLevelOf(kind) (int, bool) { return 0, false }

func decodeFuture(uint64, []byte) (Command, error) { return nil, nil }

func (t *tx) future(cmd Command) error { return invalid("no such command: %T", cmd) }
