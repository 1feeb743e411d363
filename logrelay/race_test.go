//go:build race

package logrelay

// raceEnabled: the race detector takes several times the memory.
const raceEnabled = true
