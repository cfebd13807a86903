package dnscache

import (
	"cmp"
	"context"
	"hash/maphash"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// State is where an answer came from.
type State uint8

// Where an answer may come from.
const (
	Miss  State = iota // a lookup that the reader waited for
	Hit                // the cache
	Stale              // the cache, which had an answer that has expired
)

// Answer is what is known of a name.
type Answer struct {
	// Addrs are the addresses in the order in which they should be offered. The
	// slice is shared and must not be written to.
	Addrs []netip.Addr

	// Preferred is how many of Addrs, from the first, are of the preferred
	// family. The others should be used only if none of these works.
	Preferred int

	State State

	// Waited is how long the reader has waited; 0 for a Hit.
	Waited time.Duration
}

// ServiceAnswer is what is known of a service.
type ServiceAnswer struct {
	// Records are sorted by priority; otherwise their order is the same after every
	// lookup. The slice is shared and must not be written to.
	Records []net.SRV

	State  State
	Waited time.Duration // as in Answer
}

const (
	// staleGrace is how long after it expired an answer is served without waiting
	// for a lookup. After that its addresses may belong to another host.
	staleGrace = time.Minute

	// familyGrace is how much longer a lookup waits for the second family once
	// the first has addresses (the resolution delay of RFC 8305, section 3).
	familyGrace = 50 * time.Millisecond

	// maxBackoff is the longest pause between failed lookups of one name
	// (RFC 9520, section 3.2, asks for 1 second to 5 minutes).
	maxBackoff = 30 * time.Second

	// noSOATTL is the TTL of a negative answer that has none.
	noSOATTL = 5 * time.Second

	// slowAfter is how long a lookup takes that is not slow. If the last lookup of
	// a name was slow or failed, the next one releases its slot after that time.
	slowAfter = 250 * time.Millisecond

	// preemptAfter is how long a lookup for readers may take while others wait for
	// its slot. Most lookups that end with an answer take less.
	preemptAfter = 1500 * time.Millisecond
)

// Cache is a cache of names. It is safe for concurrent use.
type Cache struct {
	// What a hit needs, and what is written rarely.
	table table
	seed  maphash.Seed

	// The time of the last tick, or 0. Reading the clock stalls a processor until
	// all that it has begun is done, which costs more than the rest of a hit.
	coarseNow atomic.Int64
	counters  *counters
	ownClock  bool // the clock is the monotonic one, which does not jump
	ex        Exchanger
	cfg       Config

	mu        sync.Mutex // guards what follows, and the table against other writers
	queues    queues
	preloaded int // nodes, which are in no queue

	preloadMu sync.Mutex      // guards pinned, against SetPreload and Purge
	pinned    map[string]bool // the names of SetPreload; false: too long

	unresolved unresolved // names of Config.Preload

	excess               atomic.Int64 // addresses beyond the small number, of all entries
	refreshes, evictions atomic.Uint64
	imports              atomic.Uint64 // names
	id                   uint64        // of this cache, in cursors
	restored             atomic.Bool   // nothing is being restored
	restoreUntil         atomic.Int64  // when readers no longer wait for it; 0: that has not begun

	// What limits the lookups for readers.
	pending     admission     // those in flight and waiting
	slots       slotQueue     // for those in flight
	slowLookups chan struct{} // as many as are in flight, but have released their slots
	newNames    *rate.Limiter // nil: no limit

	sched scheduler

	ctx     context.Context
	cancel  context.CancelFunc
	closeMu sync.Mutex // guards closed against wg.Add
	closed  bool
	wg      sync.WaitGroup
}

// node is a name in the cache, for as long as it is there. Readers of a hit do not
// need it.
type node struct {
	entry           atomic.Pointer[entry] // the one in the table
	call            atomic.Pointer[call]  // the lookup that is planned or in flight
	links           [2]links              // by kind of list
	insertedAt      uint32                // in units of usedUnit
	due             uint32                // while it is in the wheel: the tick; under scheduler.mu
	savedQueries    uint16                // see account; under scheduler.mu
	unusedRefreshes uint8                 // refreshes since it was last used; under scheduler.mu
	evicted         bool                  // written under Cache.mu and scheduler.mu
	pinned          atomic.Bool           // one of Config.Preload
}

// call is a lookup of a node that is planned or in flight, as readers and the
// scheduler see it. They wait for done; a flight does the work.
type call struct {
	started   atomic.Bool // who sets this does the lookup; until then it is planned
	renewal   bool        // ask for families that hold too
	allTypes  bool        // ask for families that hold or have failed just now, too
	again     atomic.Bool // another lookup, of allTypes, is to follow
	plannedAt time.Duration
	domain    uint64        // of a lookup for readers: the domain that it is counted for
	done      chan struct{} // closed when entry or err is set
	entry     *entry
	err       error // instead of entry: the lookup was abandoned
}

func newCall(now time.Duration) *call {
	return &call{plannedAt: now, done: make(chan struct{})}
}

// coarseError is more than Cache.coarseNow may be behind the clock, even if the
// ticker is late.
const coarseError = time.Second

// maxDuration bounds the durations of a Config, so that sums and small multiples
// of them do not overflow.
const maxDuration time.Duration = 1 << 60

// New returns a cache that asks ex. Known names are refreshed once Start was
// called.
func New(ex Exchanger, cfg Config) *Cache {
	cfg.MinTTL = cmp.Or(cfg.MinTTL, time.Second)
	cfg.MaxTTL = cmp.Or(cfg.MaxTTL, time.Hour)
	cfg.NegativeTTL = cmp.Or(cfg.NegativeTTL, 30*time.Second)
	cfg.Stale = cmp.Or(cfg.Stale, 24*time.Hour)
	cfg.StaleWait = cmp.Or(cfg.StaleWait, 500*time.Millisecond)
	cfg.Refresh = cmp.Or(cfg.Refresh, 5*time.Minute)
	cfg.RefreshQueries = cmp.Or(cfg.RefreshQueries, 1)
	cfg.Deadline = cmp.Or(cfg.Deadline, 5*time.Second)
	cfg.Size = cmp.Or(cfg.Size, 100_000)
	cfg.MaxLookups = cmp.Or(cfg.MaxLookups, 1024)
	cfg.MaxPreload = max(cfg.MaxPreload, len(cfg.Preload))
	for _, d := range []*time.Duration{&cfg.MinTTL, &cfg.MaxTTL, &cfg.NegativeTTL, &cfg.Stale, &cfg.StaleWait} {
		*d = min(*d, maxDuration)
	}
	if cfg.Family == nil {
		cfg.Family = func() Family { return Interleaved }
	}
	if cfg.Sequential == nil {
		cfg.Sequential = func() bool { return false }
	}
	ownClock := cfg.Now == nil
	if ownClock {
		start := time.Now()
		cfg.Now = func() time.Duration { return time.Since(start) }
	}
	c := &Cache{
		cfg:         cfg,
		ownClock:    ownClock,
		ex:          ex,
		counters:    new(counters),
		id:          rand.Uint64(),
		seed:        maphash.MakeSeed(),
		table:       newTable(cfg.Size + cfg.MaxPreload),
		pending:     newAdmission(2 * cfg.MaxLookups), // as many as there are slots may wait
		slots:       newSlotQueue(cfg.MaxLookups),
		slowLookups: make(chan struct{}, cfg.MaxLookups),
	}
	if cfg.NewNames > 0 {
		c.newNames = rate.NewLimiter(rate.Limit(cfg.NewNames), cfg.NewNames)
	}
	c.restored.Store(cfg.Restoring == nil)
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.sched.init(c)
	return c
}

// Start begins to refresh names before they expire, and looks up those of
// Config.Preload. It may be called once.
func (c *Cache) Start() {
	c.beginRestoreWait()
	c.SetPreload(c.cfg.Preload)
	if c.addWork() {
		go func() {
			defer c.wg.Done()
			defer c.coarseNow.Store(0)
			c.sched.run()
		}()
	}
}

// Close ends all lookups and waits for their end. What is known stays readable.
func (c *Cache) Close() {
	c.closeMu.Lock()
	c.closed = true
	c.closeMu.Unlock()
	c.cancel()
	c.wg.Wait()
}

// addWork makes Close wait for one more c.wg.Done. It reports false if c is closed.
func (c *Cache) addWork() bool {
	c.closeMu.Lock()
	defer c.closeMu.Unlock()
	if !c.closed {
		c.wg.Add(1)
	}
	return !c.closed
}

// Lookup returns the addresses of a name: at once if they are known, else when the
// lookup ends. The name is in lower case, ASCII, without trailing dot. The error is
// that of the exchanger, that of ctx, ErrOverloaded, ErrTooManyNewNames or
// ErrClosed. The lookup goes on if ctx ends before it.
func (c *Cache) Lookup(ctx context.Context, name string) (Answer, error) {
	hash, size := c.hash(name), uint16(len(name))
	e := c.table.find(hash, name, size)
	if e != nil {
		if now := c.now(e); now < e.expires {
			e.touch(now)
			if e.count > 0 {
				c.counters.add(ResultHit)
				return Answer{Addrs: e.addrs(), Preferred: int(e.preferred), State: Hit}, nil
			}
			if e.state.negative || c.restored.Load() {
				c.counters.add(e.countAs())
				return Answer{State: Hit}, e.state.err
			}
		}
	}
	r := c.read(ctx, hash, name, size, e)
	c.counters.add(r.countAs())
	if r.err != nil {
		return Answer{State: r.state, Waited: r.waited}, r.err
	}
	return Answer{Addrs: r.entry.addrs(), Preferred: int(r.entry.preferred), State: r.state, Waited: r.waited}, nil
}

// LookupSRV returns the records of a service, such as _http._tcp.example.com.
// Otherwise it is like Lookup.
func (c *Cache) LookupSRV(ctx context.Context, name string) (ServiceAnswer, error) {
	hash, size := c.hash(name), uint16(len(name))|serviceBit
	r := c.read(ctx, hash, name, size, c.table.find(hash, name, size))
	c.counters.add(r.countAs())
	if r.err != nil {
		return ServiceAnswer{State: r.state, Waited: r.waited}, r.err
	}
	return ServiceAnswer{Records: r.entry.records(), State: r.state, Waited: r.waited}, nil
}

// Peek returns the addresses of a name if a lookup of it has ended. It does not
// count as a use of the name.
func (c *Cache) Peek(name string) (addrs []netip.Addr, known bool) {
	e := c.table.find(c.hash(name), name, uint16(len(name)))
	if e == nil || !e.state.known {
		return nil, false
	}
	return e.addrs(), true
}

// Failing reports whether a name has no addresses because its last lookup failed.
func (c *Cache) Failing(name string) bool {
	e := c.table.find(c.hash(name), name, uint16(len(name)))
	return e != nil && e.count == 0 && e.state.failing()
}

func (c *Cache) hash(name string) uint64 { return maphash.String(c.seed, name) }

// now returns the time, exact enough to compare it with the expiry of e.
func (c *Cache) now(e *entry) time.Duration {
	now := time.Duration(c.coarseNow.Load())
	if now == 0 || e.expires-now < coarseError {
		now = c.cfg.Now()
	}
	return now
}

// result is what a reader gets.
type result struct {
	entry    *entry // with addresses or records, unless there is an error
	err      error
	canceled bool // err is that of the reader's context
	state    State
	waited   time.Duration
}

func (e *entry) result(as State) result {
	if e.count == 0 {
		return result{err: e.state.err, state: as}
	}
	return result{entry: e, state: as}
}

// read returns what is known of a name, or waits for a lookup. The entry of the
// name is e, or nil if there was none just now.
func (c *Cache) read(ctx context.Context, hash uint64, name string, size uint16, e *entry) result {
	if e == nil {
		if len(name) > maxName {
			return result{err: errNameTooLong}
		}
		var cl *call
		var err error
		switch e, cl, err = c.insert(hash, name, size); {
		case err != nil:
			if c.awaitRestored(ctx) {
				if e := c.table.find(hash, name, size); c.mayServe(e) {
					return c.serve(ctx, e)
				}
			}
			return result{err: err}
		case cl != nil:
			c.startLookup(e.state.node, cl)
			return c.wait(ctx, e.state.node, cl)
		}
	}
	return c.serve(ctx, e)
}

// serve returns the answer of an entry, or of a lookup if it has none.
func (c *Cache) serve(ctx context.Context, e *entry) result {
	now := c.cfg.Now()
	e.touch(now)
	switch {
	case now < e.expires:
		if e.count == 0 && !e.state.negative {
			if r, ok := c.serveRestored(ctx, e.state.node); ok {
				return r
			}
		}
		return e.result(Hit)
	case e.count > 0 && now < e.staleUntil(&c.cfg):
		return c.readStale(ctx, e, now)
	default:
		return c.await(ctx, e)
	}
}

// insert returns the entry of a name. If there is none it inserts one and returns
// its lookup too, which the caller has to start. If a lookup may not begin now, it
// returns an error and inserts nothing.
func (c *Cache) insert(hash uint64, name string, size uint16) (*entry, *call, error) {
	domain := c.domain(name)
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.table.find(hash, name, size); e != nil {
		return e, nil, nil
	}
	now := c.cfg.Now()
	if !c.pending.admit(domain, false) {
		return nil, nil, ErrOverloaded
	}
	if c.newNames != nil && !c.newNames.AllowN(time.Unix(0, int64(now)), 1) {
		c.pending.release(domain)
		return nil, nil, ErrTooManyNewNames
	}
	cl := newCall(now)
	cl.domain = domain
	cl.started.Store(true)
	e := c.put(hash, name, size, cl)
	e.touch(now)
	return e, cl, nil
}

// put inserts a name, for which it may evict another one; c.mu is held.
func (c *Cache) put(hash uint64, name string, size uint16, cl *call) *entry {
	c.makeRoom()
	n := c.add(hash, name, size, cl)
	c.queues.add(n, hash, c.cfg.Size)
	return n.entry.Load()
}

// makeRoom evicts names until the queues have room for another one; c.mu is held.
func (c *Cache) makeRoom() {
	for c.queues.len() >= c.cfg.Size {
		c.unlink(c.queues.evict(c.cfg.Size, c.cfg.Now(), c.hash))
		c.evictions.Add(1)
	}
}

// add inserts a new node, with its lookup if cl is not nil, into the table; c.mu is
// held.
func (c *Cache) add(hash uint64, name string, size uint16, cl *call) *node {
	now := c.cfg.Now()
	n := &node{insertedAt: uint32(now / usedUnit)}
	n.call.Store(cl)
	e := newEntry(name, size, &state{node: n})
	e.used.Store(usedAt(now))
	n.entry.Store(e)
	c.table.insert(hash, e)
	return n
}

// unlink removes a node from the table and the scheduler; c.mu is held.
func (c *Cache) unlink(n *node) {
	e := n.entry.Load()
	c.table.remove(c.hash(e.name()), e)
	c.excess.Add(-e.excess())
	c.sched.evict(n)
}

// publish makes e, which was made from the entry from, the entry of a node. If it is the
// first one of a lookup, uses are counted anew. It reports false and does nothing if the
// name was restored after that.
func (c *Cache) publish(n *node, from, e *entry, first bool) bool {
	hash := c.hash(e.name())
	c.mu.Lock()
	defer c.mu.Unlock()
	old := n.entry.Load()
	if old.state.restored && old != from {
		return false
	}
	used := old.used.Load() // a use at this very moment may be lost
	if first {
		used &^= maxUses
	}
	e.used.Store(used)
	n.entry.Store(e)
	if !n.evicted {
		c.table.replace(hash, old, e)
		c.excess.Add(e.excess() - old.excess())
	}
	return true
}

// readStale serves an answer that has expired and starts a lookup, unless that makes
// no sense yet. If the answer expired long ago, it waits for the lookup for a while.
func (c *Cache) readStale(ctx context.Context, e *entry, now time.Duration) result {
	r := e.result(Stale)
	if !e.state.mayAsk(now) || e.state.node.call.Load() == nil && c.sched.maySkipLookup(e, now) {
		return r
	}
	cl := c.sched.request(e.state.node, now, false)
	if cl == nil || now-e.expires <= staleGrace {
		return r
	}
	wait := cl.plannedAt + c.cfg.StaleWait - now
	if wait <= 0 || c.ex.Outage() != nil {
		return r
	}
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	select {
	case <-cl.done:
		if cl.err == nil {
			r = cl.result()
		}
	case <-timeout.C:
	case <-ctx.Done():
	}
	r.waited = c.cfg.Now() - now
	return r
}

// result is what readers get who waited for the lookup.
func (cl *call) result() result {
	switch {
	case cl.err != nil:
		return result{err: cl.err}
	case cl.entry.state.learnedStale:
		return cl.entry.result(Stale)
	default:
		return cl.entry.result(Miss)
	}
}

// await waits for the lookup of e's node that has begun, or begins one.
func (c *Cache) await(ctx context.Context, e *entry) result {
	n := e.state.node
	cl := n.call.Load()
	for cl == nil || !cl.started.Load() {
		if latest := n.entry.Load(); latest != e && cl == nil {
			// a lookup has ended after e was found
			return c.serve(ctx, latest)
		}
		domain := c.domain(e.name())
		if !c.pending.admit(domain, n.pinned.Load()) {
			if r, ok := c.serveRestored(ctx, n); ok {
				return r
			}
			return result{err: ErrOverloaded}
		}
		if mine := c.claim(n, cl); mine != nil {
			cl = mine
			cl.domain = domain
			c.startLookup(n, cl)
			break
		}
		c.pending.release(domain)
		cl = n.call.Load()
	}
	return c.wait(ctx, n, cl)
}

// startLookup starts a lookup that was claimed and admitted.
func (c *Cache) startLookup(n *node, cl *call) {
	if !c.addWork() {
		c.pending.release(cl.domain)
		c.abandon(n, cl, ErrClosed)
		return
	}
	f := c.newFlight(n, cl)
	if c.slots.tryTake() {
		f.beginForReader()
		return
	}
	go func() {
		if c.slots.take(f.ctx) {
			f.beginForReader()
			return
		}
		defer c.wg.Done()
		f.cancel()
		c.pending.release(cl.domain)
		if c.ctx.Err() != nil {
			c.abandon(n, cl, ErrClosed)
		} else {
			c.abandon(n, cl, ErrOverloaded)
		}
	}()
}

// wait waits for the end of a lookup of n, or until n is restored.
func (c *Cache) wait(ctx context.Context, n *node, cl *call) (r result) {
	start := c.cfg.Now()
	defer func() { r.waited = c.cfg.Now() - start }()
	restored := c.restoring()
	if e := n.entry.Load(); e.state.restored && c.mayServe(e) {
		return c.serve(ctx, e)
	}
	select {
	case <-cl.done:
		r = cl.result()
		if r.err == nil || IsNegative(r.err) {
			return r
		}
		if restored, ok := c.serveRestored(ctx, n); ok {
			return restored
		}
		return r
	case <-restored:
		if e := n.entry.Load(); c.mayServe(e) {
			return c.serve(ctx, e)
		}
	case <-ctx.Done():
		return result{err: context.Cause(ctx), canceled: true}
	}
	select {
	case <-cl.done:
		return cl.result()
	case <-ctx.Done():
		return result{err: context.Cause(ctx), canceled: true}
	}
}

// claim returns the lookup of n that the caller has to do: a new one, or cl, which
// was planned. It returns nil if another caller claimed one first.
func (c *Cache) claim(n *node, cl *call) *call {
	if cl != nil {
		if cl.started.CompareAndSwap(false, true) {
			return cl
		}
		return nil
	}
	cl = newCall(c.cfg.Now())
	cl.started.Store(true)
	if n.call.CompareAndSwap(nil, cl) {
		return cl
	}
	return nil
}

// abandon ends a lookup that was never begun.
func (c *Cache) abandon(n *node, cl *call, err error) {
	cl.err = err
	n.call.CompareAndSwap(cl, nil)
	close(cl.done)
	if err != ErrClosed && (n.pinned.Load() || n.entry.Load().count > 0 && c.cfg.Refresh >= 0) {
		now := c.cfg.Now()
		c.sched.schedule(n, now, 0, now+c.cfg.MinTTL)
	}
	c.sched.callEnded(n, cl)
}

// scheduleNext schedules the next lookup of n, whose entry is e now.
func (c *Cache) scheduleNext(n *node, e *entry) {
	now, pinned := c.cfg.Now(), n.pinned.Load()
	switch {
	case e.count == 0 && pinned:
		c.sched.schedule(n, now, 0, e.expires)
		return
	case e.count == 0, c.cfg.Refresh < 0 && !pinned:
		return // until it is used
	}
	latest := e.expires
	if latest <= now {
		latest = maxDuration
	}
	s := e.state
	for f := range s.count {
		if retry := s.retryAfter[f]; retry > now {
			latest = min(latest, retry)
		} else if s.count[f] > 0 && s.refreshAfter[f] <= now {
			latest = now // at the next tick
		} else if s.holdsNoData(family(f), now) {
			latest = min(latest, s.expires[f]) // its family is asked for then
		}
	}
	c.sched.schedule(n, now, e.expires-now, latest)
}
