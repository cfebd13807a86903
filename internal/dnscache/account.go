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
	perUse  int     // Config.RefreshQueries
	most    int     // what a name keeps at most
	common  float64 // left over, in all
	maximum float64 // of common; it may be as much below zero
	at      time.Duration
}

const (
	// commonRate is how many queries a second need not be paid for, so that a
	// few names that are seldom used do not wait. It is what a hundred names
	// take whose TTL is short.
	commonRate = 2

	// The last call is at a random time between these two before the end of
	// staleGrace.
	lastCallFirst = 10 * time.Second
	lastCallLast  = 3 * time.Second

	// Where an expired answer does not serve for that long, the last call is so
	// much before the answer expires.
	lastCallEarly = 4 * wheelTick

	// maxIdle is how many refreshes of a name in vain are counted.
	maxIdle = 10
)

func (a *account) init(cfg *Config) {
	a.perUse = cfg.RefreshQueries
	a.most = max(4, a.perUse)
	a.maximum = float64(max(100, cfg.Size/50))
	a.common = a.maximum
}

// paid returns how many queries the uses of a name have paid for.
func (a *account) paid(n *node, e *entry) int {
	return int(n.saved) + int(e.uses())*a.perUse
}

// left returns what is left over in all.
func (a *account) left(now time.Duration) float64 {
	a.common = min(a.common+commonRate*max(0, now-a.at).Seconds(), a.maximum)
	a.at = now
	return a.common
}

// spend takes what a lookup of a name costs from what its uses have paid. One of a
// name whose answer could not be replaced when it expired is free.
func (a *account) spend(n *node, now time.Duration, renewal bool) {
	e := n.entry.Load()
	if n.pinned.Load() || e.more.failing() && now >= e.expires {
		return
	}
	left := a.left(now)
	rest := a.paid(n, e) - e.more.queries(now, renewal)
	n.saved = uint16(min(max(rest, 0), a.most))
	a.common = max(min(left+float64(rest-int(n.saved)), a.maximum), -a.maximum)
	if !e.more.failing() { // else decide has counted it
		n.goesOn(e)
	}
}

// goesOn counts a refresh of a name, and reports whether it is not one of too many
// since the name was last used.
func (n *node) goesOn(e *entry) bool {
	if e.uses() > 0 {
		n.idle = 0
	}
	if n.idle == maxIdle {
		return false
	}
	n.idle++
	return true
}

// lastCall returns the times between which it is decided whether a name is
// refreshed whose uses had not paid for that when it was due.
func (c *Cache) lastCall(e *entry) (first, last time.Duration) {
	if grace := min(c.cfg.Stale, staleGrace); grace >= 2*lastCallFirst {
		return e.expires + grace - lastCallFirst, e.expires + grace - lastCallLast
	}
	return e.expires - lastCallEarly, e.expires - lastCallEarly
}

// decision is what is done about a name that is due.
type decision int

const (
	leave    decision = iota // let it expire
	postpone                 // until its last call
	refresh
)

// decide decides about a node that is due; s.mu is held.
func (s *scheduler) decide(n *node, now time.Duration, outage bool) decision {
	e := n.entry.Load()
	switch {
	case n.pinned.Load() || s.cache.cfg.Refresh == Always:
		return refresh
	case now-e.lastUsed(now)-usedUnit > s.cache.cfg.Refresh:
		return leave
	case outage:
		return refresh // it waits, and is paced then
	}
	a, cost := &s.account, e.more.queries(now, false)
	paid := a.paid(n, e)
	if e.more.failing() && now >= e.more.nextRetry() {
		switch {
		case now < e.expires && paid <= 0 && a.left(now) < float64(cost):
		case n.goesOn(e):
			return refresh
		case now >= e.expires:
			return leave
		}
	}
	if paid >= cost {
		return refresh
	}
	if first, _ := s.cache.lastCall(e); now < first {
		return postpone
	}
	if paid > 0 || a.left(now) >= float64(cost)+a.maximum*float64(n.idle)/8 {
		return refresh
	}
	return leave
}

// postpone puts a node into the wheel until its last call; s.mu is held.
func (s *scheduler) postpone(n *node) {
	first, last := s.cache.lastCall(n.entry.Load())
	s.put(n, first+rand.N(last-first+1))
}

// maySkip reports whether a use of an answer that has expired need not start a
// lookup, since it is not paid for, and there will be a last call.
func (s *scheduler) maySkip(e *entry, now time.Duration) bool {
	n := e.more.node
	first, _ := s.cache.lastCall(e)
	refresh := s.cache.cfg.Refresh
	if now >= first || e.more.failing() || refresh < 0 || refresh == Always || n.pinned.Load() {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.account.paid(n, e) >= e.more.queries(now, false) || s.account.left(now) >= s.account.maximum/2 || n.gone {
		return false
	}
	if n.links[refreshList].in == nil {
		s.postpone(n)
	}
	return true
}
