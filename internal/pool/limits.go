package pool

import (
	"math"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
)

// Limits bounds the connections of all pools of a process together, so that
// descriptors are left for others. The domain of a target may have a quarter of
// what is free (Choudhury and Hahne, "Dynamic queue length thresholds for shared
// memory packet switches", 1998): the more connections are in use, the less one
// domain gets.
type Limits struct {
	max      int
	domainOf func(host string) string // nil: each host is its own

	idle atomic.Int64 // connections, which can be closed

	mu     sync.Mutex
	open   int
	groups map[string]int // open connections of a domain
	pools  []*Pool
}

// share is the part of what is free that one domain may have.
const share = 4

// NewLimits returns limits for at most max connections in use; zero: no limit.
// domainOf returns the domain to which a host belongs; nil: each host is its own.
func NewLimits(max int, domainOf func(host string) string) *Limits {
	if max <= 0 {
		max = math.MaxInt
	}
	return &Limits{max: max, domainOf: domainOf, groups: make(map[string]int)}
}

// acquire counts a connection of a domain that is about to be opened, unless there
// are too many. Idle connections count as free: they are closed for it.
func (l *Limits) acquire(group string) bool {
	for {
		l.mu.Lock()
		free := l.max - l.open
		allowed := l.groups[group] < max(1, (free+int(l.idle.Load()))/share)
		if allowed && free > 0 {
			l.open++
			l.groups[group]++
			l.mu.Unlock()
			return true
		}
		pools := slices.Clone(l.pools)
		l.mu.Unlock()
		if !allowed || !slices.ContainsFunc(pools, (*Pool).closeOldest) {
			return false
		}
	}
}

// release undoes enter.
func (l *Limits) release(group string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.groups[group]--; l.groups[group] == 0 {
		delete(l.groups, group)
	}
}

func (l *Limits) addPool(p *Pool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pools = append(l.pools, p)
}

func (l *Limits) removePool(p *Pool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pools = slices.DeleteFunc(l.pools, func(other *Pool) bool { return other == p })
}

// groupOf returns what the connections to a host count for. Where targets share
// connections that is the address.
func (l *Limits) groupOf(host string, addr netip.AddrPort) string {
	if host == "" {
		return addr.Addr().String()
	}
	if _, err := netip.ParseAddr(host); err == nil || l.domainOf == nil {
		return host
	}
	return l.domainOf(host)
}
