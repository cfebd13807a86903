package failover

import (
	"math/rand/v2"
	"net"
	"slices"
	"sort"
)

const (
	// A request considers no more than minSample records of one priority, or Source.Max
	// if that is more. Once it has maxSamples times as many of several priorities, it
	// considers no further priority.
	minSample  = 32
	maxSamples = 4
)

// Sample returns the records of a service that a request considers. They have to be
// sorted by priority, and within one by weight. If there are few, all are returned.
// Otherwise a part of each priority is returned, drawn in proportion to their weights.
// The first one of a priority is then the one that the weights choose for the request;
// drawn reports whether that is so.
func (s *Source) Sample(all []net.SRV) (records []net.SRV, drawn bool) {
	size := max(minSample, s.Max)
	if len(all) <= size {
		return all, false
	}
	for len(all) > 0 && len(records) < maxSamples*size {
		n := slices.IndexFunc(all, func(r net.SRV) bool { return r.Priority != all[0].Priority })
		if n < 0 {
			n = len(all)
		}
		group := all[:n]
		all = all[n:]
		equal := group[0].Weight == group[n-1].Weight // they are in the order of their weights
		switch {
		case equal && (s.Sticky || n <= size):
			records = append(records, group[:min(n, size)]...)
		default:
			records = append(records, sample(group, min(n, size), rand.Uint64N)...)
			drawn = drawn || !equal
		}
	}
	return records, drawn
}

// sample draws n of some more records, one after the other, each in proportion to the
// weights of those that are left (RFC 2782).
func sample(group []net.SRV, n int, random func(uint64) uint64) []net.SRV {
	ends := make([]uint64, len(group)) // of the parts of the sum
	sum := uint64(0)
	for i, r := range group {
		sum += share(r.Weight)
		ends[i] = sum
	}
	list := make([]net.SRV, 0, n)
	taken := make([]bool, len(group))
	take := func(i int) {
		if !taken[i] && len(list) < n {
			taken[i] = true
			list = append(list, group[i])
		}
	}
	// A record that was taken may be drawn again in vain. If that happens often, few
	// records have nearly all of the weight: which of the others follow matters little.
	for range 8 * n {
		at := random(sum)
		take(sort.Search(len(ends), func(i int) bool { return at < ends[i] }))
	}
	for i, first := 0, int(random(uint64(len(group)))); len(list) < n; i++ {
		take((first + i) % len(group))
	}
	return list
}
