//go:build race

package dnscache

// withRace makes the largest tests smaller: the detector makes them 20 times
// slower.
const withRace = true
