//go:build !race

package discipline

const raceEnabled = false
