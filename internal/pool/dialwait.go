package pool

import (
	"context"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"
)

// FailoverTimeout is how long a phase of dialling may take while there is another
// address to try.
func FailoverTimeout(ph Phase) time.Duration { return failoverTimeout[ph] }

var (
	failoverTimeout = [dialPhaseCount]time.Duration{Connect: 300 * time.Millisecond, Handshake: time.Second}

	// minTimeout is how long a phase may take at least where there is none. A SYN is
	// sent again after a second (RFC 6298).
	minTimeout = [dialPhaseCount]time.Duration{Connect: 1300 * time.Millisecond, Handshake: 2 * time.Second}
)

// fullTimeout returns how long a phase may take at all.
func (p *Pool) fullTimeout(ph Phase) time.Duration {
	if ph == Handshake {
		return p.config.HandshakeTimeout
	}
	return p.config.DialTimeout
}

// aLongTime is how long a request waits where nothing is configured: the dial ends
// before, or a connection that becomes free is waited for.
const unlimitedWait = time.Hour

// dialWait is how long a request waits for its dial. While there is another
// address to try that is only a short time for each phase; where there is none,
// until one that was given up before has succeeded. The dial goes on then, and is a
// failure only if it fails.
type dialWait struct {
	pool      *Pool
	d         *destination
	waiter    *waiter
	start     time.Time
	timer     *time.Timer
	completed chan *Pending
	stops     []func() bool
}

func newDialWait(p *Pool, d *destination, w *waiter) *dialWait {
	t := &dialWait{pool: p, d: d, waiter: w, start: time.Now()}
	t.timer = time.NewTimer(t.untilCheck(Connect, t.limit(Connect)))
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

// limit returns how long the request waits in a phase.
func (t *dialWait) limit(ph Phase) time.Duration {
	o := t.waiter.order
	if !o.Last {
		return failoverTimeout[ph]
	}
	full := t.pool.fullTimeout(ph)
	if end := o.Deadlines[ph]; !end.IsZero() && full > 0 {
		// all addresses together may take little longer than one
		if left := time.Until(end); left > 0 {
			return min(full, max(left, minTimeout[ph]))
		}
		return min(full, failoverTimeout[ph])
	}
	return unlimitedWait // the dial has its own
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

// expired is called when the time is over. It returns why the request waits no more,
// or nil if it does: because another phase has begun, or there is no dial and it
// waits for a connection that becomes free.
func (t *dialWait) expired() *Error {
	s := t.d.shard
	s.mu.Lock()
	n := t.waiter.dial
	if n == nil {
		s.mu.Unlock()
		t.timer.Reset(unlimitedWait)
		return nil
	}
	since := n.phaseBegan
	if since.Before(t.start) {
		since = t.start // the dial is older than the request
	}
	ph := n.phase
	s.mu.Unlock()
	if left := time.Until(since.Add(t.limit(ph))); left > 0 {
		t.timer.Reset(t.untilCheck(ph, left))
		return nil
	}
	return t.stillDialing()
}

// untilCheck returns when to look again whether the time is over of which so much is
// left in a phase. The next phase may have less time.
func (t *dialWait) untilCheck(ph Phase, left time.Duration) time.Duration {
	if ph == Connect && t.d.key.secure() {
		return min(left, t.limit(Handshake))
	}
	return left
}

// stillDialing returns the error of a request that gives up its dial, which goes
// on.
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
		t.pool.health.Slow(target, o.Key.Addr, left)
	}
	return &Error{Phase: pending.Phase, Err: errDialTimeout, Pending: pending}
}

// Pending is a dial that its request gave up and that goes on.
type Pending struct {
	Addr  netip.AddrPort
	Phase Phase // in which it was given up

	progress atomic.Int32
	done     context.Context // ends with the dial
}

// Progress is how far a dial has come.
type Progress int32

// The values of Progress.
const (
	Underway Progress = iota
	Succeeded
	Failed
)

// Progress returns how far the dial has come.
func (d *Pending) Progress() Progress { return Progress(d.progress.Load()) }
