//go:build race

package discipline

// raceEnabled: the race detector slows everything many times.
const raceEnabled = true
