package failover

import (
	"net/netip"
	"time"

	"caddytarget/internal/pool"
)

// try is an attempt at an address that failed.
type try struct {
	addr    netip.AddrPort
	final   bool          // there was no connection, or no response in time
	pending *pool.Pending // the dial was given up and goes on
}

// tryState is what the attempts of a request so far say of an address.
type tryState int

const (
	untried   tryState = iota
	connected          // the dial was given up, but has succeeded since
	retryable          // its connection broke once, or its dial goes on: it may be tried once more
	exhausted          // it is not tried again
)

// tryState returns what was tried of an address of t.
func (p *Plan) tryState(t *Target, addr netip.AddrPort) tryState {
	state := untried
	for _, try := range t.tries {
		switch {
		case try.addr != addr:
		case state != untried || try.final && try.pending == nil:
			return exhausted
		case try.pending == nil:
			state = retryable
		default:
			if state = p.pendingState(try.pending); state == exhausted {
				return exhausted
			}
		}
	}
	return state
}

// pendingState returns what a dial that was given up says of its address.
func (p *Plan) pendingState(d *pool.Pending) tryState {
	switch d.Progress() {
	case pool.Succeeded:
		return connected
	case pool.Underway:
		if time.Until(p.deadlines[d.Phase]) >= pool.FailoverTimeout(d.Phase) {
			return retryable
		}
	}
	return exhausted
}

// remember takes down an attempt that failed, and begins the time that all dials of
// the request have together.
func (p *Plan) remember(t *Target, addr netip.AddrPort, via *Transport, e *pool.Error) {
	t.tries = append(t.tries, try{addr: addr, final: e.Dialling() || e.Timeout(), pending: e.Pending})
	switch now := time.Now(); {
	case e.Pending != nil:
		phase := e.Pending.Phase
		if end := &p.deadlines[phase]; end.IsZero() {
			*end = now.Add(via.Timeouts[phase] - pool.FailoverTimeout(phase))
		}
	case e.Dialling() && e.Timeout(): // one address has had all of the time
		p.deadlines = [2]time.Time{now, now}
	}
}

// startOver forgets what was tried of t.
func (p *Plan) startOver(t *Target) {
	t.tries, p.deadlines = t.tries[:0], [2]time.Time{}
}
