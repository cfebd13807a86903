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

	conns   []*conn // all
	idle    []*conn // of HTTP/1.1, the one used last at the end
	shared  []*conn // of HTTP/2
	waiters []*waiter
	dials   []*dial
	http2   bool // that is what the backend speaks

	delays int                        // of dials
	delay  time.Duration              // of a dial while a connection may become free
	source any                        // of the target's addresses
	moved  func(addr netip.Addr) bool // nil: never
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
	maxDelays = 32

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
		d = &destination{key: o.Key, shard: s, delay: firstDialDelay, http2: o.Key.Protocol == HTTP2}
		// a name may be a part of something large
		d.key.Host = strings.Clone(o.Key.Host)
		d.key.ServerName = d.key.Host
		if o.Key.ServerName != o.Key.Host {
			d.key.ServerName = strings.Clone(o.Key.ServerName)
		}
		d.group = p.limits.group(d.key.Host, o.Key.Addr)
		s.destinations[d.key] = d
	}
	if o.Owner != nil && o.Owner.Source() != d.source {
		d.source, d.moved = o.Owner.Source(), o.Owner.Watch()
	}
	return d
}

// release drops a destination that nothing uses; s.mu is held.
func (s *shard) release(d *destination) {
	if len(d.conns)+len(d.waiters)+len(d.dials) == 0 && s.destinations[d.key] == d {
		delete(s.destinations, d.key)
	}
}

// get returns a connection for a request, which is in use from then on; fresh says
// that it was opened for it.
func (p *Pool) get(req *http.Request, o *Order) (c *conn, fresh bool, err error) {
	ctx := req.Context()
	s := p.shard(&o.Key)
	for refused := 0; ; {
		s.mu.Lock()
		d := s.destination(p, o)
		c := d.take()
		if c == nil {
			w := &waiter{order: o, ready: make(chan answer, 1)}
			d.waiters = append(d.waiters, w)
			if d.delayed() {
				delay := d.delay
				s.mu.Unlock()
				c, fresh, err = p.waitFirst(ctx, d, w, delay)
			} else {
				p.dialFor(d, w)
				s.mu.Unlock()
				c, fresh, err = p.wait(ctx, d, w)
			}
			if err != nil {
				return nil, false, err
			}
		} else {
			s.mu.Unlock()
		}
		switch {
		case c.h2 != nil && c.claim():
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

// take takes a connection that can be used now, or nil; shard.mu is held.
func (d *destination) take() *conn {
	for _, c := range d.shared {
		if c.reserve() {
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
	d.shard.unlist(c)
	return c
}

// takeIdle takes an idle connection of HTTP/1.1; shard.mu is held.
func (p *Pool) takeIdle(c *conn) {
	d := c.destination
	d.shard.unlist(c)
	if i := slices.Index(d.idle, c); i >= 0 {
		d.idle = slices.Delete(d.idle, i, i+1)
	}
}

// dialForRest gives requests a dial that wait without one, while the limit
// allows; shard.mu is held.
func (p *Pool) dialForRest(d *destination) {
	for _, w := range d.waiters {
		if w.dial == nil {
			p.dialFor(d, w)
		}
	}
}

// delayed reports whether a dial is to be delayed, since a connection may become free
// before there is another one; shard.mu is held. Waiting costs something, too: now and
// then it is not, so that there are as many connections as there are requests at a
// time.
func (d *destination) delayed() bool {
	if d.delays++; d.delays%maxDelays == 0 {
		return false
	}
	return slices.ContainsFunc(d.conns, func(c *conn) bool { return c.h2 == nil || c.limited })
}

// dialFor gives a waiter a dial: one that was given up if there is one, one that
// will serve several requests, or a new one; shard.mu is held. If a limit is reached, the waiter waits for a connection
// that becomes free.
func (p *Pool) dialFor(d *destination, w *waiter) {
	if w.dial != nil {
		return
	}
	for _, other := range d.dials {
		if guardOf(other.order) != guardOf(w.order) || other.ctx.Err() != nil {
			continue
		}
		if other.waiters == 0 || d.http2 && other.waiters < maxPerDial {
			other.waiters++
			w.dial = other
			return
		}
	}
	if limit := p.config.MaxPerKey; limit > 0 && len(d.conns)+len(d.dials) >= limit {
		return
	}
	w.dial = p.startDial(d, w.order)
	w.dial.waiters++
}

// waitFirst waits for a connection that becomes free, for a moment, and then for a
// new one too.
func (p *Pool) waitFirst(ctx context.Context, d *destination, w *waiter, delay time.Duration) (*conn, bool, error) {
	s := d.shard
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case a := <-w.ready:
		s.mu.Lock()
		d.delay = min(2*delay, maxDialDelay)
		s.mu.Unlock()
		return a.result()
	case <-timer.C:
	case <-ctx.Done():
	}
	s.mu.Lock()
	d.delay = max(delay/2, minDialDelay)
	if slices.Contains(d.waiters, w) && ctx.Err() == nil {
		p.dialFor(d, w)
	}
	s.mu.Unlock()
	return p.wait(ctx, d, w)
}

// wait waits for a connection.
func (p *Pool) wait(ctx context.Context, d *destination, w *waiter) (*conn, bool, error) {
	t := newPatience(p, d, w)
	defer t.stop()
	for {
		select {
		case a := <-w.ready:
			return a.result()
		case <-t.timer.C:
			if err := t.over(); err != nil {
				return p.leave(d, w, err)
			}
		case other := <-t.through:
			// it works; if it is for the same address, the connection will come
			if other.Addr != w.order.Key.Addr {
				return p.leave(d, w, t.stillDialing())
			}
		case <-ctx.Done():
			return p.leave(d, w, &Error{Phase: t.phase(), Err: context.Cause(ctx)})
		}
	}
}

func (a answer) result() (*conn, bool, error) {
	if a.err != nil {
		return nil, false, a.err
	}
	return a.conn, a.fresh, nil
}

// leave ends a waiter, which fails with an error unless an answer came meanwhile.
// Its dial goes on.
func (p *Pool) leave(d *destination, w *waiter, err *Error) (*conn, bool, error) {
	d.shard.mu.Lock()
	p.abandon(d, w)
	d.shard.release(d)
	d.shard.mu.Unlock()
	select {
	case a := <-w.ready:
		return a.result()
	default:
		return nil, false, err
	}
}

// abandon takes a waiter from those that wait, and from its dial; shard.mu is held.
func (p *Pool) abandon(d *destination, w *waiter) {
	if i := slices.Index(d.waiters, w); i >= 0 {
		d.waiters = slices.Delete(d.waiters, i, i+1)
	}
	if n := w.dial; n != nil {
		w.dial = nil
		if n.waiters--; n.waiters == 0 && p.closed.Load() {
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
	p.abandon(d, w)
	w.ready <- answer{conn: c, fresh: fresh}
	return true
}

// put gives back a connection of HTTP/1.1 after a response, or a new one that no
// request takes: it goes to a waiter, becomes idle, or is closed. looked is true if
// it was idle before, and was only looked at.
func (p *Pool) put(c *conn, looked bool) {
	d := c.destination
	s := d.shard
	now := time.Now()
	s.mu.Lock()
	if !looked {
		c.since = now
	}
	keep := true
	if !p.deliver(d, c, false) {
		if keep = !p.closed.Load() && len(d.idle) < p.config.MaxIdlePerKey; keep {
			d.idle = append(d.idle, c)
			s.list(c, p.serial.Add(1))
		}
	}
	s.mu.Unlock()
	if !keep {
		p.discard(c)
		return
	}
	p.closeSurplus()
}

// add adds a new connection to its destination; shard.mu is held.
func (p *Pool) add(d *destination, c *conn) {
	c.index = len(d.conns)
	d.conns = append(d.conns, c)
	c.counted = true
	c.added.Store(true)
	if c.h2 != nil {
		d.shared = append(d.shared, c)
	}
	p.open.Add(1)
}

// discard closes a connection for good.
func (p *Pool) discard(c *conn) {
	d := c.destination
	s := d.shard
	s.mu.Lock()
	p.remove(c)
	counted := c.counted
	c.counted = false
	s.mu.Unlock()
	c.close()
	if counted {
		p.open.Add(-1)
		p.limits.leave(d.group)
	}
}

// detach takes a connection that changes its protocol out of its destination. It
// counts until it is discarded.
func (p *Pool) detach(c *conn) {
	s := c.destination.shard
	s.mu.Lock()
	defer s.mu.Unlock()
	p.remove(c)
}

// remove takes a connection out of its destination; shard.mu is held.
func (p *Pool) remove(c *conn) {
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
	if i := slices.Index(d.shared, c); i >= 0 {
		d.shared = slices.Delete(d.shared, i, i+1)
	}
	p.takeIdle(c)
	p.dialForRest(d)
	d.shard.release(d)
}

// list puts a connection at the end of the idle ones of a shard; s.mu is held.
func (s *shard) list(c *conn, moment uint64) {
	c.pool.limits.idle.Add(1)
	c.listed, c.moment = true, moment
	c.prev, c.next = s.newest, nil
	if s.newest != nil {
		s.newest.next = c
	} else {
		s.oldest = c
	}
	s.newest = c
}

func (s *shard) unlist(c *conn) {
	if !c.listed {
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
	c.listed, c.prev, c.next = false, nil, nil
}
