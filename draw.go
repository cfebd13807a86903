package caddytarget

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sort"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// minServiceRecords is how many records of one priority a request has to do with,
// if max_upstreams is not more, and maxPriorities is how many such numbers of
// records it has to do with in all.
const (
	minServiceRecords = 32
	maxPriorities     = 4
)

// sticks reports whether the load balancing policy of a reverse_proxy chooses by
// what stays the same, so that it has to be offered the same upstreams for each
// request. One that is not known here may.
func sticks(proxy *reverseproxy.Handler) bool {
	if proxy == nil || proxy.LoadBalancing == nil {
		return false
	}
	switch proxy.LoadBalancing.SelectionPolicy.(type) {
	case nil, // the default, random
		*reverseproxy.RandomSelection, *reverseproxy.RandomChoiceSelection,
		*reverseproxy.LeastConnSelection, *reverseproxy.RoundRobinSelection:
		return false
	}
	return true
}

// firstOf returns with which of the addresses of c those begin that a request is
// offered. Where there are more than it is offered this is drawn, so that all of
// them are used.
func (u *Upstreams) firstOf(c *call) int {
	if u.sticky || len(c.Addrs) <= u.MaxUpstreams {
		return 0
	}
	return rand.IntN(len(c.Addrs))
}

// place returns the place in the addresses of c of the k-th in the order that begins
// with first: the preferred ones, then the others.
func (c *call) place(first, k int) int {
	if k < c.Preferred {
		return (first + k) % c.Preferred
	}
	return c.Preferred + (first+k)%(len(c.Addrs)-c.Preferred)
}

// len returns how many addresses there are to offer, at most most of them.
func (ch *choice) len(most int) int { return min(len(ch.addrs), most) }

// at returns the k-th address to offer.
func (ch *choice) at(k int) netip.Addr { return ch.addrs[(ch.first+k)%len(ch.addrs)] }

// someRecords returns the records of a service, by priority, that a request has to
// do with: all of them, or if there are many of one priority a part of those, drawn
// in proportion to their weights. Then the first one of a priority is that which
// the weights choose for the request; drawn reports whether that is so.
func (u *Upstreams) someRecords(all []net.SRV) (records []net.SRV, drawn bool) {
	most := max(minServiceRecords, u.MaxUpstreams)
	if len(all) <= most {
		return all, false
	}
	for len(all) > 0 && len(records) < maxPriorities*most {
		n := slices.IndexFunc(all, func(r net.SRV) bool { return r.Priority != all[0].Priority })
		if n < 0 {
			n = len(all)
		}
		group := all[:n]
		all = all[n:]
		equal := group[0].Weight == group[n-1].Weight // they are in the order of their weights
		switch {
		case equal && (u.sticky || n <= most):
			records = append(records, group[:min(n, most)]...)
		default:
			records = append(records, sampleRecords(group, min(n, most), rand.Uint64N)...)
			drawn = drawn || !equal
		}
	}
	return records, drawn
}

// sampleRecords draws n of some more records, one after the other, each in
// proportion to the weights of those that are left (RFC 2782).
func sampleRecords(group []net.SRV, n int, random func(uint64) uint64) []net.SRV {
	ends := make([]uint64, len(group)) // of the parts of the sum
	sum := uint64(0)
	for i, r := range group {
		sum += candidate{weight: r.Weight}.share()
		ends[i] = sum
	}
	sample := make([]net.SRV, 0, n)
	taken := make([]bool, len(group))
	take := func(i int) {
		if !taken[i] && len(sample) < n {
			taken[i] = true
			sample = append(sample, group[i])
		}
	}
	// What was taken is drawn again in vain. If that happens often, few records
	// have nearly all of the weight: which of the others follow matters little.
	for range 8 * n {
		at := random(sum)
		take(sort.Search(len(ends), func(i int) bool { return at < ends[i] }))
	}
	for i, first := 0, int(random(uint64(len(group)))); len(sample) < n; i++ {
		take((first + i) % len(group))
	}
	return sample
}
