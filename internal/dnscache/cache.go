// Package dnscache keeps what is known of names: their addresses, how long
// those hold, that a name has none, that asking for it failed. It decides when
// to ask again, what to serve meanwhile, and what to forget. How questions are
// asked is somebody else's affair: see [Exchanger].
//
// A read of a known name takes no lock, allocates nothing and reads the clock
// once. Everything a reader sees is immutable and replaced as a whole.
package dnscache

import (
	"context"
	"errors"
	"hash/maphash"
	"math"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Exchanger asks nameservers.
//
// The errors of the lookups may tell more by methods: Negative() (ttl time.Duration,
// ok bool) for an authoritative answer that there is nothing, with a negative
// ttl where the answer named none; NotFound() bool where the name itself does
// not exist, rather than just this type; Outage() bool where nothing was asked
// because no nameserver is up.
type Exchanger interface {
	// Ask asks for the addresses of a name, of one type (A or AAAA), without
	// waiting for them: done is called once, maybe before Ask returns, with the
	// addresses and how long they hold. It gives up when ctx ends.
	Ask(ctx context.Context, name string, qtype uint16, done func(addrs []netip.Addr, ttl time.Duration, err error))

	// AskSRV asks for the records of a service, and is like Ask otherwise.
	AskSRV(ctx context.Context, name string, done func(records []net.SRV, ttl time.Duration, err error))

	// Outage returns nil while asking makes sense; otherwise a channel that
	// is closed when it does again.
	Outage() <-chan struct{}
}

// The record types a cache asks for.
const (
	TypeA    uint16 = 1
	TypeAAAA uint16 = 28
)

// Family says which addresses of a name are asked for, and in which order they
// are offered.
type Family uint8

const (
	// Interleaved asks for both and alternates, IPv6 first (RFC 8305, section 4).
	Interleaved Family = iota
	// IPv4 asks for A records only.
	IPv4
	// IPv6 asks for AAAA records only.
	IPv6
	// PreferIPv4 asks for both; IPv6 addresses are for when no IPv4 one works.
	PreferIPv4
	// PreferIPv6 asks for both; IPv4 addresses are for when no IPv6 one works.
	PreferIPv6
)

// Config is how a cache behaves. New fills in what is zero.
type Config struct {
	// Family is called for every lookup; default: always Interleaved.
	Family func() Family

	// Sequential is called for every lookup of two families: whether AAAA is asked
	// for only when the reply for A has come, or half of Deadline has passed;
	// default: never.
	Sequential func() bool

	MinTTL      time.Duration // least time an answer holds; default 1s
	MaxTTL      time.Duration // longest time an answer holds; default 1h
	NegativeTTL time.Duration // longest time a negative answer holds; default 30s
	Stale       time.Duration // how long after its end a last good answer may still serve; default 24h, negative: never
	StaleWait   time.Duration // how long a lookup may keep readers waiting first, if the answer ended over a minute ago; default 500ms
	Refresh     time.Duration // names used in this time are asked for again in the background; default 5m, negative: none, Always: all
	Deadline    time.Duration // one lookup in all; default 5s

	// RefreshQueries is how many queries to refresh names each use of a name pays
	// for: see account. Names that are used too seldom for that are served from
	// the expired answer for up to a minute. Default 1.
	RefreshQueries int

	// Preload are names that are asked for at Start, and kept fresh whether
	// they are used or not. They are never evicted. One that fails or has no
	// address is asked for again by itself, when that makes sense.
	Preload []string

	Size int // names, those of Preload apart; default 100000

	// MaxLookups is how many lookups may be in flight for readers; as many again
	// may wait. One that takes over 1.5 seconds gives way to one that waits.
	// Lookups of names below one registrable domain may be a quarter of what is
	// still free then: if there are no others, two fifths of MaxLookups. Those of
	// known names that are refreshed do not count, nor do those who wait for one
	// of them; that of a name of Preload is not refused for its domain. Default
	// 1024.
	MaxLookups int

	// NewNames is how many names that are not in the cache readers may ask for
	// in a second; 0: any number.
	NewNames int

	// Now is the clock, as the time since some fixed moment; default: the
	// monotonic clock.
	Now func() time.Duration
}

// Always is the Config.Refresh of a cache that keeps all names fresh until they
// are evicted. Those that have no address are not asked for until somebody wants
// them, as ever.
const Always time.Duration = math.MaxInt64

// ErrOverloaded is returned when too many lookups are in flight and waiting, in
// all or of names below one domain.
var ErrOverloaded = errors.New("too many lookups in flight")

// ErrTooManyNewNames is returned for a name that is not in the cache when there
// were as many as Config.NewNames allows.
var ErrTooManyNewNames = errors.New("too many new names")

// ErrClosed is returned by a closed cache for what it does not know.
var ErrClosed = errors.New("resolver closed")

// errNameTooLong is returned for what cannot be asked for.
var errNameTooLong = errors.New("name too long")

// State says where an answer came from.
type State uint8

// Where an answer may come from.
const (
	Miss  State = iota // it was asked for just now
	Hit                // it was known and held
	Stale              // it was known but has expired
)

// Answer is what is known of a name.
type Answer struct {
	// Addrs are the addresses in the order they should be offered. The slice is
	// shared: it must not be written to.
	Addrs []netip.Addr

	// Preferred is how many of Addrs, from the first, are of the preferred
	// family; the others are for when none of these works.
	Preferred int

	State State

	// Waited is how long the reader has waited for it; 0 for a Hit.
	Waited time.Duration
}

// ServiceAnswer is what is known of a service.
type ServiceAnswer struct {
	// Records are in the order of their priorities, else always the same. The
	// slice is shared: it must not be written to.
	Records []net.SRV

	State  State
	Waited time.Duration // as in Answer
}

const (
	// staleGrace is how long after its end an answer is served without any
	// waiting. Later than that an address may belong to somebody else by now.
	staleGrace = time.Minute

	// familyGrace is how much longer a lookup waits for the second family once
	// the first has addresses (the resolution delay of RFC 8305, section 3).
	familyGrace = 50 * time.Millisecond

	// maxBackoff is the longest pause between failed lookups of one name
	// (RFC 9520, section 3.2, asks for 1 second to 5 minutes).
	maxBackoff = 30 * time.Second

	// noSOATTL is how long a negative answer holds that does not say it.
	noSOATTL = 5 * time.Second

	// slotTime is how long the lookup of a name that took long or failed last
	// time keeps a reader's slot from others.
	slowAfter = 250 * time.Millisecond

	// patience is how long a lookup for readers may take while others wait for
	// its slot. Most lookups that end with an answer take less.
	preemptAfter = 1500 * time.Millisecond
)

// Cache is a cache of names. It is safe for concurrent use.
type Cache struct {
	// What a hit needs, and what is seldom written.
	table table
	seed  maphash.Seed

	// The time of the last tick, or 0: reading the clock stalls a processor
	// until all it has begun is done, which costs more than the rest of a hit.
	coarseNow atomic.Int64
	ownClock  bool // the clock does not jump, as an injected one may
	ex        Exchanger
	cfg       Config

	mu        sync.Mutex // guards the table against other writers, and what follows
	queues    queues
	preloaded int // nodes, which are in no queue

	excess atomic.Int64 // the sum of the weights of all entries

	slots       chan struct{} // one for each lookup in flight for a reader
	turns       turns         // of those that wait for a slot
	pending     admission     // lookups for readers, in flight and waiting
	slowLookups chan struct{} // one for each lookup that gave its slot back early

	newNames *rate.Limiter // nil: no limit

	sched scheduler

	ctx     context.Context
	cancel  context.CancelFunc
	closeMu sync.Mutex // guards closed against wg.Add
	closed  bool
	wg      sync.WaitGroup
}

// node is the part of a name in the cache that readers of a hit do not see, and
// that stays when more is known of the name.
type node struct {
	entry           atomic.Pointer[entry] // the one in the table
	call            atomic.Pointer[call]  // the lookup that is planned or in flight
	links           [2]links              // by kind of list
	insertedAt      uint32                // when it came in, in units of usedUnit
	due             uint32                // in the wheel: the tick; under scheduler.mu
	savedQueries    uint16                // queries that its uses have paid for; under scheduler.mu
	unusedRefreshes uint8                 // how often it was refreshed since it was last used; under scheduler.mu
	evicted         bool                  // evicted; written under Cache.mu and scheduler.mu
	pinned          atomic.Bool           // one of Config.Preload
}

// call is a lookup.
type call struct {
	started   atomic.Bool   // until then it is planned, and who sets this does it
	renewal   bool          // families that hold are asked for too
	plannedAt time.Duration // when it was planned
	domain    uint64        // of a reader's: in whose share it is
	done      chan struct{} // closed when entry or err is set
	entry     *entry
	err       error // instead of entry: the lookup did not take place
}

func newCall(now time.Duration) *call {
	return &call{plannedAt: now, done: make(chan struct{})}
}

// coarseError is how far Cache.coarse may be behind the clock, with much to
// spare for a ticker that is late.
const coarseError = time.Second

// longest is how long a time may be, so that sums and multiples of a few are
// times as well.
const maxDuration time.Duration = 1 << 60

// New returns a cache that asks ex. Known names are refreshed once Start was
// called.
func New(ex Exchanger, cfg Config) *Cache {
	setDefault(&cfg.MinTTL, time.Second)
	setDefault(&cfg.MaxTTL, time.Hour)
	setDefault(&cfg.NegativeTTL, 30*time.Second)
	setDefault(&cfg.Stale, 24*time.Hour)
	setDefault(&cfg.StaleWait, 500*time.Millisecond)
	setDefault(&cfg.Refresh, 5*time.Minute)
	setDefault(&cfg.RefreshQueries, 1)
	setDefault(&cfg.Deadline, 5*time.Second)
	setDefault(&cfg.Size, 100_000)
	setDefault(&cfg.MaxLookups, 1024)
	for _, d := range []*time.Duration{&cfg.MinTTL, &cfg.MaxTTL, &cfg.NegativeTTL, &cfg.Stale, &cfg.StaleWait} {
		*d = min(*d, maxDuration)
	}
	if cfg.Family == nil {
		cfg.Family = func() Family { return Interleaved }
	}
	if cfg.Sequential == nil {
		cfg.Sequential = func() bool { return false }
	}
	useOwnClock := false
	if cfg.Now == nil {
		start := time.Now()
		useOwnClock = true
		cfg.Now = func() time.Duration { return time.Since(start) }
	}
	c := &Cache{
		cfg:         cfg,
		ownClock:    useOwnClock,
		ex:          ex,
		seed:        maphash.MakeSeed(),
		table:       newTable(cfg.Size + len(cfg.Preload)),
		slots:       make(chan struct{}, cfg.MaxLookups),
		slowLookups: make(chan struct{}, cfg.MaxLookups),
		// as many again as there are slots may wait
		pending: newAdmission(2 * cfg.MaxLookups),
	}
	if cfg.NewNames > 0 {
		c.newNames = rate.NewLimiter(rate.Limit(cfg.NewNames), cfg.NewNames)
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.sched.init(c)
	return c
}

func setDefault[T time.Duration | int](p *T, value T) {
	if *p == 0 {
		*p = value
	}
}

// Start begins to refresh names before they expire, and asks for those of
// Config.Preload. It is called once.
func (c *Cache) Start() {
	c.preload()
	if c.addWork() {
		go func() {
			defer c.wg.Done()
			defer c.coarseNow.Store(0)
			c.sched.run()
		}()
	}
}

// Close ends all lookups and waits until they are gone. What is known stays
// readable.
func (c *Cache) Close() {
	c.closeMu.Lock()
	c.closed = true
	c.closeMu.Unlock()
	c.cancel()
	c.wg.Wait()
}

// enter makes Close wait until c.wg is told that something is done, unless c is
// closed.
func (c *Cache) addWork() bool {
	c.closeMu.Lock()
	defer c.closeMu.Unlock()
	if !c.closed {
		c.wg.Add(1)
	}
	return !c.closed
}

// Lookup returns the addresses of a name: at once if they are known, else as
// soon as they have been asked for. The name is in lower case, ASCII, without
// trailing dot. An error is that of the exchanger, of ctx, ErrOverloaded,
// ErrTooManyNewNames or ErrClosed. A reader that leaves early does not disturb the lookup.
func (c *Cache) Lookup(ctx context.Context, name string) (Answer, error) {
	hash, size := c.hash(name), uint16(len(name))
	e := c.table.find(hash, name, size)
	if e != nil {
		if now := c.now(e); now < e.expires {
			e.touch(now)
			if e.count == 0 {
				return Answer{State: Hit}, e.state.err
			}
			return Answer{Addrs: e.addrs(), Preferred: int(e.preferred), State: Hit}, nil
		}
	}
	r := c.read(ctx, hash, name, size, e)
	if r.err != nil {
		return Answer{State: r.state, Waited: r.waited}, r.err
	}
	return Answer{Addrs: r.entry.addrs(), Preferred: int(r.entry.preferred), State: r.state, Waited: r.waited}, nil
}

// LookupSRV returns the records of a service, such as _http._tcp.example.com.
// All that is said of Lookup holds.
func (c *Cache) LookupSRV(ctx context.Context, name string) (ServiceAnswer, error) {
	hash, size := c.hash(name), uint16(len(name))|serviceBit
	r := c.read(ctx, hash, name, size, c.table.find(hash, name, size))
	if r.err != nil {
		return ServiceAnswer{State: r.state, Waited: r.waited}, r.err
	}
	return ServiceAnswer{Records: r.entry.records(), State: r.state, Waited: r.waited}, nil
}

// Peek returns the addresses of a name if they are known, without counting as
// a use of them.
func (c *Cache) Peek(name string) (addrs []netip.Addr, known bool) {
	e := c.table.find(c.hash(name), name, uint16(len(name)))
	if e == nil || !e.state.known() {
		return nil, false
	}
	return e.addrs(), true
}

// Failing reports whether nothing is known of a name because its last lookup failed.
func (c *Cache) Failing(name string) bool {
	e := c.table.find(c.hash(name), name, uint16(len(name)))
	return e != nil && e.count == 0 && e.state.failing()
}

// Len returns the number of names, those of Config.Preload included.
func (c *Cache) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.queues.len() + c.preloaded
}

func (c *Cache) hash(name string) uint64 { return maphash.String(c.seed, name) }

// now returns the time, near enough to tell whether e has expired.
func (c *Cache) now(e *entry) time.Duration {
	now := time.Duration(c.coarseNow.Load())
	if now == 0 || e.expires-now < coarseError {
		now = c.cfg.Now()
	}
	return now
}

// result is what a reader gets.
type result struct {
	entry  *entry // with addresses or records, unless there is an error
	err    error
	state  State
	waited time.Duration
}

func (e *entry) result(as State) result {
	if e.count == 0 {
		return result{err: e.state.err, state: as}
	}
	return result{entry: e, state: as}
}

// read returns what is known of a name, or waits until something is. Its entry
// is e, or nil if there was none just now.
func (c *Cache) read(ctx context.Context, hash uint64, name string, size uint16, e *entry) result {
	if e == nil {
		if len(name) > maxName {
			return result{err: errNameTooLong}
		}
		var cl *call
		var err error
		switch e, cl, err = c.insert(hash, name, size); {
		case err != nil:
			return result{err: err}
		case cl != nil:
			c.startLookup(e.state.node, cl)
			return c.wait(ctx, cl)
		}
	}
	return c.serve(ctx, e)
}

func (c *Cache) serve(ctx context.Context, e *entry) result {
	now := c.cfg.Now()
	e.touch(now)
	switch {
	case now < e.expires:
		return e.result(Hit)
	case e.count > 0 && now < e.staleUntil(&c.cfg):
		return c.readStale(ctx, e, now)
	default:
		return c.await(ctx, e)
	}
}

// insert returns the entry of a name. If there is none it puts one in, and
// returns its lookup as well, which the caller has to start; but if that may not
// be now the name is not remembered either.
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

// put puts in a name that is not there, for which it may evict another; c.mu is
// held.
func (c *Cache) put(hash uint64, name string, size uint16, cl *call) *entry {
	for c.queues.len() >= c.cfg.Size {
		c.unlink(c.queues.evict(c.cfg.Size, c.cfg.Now(), c.hash))
	}
	n := c.add(hash, name, size, cl)
	c.queues.add(n, hash, c.cfg.Size)
	return n.entry.Load()
}

// add puts a new node into the table, with its lookup if that is not nil; c.mu
// is held.
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

// unlink takes a node out of the table; c.mu is held.
func (c *Cache) unlink(n *node) {
	e := n.entry.Load()
	c.table.remove(c.hash(e.name()), e)
	c.excess.Add(-e.excess())
	c.sched.evict(n)
}

// publish makes e what is known of a node. If it is the first that a lookup found,
// uses are counted anew.
func (c *Cache) publish(n *node, e *entry, first bool) {
	hash := c.hash(e.name())
	c.mu.Lock()
	defer c.mu.Unlock()
	old := n.entry.Load()
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
}

// preload puts in the names of Config.Preload, which then are due.
func (c *Cache) preload() {
	nodes := make([]*node, 0, len(c.cfg.Preload))
	for _, name := range c.cfg.Preload {
		if len(name) <= maxName {
			nodes = append(nodes, c.pin(name))
		}
	}
	c.sched.preload(nodes, c.cfg.Now())
}

// pin returns the node of a name, which will never be evicted.
func (c *Cache) pin(name string) *node {
	hash, size := c.hash(name), uint16(len(name))
	c.mu.Lock()
	defer c.mu.Unlock()
	var n *node
	if e := c.table.find(hash, name, size); e == nil {
		n = c.add(hash, name, size, nil)
	} else if n = e.state.node; !n.pinned.Load() {
		n.links[evictionList].in.remove(n)
	}
	if !n.pinned.Swap(true) {
		c.preloaded++
	}
	return n
}

// readStale serves an answer that has expired while it is asked for anew.
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

// result is what those who waited for the lookup get.
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

// await waits for the lookup of e's node that is in flight, or for one that it
// starts.
func (c *Cache) await(ctx context.Context, e *entry) result {
	n := e.state.node
	cl := n.call.Load()
	for cl == nil || !cl.started.Load() {
		if now := n.entry.Load(); now != e && cl == nil {
			// a lookup has ended since e was found
			return c.serve(ctx, now)
		}
		domain := c.domain(e.name())
		if !c.pending.admit(domain, n.pinned.Load()) {
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
	return c.wait(ctx, cl)
}

// start begins a lookup that was claimed and admitted.
func (c *Cache) startLookup(n *node, cl *call) {
	if !c.addWork() {
		c.pending.release(cl.domain)
		c.abandon(n, cl, ErrClosed)
		return
	}
	f := c.newFlight(n, cl)
	select {
	case c.slots <- struct{}{}:
		f.beginForReader()
	default:
		go func() {
			if c.takeSlot(f.ctx) {
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
}

// wait waits for a lookup that somebody has started.
func (c *Cache) wait(ctx context.Context, cl *call) result {
	start := c.cfg.Now()
	select {
	case <-cl.done:
		r := cl.result()
		r.waited = c.cfg.Now() - start
		return r
	case <-ctx.Done():
		return result{err: context.Cause(ctx), waited: c.cfg.Now() - start}
	}
}

// claim returns the lookup of n that the caller has to do: a new one, or cl,
// which was planned. It returns nil if somebody else was faster.
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

// takeSlot waits for one of the slots for readers, unless ctx ends first.
func (c *Cache) takeSlot(ctx context.Context) bool {
	select {
	case c.slots <- struct{}{}:
	default:
		c.turns.wait()
		defer c.turns.waited()
		select {
		case c.slots <- struct{}{}:
		case <-ctx.Done():
			return false
		}
	}
	if ctx.Err() != nil { // both at once
		<-c.slots
		return false
	}
	return true
}

// end ends a lookup that did not take place.
func (c *Cache) abandon(n *node, cl *call, err error) {
	cl.err = err
	n.call.CompareAndSwap(cl, nil)
	close(cl.done)
	if err != ErrClosed && (n.pinned.Load() || n.entry.Load().count > 0 && c.cfg.Refresh >= 0) {
		now := c.cfg.Now()
		c.sched.schedule(n, now, 0, now+c.cfg.MinTTL)
	}
}

// plan says when n is to be looked up again, now that e is known of it.
func (c *Cache) scheduleNext(n *node, e *entry) {
	now, pinned := c.cfg.Now(), n.pinned.Load()
	switch {
	case e.count == 0 && pinned:
		c.sched.schedule(n, now, 0, e.expires)
		return
	case e.count == 0, c.cfg.Refresh < 0 && !pinned:
		return // when somebody wants it
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
		}
	}
	c.sched.schedule(n, now, e.expires-now, latest)
}
