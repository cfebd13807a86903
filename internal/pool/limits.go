package pool

import (
	"math"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Limits bounds the connections of all pools of a process together, so that descriptors
// are left for other uses. The domain of a target may have a quarter of the connections
// that are free or idle (Choudhury and Hahne, "Dynamic queue length thresholds for
// shared memory packet switches", 1998): the more are in use, the fewer one domain gets.
type Limits struct {
	max      int
	wait     time.Duration            // limitedWait
	domainOf func(host string) string // nil: each host is its own domain

	idle atomic.Int64 // idle connections

	descriptors func() (used, limit int) // of the process; 0: not known
	relieving   sync.Mutex               // held by relieve: what one pool closes counts for the next

	mu     sync.Mutex
	open   int // open connections, with dials
	groups map[string]*connGroup
	pools  []*Pool
}

// connGroup counts the connections of a domain.
type connGroup struct {
	open int          // with dials; under Limits.mu
	idle atomic.Int64 // of these
}

// One domain may have a share-th of the connections that are free or idle.
const share = 4

// limitedWait is how long a request waits for a connection to become free where Limits
// allow no other one.
const limitedWait = time.Second

// NewLimits returns limits for at most max open connections; zero: no limit. domainOf
// returns the domain to which a host belongs; nil: each host is its own domain.
func NewLimits(max int, domainOf func(host string) string) *Limits {
	if max <= 0 {
		max = math.MaxInt
	}
	return &Limits{
		max: max, wait: limitedWait, domainOf: domainOf, groups: make(map[string]*connGroup),
		descriptors: func() (used, limit int) { return descriptorsInUse(), DescriptorLimit() },
	}
}

// acquire counts a connection that is about to be opened and returns its group, or nil if
// it is not allowed. If need be, and if it may, it closes the connection that has been idle
// longest, or one of the same domain if that has its share.
func (l *Limits) acquire(name string, mayClose bool) *connGroup {
	for {
		l.mu.Lock()
		g := l.groups[name]
		free := l.max - l.open
		allowed := g == nil || g.open < max(1, (free+int(l.idle.Load()))/share)
		if allowed && free > 0 {
			if g == nil {
				g = new(connGroup)
				l.groups[name] = g
			}
			l.open++
			g.open++
			l.mu.Unlock()
			return g
		}
		// to close some of its own is of no use if it would still have more than its share
		hopeless := !allowed && g.open-int(g.idle.Load()) >= max(1, (free+int(l.idle.Load()))/share)
		pools := slices.Clone(l.pools)
		l.mu.Unlock()
		makeRoom := (*Pool).closeOldest
		if !allowed {
			makeRoom = func(p *Pool) bool { return p.closeOldestOf(g) }
		}
		if !mayClose || hopeless || !slices.ContainsFunc(pools, makeRoom) {
			return nil
		}
	}
}

// release undoes acquire.
func (l *Limits) release(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	g := l.groups[name]
	if g.open--; g.open == 0 {
		delete(l.groups, name)
	}
}

// relieve closes connections of a pool that are idle because of other uses of descriptors,
// above all those of clients: where seven eighths are in use, so many that three quarters are.
func (l *Limits) relieve(p *Pool) {
	l.relieving.Lock()
	defer l.relieving.Unlock()
	used, limit := l.descriptors()
	if limit > 0 && used > limit/8*7 {
		p.closeIdle(p.open.Load() - int64(used-limit/4*3))
	}
}

// addPool adds a pool, whose idle connections acquire may close.
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

// groupOf returns the name under which connections are counted: the domain of the host,
// or the address where targets share connections.
func (l *Limits) groupOf(host string, addr netip.AddrPort) string {
	if host == "" {
		return addr.Addr().String()
	}
	if _, err := netip.ParseAddr(host); err == nil || l.domainOf == nil {
		return host
	}
	return l.domainOf(host)
}
