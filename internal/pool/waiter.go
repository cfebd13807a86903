package pool

import (
	"context"
	"net/http"
	"slices"
	"time"
)

// waiter is a request that waits for a connection. It gets one answer at most: the first
// connection that becomes free or is opened, by any dial, or the error of the dial that
// it was assigned.
type waiter struct {
	order *Order
	ready chan answer // holds one
	dial  *dial       // that it was assigned; nil: it waits for a connection to become free
	since time.Time   // when it began to wait; set if the order has a Timing

	limited      *time.Timer // calls checkLimited, since Limits allowed it no dial; nil: they did
	limitedUntil time.Time   // how long it waits then
}

// answer is a connection or the reason why there is none.
type answer struct {
	conn  *conn
	fresh bool // the connection was just opened and has carried no request
	err   *Error
	dial  *dial // which opened the connection or failed; nil: none
}

// result returns the answer as getConn does.
func (w *waiter) result(a answer) (*conn, bool, error) {
	w.order.Timing.dialled(a.dial, w.since, time.Time{})
	if a.err != nil {
		return nil, false, a.err
	}
	return a.conn, a.fresh, nil
}

// getConn returns a connection for a request, which is in use from then on. fresh is
// true if the connection has carried no request and was never idle.
func (p *Pool) getConn(req *http.Request, o *Order) (c *conn, fresh bool, err error) {
	ctx := req.Context()
	s := p.shard(&o.Key)
	for refused := 0; ; {
		s.mu.Lock()
		d := s.destination(p, o)
		c := d.takeAvailable()
		if c == nil {
			w := &waiter{order: o, ready: make(chan answer, 1)}
			if o.Timing != nil {
				w.since = time.Now()
			}
			d.waiters = append(d.waiters, w)
			if d.delayNextDial() {
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
				break // it is full: another one is taken
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

// awaitIdleConn waits until a connection becomes free, without a dial. After a delay
// it waits for a new one, too.
func (p *Pool) awaitIdleConn(ctx context.Context, d *destination, w *waiter, delay time.Duration) (*conn, bool, error) {
	s := d.shard
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case a := <-w.ready:
		s.mu.Lock()
		d.dialDelay = min(2*delay, maxDialDelay)
		s.mu.Unlock()
		return w.result(a)
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

// awaitConn waits for a connection for as long as the order allows.
func (p *Pool) awaitConn(ctx context.Context, d *destination, w *waiter) (*conn, bool, error) {
	t := newDialWait(p, d, w)
	defer t.stop()
	for {
		select {
		case a := <-w.ready:
			return w.result(a)
		case <-t.timer.C:
			if err := t.expired(); err != nil {
				return p.giveUp(d, w, err)
			}
		case other := <-t.completed:
			// A connection to the same address is delivered to this waiter.
			if other.Addr != w.order.Key.Addr {
				return p.giveUp(d, w, t.stillDialing())
			}
		case <-ctx.Done():
			return p.giveUp(d, w, t.ended(ctx))
		}
	}
}

// giveUp ends a waiter. It returns the error, unless an answer came meanwhile. The
// waiter's dial goes on.
func (p *Pool) giveUp(d *destination, w *waiter, err *Error) (*conn, bool, error) {
	d.shard.mu.Lock()
	if t := w.order.Timing; t != nil {
		t.dialled(w.dial, w.since, time.Now())
	}
	p.removeWaiter(d, w)
	d.shard.dropUnused(d)
	d.shard.mu.Unlock()
	select {
	case a := <-w.ready:
		return w.result(a)
	default:
		return nil, false, err
	}
}

// removeWaiter removes a waiter from its destination and from its dial; shard.mu is
// held.
func (p *Pool) removeWaiter(d *destination, w *waiter) {
	if i := slices.Index(d.waiters, w); i >= 0 {
		d.waiters = slices.Delete(d.waiters, i, i+1)
		if w.limited != nil {
			w.limited.Stop()
			d.limited--
		}
	}
	if n := w.dial; n != nil {
		w.dial = nil
		if n.assigned--; n.assigned == 0 && p.closed.Load() {
			n.cancel()
		}
	}
}

const (
	// A dial is delayed while a connection may become free: for twice as long as the
	// last time if that saved a dial, for half as long otherwise.
	firstDialDelay = 4 * time.Millisecond
	minDialDelay   = time.Millisecond
	maxDialDelay   = 16 * time.Millisecond

	// One dial of undelayedEvery is not delayed.
	undelayedEvery = 32

	// maxPerDial is how many requests wait for one dial where the backend speaks
	// HTTP/2.
	maxPerDial = 8
)

// delayNextDial reports whether the next dial is delayed, because one of the
// connections may become free before another one is open; shard.mu is held. Delays
// cost time, too: now and then there is none, so that in the end there are as many
// connections as requests at a time.
func (d *destination) delayNextDial() bool {
	if d.dialCount++; d.dialCount%undelayedEvery == 0 {
		return false
	}
	return slices.ContainsFunc(d.conns, func(c *conn) bool { return c.h2 == nil || c.wasFull })
}

// assignDial assigns a waiter the dial whose error it gets, if it has none; shard.mu
// is held. That is a dial under way that no request waits for, or that will serve
// several over HTTP/2, or else a new one. Where MaxPerKey allows no other connection,
// the waiter gets none: it waits until a connection becomes free.
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
	if p.mayDial(d) {
		w.dial = p.startDial(d, w.order, nil)
		w.dial.assigned++
	}
}

// assignDials is assignDial for all waiters, after a connection or a dial has ended, but
// not for those to which Limits allowed none.
func (p *Pool) assignDials(d *destination) {
	for _, w := range d.waiters {
		if w.limited == nil {
			p.assignDial(d, w)
		}
	}
}

// limitedStep is how often one of the requests that wait since Limits allowed them no dial
// begins another one: room may have come about elsewhere.
const limitedStep = 100 * time.Millisecond

// waitsForFree makes a waiter wait for a connection to become free, since Limits allowed it
// no dial: as long as Limits say, or as for a dial if there is another address to try. It
// reports false if that time is over, or if as many requests wait so as there are connections,
// or maxPerDial times as many over HTTP/2; shard.mu is held.
func (p *Pool) waitsForFree(d *destination, w *waiter, err *Error, n *dial) bool {
	if w.limited != nil {
		w.dial = nil
		return time.Now().Before(w.limitedUntil)
	}
	most := len(d.conns)
	if d.speaksHTTP2 {
		most *= maxPerDial
	}
	if d.limited >= most {
		return false
	}
	wait := p.limits.wait
	if !w.order.Last {
		wait = min(wait, failoverTimeout[Connect])
	}
	d.limited++
	w.dial, w.limitedUntil = nil, time.Now().Add(wait)
	w.limited = time.AfterFunc(min(wait, limitedStep), func() { p.checkLimited(d, w, answer{err: err, dial: n}) })
	return true
}

// checkLimited ends a waiter to which Limits allowed no dial, with an answer, if its time is
// over and no dial for it is under way. Before that, the first of these waiters begins one.
func (p *Pool) checkLimited(d *destination, w *waiter, otherwise answer) {
	d.shard.mu.Lock()
	defer d.shard.mu.Unlock()
	if !slices.Contains(d.waiters, w) {
		return
	}
	left := time.Until(w.limitedUntil)
	switch {
	case w.dial != nil:
	case left <= 0:
		p.removeWaiter(d, w)
		w.ready <- otherwise
		d.shard.dropUnused(d)
		return
	case w == d.firstLimited():
		p.assignDial(d, w)
	}
	if left <= 0 {
		left = limitedStep
	}
	w.limited.Reset(min(left, limitedStep))
}

// firstLimited returns the first waiter to which Limits allowed no dial, or nil; shard.mu is
// held.
func (d *destination) firstLimited() *waiter {
	for _, w := range d.waiters {
		if w.limited != nil {
			return w
		}
	}
	return nil
}

// dialLimited begins a dial for one of the waiters to which Limits allowed none, after a
// connection was closed.
func (p *Pool) dialLimited(d *destination) {
	d.shard.mu.Lock()
	defer d.shard.mu.Unlock()
	if w := d.firstLimited(); w != nil {
		p.assignDial(d, w)
	}
}

// mayDial reports whether MaxPerKey allows another connection; shard.mu is held.
func (p *Pool) mayDial(d *destination) bool {
	limit := p.config.MaxPerKey
	return limit <= 0 || len(d.conns)+len(d.dials) < limit
}
