//go:build !race

package dnscache

const withRace = false
