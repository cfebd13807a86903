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

	// What is due at one tick is not started at once, but until the next tick, a
	// part at each step: a burst of refreshes is what readers would wait for.
	wheelStep  = 10 * time.Millisecond
	minPerStep = 16 // nodes, if there are so many

	// refreshSlots bounds the refreshes in flight. They have slots of their
	// own, so that a flood of new names cannot starve the known ones. Names
	// whose last lookup failed or took long get half of them at most, so that
	// dead and slow ones cannot starve the others.
	refreshSlots = 256

	// recoveryRate is how many parked refreshes a second are let go after an
	// outage.
	recoveryRate = 1000
)

// scheduler refreshes names when they are due: one coarse wheel, not a timer a
// name. A node stands in one slot of it, by its time modulo a turn of the
// wheel; one whose time is turns away is passed over until then.
type scheduler struct {
	cache *Cache

	mu       sync.Mutex
	wheel    [wheelSlots]list
	lastTick time.Duration // the last tick
	forecast forecast      // how many nodes of the wheel are due in which second

	dueThisTick list    // to be due at one of the next steps
	perStep     int     // how many of them at each
	due         [2]list // to be refreshed as soon as there is a slot; by class
	parked      list    // due, but there is an outage, or was one until just now; and those preloaded
	sorted      bool    // parked is in the order in which it is let go
	credit      float64 // how many parked ones may be let go now
	creditedAt  time.Duration

	inFlight [2]int // refreshes in flight, by class

	account account
}

// The classes of refreshes.
const (
	fastClass = iota // the last lookup answered soon
	slowClass        // it did not, or there was none
)

func (n *node) class() int {
	if s := n.entry.Load().state; s.known() && !s.likelySlow() {
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
	for _, l := range []*list{&s.dueThisTick, &s.due[fastClass], &s.due[slowClass], &s.parked} {
		l.kind = refreshList
	}
}

// forecast counts what is due in each second (modulo its length).
type forecast struct {
	seconds [4096]int32
	total   int
}

func (f *forecast) at(due uint32) *int32 {
	return &f.seconds[due/uint32(time.Second/wheelTick)%uint32(len(f.seconds))]
}

// dueAt returns the first tick at which what is due at t is due.
func dueAt(t time.Duration) uint32 {
	return uint32(min(t/wheelTick, math.MaxUint32-1)) + 1
}

// pick chooses when to refresh an answer that has just come and holds for ttl:
// at a random 75 to 90 % of it, so that names that were learned together are
// not asked for together for ever. Where a crowd is due then already, because
// very many names were learned together, it may be any earlier time.
func (f *forecast) pick(now, ttl time.Duration) time.Duration {
	due := now + ttl*3/4 + rand.N(ttl/100*15+1)
	even := float64(f.total) / (0.8 * ttl.Seconds()) // names a second if spread evenly
	if n := *f.at(dueAt(due)); float64(n) > 1.25*even+64 {
		if early := now + ttl/10 + rand.N(ttl/10*8+1); *f.at(dueAt(early)) < n {
			return early
		}
	}
	return due
}

// schedule sets when a node is due: at the best time before ttl has passed, but
// not later than latest.
func (s *scheduler) schedule(n *node, now, ttl, latest time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n.evicted {
		return
	}
	if s.isWaiting(n) {
		if n.call.Load() != nil {
			return // to be looked up again
		}
		n.links[refreshList].in.remove(n) // a reader did what it waits for
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
	n.due = dueAt(max(due, s.lastTick))
	*s.forecast.at(n.due)++
	s.forecast.total++
	s.wheel[n.due%wheelSlots].push(n)
}

// evict takes a node out for good.
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

// unschedule takes a node out of the wheel, if it is there; s.mu is held.
func (s *scheduler) unschedule(n *node) {
	if in := n.links[refreshList].in; in != nil {
		in.remove(n)
		*s.forecast.at(n.due)--
		s.forecast.total--
	}
}

// waits says whether a node is due already; s.mu is held.
func (s *scheduler) isWaiting(n *node) bool {
	in := n.links[refreshList].in
	return in == &s.dueThisTick || in == &s.due[fastClass] || in == &s.due[slowClass] || in == &s.parked
}

// request makes a node due now, all families of it for a renewal, unless a
// lookup of it is planned or in flight, and returns that lookup.
func (s *scheduler) request(n *node, now time.Duration, renewal bool) *call {
	if cl := n.call.Load(); cl != nil {
		return cl
	}
	cl := newCall(now)
	cl.renewal = renewal
	if !n.call.CompareAndSwap(nil, cl) {
		return n.call.Load() // which may be over by now
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

// preload makes nodes due that are new, and lets them go as after an outage.
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

// run refreshes what is due until the cache is closed.
func (s *scheduler) run() {
	ticker := time.NewTicker(wheelTick)
	defer ticker.Stop()
	step := time.NewTimer(0)
	defer step.Stop()
	for {
		var more bool
		select {
		case <-s.cache.ctx.Done():
			return
		case <-ticker.C:
			now := s.cache.cfg.Now()
			if s.cache.ownClock {
				s.cache.coarseNow.Store(int64(now))
			}
			more = s.tick(now)
		case <-step.C:
			more = s.advance(s.cache.cfg.Now())
		}
		if more {
			step.Reset(wheelStep)
		}
	}
}

// tick turns the wheel to now and starts refreshes that are due. It says whether
// there are more.
func (s *scheduler) tick(now time.Duration) bool {
	outage := s.cache.ex.Outage() != nil
	s.mu.Lock()
	s.collectDue(now, outage)
	const steps = int(wheelTick / wheelStep)
	s.perStep = max(minPerStep, (s.dueThisTick.len+steps-1)/steps)
	s.mu.Unlock()
	return s.advance(now)
}

// advance starts the refreshes of one step, and says whether there are more.
func (s *scheduler) advance(now time.Duration) bool {
	s.mu.Lock()
	for i := 0; i < s.perStep && s.dueThisTick.len > 0; i++ {
		n := s.dueThisTick.pop()
		s.due[n.class()].push(n)
	}
	more := s.dueThisTick.len > 0
	s.mu.Unlock()
	s.dispatch(now)
	return more
}

// turn makes ripe what the wheel says, unless it is put off or left to expire.
func (s *scheduler) collectDue(now time.Duration, outage bool) {
	first, end := s.lastTick/wheelTick+1, now/wheelTick
	first = max(first, end-wheelSlots+1) // one turn meets all
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
				// a lookup that is in flight already will schedule it again
				if n.call.CompareAndSwap(nil, newCall(now)) {
					s.dueThisTick.push(n)
					if !outage {
						s.account.charge(n, now, false)
					}
				}
			case postpone:
				s.postpone(n)
			case letExpire:
			}
		}
	}
	s.lastTick = max(s.lastTick, end*wheelTick) //nolint:durationcheck // end is a count
}

// dispatch starts as many of the refreshes that are due as it may.
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

// free says whether a refresh may start; s.mu is held.
func (s *scheduler) hasSlot(class int) bool {
	return s.inFlight[fastClass]+s.inFlight[slowClass] < refreshSlots &&
		(class == fastClass || s.inFlight[slowClass] < refreshSlots/2)
}

// park holds back what is due while there is an outage. Afterwards it is let go
// at a steady rate, the most recently used first; s.mu is held.
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
	s.credit = min(s.credit+recoveryRate*(now-s.creditedAt).Seconds(), recoveryRate/4)
	s.creditedAt = now
	for ; s.parked.len > 0 && s.credit >= 1; s.credit-- {
		n := s.parked.pop()
		s.due[n.class()].push(n)
	}
}

// sort puts the parked nodes in the order in which they are let go.
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

// start looks a node up in one of the slots of its class, unless a reader took
// that over.
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
	f := s.cache.newFlight(n, cl)
	f.onFinish = func() {
		s.releaseSlot(class)
		s.dispatch(s.cache.cfg.Now())
	}
	go f.begin() // not here: one that lands at once makes others start
}

// done gives a slot back.
func (s *scheduler) releaseSlot(class int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inFlight[class]--
}
