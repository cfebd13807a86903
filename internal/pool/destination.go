package pool

import (
	"context"
	"hash/maphash"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// destination is a Key that is in use: its connections, the requests that wait for
// one, and the dials under way. shard.mu guards it.
type destination struct {
	key   Key
	shard *shard
	group string // for Limits

	conns       []*conn // all
	idle        []*conn // of HTTP/1.1, the one used last at the end
	h2Conns     []*conn // of HTTP/2
	waiters     []*waiter
	dials       []*dial
	speaksHTTP2 bool // that is what the backend speaks

	dialCount int                        // of dials
	dialDelay time.Duration              // of a dial while a connection may become free
	source    any                        // of the target's addresses
	moved     func(addr netip.Addr) bool // nil: never
}

// waiter is a request that waits for a connection. It gets one answer at most.
type waiter struct {
	order *Order
	ready chan answer // holds one
	dial  *dial       // that it has caused; nil: none yet
}

// answer is a connection or the reason why there is none.
type answer struct {
	conn  *conn
	fresh bool // it was opened just now
	err   *Error
}

const (
	// A dial is delayed for a moment while a connection may become free: for twice
	// as long as the last time if that saved one, up to maxDialDelay, else for half
	// as long.
	firstDialDelay = 4 * time.Millisecond
	minDialDelay   = time.Millisecond
	maxDialDelay   = 16 * time.Millisecond

	// maxDelays is after how many of these delays there is none.
	delaySkip = 32

	// maxPerDial is how many requests wait for one dial where the backend speaks
	// HTTP/2.
	maxPerDial = 8
)

func (p *Pool) shard(key *Key) *shard {
	return &p.shards[maphash.Comparable(p.seed, *key)%uint64(len(p.shards))]
}

// destination returns the destination of an order; s.mu is held.
func (s *shard) destination(p *Pool, o *Order) *destination {
	d := s.destinations[o.Key]
	if d == nil {
		d = &destination{key: o.Key, shard: s, dialDelay: firstDialDelay, speaksHTTP2: o.Key.Protocol == HTTP2}
		// a name may be a part of something large
		d.key.Host = strings.Clone(o.Key.Host)
		d.key.ServerName = d.key.Host
		if o.Key.ServerName != o.Key.Host {
			d.key.ServerName = strings.Clone(o.Key.ServerName)
		}
		d.group = p.limits.groupOf(d.key.Host, o.Key.Addr)
		s.destinations[d.key] = d
	}
	if o.Owner != nil && o.Owner.Source() != d.source {
		d.source, d.moved = o.Owner.Source(), o.Owner.Watch()
	}
	return d
}

// dropUnused drops a destination that nothing uses; s.mu is held.
func (s *shard) dropUnused(d *destination) {
	if len(d.conns)+len(d.waiters)+len(d.dials) == 0 && s.destinations[d.key] == d {
		delete(s.destinations, d.key)
	}
}

// getConn returns a connection for a request, which is in use from then on; fresh says
// that it was opened for it.
func (p *Pool) getConn(req *http.Request, o *Order) (c *conn, fresh bool, err error) {
	ctx := req.Context()
	s := p.shard(&o.Key)
	for refused := 0; ; {
		s.mu.Lock()
		d := s.destination(p, o)
		c := d.takeAvailable()
		if c == nil {
			w := &waiter{order: o, ready: make(chan answer, 1)}
			d.waiters = append(d.waiters, w)
			if d.delaysDial() {
				delay := d.dialDelay
				s.mu.Unlock()
				c, fresh, err = p.awaitIdleConn(ctx, d, w, delay)
			} else {
				p.assignDial(d, w)
				s.mu.Unlock()
				c, fresh, err = p.awaitConn(ctx, d, w)
			}
			if err != nil {
				return nil, false, err
			}
		} else {
			s.mu.Unlock()
		}
		switch {
		case c.h2 != nil && c.claimStream():
			return c, fresh, nil
		case c.h2 != nil:
			if !c.gone.Load() {
				break // it is full
			}
			if refused++; refused > maxBounced {
				return nil, false, &Error{Phase: Response, Refused: true, Err: errNoStreams}
			}
		case fresh || c.usable(req):
			return c, fresh, nil
		default:
			p.discard(c)
		}
	}
}

// takeAvailable takes a connection that can be used now, or nil; shard.mu is held.
func (d *destination) takeAvailable() *conn {
	for _, c := range d.h2Conns {
		if c.reserveStream() {
			return c
		}
	}
	n := len(d.idle) - 1
	if n < 0 {
		return nil
	}
	c := d.idle[n]
	d.idle[n] = nil
	d.idle = d.idle[:n]
	d.shard.removeIdle(c)
	return c
}

// unlistIdle takes an idle connection of HTTP/1.1; shard.mu is held.
func (p *Pool) unlistIdle(c *conn) {
	d := c.destination
	d.shard.removeIdle(c)
	if i := slices.Index(d.idle, c); i >= 0 {
		d.idle = slices.Delete(d.idle, i, i+1)
	}
}

// assignDials gives requests a dial that wait without one, while the limit
// allows; shard.mu is held.
func (p *Pool) assignDials(d *destination) {
	for _, w := range d.waiters {
		if w.dial == nil {
			p.assignDial(d, w)
		}
	}
}

// delaysDial reports whether a dial is to be delayed, since a connection may become free
// before there is another one; shard.mu is held. Waiting costs something, too: now and
// then it is not, so that there are as many connections as there are requests at a
// time.
func (d *destination) delaysDial() bool {
	if d.dialCount++; d.dialCount%delaySkip == 0 {
		return false
	}
	return slices.ContainsFunc(d.conns, func(c *conn) bool { return c.h2 == nil || c.wasFull })
}

// assignDial gives a waiter a dial: one that was given up if there is one, one that
// will serve several requests, or a new one; shard.mu is held. If a limit is reached, the waiter waits for a connection
// that becomes free.
func (p *Pool) assignDial(d *destination, w *waiter) {
	if w.dial != nil {
		return
	}
	for _, other := range d.dials {
		if guardOf(other.order) != guardOf(w.order) || other.ctx.Err() != nil {
			continue
		}
		if other.assigned == 0 || d.speaksHTTP2 && other.assigned < maxPerDial {
			other.assigned++
			w.dial = other
			return
		}
	}
	if limit := p.config.MaxPerKey; limit > 0 && len(d.conns)+len(d.dials) >= limit {
		return
	}
	w.dial = p.startDial(d, w.order)
	w.dial.assigned++
}

// awaitIdleConn waits for a connection that becomes free, for a moment, and then for a
// new one too.
func (p *Pool) awaitIdleConn(ctx context.Context, d *destination, w *waiter, delay time.Duration) (*conn, bool, error) {
	s := d.shard
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case a := <-w.ready:
		s.mu.Lock()
		d.dialDelay = min(2*delay, maxDialDelay)
		s.mu.Unlock()
		return a.result()
	case <-timer.C:
	case <-ctx.Done():
	}
	s.mu.Lock()
	d.dialDelay = max(delay/2, minDialDelay)
	if slices.Contains(d.waiters, w) && ctx.Err() == nil {
		p.assignDial(d, w)
	}
	s.mu.Unlock()
	return p.awaitConn(ctx, d, w)
}

// awaitConn waits for a connection.
func (p *Pool) awaitConn(ctx context.Context, d *destination, w *waiter) (*conn, bool, error) {
	t := newDialWait(p, d, w)
	defer t.stop()
	for {
		select {
		case a := <-w.ready:
			return a.result()
		case <-t.timer.C:
			if err := t.expired(); err != nil {
				return p.giveUp(d, w, err)
			}
		case other := <-t.completed:
			// it works; if it is for the same address, the connection will come
			if other.Addr != w.order.Key.Addr {
				return p.giveUp(d, w, t.stillDialing())
			}
		case <-ctx.Done():
			return p.giveUp(d, w, &Error{Phase: t.phase(), Err: context.Cause(ctx)})
		}
	}
}

func (a answer) result() (*conn, bool, error) {
	if a.err != nil {
		return nil, false, a.err
	}
	return a.conn, a.fresh, nil
}

// giveUp ends a waiter, which fails with an error unless an answer came meanwhile.
// Its dial goes on.
func (p *Pool) giveUp(d *destination, w *waiter, err *Error) (*conn, bool, error) {
	d.shard.mu.Lock()
	p.removeWaiter(d, w)
	d.shard.dropUnused(d)
	d.shard.mu.Unlock()
	select {
	case a := <-w.ready:
		return a.result()
	default:
		return nil, false, err
	}
}

// removeWaiter takes a waiter from those that wait, and from its dial; shard.mu is held.
func (p *Pool) removeWaiter(d *destination, w *waiter) {
	if i := slices.Index(d.waiters, w); i >= 0 {
		d.waiters = slices.Delete(d.waiters, i, i+1)
	}
	if n := w.dial; n != nil {
		w.dial = nil
		if n.assigned--; n.assigned == 0 && p.closed.Load() {
			n.cancel()
		}
	}
}

// deliver gives a connection to the request that has waited longest and reports
// whether there was one; shard.mu is held.
func (p *Pool) deliver(d *destination, c *conn, fresh bool) bool {
	if len(d.waiters) == 0 {
		return false
	}
	w := d.waiters[0]
	p.removeWaiter(d, w)
	w.ready <- answer{conn: c, fresh: fresh}
	return true
}

// putConn gives back a connection of HTTP/1.1 after a response, or a new one that no
// request takes: it goes to a waiter, becomes idle, or is closed. looked is true if
// it was idle before, and was only looked at.
func (p *Pool) putConn(c *conn, looked bool) {
	d := c.destination
	s := d.shard
	now := time.Now()
	s.mu.Lock()
	if !looked {
		c.idleSince = now
	}
	keep := true
	if !p.deliver(d, c, false) {
		if keep = !p.closed.Load() && len(d.idle) < p.config.MaxIdlePerKey; keep {
			d.idle = append(d.idle, c)
			s.addIdle(c, p.idleSeq.Add(1))
		}
	}
	s.mu.Unlock()
	if !keep {
		p.discard(c)
		return
	}
	p.closeSurplus()
}

// addConn adds a new connection to its destination; shard.mu is held.
func (p *Pool) addConn(d *destination, c *conn) {
	c.index = len(d.conns)
	d.conns = append(d.conns, c)
	c.counted = true
	c.added.Store(true)
	if c.h2 != nil {
		d.h2Conns = append(d.h2Conns, c)
	}
	p.open.Add(1)
}

// discard closes a connection for good.
func (p *Pool) discard(c *conn) {
	d := c.destination
	s := d.shard
	s.mu.Lock()
	p.removeConn(c)
	counted := c.counted
	c.counted = false
	s.mu.Unlock()
	c.close()
	if counted {
		p.open.Add(-1)
		p.limits.release(d.group)
	}
}

// detach takes a connection that changes its protocol out of its destination. It
// counts until it is discarded.
func (p *Pool) detach(c *conn) {
	s := c.destination.shard
	s.mu.Lock()
	defer s.mu.Unlock()
	p.removeConn(c)
}

// removeConn takes a connection out of its destination; shard.mu is held.
func (p *Pool) removeConn(c *conn) {
	d := c.destination
	if c.index < 0 {
		return
	}
	last := len(d.conns) - 1
	other := d.conns[last]
	d.conns[c.index], other.index = other, c.index
	d.conns[last] = nil
	d.conns = d.conns[:last]
	c.index = -1
	if i := slices.Index(d.h2Conns, c); i >= 0 {
		d.h2Conns = slices.Delete(d.h2Conns, i, i+1)
	}
	p.unlistIdle(c)
	p.assignDials(d)
	d.shard.dropUnused(d)
}

// addIdle puts a connection at the end of the idle ones of a shard; s.mu is held.
func (s *shard) addIdle(c *conn, moment uint64) {
	c.pool.limits.idle.Add(1)
	c.idle, c.idleSeq = true, moment
	c.prev, c.next = s.newest, nil
	if s.newest != nil {
		s.newest.next = c
	} else {
		s.oldest = c
	}
	s.newest = c
}

func (s *shard) removeIdle(c *conn) {
	if !c.idle {
		return
	}
	c.pool.limits.idle.Add(-1)
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		s.oldest = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	} else {
		s.newest = c.prev
	}
	c.idle, c.prev, c.next = false, nil, nil
}
