package dnscache

import (
	"sync/atomic"
	"unsafe"
)

// Result is how a lookup for a reader ended.
type Result uint8

// The results of lookups. Each lookup has one of them.
const (
	ResultHit        Result = iota // addresses from the cache that hold
	ResultStale                    // addresses that have expired
	ResultMiss                     // addresses for which the reader waited
	ResultNegative                 // there is no such name or record, cached or asked for just now
	ResultFailed                   // the lookup failed, just now or before
	ResultOverloaded               // ErrOverloaded
	ResultNewName                  // ErrTooManyNewNames
	ResultCanceled                 // the context ended first, or the cache was closed
	resultCount
)

var resultNames = [resultCount]string{"hit", "stale", "miss", "negative", "failed", "overloaded", "new_name_refused", "canceled"}

// String returns a lower-case word, such as "hit", that may be the label of a metric.
func (r Result) String() string { return resultNames[r] }

// counters count lookups by result. A counter is spread over shards, so that
// processors that count at the same time do not wait for each other's lines.
type counters [counterShards]struct {
	lookups [resultCount]atomic.Uint64 // a line of the processor's cache
}

const (
	counterShards = 64

	// minStackShift is the size of the smallest stack of a goroutine, as a power of two.
	minStackShift = 11
)

// add counts a lookup. The place of the goroutine's stack chooses the shard: it costs
// nothing to find, stays the same for a while, and differs from that of all others.
func (c *counters) add(r Result) {
	var onStack byte
	at := uintptr(unsafe.Pointer(&onStack)) >> minStackShift
	c[(at^at>>6)%counterShards].lookups[r].Add(1)
}

// sum returns the counts of all shards.
func (c *counters) sum() (total [resultCount]uint64) {
	for i := range c {
		for r := range total {
			total[r] += c[i].lookups[r].Load()
		}
	}
	return total
}

// countAs returns the result that a reader got.
func (r *result) countAs() Result {
	switch {
	case r.err == nil:
		return [...]Result{Miss: ResultMiss, Hit: ResultHit, Stale: ResultStale}[r.state]
	case r.canceled, r.err == ErrClosed:
		return ResultCanceled
	case r.err == ErrOverloaded:
		return ResultOverloaded
	case r.err == ErrTooManyNewNames:
		return ResultNewName
	case r.err == errNoAddress, IsNegative(r.err):
		return ResultNegative
	default:
		return ResultFailed
	}
}

// countAs returns the result of a reader who gets that e has no addresses.
func (e *entry) countAs() Result {
	if e.state.negative {
		return ResultNegative
	}
	return ResultFailed
}

// Stats is what a cache has counted since it was made, and what it holds now.
type Stats struct {
	// Names is how many names there are, by NameState.
	Names [nameStates]int

	// Lookups counts those of readers, by Result.
	Lookups [resultCount]uint64

	// Refreshes counts lookups that were started in the background, and Evictions
	// the names that had to make room for others.
	Refreshes, Evictions uint64
}

// Stats returns the counts. It reads the whole table to count the names, which takes
// about 10 ms for 100 000 of them, and holds up no lookup.
func (c *Cache) Stats() Stats {
	s := Stats{Lookups: c.counters.sum(), Refreshes: c.refreshes.Load(), Evictions: c.evictions.Load()}
	now := c.cfg.Now()
	for e := range c.scan(0) {
		if e != nil {
			s.Names[e.nameState(now)]++
		}
	}
	return s
}
