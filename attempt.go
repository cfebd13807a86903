package caddytarget

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"caddytarget/internal/pool"
)

// attempt is one attempt at a request.
type attempt struct {
	transport *Transport
	call      *call // nil: no target
	order     pool.Order
	out       http.Request // what is sent
	url       url.URL
	pass      *pass        // nil: none
	body      *requestBody // nil: none
	trailers  trailers
	begun     time.Time // set if the time until the response matters
	trial     *claim    // on the address; nil: none
}

// isRepeatable reports whether a request may be sent again whatever the backend
// has done with it. That is for GET alone: what reverse_proxy repeats, too.
func isRepeatable(method string) bool { return method == http.MethodGet }

// openBody returns the body from its beginning.
func (a *attempt) openBody(req *http.Request) (io.ReadCloser, error) {
	// over HTTP/2 a backend may say that it has not acted upon what was sent
	mayBeRefused := a.order.Key.Protocol == pool.HTTP2 || a.order.Key.Protocol == pool.TLS
	mayBeSentOn := a.transport.handlers != nil // in a handle_response
	return a.body.open(isRepeatable(req.Method) || mayBeRefused || mayBeSentOn)
}

// address returns what the attempt dials.
func (a *attempt) address() string {
	if a.order.Key.Addr.IsValid() {
		return a.order.Key.Addr.String()
	}
	return a.order.Key.Dial
}

// failed records an attempt that got no response, and returns the error for
// reverse_proxy.
func (a *attempt) failed(e *pool.Error) error {
	c, ended := a.call, a.out.Context().Err()
	if ruleOf(e) != "" || errors.Is(e, pool.ErrLimit) {
		return a.refused(e)
	}
	var err error = e
	if !e.Dialling() {
		err = e.Err
	}
	if e.Dialling() || e.Phase != pool.Prepare && e.Sent == pool.Nothing && ended == nil && a.body.whole() {
		err = newDialError(a, err)
	}
	if !a.body.whole() {
		a.body.failure = err
	}
	if c == nil {
		return err
	}
	c.tried = append(c.tried, a.try(e))
	c.state.err = err
	if ended != nil {
		c.state.err = fmt.Errorf("%s at %s: %w", c.host, a.address(), ended)
	}
	a.report(e, ended)
	return err
}

// refused returns the error of an attempt for which no connection was to be opened.
func (a *attempt) refused(e *pool.Error) error {
	c, status, err := a.call, http.StatusForbidden, e.Err
	if errors.Is(e, pool.ErrLimit) {
		status, err = http.StatusServiceUnavailable, newDialError(a, e)
	}
	if c != nil {
		c.tried = append(c.tried, try{addr: a.order.Key.Addr, final: true})
		c.state.err = err
	}
	return caddyhttp.Error(status, err)
}

// report records in health what the error says of the address. A connection that
// could not be opened has been recorded by the pool.
func (a *attempt) report(e *pool.Error, ended error) {
	c, tracker := a.call, a.transport.health
	received := a.body == nil || a.body.complete.Load()
	deadline, _ := a.out.Context().Deadline()
	switch {
	case e.Dialling() && errors.Is(ended, context.DeadlineExceeded) && c.timeout > 0:
		tracker.RanOut(c.host, a.order.Key.Addr, c.timeout, a.begun, deadline)
	case e.Dialling() || e.Phase == pool.Prepare:
	case errors.Is(ended, context.Canceled), !received && (ended != nil || isTimeout(e)), a.body != nil && a.body.broken.Load():
		// the client has left, or has not sent its body
	case ended != nil:
		switch {
		case c.limit != "":
			tracker.Exceeded(c.limit, c.host, a.order.Key.Addr)
		case c.timeout > 0:
			tracker.RanOut(c.host, a.order.Key.Addr, c.timeout, a.begun, deadline)
		}
	case isTimeout(e) && !errors.Is(e, pool.ErrSilent) && !errors.Is(e, syscall.ETIMEDOUT):
		tracker.Exceeded(a.transport.limit, c.host, a.order.Key.Addr)
	case e.Reused && !e.Refused && !isTimeout(e):
		// the connection was old; a new one may work
	default:
		tracker.Failed(c.host, a.order.Key.Addr, true)
	}
}

// worked records an attempt that got a response.
func (a *attempt) worked(status int) {
	c, tracker, addr := a.call, a.transport.health, a.order.Key.Addr
	if c == nil {
		return
	}
	c.state.err = nil
	if a.transport.isUnhealthy(status, a.begun) {
		tracker.Worked("", addr)
		tracker.Exceeded(a.transport.limit, c.host, addr)
		return
	}
	if c.measured {
		tracker.WorkedIn(time.Since(a.begun), c.timeout, c.host, addr, a.transport.limit)
	} else {
		tracker.Worked(c.host, addr, c.limit, a.transport.limit)
	}
	tracker.Reached(addr.Addr(), true)
}

// try is an attempt at an address.
type try struct {
	addr  netip.AddrPort
	final bool          // there was no connection, or no response in time
	cut   *pool.Pending // it was given up while it was dialled
}

// try returns what is to be remembered of an attempt that failed.
func (a *attempt) try(e *pool.Error) try {
	r := try{addr: a.order.Key.Addr, final: e.Dialling() || isTimeout(e), cut: e.Pending}
	switch now := time.Now(); {
	case r.cut != nil:
		if end := &a.call.inPass().deadlines[r.cut.Phase]; end.IsZero() {
			*end = now.Add(a.transport.fullTimeout(r.cut.Phase) - pool.FailoverTimeout(r.cut.Phase))
		}
	case e.Dialling() && isTimeout(e): // one address has had all of the time
		a.call.inPass().deadlines = [2]time.Time{now, now}
	}
	return r
}

// cuts returns the dials of attempts so far that were given up.
func (c *call) cuts() (list []*pool.Pending) {
	for other := range c.inPass().calls(c) {
		for _, t := range other.tried {
			if t.cut != nil {
				list = append(list, t.cut)
			}
		}
	}
	return list
}

// wear is what an address has been through for a request.
type wear int

const (
	untried wear = iota
	ready        // it was given up, but has been connected to by now
	worn         // its connection broke once, or is still to come: it may be tried once more
	spent
)

// wearOf returns what an address has been through for c.
func (c *call) wearOf(addr netip.AddrPort) wear {
	n := untried
	for _, t := range c.tried {
		switch {
		case t.addr != addr:
		case n != untried:
			return spent
		case t.cut != nil:
			switch t.cut.Progress() {
			case pool.Succeeded:
				n = ready
			case pool.Underway:
				if n = worn; time.Until(c.inPass().deadlines[t.cut.Phase]) < pool.FailoverTimeout(t.cut.Phase) {
					return spent // there is no time left
				}
			default:
				return spent
			}
		case t.final:
			return spent
		default:
			n = worn
		}
	}
	return n
}

// Permit implements pool.Owner. It may be called after the request.
func (c *call) Permit(addr netip.AddrPort) error {
	if c.judge == nil {
		return nil
	}
	return c.judge.dial(c, addr)
}

// Confirm implements pool.Owner. It may be called after the request.
func (c *call) Confirm(local, remote netip.AddrPort) error {
	if c.judge == nil {
		return nil
	}
	return c.judge.connected(c, local, remote)
}

// Guard implements pool.Owner.
func (c *call) Guard() any { return c.judge }

// Source implements pool.Owner.
func (c *call) Source() any { return c.resolver }

// Watch implements pool.Owner.
func (c *call) Watch() func(addr netip.Addr) bool {
	if c.resolver == nil {
		return nil
	}
	return c.resolver.Watch(c.host, c.service != nil)
}

// dialError is a failure before anything of the request was sent. For
// reverse_proxy it is a reverseproxy.DialError, so that any request may be
// tried elsewhere, and a net.Error, so that a timeout becomes status 504.
type dialError struct {
	target string // target and address
	err    error
}

func newDialError(a *attempt, err error) error {
	target := a.address()
	if a.call != nil {
		target = a.call.host + " at " + target
	}
	return &dialError{target, err}
}

func (e *dialError) Error() string { return e.target + ": " + e.err.Error() }

func (e *dialError) Unwrap() error { return e.err }

// As makes e a reverseproxy.DialError for errors.As.
func (e *dialError) As(target any) bool {
	t, ok := target.(*reverseproxy.DialError)
	if ok {
		*t = reverseproxy.NewDialError(e.err)
	}
	return ok
}

// Timeout implements net.Error.
func (e *dialError) Timeout() bool { return isTimeout(e.err) }

// Temporary implements net.Error.
func (e *dialError) Temporary() bool { return false }

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
