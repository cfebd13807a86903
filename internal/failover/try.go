package failover

import (
	"net/netip"
	"time"

	"caddytarget/internal/pool"
)

// try is an attempt at an address that failed.
type try struct {
	addr    netip.AddrPort
	final   bool          // the address is not tried again: there was no connection or no response in time, or a rule forbids it
	pending *pool.Pending // the dial that the request gave up and that went on; nil: none
}

// tryState is what the attempts of a request so far say of an address, as health.State is
// what all requests say.
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
		case state != untried || try.final:
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

// remember adds an attempt that failed. The first dial that is given up in a phase sets the
// deadline for that phase of all dials of the request: when the timeout of that dial is
// over. So a request waits little longer for several silent addresses than for one.
func (p *Plan) remember(t *Target, addr netip.AddrPort, via *Transport, e *pool.Error) {
	t.tries = append(t.tries, try{addr: addr, final: e.Pending == nil && (e.Dialling() || e.Timeout()), pending: e.Pending})
	switch now := time.Now(); {
	case e.Pending != nil:
		phase := e.Pending.Phase
		if end := &p.deadlines[phase]; end.IsZero() {
			*end = now.Add(via.Timeouts[phase] - pool.FailoverTimeout(phase))
		}
	case e.Dialling() && e.Timeout(): // this dial took all of the time: the others have FailoverTimeout
		p.deadlines = [2]time.Time{now, now}
	case !e.Dialling():
		p.postpone(now)
	}
}

// postpone moves the deadlines by the time of an attempt that had a connection: what the
// address did with the request is no dialling.
func (p *Plan) postpone(now time.Time) {
	for phase := range p.deadlines {
		if end := &p.deadlines[phase]; !end.IsZero() {
			*end = end.Add(now.Sub(p.began))
		}
	}
}

// startOver forgets what was tried of t.
func (p *Plan) startOver(t *Target) {
	t.tries, p.deadlines = t.tries[:0], [2]time.Time{}
}
