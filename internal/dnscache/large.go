package dnscache

import (
	"net/netip"
	"slices"
)

// Answers with more addresses or records than these are kept whole only while all
// of them together do not take too much memory. Otherwise an attacker with a domain
// could fill the memory with names that have maxAddrs addresses each.
const (
	smallAddrs   = 64 // of a family
	smallRecords = 32

	// recordWeight is how many addresses a record counts for.
	recordWeight = 8

	// excessPerName is how many addresses beyond the small number there may be,
	// on average over all names that the cache has room for.
	excessPerName = 10
)

// excess returns how many addresses e has beyond the small number.
func (e *entry) excess() (n int64) {
	if e.isService() {
		return recordWeight * max(0, int64(e.count)-smallRecords)
	}
	if e.count <= smallAddrs {
		return 0
	}
	for _, have := range e.state.count {
		n += max(0, int64(have)-smallAddrs)
	}
	return n
}

// trim cuts an entry that takes the place of old to the small number, if there are
// too many large ones.
func (c *Cache) trim(e, old *entry) {
	n := e.excess()
	if n == 0 || c.excess.Load()-old.excess()+n <= excessPerName*int64(c.cfg.Size) {
		return
	}
	s := e.state
	if e.isService() {
		s.count[0] = smallRecords
		e.setRecords(slices.Clone(e.records()[:smallRecords]))
		return
	}
	var lists [2][]netip.Addr
	for f := range lists {
		list := e.addrsOf(family(f))
		lists[f] = slices.Clone(list[:min(len(list), smallAddrs)])
	}
	for f, list := range lists {
		s.count[f] = uint16(len(list))
	}
	e.setAddrs(offer(s.order, lists))
}
