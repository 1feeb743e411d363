//go:build race

package state

// raceEnabled: the race detector takes some coders out of the pools.
const raceEnabled = true
