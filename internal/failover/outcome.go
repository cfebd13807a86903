package failover

import (
	"context"
	"errors"
	"net/netip"
	"syscall"
	"time"

	"caddytarget/internal/pool"
)

// Failure is how an attempt failed.
type Failure struct {
	Addr netip.AddrPort // not valid: something else than an IP address was dialled
	Err  *pool.Error

	Deadline time.Time // of the request; zero: none
	Ended    error     // the error of the request's context; nil: that has not ended

	// How far the client got with the request's body.
	Incomplete bool // there is more to come
	Broken     bool // reading it failed
}

// Failed records that an attempt at t failed: in the plan always, in health if that shows
// something about the address. A dial that fails is recorded in health by the pool, when it
// ends, whether or not the request still waits for it.
func (p *Plan) Failed(t *Target, via *Transport, f Failure) {
	p.remember(t, f.Addr, via, f.Err)
	switch e := f.Err; {
	case e.Dialling(): // the pool records how the dial ends; the client's timeout was over before
		if errors.Is(f.Ended, context.DeadlineExceeded) && t.Timeout > 0 {
			via.Health.RanOut(t.Host, f.Addr, t.Timeout, t.Begun, f.Deadline, f.reason())
		}
	case e.Phase == pool.Prepare || f.byClient():
		// that shows nothing about the address
	case f.Ended != nil && t.Limit != "": // the site's timeout
		via.Health.Exceeded(t.Limit, t.Host, f.Addr, f.reason())
	case f.Ended != nil && t.Timeout > 0: // the client's
		via.Health.RanOut(t.Host, f.Addr, t.Timeout, t.Begun, f.Deadline, f.reason())
	case f.Ended != nil: // the deadline was another one, such as what a redirect has left of a timeout
	case e.Timeout() && !errors.Is(e, pool.ErrSilent) && !errors.Is(e, syscall.ETIMEDOUT):
		// a timeout of the transport, such as response_header_timeout
		via.Health.Exceeded(via.Limit, t.Host, f.Addr, e)
	case e.Reused && !e.Refused && !e.Timeout():
		// the connection was old; a new one may work
	default: // a new connection broke, the response made no sense, or the backend has gone silent
		via.Health.Failed(t.Host, f.Addr, true, e)
	}
}

// reason returns why the address failed, where the request's time was over.
func (f *Failure) reason() error { return &pool.Error{Phase: f.Err.Phase, Err: f.Ended} }

// byClient reports whether the client is the cause: it has left, or it has not sent
// its body in time.
func (f *Failure) byClient() bool {
	return errors.Is(f.Ended, context.Canceled) || f.Broken || f.Incomplete && (f.Ended != nil || f.Err.Timeout())
}

// Skip records in the plan that a rule or a limit forbade a connection to an address of
// t. It is not tried again. That is no failure of the address.
func (t *Target) Skip(addr netip.AddrPort) {
	t.tries = append(t.tries, try{addr: addr, final: true})
}

// Worked records in health that an address of t has sent a response.
func (t *Target) Worked(via *Transport, addr netip.AddrPort) {
	if t.Measured {
		via.Health.WorkedIn(time.Since(t.Begun), t.Timeout, t.Host, addr, via.Limit)
	} else {
		via.Health.Worked(t.Host, addr, t.Limit, via.Limit)
	}
	via.Health.Reached(addr.Addr(), true)
}

// Unhealthy records in health that an address of t has sent a response that counts as a
// failure by the settings of the transport, and why.
func (t *Target) Unhealthy(via *Transport, addr netip.AddrPort, reason error) {
	via.Health.Worked("", addr) // a connection was opened: that is for all targets
	via.Health.Exceeded(via.Limit, t.Host, addr, reason)
}
