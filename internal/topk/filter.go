package topk

import "math"

const (
	filterLines = 64
	lineSize    = 32 // counters in a cache line of 64 octets
	filterSize  = filterLines * lineSize
)

// filter estimates the scores of targets that have no slot.
type filter struct {
	requests, failures counters
}

// add counts an observation and returns the estimate of the target's score.
func (f *filter) add(hash uint64, failed bool) score {
	s := score{requests: f.requests.add(hash)}
	if failed {
		s.failures = f.failures.add(hash)
	}
	return s
}

// set makes the estimate of a target at least its score, when it loses its slot.
func (f *filter) set(hash uint64, s score) {
	f.requests.raise(hash, s.requests)
	f.failures.raise(hash, s.failures)
}

// halve halves all estimates n times.
func (f *filter) halve(n uint32) {
	f.requests.halve(n)
	f.failures.halve(n)
}

// counters is a count-min sketch. A target has three counters, which it shares with other
// targets. Each of them is at least the number of the target's observations, so the
// lowest is the best estimate. All three are in one cache line, because reading memory is
// most of what an observation costs. The price is that some lines serve more targets than
// others and err more.
type counters [filterLines][lineSize]uint16

// of returns a target's line and its counters in it.
func (c *counters) of(hash uint64) (line *[lineSize]uint16, i, j, k uint) {
	return &c[hash%filterLines],
		uint(hash / filterLines % lineSize),
		uint(hash / (filterLines * lineSize) % lineSize),
		uint(hash / (filterLines * lineSize * lineSize) % lineSize)
}

// get returns the estimate of a target.
func (c *counters) get(hash uint64) uint32 {
	line, i, j, k := c.of(hash)
	return uint32(min(line[i], line[j], line[k]))
}

// add counts an observation of a target and returns the estimate.
func (c *counters) add(hash uint64) uint32 {
	n := c.get(hash) + 1
	c.raise(hash, n)
	return n
}

// raise makes the estimate of a target at least n. Counters that other targets made
// higher already stay as they are: to add to them as well would make the estimates of
// those targets worse.
func (c *counters) raise(hash uint64, n uint32) {
	line, i, j, k := c.of(hash)
	to := uint16(min(n, math.MaxUint16))
	line[i] = max(line[i], to)
	line[j] = max(line[j], to)
	line[k] = max(line[k], to)
}

func (c *counters) halve(n uint32) {
	for l := range c {
		for i := range c[l] {
			c[l][i] >>= n
		}
	}
}
