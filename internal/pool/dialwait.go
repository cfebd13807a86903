package pool

import (
	"context"
	"slices"
	"time"
)

// FailoverTimeout returns how long a request waits for a phase of its dial, Connect or
// Handshake, while there is another address to try: 300 ms and 1 s.
func FailoverTimeout(ph Phase) time.Duration { return failoverTimeout[ph] }

var (
	failoverTimeout = [dialPhaseCount]time.Duration{Connect: 300 * time.Millisecond, Handshake: time.Second}

	// minTimeout is how long a request waits at least for a phase at the last address,
	// unless its deadline has passed. A lost SYN is sent again after a second (RFC 6298).
	// A dial that is cancelled before that is no failure of the address: see
	// reportFailure.
	minTimeout = [dialPhaseCount]time.Duration{Connect: 1300 * time.Millisecond, Handshake: 2 * time.Second}
)

// fullTimeout returns how long a phase of a dial may take, by the Config.
func (p *Pool) fullTimeout(ph Phase) time.Duration {
	if ph == Handshake {
		return p.config.HandshakeTimeout
	}
	return p.config.DialTimeout
}

// unlimitedWait is the timer of a request that does not limit its wait: its dial ends by
// itself, or a connection becomes free.
const unlimitedWait = time.Hour

// dialWait decides how long a request waits for its dial. While there is another
// address to try, that is failoverTimeout for each phase. At the last address it is
// until the deadlines of the request. The wait ends, too, when a dial that the request
// gave up before has succeeded. In each case the dial that it waited for goes on, and is
// a failure of the address only if it fails.
type dialWait struct {
	pool      *Pool
	d         *destination
	waiter    *waiter
	start     time.Time
	timer     *time.Timer   // calls for expired
	completed chan *Pending // dials of Order.Pending that have succeeded
	stops     []func() bool // end what sends to completed
}

func newDialWait(p *Pool, d *destination, w *waiter) *dialWait {
	t := &dialWait{pool: p, d: d, waiter: w, start: time.Now()}
	t.timer = time.NewTimer(t.untilCheck(Connect, t.timeout(Connect)))
	if pending := w.order.Pending; len(pending) > 0 {
		t.completed = make(chan *Pending, len(pending))
		for _, other := range pending {
			t.stops = append(t.stops, context.AfterFunc(other.done, func() {
				if other.Progress() == Succeeded {
					t.completed <- other
				}
			}))
		}
	}
	return t
}

func (t *dialWait) stop() {
	t.timer.Stop()
	for _, stop := range t.stops {
		stop()
	}
}

// timeout returns how long the request waits for a phase.
func (t *dialWait) timeout(ph Phase) time.Duration {
	o := t.waiter.order
	if !o.Last {
		return failoverTimeout[ph]
	}
	full := t.pool.fullTimeout(ph)
	if end := o.Deadlines[ph]; !end.IsZero() && full > 0 {
		// All addresses together may take little longer than one.
		if left := time.Until(end); left > 0 {
			return min(full, max(left, minTimeout[ph]))
		}
		return min(full, failoverTimeout[ph])
	}
	return unlimitedWait // the dial has a timeout itself
}

// phase returns the phase of the request's dial.
func (t *dialWait) phase() Phase {
	t.d.shard.mu.Lock()
	defer t.d.shard.mu.Unlock()
	if t.waiter.dial == nil {
		return Connect
	}
	return t.waiter.dial.phase
}

// ended returns the error of a request whose context has ended. Where it waited since Limits
// allow no other connection, its time ran out for that reason, and not for one of the address.
func (t *dialWait) ended(ctx context.Context) *Error {
	s := t.d.shard
	s.mu.Lock()
	limited := t.waiter.limited != nil && t.waiter.dial == nil
	s.mu.Unlock()
	if limited && ctx.Err() == context.DeadlineExceeded {
		return &Error{Phase: Connect, Err: ErrLimit}
	}
	return &Error{Phase: t.phase(), Err: context.Cause(ctx)}
}

// expired is called when the timer fires. It returns the error with which the request
// ends, or nil if it goes on waiting: because time is left for the phase, or because no
// dial is assigned and it waits for a connection to become free.
func (t *dialWait) expired() *Error {
	s := t.d.shard
	s.mu.Lock()
	n := t.waiter.dial
	if n == nil {
		s.mu.Unlock()
		t.timer.Reset(t.untilCheck(Connect, t.timeout(Connect))) // one may be assigned until then
		return nil
	}
	since := n.phaseBegan
	if since.Before(t.start) {
		since = t.start // another request began the dial
	}
	ph := n.phase
	s.mu.Unlock()
	if left := time.Until(since.Add(t.timeout(ph))); left > 0 {
		t.timer.Reset(t.untilCheck(ph, left))
		return nil
	}
	return t.stillDialing()
}

// untilCheck returns when to call expired if so much time is left for a phase. That is
// sooner where the handshake follows: it may begin at any time, and may have less time.
func (t *dialWait) untilCheck(ph Phase, left time.Duration) time.Duration {
	if ph == Connect && t.d.key.secure() {
		return min(left, t.timeout(Handshake))
	}
	return left
}

// stillDialing returns the error of a request that gives its dial up, with the Pending
// by which the dial is followed. Health keeps other requests from the address until
// the dial must have ended.
func (t *dialWait) stillDialing() *Error {
	o := t.waiter.order
	s := t.d.shard
	s.mu.Lock()
	n := t.waiter.dial
	if n == nil || !slices.Contains(t.d.dials, n) {
		s.mu.Unlock()
		return &Error{Phase: Connect, Err: errDialTimeout}
	}
	pending := &Pending{Addr: o.Key.Addr, Phase: n.phase, done: n.ctx}
	n.pending = append(n.pending, pending)
	left := t.pool.fullTimeout(n.phase) - time.Since(n.phaseBegan)
	s.mu.Unlock()
	target := ""
	if pending.Phase == Handshake {
		target = o.Target
	}
	if o.Target != "" {
		t.pool.health.StillDialing(target, o.Key.Addr, left)
	}
	return &Error{Phase: pending.Phase, Err: errDialTimeout, Pending: pending}
}
