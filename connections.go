package caddytarget

import (
	"cmp"
	"errors"
	"hash/maphash"
	"math"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// registry knows the connections that a transport has dialled, by what they may
// be used for, and the requests that use them. http.Transport pools them; but
// its bound on idle connections does not see those of HTTP/2, and it cannot be
// told to close those of one backend. The registry can: it bounds all idle
// connections together and closes the ones whose backend has moved away.
//
// A closing must never meet a new request. So what http.Transport sees as the
// host is not the key but one generation of it, which the registry retires, as
// a whole, only when no request uses it. The next request gets a new one.
type registry struct {
	max    int64 // open connections over which idle keys are closed
	open   atomic.Int64
	serial atomic.Uint64 // numbers generations, and moments for idle

	seed   maphash.Seed
	shards [16]shard

	surplus sync.Mutex // one looks for what to close, so that not too much is
	life    sync.Mutex // guards closed against sweeping
	closed  atomic.Bool
	stop    chan struct{} // ends the sweeper; nil while there is none
	wg      sync.WaitGroup
}

// poolKey is what a connection may be used for.
type poolKey struct {
	address string // as it is dialled
	name    string // TLS server name; empty: no TLS
	kind    poolKind
	client  netip.AddrPort // announced by the PROXY protocol
}

type poolKind uint8

const (
	plain   poolKind = iota // HTTP/1.1
	h2c                     // HTTP/2 without TLS
	secure                  // HTTP/1.1 or HTTP/2 over TLS, as negotiated
	upgrade                 // HTTP/1.1 over TLS, for requests that change the protocol
)

// shard is a part of the keys, with a lock of its own.
type shard struct {
	mu    sync.Mutex
	pools map[poolKey]*pool
	// idle pools with connections, the one longest idle first
	oldest, newest *pool
	// how long backends leave idle connections open, as far as that was seen
	limits map[poolKey]idleLimit
}

// idleLimit is for how long a backend leaves idle connections open.
type idleLimit struct {
	sure time.Duration // it said so, or was seen to do so twice; 0: not known
	seen time.Duration // the last time
}

// pool is one generation of a key.
type pool struct {
	key   poolKey
	host  string         // stands for this generation in the URL that http.Transport sees
	addr  netip.AddrPort // what is dialled; invalid if that is no IP address
	shard *shard

	// who may tell whether the address is still that of the target
	target   string
	complete bool // target is no short name
	resolver *resolver

	h2 atomic.Bool // that is what the backend speaks

	// for how long the backend leaves idle connections open; 0: not known
	idleLimit atomic.Int64

	// when what was sent over a connection was not acknowledged; nil: never
	silent atomic.Pointer[time.Time]

	// for how long a new connection is put off; 0: not known
	crowdTime atomic.Int64

	// under shard.mu
	requests   int
	phases     int // of opening connections, under way
	conns      map[*trackedConn]struct{}
	spares     [phases][]*spare
	retired    bool
	listed     bool
	idleReads  int64 // of the connection, if there is one, until then
	idleSince  time.Time
	idleMoment uint64
	prev, next *pool
}

// spare is a connection that a request did not wait for. Its pool has it among
// the others.
type spare struct {
	net.Conn
	timer *time.Timer // closes it
}

// trackedConn is a connection that the registry knows of.
type trackedConn struct {
	net.Conn
	registry *registry
	pool     *pool
	born     time.Time
	written  atomic.Int64 // octets
	reads    atomic.Int64 // that have returned
}

var (
	errRetired = errors.New("connection is not wanted any more")
	errSilent  = errors.New("the backend has gone silent")
)

const (
	// sweepInterval is how often idle connections are held against the answers
	// of the resolver, and sweepIdle how long they must have been idle then.
	sweepInterval = 5 * time.Second
	sweepIdle     = 10 * time.Second

	// leastIdleLimit is the shortest time after which a backend may be taken to
	// have closed a connection for being idle, and maxLimits how many such times
	// are remembered in a shard.
	leastIdleLimit = 500 * time.Millisecond
	maxLimits      = 1024

	// spareTime is how long a connection is kept that a request did not wait for.
	spareTime = 6 * time.Second
)

func newRegistry(limit int) *registry {
	g := &registry{max: int64(limit), seed: maphash.MakeSeed()}
	for i := range g.shards {
		g.shards[i].pools = make(map[poolKey]*pool)
	}
	return g
}

// acquire returns the pool for a request, which has to release it; and whether it
// has connections but all of them are likely to be in use.
func (g *registry) acquire(key poolKey, c *call) (p *pool, crowded bool) {
	s := &g.shards[maphash.String(g.seed, key.address)%uint64(len(g.shards))]
	s.mu.Lock()
	defer s.mu.Unlock()
	if p = s.pools[key]; p == nil {
		p = &pool{key: key, host: g.hostFor(&key), shard: s, conns: make(map[*trackedConn]struct{})}
		p.addr, _ = netip.ParseAddrPort(key.address)
		if c != nil {
			p.target, p.complete, p.resolver = c.host, c.service != nil, c.resolver
		}
		p.h2.Store(key.kind == h2c)
		p.idleLimit.Store(int64(s.limits[key].sure))
		s.pools[key] = p
	}
	if p.requests++; p.listed {
		s.unlist(p)
	}
	return p, len(p.conns) > 0 && p.requests > len(p.conns) && !p.h2.Load()
}

// hostFor names a new generation. What it looks like matters to nobody but
// those who read traces, as long as it is unique, has a port, and no colon but
// the one before that.
func (g *registry) hostFor(key *poolKey) string {
	host, port, err := net.SplitHostPort(key.address)
	if err != nil {
		host, port = "socket", "0"
	}
	return strings.ReplaceAll(host, ":", "-") + "~" + strconv.FormatUint(g.serial.Add(1), 36) + ":" + port
}

// release ends a request's use of a pool.
func (g *registry) release(p *pool) { g.leave(p, &p.requests) }

// enterPhase keeps a pool while a phase of opening a connection is under way, which
// may outlast the request; leavePhase ends that.
func (g *registry) enterPhase(p *pool) {
	p.shard.mu.Lock()
	defer p.shard.mu.Unlock()
	p.phases++
}

func (g *registry) leavePhase(p *pool) { g.leave(p, &p.phases) }

// leave ends a use of a pool, which is counted by uses.
func (g *registry) leave(p *pool, uses *int) {
	s := p.shard
	s.mu.Lock()
	var surplus []*trackedConn
	if *uses--; p.requests == 0 {
		switch {
		case g.closed.Load():
			surplus = s.retire(p)
		case len(p.conns) > 0 && !p.listed && !p.retired:
			s.list(p, g.serial.Add(1))
		default:
			s.retireEmpty(p)
		}
	}
	s.mu.Unlock()
	closeAll(surplus)
	g.closeSurplus()
}

// track adds a new connection to a pool, unless that was retired meanwhile;
// then it closes the connection.
func (g *registry) track(p *pool, conn net.Conn) (*trackedConn, error) {
	t := &trackedConn{Conn: conn, registry: g, pool: p, born: time.Now()}
	p.shard.mu.Lock()
	if p.retired {
		p.shard.mu.Unlock()
		_ = conn.Close()
		return nil, errRetired
	}
	p.conns[t] = struct{}{}
	if p.requests == 0 && !p.listed {
		p.shard.list(p, g.serial.Add(1)) // the request did not wait for it
	}
	p.shard.mu.Unlock()
	g.open.Add(1)
	g.sweepFromNowOn()
	g.closeSurplus()
	return t, nil
}

// keep keeps a connection that has come through a phase, for the next request
// that asks for one, or closes it.
func (g *registry) keep(p *pool, ph phase, conn net.Conn) {
	p.shard.mu.Lock()
	kept := !p.retired
	if kept {
		s := &spare{Conn: conn}
		p.spares[ph] = append(p.spares[ph], s)
		s.timer = time.AfterFunc(spareTime, func() {
			p.shard.mu.Lock()
			i := slices.Index(p.spares[ph], s)
			if i >= 0 {
				p.spares[ph] = slices.Delete(p.spares[ph], i, i+1)
			}
			p.shard.mu.Unlock()
			if i >= 0 {
				_ = s.Close()
			}
		})
	}
	p.shard.mu.Unlock()
	if !kept {
		_ = conn.Close()
	}
}

// adopt returns a connection that was kept, the last one, or nil.
func (g *registry) adopt(p *pool, ph phase) net.Conn {
	p.shard.mu.Lock()
	defer p.shard.mu.Unlock()
	last := len(p.spares[ph]) - 1
	if last < 0 || p.retired {
		return nil
	}
	s := p.spares[ph][last]
	p.spares[ph] = p.spares[ph][:last]
	s.timer.Stop()
	return s.Conn
}

// Write implements net.Conn. It does nothing if another connection has shown since
// this one was opened that the backend has gone silent: what is sent would be
// waited for in vain, and another connection is used instead.
func (t *trackedConn) Write(p []byte) (int, error) {
	if silent := t.pool.silent.Load(); silent != nil && silent.After(t.born) {
		return 0, errSilent
	}
	t.written.Add(int64(len(p))) // before anybody can see it
	n, err := t.Conn.Write(p)
	t.written.Add(int64(n - len(p)))
	return n, err
}

// Read implements net.Conn.
func (t *trackedConn) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	t.reads.Add(1)
	if err != nil && errors.Is(err, syscall.ETIMEDOUT) {
		t.pool.silent.Store(new(time.Now()))
	}
	return n, err
}

// limit remembers for how long a backend leaves idle connections open; s.mu is
// held.
func (s *shard) limit(p *pool, l idleLimit) {
	if s.limits == nil {
		s.limits = make(map[poolKey]idleLimit)
	}
	if _, ok := s.limits[p.key]; !ok && len(s.limits) >= maxLimits {
		for other := range s.limits {
			delete(s.limits, other)
			break
		}
	}
	s.limits[p.key] = l
	p.idleLimit.Store(int64(l.sure))
}

// keepAlive takes from a response how long the backend leaves the connection
// open (RFC 2068, section 19.7.1.1, which Node.js and Apache follow).
func (p *pool) keepAlive(header http.Header) {
	for _, value := range header["Keep-Alive"] {
		for param := range strings.SplitSeq(value, ",") {
			text, ok := strings.CutPrefix(strings.TrimSpace(param), "timeout=")
			seconds, err := strconv.ParseUint(text, 10, 16)
			if idle := time.Duration(seconds) * time.Second; ok && err == nil && idle > 0 && idle != time.Duration(p.idleLimit.Load()) {
				p.shard.mu.Lock()
				p.shard.limit(p, idleLimit{sure: idle, seen: idle})
				p.shard.mu.Unlock()
			}
		}
	}
}

// outlived tells whether the backend may be closing a connection that has been
// idle for so long. HTTP/2 has a word for that, GOAWAY.
func (t *trackedConn) outlived(idle time.Duration) bool {
	limit := time.Duration(t.pool.idleLimit.Load())
	return limit > 0 && !t.pool.h2.Load() && idle > limit-limit/10
}

// Close closes the connection.
func (t *trackedConn) Close() error {
	s := t.pool.shard
	s.mu.Lock()
	_, known := t.pool.conns[t]
	if known {
		s.closing(t)
		delete(t.pool.conns, t)
		s.retireEmpty(t.pool)
	}
	s.mu.Unlock()
	if known {
		t.registry.open.Add(-1)
	}
	return t.Conn.Close()
}

// closing is told of a connection that is being closed. If the backend did that
// while it was idle, and so was all of its pool, others are likely to be closed
// after the same time; s.mu is held.
func (s *shard) closing(t *trackedConn) {
	p := t.pool
	if p.h2.Load() || !p.listed || p.phases > 0 || len(p.conns) != 1 || t.reads.Load() == p.idleReads {
		return // what is closed by this side had nothing to read
	}
	idle := time.Since(p.idleSince)
	if idle < leastIdleLimit {
		return
	}
	l := s.limits[p.key]
	switch {
	case idle > l.seen-l.seen/10 && idle < l.seen+l.seen/10:
		l.sure = idle
	case idle > l.sure+l.sure/10:
		l.sure = 0
	}
	l.seen = idle
	s.limit(p, l)
}

// CloseWrite ends what is sent over an upgraded connection.
func (t *trackedConn) CloseWrite() error { return closeWrite(t.Conn) }

// retireEmpty retires a pool that nobody uses if it has no connections.
func (s *shard) retireEmpty(p *pool) {
	if p.requests == 0 && p.phases == 0 && len(p.conns) == 0 {
		s.retire(p)
	}
}

// retire ends a generation that no request uses and returns its connections,
// to be closed without the lock.
func (s *shard) retire(p *pool) []*trackedConn {
	if p.retired {
		return nil
	}
	p.retired = true
	s.unlist(p)
	delete(s.pools, p.key)
	conns := make([]*trackedConn, 0, len(p.conns))
	for t := range p.conns {
		conns = append(conns, t)
	}
	return conns
}

func closeAll(conns []*trackedConn) {
	for _, t := range conns {
		_ = t.Close()
	}
}

// list puts a pool at the end of the idle ones.
func (s *shard) list(p *pool, moment uint64) {
	p.listed, p.idleSince, p.idleMoment = true, time.Now(), moment
	if len(p.conns) == 1 {
		for t := range p.conns {
			p.idleReads = t.reads.Load()
		}
	}
	p.prev, p.next = s.newest, nil
	if s.newest != nil {
		s.newest.next = p
	} else {
		s.oldest = p
	}
	s.newest = p
}

func (s *shard) unlist(p *pool) {
	if !p.listed {
		return
	}
	if p.prev != nil {
		p.prev.next = p.next
	} else {
		s.oldest = p.next
	}
	if p.next != nil {
		p.next.prev = p.prev
	} else {
		s.newest = p.prev
	}
	p.listed, p.prev, p.next = false, nil, nil
}

// closeSurplus closes idle keys while there are more connections than there
// should be.
func (g *registry) closeSurplus() {
	if g.open.Load() > g.max {
		g.closeIdle(g.max)
	}
}

// shrink closes idle keys for want of what another connection takes.
func (g *registry) shrink() { g.closeIdle(g.open.Load() / 8 * 7) }

// closeIdle closes idle keys, the one longest idle first, while there are more
// open connections than limit.
func (g *registry) closeIdle(limit int64) {
	g.surplus.Lock()
	defer g.surplus.Unlock()
	for g.open.Load() > limit {
		var from *shard
		least := uint64(math.MaxUint64)
		for i := range g.shards {
			s := &g.shards[i]
			s.mu.Lock()
			if s.oldest != nil && s.oldest.idleMoment < least {
				from, least = s, s.oldest.idleMoment
			}
			s.mu.Unlock()
		}
		if from == nil {
			return // all are in use
		}
		var conns []*trackedConn
		from.mu.Lock()
		if p := from.oldest; p != nil && p.idleMoment == least {
			conns = from.retire(p)
		}
		from.mu.Unlock()
		closeAll(conns)
	}
}

// sweepFromNowOn starts the sweeper if it does not run.
func (g *registry) sweepFromNowOn() {
	g.life.Lock()
	defer g.life.Unlock()
	if g.stop != nil || g.closed.Load() {
		return
	}
	stop := make(chan struct{})
	g.stop = stop
	g.wg.Go(func() {
		ticker := time.NewTicker(sweepInterval)
		defer ticker.Stop()
		for {
			select {
			case <-stop:
				return
			case now := <-ticker.C:
				g.sweep(now)
			}
		}
	})
}

// sweep closes idle connections to addresses that have left the answer.
func (g *registry) sweep(now time.Time) {
	for i := range g.shards {
		s := &g.shards[i]
		var conns []*trackedConn
		s.mu.Lock()
		var next *pool
		for p := s.oldest; p != nil && now.Sub(p.idleSince) >= sweepIdle; p = next {
			next = p.next
			if p.moved() {
				conns = append(conns, s.retire(p)...)
			}
		}
		s.mu.Unlock()
		closeAll(conns)
	}
}

// moved tells whether the target has other addresses now. Connections without
// TLS are shared; if another target uses them, it is enough that they are never
// closed while in use.
func (p *pool) moved() bool {
	if p.resolver == nil || !p.addr.IsValid() {
		return false
	}
	// a target that is an address itself is not known to the resolver
	peek := p.resolver.peek
	if p.complete {
		peek = p.resolver.peekComplete
	}
	addrs, known := peek(p.target)
	return known && len(addrs) > 0 && !slices.Contains(addrs, p.addr.Addr())
}

// close closes what is idle now, and what is in use as soon as it no longer is.
func (g *registry) close() {
	g.life.Lock()
	g.closed.Store(true)
	if g.stop != nil {
		close(g.stop)
	}
	g.life.Unlock()
	g.wg.Wait()
	for i := range g.shards {
		s := &g.shards[i]
		var conns []*trackedConn
		s.mu.Lock()
		for _, p := range s.pools {
			if p.requests == 0 {
				conns = append(conns, s.retire(p)...)
			}
		}
		s.mu.Unlock()
		closeAll(conns)
	}
}

// defaultMaxConns returns how many connections may be open before idle ones are
// closed: half of the descriptors that this process may have.
func defaultMaxConns() int {
	const least, most = 64, 1 << 16
	return min(max(cmp.Or(descriptorLimit(), 2048)/2, least), most)
}
