package pool

import (
	"context"
	"net/http"
	"slices"
	"time"
)

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

func (a answer) result() (*conn, bool, error) {
	if a.err != nil {
		return nil, false, a.err
	}
	return a.conn, a.fresh, nil
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

// assignDials gives requests a dial that wait without one, while the limit
// allows; shard.mu is held.
func (p *Pool) assignDials(d *destination) {
	for _, w := range d.waiters {
		if w.dial == nil {
			p.assignDial(d, w)
		}
	}
}
