package dnscache

import (
	"math/rand/v2"
	"time"
)

// account limits how many queries refreshes take. Each use of a name pays for
// Config.RefreshQueries queries. A name saves what it did not need, enough for a
// few lookups. The rest goes to the surplus, which pays for names that are used
// too seldom to pay for themselves. So known names take about one query a request
// at most, however many names there are and however short their TTLs are.
//
//   - A name whose uses have paid for a lookup is refreshed before its answer
//     expires.
//   - The others are not. Their expired answer serves for a minute (staleGrace). A
//     use in that time starts a lookup if it is paid for by then.
//   - Near the end of this minute, at the final check, a name is refreshed if it
//     was used since the last lookup, so that the next use does not wait. One that
//     was not used is refreshed if the surplus pays for it. The more often that
//     was in vain, the larger the surplus has to be.
//
// It is guarded by scheduler.mu.
type account struct {
	perUse     int     // Config.RefreshQueries
	maxSaved   int     // queries that a name may save
	surplus    float64 // queries
	maxSurplus float64 // the surplus may be as much below zero
	updated    time.Duration
}

const (
	// freeRate is how many queries a second are added to the surplus, so that a
	// few names that are seldom used do not wait. A hundred names with short TTLs
	// take that much.
	freeRate = 2

	// The final check is at a random time between these two before the end of
	// staleGrace.
	finalCheckFirst = 10 * time.Second
	finalCheckLast  = 3 * time.Second

	// If an expired answer does not serve for that long, the final check is
	// finalCheckLead before the answer expires.
	finalCheckLead = 4 * wheelTick

	// maxUnusedRefreshes is up to how many refreshes of an unused name are counted.
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

// surplusAt adds to the surplus what it gained with time, and returns it.
func (a *account) surplusAt(now time.Duration) float64 {
	a.surplus = min(a.surplus+freeRate*max(0, now-a.updated).Seconds(), a.maxSurplus)
	a.updated = now
	return a.surplus
}

// charge subtracts what a lookup of a name costs from what its uses have paid. A
// lookup is free while the name fails and its answer has expired.
func (a *account) charge(n *node, now time.Duration, renewal bool) {
	e := n.entry.Load()
	if n.pinned.Load() || e.state.failing() && now >= e.expires {
		return
	}
	surplus := a.surplusAt(now)
	rest := a.paid(n, e) - e.state.queryCost(now, renewal)
	n.savedQueries = uint16(min(max(rest, 0), a.maxSaved))
	a.surplus = max(min(surplus+float64(rest-int(n.savedQueries)), a.maxSurplus), -a.maxSurplus)
	if !e.state.failing() { // otherwise decide has counted it
		n.countRefresh(e)
	}
}

// chargeOne subtracts one more query from what the uses of a name have paid.
func (a *account) chargeOne(n *node) {
	switch {
	case n.pinned.Load():
	case n.savedQueries > 0:
		n.savedQueries--
	default:
		a.surplus = max(a.surplus-1, -a.maxSurplus)
	}
}

// countRefresh counts a refresh of a name. It reports false if there were too many
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

// finalCheck returns the times between which the final check of a name is.
func (c *Cache) finalCheck(e *entry) (first, last time.Duration) {
	if grace := min(c.cfg.Stale, staleGrace); grace >= 2*finalCheckFirst {
		return e.expires + grace - finalCheckFirst, e.expires + grace - finalCheckLast
	}
	return e.expires - finalCheckLead, e.expires - finalCheckLead
}

// decision is what the scheduler does with a name that is due.
type decision int

const (
	letExpire decision = iota
	postpone           // see scheduler.postpone
	refresh
)

// decide returns what to do with a node that is due; s.mu is held.
func (s *scheduler) decide(n *node, now time.Duration, outage bool) decision {
	e := n.entry.Load()
	switch {
	case n.pinned.Load() || s.cache.cfg.Refresh == Always:
		return refresh
	case now-e.lastUsed(now)-usedUnit > s.cache.cfg.Refresh:
		return letExpire
	case outage:
		return refresh // it is parked until the end of the outage
	}
	a, cost := &s.account, e.state.queryCost(now, false)
	paid := a.paid(n, e)
	if e.state.failing() && now >= e.state.nextRetry() {
		holds := now < e.expires // the other family
		switch {
		case holds && paid <= 0 && a.surplusAt(now) < float64(cost):
			// as without the failure: see below
		case n.countRefresh(e):
			return refresh
		case !holds:
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

// postpone puts a node into the wheel until its final check, or until its addresses
// need a refresh if it was due before that, at the end of a NODATA; s.mu is held.
func (s *scheduler) postpone(n *node, now time.Duration) {
	e := n.entry.Load()
	if e.state.onlyNoDataEnded(now) {
		s.put(n, s.forecast.pick(now, e.expires-now))
		return
	}
	first, last := s.cache.finalCheck(e)
	s.put(n, first+rand.N(last-first+1))
}

// maySkipLookup reports whether a use of an answer that has expired need not start
// a lookup, since none is paid for and the final check is still to come.
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
		s.postpone(n, now)
	}
	return true
}
