package dnscache

import (
	"math/rand/v2"
	"time"
)

// account limits what refreshing names costs, in queries. Each use of a name
// pays for Config.RefreshQueries of them. What a name has left over from that it
// keeps, up to a few lookups; the rest is for names that are used too seldom to
// pay for themselves. So there are about as many queries for known names as
// there are requests at most, however many names there are and however short
// their TTLs are.
//
//   - A name whose uses have paid for a lookup is refreshed before its answer
//     expires.
//   - The others are not. Their expired answer serves for a minute (staleGrace);
//     a use in that time starts a lookup if it is paid for by then.
//   - Near the end of this minute, at the last call, a name is refreshed if it
//     was used since the last lookup, so that the next use does not wait; and one
//     that was not if others have paid for it. The more often this was in vain,
//     the more must be left over.
//
// It is guarded by scheduler.mu.
type account struct {
	perUse     int     // Config.RefreshQueries
	maxSaved   int     // what a name keeps at most
	surplus    float64 // left over, in all
	maxSurplus float64 // of common; it may be as much below zero
	updated    time.Duration
}

const (
	// commonRate is how many queries a second need not be paid for, so that a
	// few names that are seldom used do not wait. It is what a hundred names
	// take whose TTL is short.
	freeRate = 2

	// The last call is at a random time between these two before the end of
	// staleGrace.
	finalCheckFirst = 10 * time.Second
	finalCheckLast  = 3 * time.Second

	// Where an expired answer does not serve for that long, the last call is so
	// much before the answer expires.
	finalCheckLead = 4 * wheelTick

	// maxIdle is how many refreshes of a name in vain are counted.
	maxUnusedRefreshes = 10
)

func (a *account) init(cfg *Config) {
	a.perUse = cfg.RefreshQueries
	a.maxSaved = max(4, a.perUse)
	a.maxSurplus = float64(max(100, cfg.Size/50))
	a.surplus = a.maxSurplus
}

// paid returns how many queries the uses of a name have paid for.
func (a *account) paid(n *node, e *entry) int {
	return int(n.savedQueries) + int(e.uses())*a.perUse
}

// left returns what is left over in all.
func (a *account) surplusAt(now time.Duration) float64 {
	a.surplus = min(a.surplus+freeRate*max(0, now-a.updated).Seconds(), a.maxSurplus)
	a.updated = now
	return a.surplus
}

// spend takes what a lookup of a name costs from what its uses have paid. One of a
// name whose answer could not be replaced when it expired is free.
func (a *account) charge(n *node, now time.Duration, renewal bool) {
	e := n.entry.Load()
	if n.pinned.Load() || e.state.failing() && now >= e.expires {
		return
	}
	left := a.surplusAt(now)
	rest := a.paid(n, e) - e.state.queryCost(now, renewal)
	n.savedQueries = uint16(min(max(rest, 0), a.maxSaved))
	a.surplus = max(min(left+float64(rest-int(n.savedQueries)), a.maxSurplus), -a.maxSurplus)
	if !e.state.failing() { // else decide has counted it
		n.countRefresh(e)
	}
}

// goesOn counts a refresh of a name, and reports whether it is not one of too many
// since the name was last used.
func (n *node) countRefresh(e *entry) bool {
	if e.uses() > 0 {
		n.unusedRefreshes = 0
	}
	if n.unusedRefreshes == maxUnusedRefreshes {
		return false
	}
	n.unusedRefreshes++
	return true
}

// lastCall returns the times between which it is decided whether a name is
// refreshed whose uses had not paid for that when it was due.
func (c *Cache) finalCheck(e *entry) (first, last time.Duration) {
	if grace := min(c.cfg.Stale, staleGrace); grace >= 2*finalCheckFirst {
		return e.expires + grace - finalCheckFirst, e.expires + grace - finalCheckLast
	}
	return e.expires - finalCheckLead, e.expires - finalCheckLead
}

// decision is what is done about a name that is due.
type decision int

const (
	letExpire decision = iota // let it expire
	postpone                  // until its last call
	refresh
)

// decide decides about a node that is due; s.mu is held.
func (s *scheduler) decide(n *node, now time.Duration, outage bool) decision {
	e := n.entry.Load()
	switch {
	case n.pinned.Load() || s.cache.cfg.Refresh == Always:
		return refresh
	case now-e.lastUsed(now)-usedUnit > s.cache.cfg.Refresh:
		return letExpire
	case outage:
		return refresh // it waits, and is paced then
	}
	a, cost := &s.account, e.state.queryCost(now, false)
	paid := a.paid(n, e)
	if e.state.failing() && now >= e.state.nextRetry() {
		switch {
		case now < e.expires && paid <= 0 && a.surplusAt(now) < float64(cost):
		case n.countRefresh(e):
			return refresh
		case now >= e.expires:
			return letExpire
		}
	}
	if paid >= cost {
		return refresh
	}
	if first, _ := s.cache.finalCheck(e); now < first {
		return postpone
	}
	if paid > 0 || a.surplusAt(now) >= float64(cost)+a.maxSurplus*float64(n.unusedRefreshes)/8 {
		return refresh
	}
	return letExpire
}

// postpone puts a node into the wheel until its last call; s.mu is held.
func (s *scheduler) postpone(n *node) {
	first, last := s.cache.finalCheck(n.entry.Load())
	s.put(n, first+rand.N(last-first+1))
}

// maySkip reports whether a use of an answer that has expired need not start a
// lookup, since it is not paid for, and there will be a last call.
func (s *scheduler) maySkipLookup(e *entry, now time.Duration) bool {
	n := e.state.node
	first, _ := s.cache.finalCheck(e)
	refresh := s.cache.cfg.Refresh
	if now >= first || e.state.failing() || refresh < 0 || refresh == Always || n.pinned.Load() {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.account.paid(n, e) >= e.state.queryCost(now, false) || s.account.surplusAt(now) >= s.account.maxSurplus/2 || n.evicted {
		return false
	}
	if n.links[refreshList].in == nil {
		s.postpone(n)
	}
	return true
}
