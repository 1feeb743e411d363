//go:build race

package dns

// raceCost is what the race detector multiplies the time of this package by,
// at most (go.dev/doc/articles/race_detector says 2 to 20).
const raceCost = 5
