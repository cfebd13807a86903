package dnscache

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

const (
	wheelTick  = 50 * time.Millisecond
	wheelSlots = 2048

	// refreshSlots is how many refreshes may be in flight. They are not the slots
	// for readers, so that a flood of new names cannot starve the known ones.
	// slowRefreshSlots is how many of them may be for names whose last lookup
	// failed or was slow, so that these cannot starve the others.
	refreshSlots     = 256
	slowRefreshSlots = refreshSlots / 2

	// recoveryRate is how many parked refreshes a second start after an outage.
	recoveryRate = 1000
)

// scheduler refreshes names when they are due. It has one coarse timer wheel instead
// of a timer for each name. The slot of a node is its tick modulo wheelSlots; a node
// that is due in a later revolution of the wheel is passed over until then.
type scheduler struct {
	cache *Cache

	mu       sync.Mutex
	wheel    [wheelSlots]list
	lastTick time.Duration
	forecast forecast // of the nodes in the wheel

	due      [2]list // to be refreshed as soon as there is a slot; by class
	inFlight [2]int  // refreshes; by class

	parked     list    // due, but held back: during and after an outage, and at Start
	sorted     bool    // parked is in the order in which its nodes become due
	credit     float64 // how many of parked may become due now
	creditedAt time.Duration

	account account
}

// The classes of refreshes.
const (
	fastClass = iota // the last lookup succeeded, and was not slow
	slowClass        // it failed or was slow, or there was none
)

func (n *node) class() int {
	if s := n.entry.Load().state; s.known && !s.likelySlow() {
		return fastClass
	}
	return slowClass
}

func (s *scheduler) init(c *Cache) {
	s.cache = c
	s.lastTick = c.cfg.Now()
	s.account.init(&c.cfg)
	for i := range s.wheel {
		s.wheel[i].kind = refreshList
	}
	for _, l := range []*list{&s.due[fastClass], &s.due[slowClass], &s.parked} {
		l.kind = refreshList
	}
}

// forecast counts the nodes that are due in each second, modulo its length.
type forecast struct {
	seconds [4096]int32
	total   int
}

func (f *forecast) at(due uint32) *int32 {
	return &f.seconds[due/uint32(time.Second/wheelTick)%uint32(len(f.seconds))]
}

// tickAfter returns the first tick after t.
func tickAfter(t time.Duration) uint32 {
	return uint32(min(t/wheelTick, math.MaxUint32-1)) + 1
}

// pick chooses when to refresh an answer that has just come and holds for ttl: after
// a random 75 to 90 % of it, so that names that were learned together are not
// refreshed together for ever. If too many names are due then already, because very
// many were learned together, it may choose any earlier time.
func (f *forecast) pick(now, ttl time.Duration) time.Duration {
	due := now + ttl*3/4 + rand.N(ttl/100*15+1)
	even := float64(f.total) / (0.8 * ttl.Seconds()) // names a second if spread evenly
	if n := *f.at(tickAfter(due)); float64(n) > 1.25*even+64 {
		if other := now + ttl/10 + rand.N(ttl/10*8+1); *f.at(tickAfter(other)) < n {
			return other
		}
	}
	return due
}

// schedule sets when a node is due: at a time that forecast.pick chooses, unless ttl
// is 0, but not later than latest.
func (s *scheduler) schedule(n *node, now, ttl, latest time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n.evicted {
		return
	}
	if s.isWaiting(n) {
		if n.call.Load() != nil {
			return // it is due for another lookup
		}
		n.links[refreshList].in.remove(n) // a reader did the lookup that it was due for
	} else {
		s.unschedule(n)
	}
	due := latest
	if ttl > 0 {
		due = min(s.forecast.pick(now, ttl), latest)
	}
	s.put(n, due)
}

// put puts a node into the wheel; s.mu is held.
func (s *scheduler) put(n *node, due time.Duration) {
	n.due = tickAfter(max(due, s.lastTick))
	*s.forecast.at(n.due)++
	s.forecast.total++
	s.wheel[n.due%wheelSlots].push(n)
}

// evict removes a node for good.
func (s *scheduler) evict(n *node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n.evicted = true
	if s.isWaiting(n) {
		n.links[refreshList].in.remove(n)
	} else {
		s.unschedule(n)
	}
}

// unschedule removes a node from the wheel, if it is there; s.mu is held.
func (s *scheduler) unschedule(n *node) {
	if in := n.links[refreshList].in; in != nil {
		in.remove(n)
		*s.forecast.at(n.due)--
		s.forecast.total--
	}
}

// isWaiting reports whether a node is due or parked; s.mu is held.
func (s *scheduler) isWaiting(n *node) bool {
	in := n.links[refreshList].in
	return in == &s.due[fastClass] || in == &s.due[slowClass] || in == &s.parked
}

// request makes a node due now, unless a lookup of it is planned or in flight, and
// returns its lookup. A renewal asks for all families. It returns nil if the lookup
// has just ended.
func (s *scheduler) request(n *node, now time.Duration, renewal bool) *call {
	if cl := n.call.Load(); cl != nil {
		return cl
	}
	cl := newCall(now)
	cl.renewal = renewal
	if !n.call.CompareAndSwap(nil, cl) {
		return n.call.Load() // nil if it has ended
	}
	s.mu.Lock()
	if !n.evicted && !s.isWaiting(n) {
		s.unschedule(n)
		s.due[n.class()].push(n)
		s.account.charge(n, now, renewal)
	}
	s.mu.Unlock()
	s.dispatch(now)
	return cl
}

// preload parks new nodes, which become due at the same rate as after an outage.
func (s *scheduler) preload(nodes []*node, now time.Duration) {
	s.mu.Lock()
	if s.parked.len == 0 {
		s.credit, s.creditedAt = recoveryRate/4, now
	}
	for _, n := range nodes {
		if n.call.CompareAndSwap(nil, newCall(now)) && !s.isWaiting(n) {
			s.unschedule(n)
			s.parked.push(n)
			s.sorted = false
		}
	}
	s.mu.Unlock()
	s.dispatch(now)
}

// chargeOne makes a name pay for one more query than its lookup was taken to cost.
func (s *scheduler) chargeOne(n *node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.account.chargeOne(n)
}

// run refreshes what is due until the cache is closed.
func (s *scheduler) run() {
	ticker := time.NewTicker(wheelTick)
	defer ticker.Stop()
	for {
		select {
		case <-s.cache.ctx.Done():
			return
		case <-ticker.C:
			now := s.cache.cfg.Now()
			if s.cache.ownClock {
				s.cache.coarseNow.Store(int64(now))
			}
			s.tick(now)
		}
	}
}

// tick starts the refreshes that are due.
func (s *scheduler) tick(now time.Duration) {
	outage := s.cache.ex.Outage() != nil
	s.mu.Lock()
	s.collectDue(now, outage)
	s.mu.Unlock()
	s.dispatch(now)
}

// collectDue takes from the wheel the nodes that are due now, and decides for each
// whether it is refreshed; s.mu is held.
func (s *scheduler) collectDue(now time.Duration, outage bool) {
	first, end := s.lastTick/wheelTick+1, now/wheelTick
	first = max(first, end-wheelSlots+1) // one revolution visits all nodes
	for t := first; t <= end; t++ {
		var next *node
		for n := s.wheel[t%wheelSlots].head; n != nil; n = next {
			next = n.links[refreshList].next
			if time.Duration(n.due) > end {
				continue
			}
			s.unschedule(n)
			switch s.decide(n, now, outage) {
			case refresh:
				// a lookup that is in flight already will schedule the node again
				if n.call.CompareAndSwap(nil, newCall(now)) {
					s.due[n.class()].push(n)
					if !outage {
						s.account.charge(n, now, false)
					}
				}
			case postpone:
				s.postpone(n, now)
			case letExpire:
			}
		}
	}
	s.lastTick = max(s.lastTick, end*wheelTick) //nolint:durationcheck // end is a count
}

// dispatch starts the refreshes that are due, as long as there are slots.
func (s *scheduler) dispatch(now time.Duration) {
	outage := s.cache.ex.Outage() != nil
	s.mu.Lock()
	s.park(now, outage)
	var start [2][]*node
	for class := range s.due {
		for s.due[class].len > 0 && s.hasSlot(class) {
			s.inFlight[class]++
			start[class] = append(start[class], s.due[class].pop())
		}
	}
	s.mu.Unlock()
	for class, nodes := range start {
		for _, n := range nodes {
			s.start(n, class)
		}
	}
}

// hasSlot reports whether a refresh may start; s.mu is held.
func (s *scheduler) hasSlot(class int) bool {
	return s.inFlight[fastClass]+s.inFlight[slowClass] < refreshSlots &&
		(class == fastClass || s.inFlight[slowClass] < slowRefreshSlots)
}

// park holds back what is due while there is an outage. Afterwards the nodes become
// due at recoveryRate, the most recently used first; s.mu is held.
func (s *scheduler) park(now time.Duration, outage bool) {
	if outage {
		for class := range s.due {
			for s.due[class].len > 0 {
				s.parked.push(s.due[class].pop())
				s.sorted = false
			}
		}
		s.credit, s.creditedAt = 0, now
		return
	}
	if s.parked.len == 0 {
		return
	}
	if !s.sorted {
		s.sortParked()
	}
	s.credit += recoveryRate * (now - s.creditedAt).Seconds()
	s.creditedAt = now
	for ; s.parked.len > 0 && s.credit >= 1; s.credit-- {
		n := s.parked.pop()
		s.due[n.class()].push(n)
	}
}

// sortParked puts the parked nodes in the order in which they become due.
func (s *scheduler) sortParked() {
	type parked struct {
		used time.Duration
		n    *node
	}
	now := s.cache.cfg.Now()
	all := make([]parked, 0, s.parked.len)
	for s.parked.len > 0 {
		n := s.parked.pop()
		all = append(all, parked{n.entry.Load().lastUsed(now), n})
	}
	slices.SortStableFunc(all, func(a, b parked) int { return cmp.Compare(b.used, a.used) })
	for _, p := range all {
		s.parked.push(p.n)
	}
	s.sorted = true
}

// start looks a node up in one of the slots of its class, unless a reader has
// claimed its lookup.
func (s *scheduler) start(n *node, class int) {
	cl := n.call.Load()
	if cl == nil || !cl.started.CompareAndSwap(false, true) {
		s.releaseSlot(class)
		return
	}
	if !s.cache.addWork() {
		s.cache.abandon(n, cl, ErrClosed)
		s.releaseSlot(class)
		return
	}
	s.cache.refreshes.Add(1)
	f := s.cache.newFlight(n, cl)
	f.onFinish = func() {
		s.releaseSlot(class)
		s.dispatch(s.cache.cfg.Now())
	}
	go f.begin() // a flight that finishes at once calls dispatch, which calls start
}

// releaseSlot gives a slot back.
func (s *scheduler) releaseSlot(class int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inFlight[class]--
}
