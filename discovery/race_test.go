//go:build race

package discovery

// raceEnabled: the race detector slows everything several times.
const raceEnabled = true
