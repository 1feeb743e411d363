//go:build !race

package dns

const raceCost = 1
