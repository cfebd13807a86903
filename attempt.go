package caddytarget

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"caddytarget/internal/failover"
	"caddytarget/internal/failure"
	"caddytarget/internal/httpfield"
	"caddytarget/internal/outgoing"
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
	out       outgoing.Request // what is sent
	body      *replay.Body     // nil: none
	begun     time.Time        // set if the time until the response matters
	trial     *failover.Claim  // on the address; nil: none
	recorded  *recordedAttempt // nil: it is not recorded

	responseBody responseBody
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
			e := &failure.Error{Target: c.Host, Phase: failure.Connect, Err: err}
			c.ranOut(err, e)
			c.state.err = e
		}
		return err
	}
	if req.Method != http.MethodConnect { // a WebSocket over HTTP/2 is none any more
		return nil
	}
	err := failure.NewMalformed(failure.ErrConnect)
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
		c.state.err = bodyFailed(c.Host, err)
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
	if failure.RuleOf(e) != "" || errors.Is(e, pool.ErrLimit) {
		return a.notDialled(e)
	}
	failed := a.failure(e)
	var err error = failed
	if e.Dialling() || e.Phase != pool.Prepare && e.Sent == pool.Nothing && ended == nil && a.body.Replayable() {
		err = dialError{failed}
	}
	a.body.Fail(err)
	if c == nil {
		return err
	}
	if ended != nil {
		failed.Err = ended
		c.ranOut(ended, failed)
	}
	c.state.err = err
	c.state.opened = c.state.opened || e.Phase > pool.Handshake && e.Phase != pool.Prepare && !e.Reused
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
		status, err = http.StatusServiceUnavailable, dialError{a.failure(e)}
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
	failure.DropProxyStatus(res.Header)
	if c == nil {
		return
	}
	c.state.err = nil
	c.state.opened = c.state.opened || !c.state.reused
	t.shared.counters.answered(c.state.reused)
	a.watchBody(res)
	if reason := t.unhealthy(res.StatusCode, a.begun); reason != nil {
		c.Unhealthy(&t.via, a.order.Key.Addr, reason)
	} else {
		c.Worked(&t.via, a.order.Key.Addr, a.begun)
	}
	if c.follower != nil {
		c.responded(req, res, t.handlers)
	}
}

// unhealthy returns why a response counts as a failure of the address; nil: it does not.
func (t *Transport) unhealthy(status int, begun time.Time) error {
	if t.UnhealthyLatency > 0 {
		if took := time.Since(begun); took >= time.Duration(t.UnhealthyLatency) {
			return &failure.Unhealthy{Latency: took}
		}
	}
	if slices.ContainsFunc(t.UnhealthyStatus, func(s int) bool { return caddyhttp.StatusCodeMatches(status, s) }) {
		return &failure.Unhealthy{Status: status}
	}
	return nil
}

// responseBody is the body of a response. It notes if the body does not come to its end.
type responseBody struct {
	io.ReadCloser
	attempt *attempt
	trailer *http.Header // complete when the body has been read; nil until then if it was not announced
}

// watchBody notes how the body of a response ends.
func (a *attempt) watchBody(res *http.Response) {
	if res.StatusCode != http.StatusSwitchingProtocols && res.Body != http.NoBody {
		a.responseBody = responseBody{res.Body, a, &res.Trailer}
		res.Body = &a.responseBody
	}
}

// Read implements io.Reader.
func (b *responseBody) Read(p []byte) (n int, err error) {
	n, err = b.ReadCloser.Read(p)
	switch a := b.attempt; {
	case err == nil:
	case err == io.EOF:
		failure.DropProxyStatus(*b.trailer)
	case a.out.Context().Err() == nil || errors.Is(a.out.Context().Err(), context.DeadlineExceeded):
		failed := &failure.Error{Target: a.call.Host, Address: a.address(), Phase: failure.Response, Err: err, Incomplete: true}
		a.call.ranOut(a.out.Context().Err(), failed)
		a.call.state.err = failed
	}
	return n, err
}

// end gives up what was claimed and has not begun, or has ended without an outcome.
func (a *attempt) end() {
	a.trial.End()
	if a.exchange != nil {
		a.exchange.plan.Release()
	}
}

// failure returns the error of an attempt.
func (a *attempt) failure(e *pool.Error) *failure.Error {
	target := ""
	if a.call != nil {
		target = a.call.Host
	}
	failed := failure.OfPool(target, a.address(), e)
	if a.body != nil && a.body.Broken() {
		failed.Phase = failure.Request
	}
	return failed
}

// bodyFailed returns the error of a request whose body could not be read.
func bodyFailed(target string, err error) error {
	return &failure.Error{Target: target, Phase: failure.Request, Err: fmt.Errorf("reading the request's body: %w", err)}
}

// address returns what the attempt dials.
func (a *attempt) address() string {
	if a.order.Key.Addr.IsValid() {
		return a.order.Key.Addr.String()
	}
	return a.order.Key.Dial
}
