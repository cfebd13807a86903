package caddytarget

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"caddytarget/internal/failover"
	"caddytarget/internal/httpfield"
	"caddytarget/internal/pool"
	"caddytarget/internal/replay"
)

// attempt is one attempt at a request. RoundTrip calls its methods in the order in
// which they stand here; what it sends is in outgoing.go.
type attempt struct {
	transport *Transport
	call      *call     // nil: no module of this package has seen the request
	exchange  *exchange // nil: none, and there is no body
	order     pool.Order
	out       http.Request // what is sent
	url       url.URL
	body      *replay.Body // nil: none
	trailers  trailers
	begun     time.Time       // set if the time until the response matters
	trial     *failover.Claim // on the address; nil: none
}

func newAttempt(t *Transport, req *http.Request, info reverseproxy.DialInfo) *attempt {
	a := &attempt{transport: t}
	a.call, a.exchange = callOf(req, info.Upstream)
	return a
}

// refuse returns why a request is not sent at all.
func (a *attempt) refuse(req *http.Request) error {
	c := a.call
	if err := req.Context().Err(); err != nil { // reverse_proxy tries again even then
		if c != nil && c.state.err == nil {
			c.state.err = fmt.Errorf("%s: %w", c.Host, err)
		}
		return err
	}
	if req.Method != http.MethodConnect { // a WebSocket over HTTP/2 is none any more
		return nil
	}
	err := malformedError{errConnect}
	if c != nil {
		c.state.err = err
		if c.policy != nil {
			c.policy.failed(c, http.StatusBadRequest, err)
		}
	}
	return caddyhttp.Error(http.StatusBadRequest, err)
}

// checkAddress checks the address of the order.
func (a *attempt) checkAddress() error {
	c := a.call
	if c == nil || c.policy == nil {
		return nil
	}
	if err := c.policy.checkUpstream(c, a.order.Key.Addr); err != nil {
		c.state.err = err
		return caddyhttp.Error(http.StatusForbidden, err)
	}
	return nil
}

// takeBody makes the body of a request one that can be sent more than once. It waits
// for its first octets: a client that sends nothing must not hold a connection. One
// that waits for the backend may.
func (a *attempt) takeBody(req *http.Request) (err error) {
	if !httpfield.HasBody(req) {
		a.out.Body = req.Body
		return nil
	}
	if a.exchange == nil {
		a.exchange = stateOf(req.Context()).current()
	}
	a.body = a.exchange.bodyOf(req)
	if a.out.Body, err = a.openBody(req); err == nil {
		a.out.GetBody = func() (io.ReadCloser, error) { return a.openBody(req) }
		err = a.body.AwaitFirst(httpfield.MayBeSilent(req) || a.transport.ExpectContinueTimeout > 0 && httpfield.ExpectsContinue(req))
	}
	if c := a.call; err != nil && c != nil {
		c.state.err = fmt.Errorf("%s: reading the request's body: %w", c.Host, err)
	}
	return err
}

// openBody returns the body from its beginning.
func (a *attempt) openBody(req *http.Request) (io.ReadCloser, error) {
	// over HTTP/2 a backend may say that it has not acted upon what was sent
	mayBeRefused := a.order.Key.Protocol == pool.HTTP2 || a.order.Key.Protocol == pool.TLS
	mayBeSentOn := a.transport.handlers != nil // in a handle_response
	return a.body.Open(isRetryable(req.Method) || mayBeRefused || mayBeSentOn)
}

// begin starts the probes that the request has claimed, and the trial of the attempt's
// address if it needs one.
func (a *attempt) begin() {
	if a.call != nil {
		a.trial = a.exchange.plan.Begin(&a.call.Target, &a.order, a.transport.pool.Probe)
	}
	if a.transport.UnhealthyLatency > 0 || a.call != nil && a.call.Measured {
		a.begun = time.Now()
	}
}

// failed records an attempt that got no response, and returns the error for
// reverse_proxy.
func (a *attempt) failed(e *pool.Error) error {
	c, ended := a.call, a.out.Context().Err()
	if ruleOf(e) != "" || errors.Is(e, pool.ErrLimit) {
		return a.notDialled(e)
	}
	var err error = e
	if !e.Dialling() {
		err = e.Err
	}
	if e.Dialling() || e.Phase != pool.Prepare && e.Sent == pool.Nothing && ended == nil && a.body.Replayable() {
		err = newDialError(a, err)
	}
	a.body.Fail(err)
	if c == nil {
		return err
	}
	c.state.err = err
	if ended != nil {
		c.state.err = fmt.Errorf("%s at %s: %w", c.Host, a.address(), ended)
	}
	f := failover.Failure{Addr: a.order.Key.Addr, Err: e, Begun: a.begun, Ended: ended}
	f.Deadline, _ = a.out.Context().Deadline()
	f.Incomplete, f.Broken = !a.body.Complete(), a.body.Broken()
	a.exchange.plan.Failed(&c.Target, &a.transport.via, f)
	return err
}

// notDialled returns the error of an attempt for which no connection was to be opened.
func (a *attempt) notDialled(e *pool.Error) error {
	c, status, err := a.call, http.StatusForbidden, e.Err
	if errors.Is(e, pool.ErrLimit) {
		status, err = http.StatusServiceUnavailable, newDialError(a, e)
	}
	if c != nil {
		c.Skip(a.order.Key.Addr)
		c.state.err = err
	}
	return caddyhttp.Error(status, err)
}

// worked records an attempt that got a response. If that is a redirect, it may be
// followed.
func (a *attempt) worked(req *http.Request, res *http.Response) {
	c, t := a.call, a.transport
	if c == nil {
		return
	}
	c.state.err = nil
	if t.isUnhealthy(res.StatusCode, a.begun) {
		c.Unhealthy(&t.via, a.order.Key.Addr)
	} else {
		c.Worked(&t.via, a.order.Key.Addr, a.begun)
	}
	if c.follower != nil {
		c.follower.responded(c, req, res, t.handlers)
	}
}

// isUnhealthy reports whether a response counts as a failure of the address.
func (t *Transport) isUnhealthy(status int, begun time.Time) bool {
	return t.UnhealthyLatency > 0 && time.Since(begun) >= time.Duration(t.UnhealthyLatency) ||
		slices.ContainsFunc(t.UnhealthyStatus, func(s int) bool { return caddyhttp.StatusCodeMatches(status, s) })
}

// end gives up what was claimed and has not begun, or has ended without an outcome.
func (a *attempt) end() {
	a.trial.End()
	if a.exchange != nil {
		a.exchange.plan.Release()
	}
}

// address returns what the attempt dials.
func (a *attempt) address() string {
	if a.order.Key.Addr.IsValid() {
		return a.order.Key.Addr.String()
	}
	return a.order.Key.Dial
}
