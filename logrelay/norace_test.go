//go:build !race

package logrelay

const raceEnabled = false
