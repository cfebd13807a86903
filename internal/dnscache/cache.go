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
	"math/bits"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// Exchanger asks nameservers.
//
// The errors of Lookup may tell more by methods: Negative() (ttl time.Duration,
// ok bool) for an authoritative answer that there is nothing, with a negative
// ttl where the answer named none; NotFound() bool where the name itself does
// not exist, rather than just this type; Outage() bool where nothing was asked
// because no nameserver is up.
type Exchanger interface {
	// Lookup returns the addresses of a name, of one type (A or AAAA), and how
	// long they hold. It gives up when ctx ends.
	Lookup(ctx context.Context, name string, qtype uint16) ([]netip.Addr, time.Duration, error)

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

	MinTTL      time.Duration // least time an answer holds; default 1s
	MaxTTL      time.Duration // longest time an answer holds; default 1h
	NegativeTTL time.Duration // longest time a negative answer holds; default 30s
	Stale       time.Duration // how long after its end a last good answer may still serve; default 24h, negative: never
	StaleWait   time.Duration // how long a lookup may keep readers waiting first, if the answer ended over a minute ago; default 500ms
	Refresh     time.Duration // names used in this time are asked for again before they expire; default 5m, negative: none
	Deadline    time.Duration // one lookup in all; default 5s

	Size       int // names; default 100000
	MaxLookups int // lookups in flight for readers; as many again may wait; default 1024

	// Now is the clock, as the time since some fixed moment; default: the
	// monotonic clock.
	Now func() time.Duration
}

// ErrOverloaded is returned when too many lookups are in flight and waiting.
var ErrOverloaded = errors.New("too many lookups in flight")

// ErrClosed is returned by a closed cache for what it does not know.
var ErrClosed = errors.New("resolver closed")

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
	slotTime = 250 * time.Millisecond
)

// Cache is a cache of names. It is safe for concurrent use.
type Cache struct {
	cfg  Config
	ex   Exchanger
	seed maphash.Seed

	// The table has a fixed number of chains. Readers follow them without a
	// lock; writers hold mu.
	table []atomic.Pointer[node]

	mu     sync.Mutex
	queues queues

	slots   chan struct{} // one for each lookup in flight for a reader
	pending atomic.Int64  // lookups for readers, in flight and waiting
	slow    chan struct{} // one for each lookup that gave its slot back early

	sched scheduler

	// The time of the last tick, or 0: reading the clock stalls a processor
	// until all it has begun is done, which costs more than the rest of a hit.
	coarse atomic.Int64
	steady bool // the clock does not jump, as an injected one may

	ctx    context.Context
	cancel context.CancelFunc
	life   sync.Mutex // guards closed against wg.Add
	closed bool
	wg     sync.WaitGroup
}

// node is a name in the cache. What readers need of it is in its first 64 bytes,
// the bytes of the name included unless it is long, and the whole of it takes
// 128: where there are many names, reaching memory is what costs time.
type node struct {
	name  string
	chain atomic.Pointer[node]  // next in the table's chain
	state atomic.Pointer[state] // nil until the first lookup has ended
	used  atomic.Uint32         // when it was last read, in units of usedUnit
	reads atomic.Uint32         // since the eviction last looked, at most maxReads
	short [24]byte              // the bytes of name

	call  atomic.Pointer[call] // the lookup that is planned or in flight
	links [2]links             // by kind of list
	due   uint32               // in the wheel: the tick; under scheduler.mu
	gone  bool                 // evicted; under scheduler.mu
}

// call is a lookup.
type call struct {
	started atomic.Bool   // until then it is planned, and who sets this does it
	since   time.Duration // when it was planned
	done    chan struct{} // closed when state or err is set
	state   *state
	err     error // instead of state: the lookup did not take place
}

func newCall(now time.Duration) *call {
	return &call{since: now, done: make(chan struct{})}
}

const (
	// usedUnit is the resolution of node.used.
	usedUnit = time.Second

	// coarseError is how far Cache.coarse may be behind the clock, with much to
	// spare for a ticker that is late.
	coarseError = time.Second
)

// New returns a cache that asks ex. Known names are refreshed once Start was
// called.
func New(ex Exchanger, cfg Config) *Cache {
	setDefault(&cfg.MinTTL, time.Second)
	setDefault(&cfg.MaxTTL, time.Hour)
	setDefault(&cfg.NegativeTTL, 30*time.Second)
	setDefault(&cfg.Stale, 24*time.Hour)
	setDefault(&cfg.StaleWait, 500*time.Millisecond)
	setDefault(&cfg.Refresh, 5*time.Minute)
	setDefault(&cfg.Deadline, 5*time.Second)
	setDefault(&cfg.Size, 100_000)
	setDefault(&cfg.MaxLookups, 1024)
	if cfg.Family == nil {
		cfg.Family = func() Family { return Interleaved }
	}
	ownClock := false
	if cfg.Now == nil {
		start := time.Now()
		ownClock = true
		cfg.Now = func() time.Duration { return time.Since(start) }
	}
	c := &Cache{
		cfg:    cfg,
		steady: ownClock,
		ex:     ex,
		seed:   maphash.MakeSeed(),
		table:  make([]atomic.Pointer[node], tableLen(cfg.Size)),
		slots:  make(chan struct{}, cfg.MaxLookups),
		slow:   make(chan struct{}, cfg.MaxLookups),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.sched.init(c)
	return c
}

// tableLen returns how many chains a table of so many nodes has: a power of two,
// such that most chains have one node at most.
func tableLen(size int) int { return 2 << bits.Len(uint(size-1)) }

func setDefault[T time.Duration | int](p *T, value T) {
	if *p == 0 {
		*p = value
	}
}

// Start begins to refresh names before they expire. It is called once.
func (c *Cache) Start() {
	c.spawn(func() {
		defer c.coarse.Store(0)
		c.sched.run()
	})
}

// Close ends all lookups and waits until they are gone. What is known stays
// readable.
func (c *Cache) Close() {
	c.life.Lock()
	c.closed = true
	c.life.Unlock()
	c.cancel()
	c.wg.Wait()
}

// spawn runs f on a goroutine that Close waits for, unless c is closed.
func (c *Cache) spawn(f func()) bool {
	c.life.Lock()
	defer c.life.Unlock()
	if c.closed {
		return false
	}
	c.wg.Go(f)
	return true
}

// Lookup returns the addresses of a name: at once if they are known, else as
// soon as they have been asked for. The name is in lower case, ASCII, without
// trailing dot. An error is that of the exchanger, of ctx, ErrOverloaded or
// ErrClosed. A reader that leaves early does not disturb the lookup.
func (c *Cache) Lookup(ctx context.Context, name string) (Answer, error) {
	hash := c.hash(name)
	n := c.find(hash, name)
	if n == nil {
		return c.lookupNew(ctx, hash, name)
	}
	s := n.state.Load()
	if s == nil {
		return c.await(ctx, n)
	}
	now := time.Duration(c.coarse.Load())
	if now == 0 || s.expires-now < coarseError {
		now = c.cfg.Now()
	}
	n.touch(now)
	switch {
	case now < s.expires:
		if len(s.addrs) == 0 {
			return Answer{State: Hit}, s.err
		}
		return s.answer(Hit), nil
	case len(s.addrs) > 0 && now < s.staleUntil:
		return c.lookupStale(ctx, n, s, now)
	default:
		return c.await(ctx, n)
	}
}

func (s *state) answer(as State) Answer {
	return Answer{Addrs: s.addrs, Preferred: int(s.preferred), State: as}
}

// Peek returns the addresses of a name if they are known, without counting as
// a use of them.
func (c *Cache) Peek(name string) (addrs []netip.Addr, known bool) {
	n := c.find(c.hash(name), name)
	if n == nil {
		return nil, false
	}
	s := n.state.Load()
	if s == nil {
		return nil, false
	}
	return s.addrs, true
}

// Len returns the number of names.
func (c *Cache) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.queues.len()
}

func (c *Cache) hash(name string) uint64 { return maphash.String(c.seed, name) }

func (c *Cache) find(hash uint64, name string) *node {
	for n := c.table[hash&uint64(len(c.table)-1)].Load(); n != nil; n = n.chain.Load() {
		if n.name == name {
			return n
		}
	}
	return nil
}

func (n *node) touch(now time.Duration) {
	if t := uint32(now / usedUnit); n.used.Load() != t {
		n.used.Store(t)
	}
	if r := n.reads.Load(); r < maxReads {
		n.reads.Store(r + 1)
	}
}

func (n *node) lastUsed() time.Duration {
	return time.Duration(n.used.Load()) * usedUnit
}

// lookupNew asks for a name that is not in the cache.
func (c *Cache) lookupNew(ctx context.Context, hash uint64, name string) (Answer, error) {
	if c.pending.Load() >= c.maxPending() {
		return Answer{}, ErrOverloaded // and is not remembered
	}
	return c.await(ctx, c.insert(hash, name))
}

// insert returns the node of a name, a new one if there is none, for which it
// may evict another.
func (c *Cache) insert(hash uint64, name string) *node {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := c.find(hash, name); n != nil {
		return n
	}
	for c.queues.len() >= c.cfg.Size {
		c.unlink(c.queues.evict(c.cfg.Size, c.hash))
	}
	n := newNode(name)
	n.used.Store(uint32(c.cfg.Now() / usedUnit))
	head := &c.table[hash&uint64(len(c.table)-1)]
	n.chain.Store(head.Load())
	head.Store(n)
	c.queues.add(n, hash)
	return n
}

// newNode copies the name, which may be a part of something large.
func newNode(name string) *node {
	n := new(node)
	if len(name) <= len(n.short) {
		n.name = unsafe.String(&n.short[0], copy(n.short[:], name))
	} else {
		n.name = strings.Clone(name)
	}
	return n
}

// unlink takes a node out of the table; c.mu is held. Readers that stand on it
// go on along the chain.
func (c *Cache) unlink(n *node) {
	p := &c.table[c.hash(n.name)&uint64(len(c.table)-1)]
	for p.Load() != n {
		p = &p.Load().chain
	}
	p.Store(n.chain.Load())
	c.sched.evict(n)
}

// lookupStale serves an answer that has expired while it is asked for anew.
func (c *Cache) lookupStale(ctx context.Context, n *node, s *state, now time.Duration) (Answer, error) {
	if now < s.nextRetry() {
		return s.answer(Stale), nil
	}
	cl := c.sched.request(n, now)
	if cl == nil || now-s.expires <= staleGrace {
		return s.answer(Stale), nil
	}
	wait := cl.since + c.cfg.StaleWait - now
	if wait <= 0 || c.ex.Outage() != nil {
		return s.answer(Stale), nil
	}
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	select {
	case <-cl.done:
		if cl.err == nil {
			a, err := cl.result()
			a.Waited = c.cfg.Now() - now
			return a, err
		}
	case <-timeout.C:
	case <-ctx.Done():
	}
	a := s.answer(Stale)
	a.Waited = c.cfg.Now() - now
	return a, nil
}

// result is what those who waited for the lookup get.
func (cl *call) result() (Answer, error) {
	switch s := cl.state; {
	case cl.err != nil:
		return Answer{}, cl.err
	case len(s.addrs) == 0:
		return Answer{}, s.err
	case s.stale:
		return s.answer(Stale), nil
	default:
		return s.answer(Miss), nil
	}
}

// await waits for the lookup of n that is in flight, or for one that it starts.
func (c *Cache) await(ctx context.Context, n *node) (Answer, error) {
	cl := n.call.Load()
	for cl == nil || !cl.started.Load() {
		if c.pending.Add(1) > c.maxPending() {
			c.pending.Add(-1)
			return Answer{}, ErrOverloaded
		}
		if mine := c.claim(n, cl); mine != nil {
			cl = mine
			if !c.spawn(func() { c.lookupForReader(n, cl) }) {
				c.pending.Add(-1)
				c.end(n, cl, ErrClosed)
			}
			break
		}
		c.pending.Add(-1)
		cl = n.call.Load()
	}
	start := c.cfg.Now()
	select {
	case <-cl.done:
		a, err := cl.result()
		a.Waited = c.cfg.Now() - start
		return a, err
	case <-ctx.Done():
		return Answer{Waited: c.cfg.Now() - start}, context.Cause(ctx)
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

// maxPending bounds the lookups for readers, in flight and waiting.
func (c *Cache) maxPending() int64 { return 2 * int64(c.cfg.MaxLookups) }

// lookupForReader looks n up in one of the slots for readers.
func (c *Cache) lookupForReader(n *node, cl *call) {
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.Deadline)
	defer cancel()
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		c.pending.Add(-1)
		if c.ctx.Err() != nil {
			c.end(n, cl, ErrClosed)
		} else {
			c.end(n, cl, ErrOverloaded)
		}
		return
	}
	early := false
	c.lookup(ctx, n, cl, func() {
		if early {
			return
		}
		select {
		case c.slow <- struct{}{}:
			early = true
			c.pending.Add(-1)
			<-c.slots
		default:
		}
	})
	if early {
		<-c.slow
	} else {
		c.pending.Add(-1)
		<-c.slots
	}
}

// end ends a lookup that did not take place.
func (c *Cache) end(n *node, cl *call, err error) {
	cl.err = err
	n.call.CompareAndSwap(cl, nil)
	close(cl.done)
}

// lookup asks for all families of n at once and publishes what comes back: once
// when that is enough for those who wait, and once more if another family is
// late. It calls early, if not nil, when the rest is likely to take long.
func (c *Cache) lookup(ctx context.Context, n *node, cl *call, early func()) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	order := c.cfg.Family()
	old, start := n.state.Load(), c.cfg.Now()
	asked := old.wanted(order, c.cfg.Now())
	replies := make(chan reply, len(asked))
	for _, f := range asked {
		go func() { replies <- c.ask(ctx, n.name, f) }()
	}

	var got [2]reply
	publish := func() *state {
		now := c.cfg.Now()
		s := merge(&c.cfg, n.name, old, got, order, now)
		s.slow = now-start > slotTime
		n.state.Store(s)
		return s
	}
	var slow, grace <-chan time.Time
	if early != nil && old.limited() {
		slow = time.After(slotTime)
	}
	// A family that takes long must not keep the other one from being refreshed.
	overdue := time.NewTimer(old.patience(asked, c.cfg.Now()))
	defer overdue.Stop()
	for left := len(asked); left > 0; {
		select {
		case r := <-replies:
			left--
			got[r.family] = r
			if left > 0 && len(r.addrs) > 0 {
				grace = time.After(familyGrace)
			}
		case <-slow:
			early()
		case <-grace:
			cl.state = publish()
			close(cl.done)
			if early != nil {
				early()
			}
			for f, r := range got {
				if r.done {
					overdue.Reset(cl.state.records[f].overdue() - r.at)
				}
			}
		case <-overdue.C:
			cancel()
		}
	}
	s := publish()
	if cl.state == nil {
		cl.state = s
		defer close(cl.done)
	}
	n.call.Store(nil)
	c.plan(n, s)
}

// ask puts one question.
func (c *Cache) ask(ctx context.Context, name string, f family) reply {
	addrs, ttl, err := c.ex.Lookup(ctx, name, f.qtype())
	if err != nil {
		addrs = nil
		if c.ctx.Err() != nil {
			err = ErrClosed
		}
	}
	return reply{family: f, done: true, at: c.cfg.Now(), addrs: addrs, ttl: ttl, err: err}
}

// plan says when n is to be looked up again, now that s is known of it.
func (c *Cache) plan(n *node, s *state) {
	now := c.cfg.Now()
	if len(s.addrs) == 0 || c.cfg.Refresh < 0 {
		return // when somebody wants it
	}
	latest := s.expires
	if latest <= now {
		latest = math.MaxInt64
	}
	for f, r := range s.records {
		if retry := s.retry[f]; retry > now {
			latest = min(latest, retry)
		} else if r != nil && r.ripe <= now {
			latest = now // at the next tick
		}
	}
	c.sched.schedule(n, now, s.expires-now, latest)
}
