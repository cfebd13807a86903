package topk

import "sync"

// A shard has slots for groupSize targets in each of two groups.
const (
	groupSize = 8
	slots     = 2 * groupSize
)

// group is one of the two groups of slots: slots [0, groupSize) are for the targets with
// the most requests, the others for those with the most failures. A target has one slot.
type group int

const (
	busy group = iota
	failing
)

// score is what slots are given by: the number of observations of a target, halved every
// half-life.
type score struct {
	requests, failures uint32
}

// in returns the rank of a score in a group. Failures break a tie of requests, and the
// reverse: slots for failing targets that are not needed serve busy ones.
func (s score) in(g group) uint64 {
	if g == busy {
		return uint64(s.requests)<<32 | uint64(s.failures)
	}
	return uint64(s.failures)<<32 | uint64(s.requests)
}

// halve returns the score halved n times.
func (s score) halve(n uint32) score {
	return score{s.requests >> n, s.failures >> n}
}

// entry is a slot. It holds the target itself, so that giving a slot allocates nothing.
// What every observation uses stands first.
type entry struct {
	counts    Counts
	score     score
	length    uint16 // of the target; 0 if the slot is empty
	target    [MaxTarget]byte
	admission uint32 // the value of shard.admissions when the target got the slot
	hash      uint64
}

// shard counts the targets whose hash selects it. It is two cache lines of 64 octets
// long, so that all shards stay in a cache near to the CPU. Of the slots and the filter,
// which do not fit there, an observation uses a few octets, whose addresses it knows from
// the hash.
type shard struct {
	mu       sync.Mutex
	halvings uint32    // Sketch.halvings when the scores were last halved
	observed uint32    // observations
	other    Counts    // of targets without a slot
	lowest   [2]uint64 // by group: no target in its slots has a lower rank

	tags       [slots]uint16 // part of the hash of each slot's target
	used       uint32        // slots that are not empty: the first ones
	admissions uint32        // slots given so far
	entries    *[slots]entry
	filter     *filter
	_          [8]byte
}

// tag returns the tag of a target.
func tag(hash uint64) uint16 {
	return uint16(hash)
}

func (sh *shard) observe(target string, hash uint64, o Observation) {
	if len(target) == 0 || len(target) > MaxTarget {
		sh.other.observe(o)
		return
	}
	if e := sh.find(target, hash); e != nil {
		e.counts.observe(o)
		e.score.requests++
		if o.Failed {
			e.score.failures++
		}
		return
	}
	s := sh.filter.add(hash, o.Failed)
	slot := sh.slotFor(s)
	if slot < 0 {
		sh.other.observe(o)
		return
	}
	if !o.Failed {
		s.failures = sh.filter.failures.get(hash)
	}
	sh.admissions++
	e := entry{score: s, length: uint16(len(target)), admission: sh.admissions, hash: hash}
	e.counts.observe(o)
	copy(e.target[:], target)
	sh.admit(e, slot)
}

// find returns the slot of a target, or nil.
func (sh *shard) find(target string, hash uint64) *entry {
	tag := tag(hash)
	for i, t := range sh.tags {
		if t != tag {
			continue
		}
		if e := &sh.entries[i]; string(e.target[:e.length]) == target {
			return e
		}
	}
	return nil
}

// slotFor returns the slot for a target that has none, or -1. That is an empty one, or
// the one with the lowest score of a group if the target's is more than twice as high. A
// new name, seen once, gets none but an empty one. The factor also allows for the errors
// of the filter, and it keeps two equal targets from alternating, with half the counts of
// each in "other".
func (sh *shard) slotFor(s score) int {
	if sh.used < slots {
		return int(sh.used)
	}
	s = s.halve(1)
	for _, g := range [...]group{busy, failing} {
		if s.in(g) > sh.lowest[g] {
			slot := sh.findLowest(g)
			if s.in(g) > sh.lowest[g] {
				return slot
			}
		}
	}
	return -1
}

// findLowest returns the slot of a group with the lowest score, which it records.
func (sh *shard) findLowest(g group) int {
	first := int(g) * groupSize
	lowest := first
	for i := first + 1; i < first+groupSize; i++ {
		if sh.entries[i].score.in(g) < sh.entries[lowest].score.in(g) {
			lowest = i
		}
	}
	sh.lowest[g] = sh.entries[lowest].score.in(g)
	return lowest
}

// admit puts a target in a slot. The target that was there gets one of the other group if
// its score is higher than the lowest there, and so on, until the score of one is too low
// for both groups. Each exchange raises the scores of a group, so there is an end.
func (sh *shard) admit(e entry, slot int) {
	if sh.used < slots {
		sh.put(&e, slot)
		sh.used++
		return
	}
	sh.put(&e, slot)
	g := group(slot / groupSize)
	for refused := 0; refused < 2; {
		g = 1 - g
		slot := sh.findLowest(g)
		if e.score.in(g) > sh.lowest[g] {
			sh.put(&e, slot)
			refused = 0
		} else {
			refused++
		}
	}
	sh.other.add(e.counts)
	sh.filter.set(e.hash, e.score)
}

// put exchanges the content of a slot.
func (sh *shard) put(e *entry, slot int) {
	sh.tags[slot] = tag(e.hash)
	sh.entries[slot], *e = *e, sh.entries[slot]
}

// halve halves the scores as often as it became due since the shard was last used.
func (sh *shard) halve(due uint32) {
	n := due - sh.halvings
	if n == 0 {
		return
	}
	sh.halvings = due
	for i := range sh.entries {
		sh.entries[i].score = sh.entries[i].score.halve(n)
	}
	sh.lowest = [2]uint64{}
	sh.filter.halve(n)
}
