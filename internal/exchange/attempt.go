package exchange

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"caddytarget/internal/failover"
	"caddytarget/internal/failure"
	"caddytarget/internal/httpfield"
	"caddytarget/internal/outgoing"
	"caddytarget/internal/pool"
	"caddytarget/internal/record"
	"caddytarget/internal/replay"
)

// Transport is what has to be known of the transport that makes an attempt.
type Transport struct {
	failover.Transport
	Answered func(reused bool)        // counts a response
	Probe    func(o *pool.Order) bool // begins a probe: see pool.Pool.Probe
	Continue bool                     // it waits for 100 (Continue)

	// UnhealthyStatus has the status codes of responses that count as failures of the
	// address, and the classes of them (5); UnhealthyLatency is how long another one may
	// take, if it is not zero.
	UnhealthyStatus  []int
	UnhealthyLatency time.Duration

	// Interval is how long reverse_proxy waits before it tries again.
	Interval time.Duration

	// Takes reports whether a handle_response takes a response; nil: there is none.
	Takes func(res *http.Response) bool
}

// Attempt is one attempt at a request. RoundTrip of the module's Transport calls its methods
// in the order in which they stand here, up to End.
type Attempt struct {
	Call     *Call     // nil: no handler or source has seen the request
	Exchange *Exchange // nil: none, and there is no body
	Order    pool.Order
	Out      outgoing.Request // what is sent
	Recorded *record.Attempt  // nil: it is not recorded

	transport *Transport
	body      *replay.Body // nil: none

	responseBody    io.ReadCloser
	responseTrailer *http.Header // complete when the body has been read; nil until then if it was not announced
}

// NewAttempt returns an attempt at what a call describes, in an exchange.
func NewAttempt(t *Transport, c *Call, x *Exchange) *Attempt {
	return &Attempt{transport: t, Call: c, Exchange: x}
}

// Refuse returns why a request is not sent at all.
func (a *Attempt) Refuse(req *http.Request) error {
	c := a.Call
	if err := endOf(req.Context()); err != nil { // reverse_proxy tries again even then
		if c != nil && c.State.Err == nil {
			e := &failure.Error{Target: c.Host, Phase: failure.Connect, Err: err}
			if c.hasRunOut(err) {
				e.NotDialled(c.State.Timeout)
			}
			c.State.Err = e
		}
		if c != nil && errors.Is(err, context.DeadlineExceeded) {
			if e, ok := errors.AsType[*failure.Error](c.State.Err); ok {
				return e // of the attempt before, unless there was none
			}
		}
		return err
	}
	if req.Method != http.MethodConnect { // a WebSocket over HTTP/2 is none any more
		return nil
	}
	err := failure.NewMalformed(failure.ErrConnect)
	if c != nil {
		c.State.Err = err
		if c.Policy != nil {
			c.Policy.Failed(c, http.StatusBadRequest, err)
		}
	}
	return &Refused{http.StatusBadRequest, err}
}

// SetOrder sets what the attempt wants of the pool: a connection to an address. What the
// transport has to say of its key is left to it.
func (a *Attempt) SetOrder(network, address, scheme string, header http.Header) {
	c, o := a.Call, &a.Order
	if o.Last = true; c != nil {
		a.Exchange.Plan.FillOrder(&c.Target, &a.transport.Transport, o)
	}
	outgoing.SetKey(&o.Key, network, address, scheme, header)
	o.Key.Host = o.Target
	if c != nil {
		c.State.Attempts++
		o.Reused = &c.State.Reused
		c.State.Address = o.Key.Addr
	}
}

// CheckAddress checks the address of the order.
func (a *Attempt) CheckAddress() error {
	c := a.Call
	if c == nil || c.Policy == nil {
		return nil
	}
	if err := c.checkUpstream(a.Order.Key.Addr); err != nil {
		c.State.Err = err
		return &Refused{http.StatusForbidden, err}
	}
	return nil
}

// TakeBody makes the body of a request one that can be sent more than once. It waits
// for its first octets: a client that sends nothing must not hold a connection. One
// that waits for the backend may. The attempt has an exchange if there is a body.
func (a *Attempt) TakeBody(req *http.Request) (err error) {
	if !httpfield.HasBody(req) {
		a.Out.Body = req.Body
		return nil
	}
	a.body = a.Exchange.bodyOf(req)
	if a.Out.Body, err = a.openBody(req); err == nil {
		a.Out.GetBody = func() (io.ReadCloser, error) { return a.openBody(req) }
		err = a.body.AwaitFirst(httpfield.MayBeSilent(req) || a.transport.Continue && httpfield.ExpectsContinue(req))
	}
	if c := a.Call; err != nil && c != nil {
		c.State.Err = BodyFailed(c.Host, err)
	}
	return err
}

// openBody returns the body from its beginning.
func (a *Attempt) openBody(req *http.Request) (io.ReadCloser, error) {
	// over HTTP/2 a backend may say that it has not acted upon what was sent
	mayBeRefused := a.Order.Key.Protocol == pool.HTTP2 || a.Order.Key.Protocol == pool.TLS
	mayBeSentOn := a.transport.Takes != nil // in a handle_response
	return a.body.Open(IsRetryable(req.Method) || mayBeRefused || mayBeSentOn)
}

// SetOut makes what is sent of the request, but for its body.
func (a *Attempt) SetOut(req *http.Request, changes outgoing.Changes) {
	if c := a.Call; c != nil {
		changes.Strip = c.Strip
		if c.Foreign {
			c.Follower.DropCredentials(req.Header)
		}
	}
	a.Out.Set(req, a.body, changes)
	if a.Recorded != nil {
		a.Out.Header = a.Recorded.Header(req.Header)
	}
}

// Begin starts the probes that the request has claimed, and the trial of the attempt's
// address if it needs one.
func (a *Attempt) Begin() {
	c := a.Call
	if c == nil {
		return
	}
	a.Exchange.Plan.Begin(&c.Target, &a.Order, a.transport.Probe)
	if a.transport.UnhealthyLatency > 0 || c.Measured {
		c.Begun = time.Now()
	}
}

// Failed records an attempt that got no response, and returns the error: Refused, Unsent or
// a failure. After Unsent reverse_proxy tries any request again, else only a GET (or what
// lb_retry_match says).
func (a *Attempt) Failed(e *pool.Error) error {
	c, ended := a.Call, endOf(a.Out.Context())
	if failure.RuleOf(e) != "" || errors.Is(e, pool.ErrLimit) {
		return a.notDialled(e)
	}
	failed := a.failure(e)
	var err error = failed
	// Nothing is sent, too, where a backend of HTTP/2 says that it has not acted on the request.
	if e.Dialling() || e.Phase != pool.Prepare && e.Sent == pool.Nothing && ended == nil && a.body.Replayable() {
		err = Unsent{failed}
	}
	a.body.Fail(err)
	if c == nil {
		return err
	}
	if ended != nil {
		failed.Err = ended
		c.ranOut(ended, failed)
	}
	c.State.Err = err
	c.State.Opened = c.State.Opened || e.Phase > pool.Handshake && e.Phase != pool.Prepare && !e.Reused
	f := failover.Failure{Addr: a.Order.Key.Addr, Err: e, Ended: ended}
	f.Deadline, _ = a.Out.Context().Deadline()
	f.Incomplete, f.Broken = !a.body.Complete(), a.body.Broken()
	a.Exchange.Plan.Failed(&c.Target, &a.transport.Transport, f)
	return err
}

// notDialled returns the error of an attempt for which no connection was to be opened.
func (a *Attempt) notDialled(e *pool.Error) error {
	c, status, err := a.Call, http.StatusForbidden, e.Err
	if errors.Is(e, pool.ErrLimit) {
		status, err = http.StatusServiceUnavailable, Unsent{a.failure(e)}
	}
	if c != nil {
		c.Skip(a.Order.Key.Addr)
		c.State.Err = err
	}
	return &Refused{status, err}
}

// Worked records an attempt that got a response. If that is a redirect, it may be
// followed.
func (a *Attempt) Worked(req *http.Request, res *http.Response) {
	c, t := a.Call, a.transport
	failure.DropProxyStatus(res.Header)
	if c == nil {
		return
	}
	c.State.Err = nil
	c.State.Opened = c.State.Opened || !c.State.Reused
	t.Answered(c.State.Reused)
	a.watchBody(res)
	if reason := t.unhealthy(res.StatusCode, c.Begun); reason != nil {
		c.Unhealthy(&t.Transport, a.Order.Key.Addr, reason)
	} else {
		c.Target.Worked(&t.Transport, a.Order.Key.Addr)
	}
	if c.Follower != nil {
		a.redirected(req, res)
	}
}

// unhealthy returns why a response counts as a failure of the address; nil: it does not.
func (t *Transport) unhealthy(status int, begun time.Time) error {
	if t.UnhealthyLatency > 0 {
		if took := time.Since(begun); took >= t.UnhealthyLatency {
			return &failure.Unhealthy{Latency: took}
		}
	}
	for _, s := range t.UnhealthyStatus {
		if status == s || status/100 == s {
			return &failure.Unhealthy{Status: status}
		}
	}
	return nil
}

// End gives up what was claimed and has not begun, or has ended without an outcome.
func (a *Attempt) End() {
	if a.Exchange != nil {
		a.Exchange.Plan.Release()
	}
}

// IsLast reports whether an attempt that has failed is the last one because the request's
// time is over, or will be before another attempt can begin. It keeps reverse_proxy from
// trying again, which for a GET would go on for as long as lb_try_duration says, unless an
// lb_retry_match looks at something else than the method.
func (a *Attempt) IsLast(req *http.Request) bool {
	deadline, ok := req.Context().Deadline()
	if !ok || time.Until(deadline) > a.transport.Interval {
		return false
	}
	if x := a.Exchange; x != nil && x.request != nil {
		x.request.Method = "" // which reverse_proxy does not try again
	}
	return true
}

// failure returns the error of an attempt.
func (a *Attempt) failure(e *pool.Error) *failure.Error {
	target := ""
	if a.Call != nil {
		target = a.Call.Host
	}
	failed := failure.OfPool(target, a.Address(), e)
	if a.body != nil && a.body.Broken() {
		failed.Phase = failure.Request
	}
	return failed
}

// Address returns what the attempt dials.
func (a *Attempt) Address() string {
	if a.Order.Key.Addr.IsValid() {
		return a.Order.Key.Addr.String()
	}
	return a.Order.Key.Dial
}

// NotConnected returns the error of an attempt whose connection could not be opened. It
// records nothing.
func (a *Attempt) NotConnected(e *pool.Error) error {
	if failure.RuleOf(e) != "" {
		return e.Err
	}
	failed := a.failure(e)
	if ended := endOf(a.Out.Context()); ended != nil {
		failed.Err = ended
		a.Call.ranOut(ended, failed)
	}
	return failed
}
