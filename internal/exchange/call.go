package exchange

import (
	"context"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"caddytarget/internal/failover"
	"caddytarget/internal/guard"
	"caddytarget/internal/httpfield"
	"caddytarget/internal/pool"
	"caddytarget/internal/redirect"
	"caddytarget/internal/resolver"
	"caddytarget/internal/targeturl"
)

// Call describes what a request calls: the request's target, the name of a source, or
// one record of a service. What makes one sets its fields; after that only this package
// writes them.
type Call struct {
	failover.Target // name, port and addresses, and what was tried of them

	Scheme   string          // empty: that of the transport
	HostPort string          // the Host header
	URI      string          // path and query
	Answer   resolver.Answer // before the policy left anything out

	Client   Client
	Policy   *Policy // nil: the operator wrote the name
	Resolver *resolver.Resolver
	Complete bool   // the name is not searched for
	Strip    string // a header field of the request that is not sent on

	Follower *redirect.Follower // nil: redirects are the client's
	Foreign  bool               // a redirect led to another origin: it gets no credentials

	Exchange *Exchange // that the attempts belong to
	State    *State
}

// Client is what the log tells of the client of a request.
type Client struct{ Host, Remote string }

// ClientOf returns the client of a request.
func ClientOf(r *http.Request) Client { return Client{r.Host, r.RemoteAddr} }

// Context is the context of a request that has a target.
type Context struct {
	context.Context
	Call Call
}

type callKey struct{}

// Value implements context.Context.
func (c *Context) Value(key any) any {
	if _, ok := key.(callKey); ok {
		return &c.Call
	}
	return c.Context.Value(key)
}

// CallOf returns the call of the [Context] that a context is or descends from; nil if there
// is none.
func CallOf(ctx context.Context) *Call {
	c, _ := ctx.Value(callKey{}).(*Call)
	return c
}

// LimitTime gives a request the time of the handler's timeout. stop has to be called at its
// end.
func (c *Context) LimitTime(w http.ResponseWriter, r *http.Request, timeout time.Duration) (stop func()) {
	c.Call.State.Timeout = timeout
	if c.Call.Limit == "" {
		c.Call.Timeout = timeout
	}
	var cancel context.CancelFunc
	c.Context, cancel = context.WithTimeout(c.Context, timeout)
	if r.ContentLength == 0 {
		return cancel
	}
	// a client that does not send its body must not hold the request up
	control := http.NewResponseController(w)
	if control.SetReadDeadline(time.Now().Add(timeout+bodyGrace)) != nil {
		return cancel
	}
	return func() {
		_ = control.SetReadDeadline(time.Time{})
		cancel()
	}
}

// bodyGrace is how much longer than for the whole request it is waited for its body, so that
// the context ends first.
const bodyGrace = 50 * time.Millisecond

// endOf returns why the context of a request has ended; nil: it has not. For net/http a
// client that has not sent its body by the deadline of LimitTime has left. On a busy machine
// the context may learn that before it learns that its own time is over.
func endOf(ctx context.Context) error {
	err := ctx.Err()
	if end, ok := ctx.Deadline(); ok && err == context.Canceled && time.Since(end) >= bodyGrace {
		return context.DeadlineExceeded
	}
	return err
}

// IsRetryable reports whether a request may be sent again whatever the backend has done
// with it. That is for GET alone: what reverse_proxy repeats, too.
func IsRetryable(method string) bool { return method == http.MethodGet }

// SetURL makes c the call of a target. Without a path, it has no path and query yet.
func (c *Call) SetURL(u targeturl.URL) {
	c.Scheme, c.Host, c.Port, c.HostPort, c.URI = u.Scheme, u.Host, u.Port, u.HostPort, u.Path
	if u.HasQuery {
		c.URI += "?" + u.Query
	}
}

// url returns the URL of a request for c that was sent with a request URI.
func (c *Call) url(uri string) *targeturl.URL {
	u := &targeturl.URL{Scheme: c.Scheme, Host: c.Host, Port: c.Port}
	u.Path, u.Query, u.HasQuery = strings.Cut(uri, "?")
	return u
}

// Origin returns what requests in flight are counted by.
func (c *Call) Origin() guard.Origin {
	return guard.Origin{Scheme: c.Scheme, Host: c.Host, Port: c.Port}
}

// isExplained reports whether the request is only explained. c may be nil.
func (c *Call) isExplained() bool { return c != nil && c.State != nil && c.State.Explained != nil }

// Join makes c a call of an exchange. What was tried in another one does not count.
func (c *Call) Join(x *Exchange) {
	c.Exchange, c.Owner = x, c
	x.Plan.Add(&c.Target)
}

// Offer returns the addresses of c that should be tried now. If none is healthy, its name is
// asked for again.
func (c *Call) Offer(ctx context.Context, s *failover.Source) failover.Offer {
	x := c.Exchange
	o := s.Next(ctx, &x.Plan, &c.Target, x.resendable())
	if !o.Healthy && c.renew(ctx) {
		o = s.Next(ctx, &x.Plan, &c.Target, x.resendable())
	}
	if !o.Healthy && x.Plan.Tries() == 0 && c.State != nil {
		c.State.unavailable = true
	}
	return o
}

// ReopenBody makes the body of a request readable once more, for another handler than
// the one that made c, which may be nil. returned says that the handlers that sent it
// have returned; else reverse_proxy still has it, in handle_response.
func (c *Call) ReopenBody(r *http.Request, returned bool) {
	switch {
	case c == nil || !httpfield.HasBody(r):
	case returned && c.Follower != nil:
		c.Follower.RestoreBody(r)
	case c.Exchange == nil || c.Exchange.body == nil:
	case !returned:
		r.Body = c.Exchange.body.Reopen(true)
	default:
		if body := c.Exchange.body.Rest(r.ContentLength); body != nil {
			r.Body = body
		}
	}
}

// IsBodySent reports whether all of the request's body was sent to what c calls.
func (c *Call) IsBodySent() bool {
	x := c.Exchange
	return x != nil && x.body != nil && x.body.Complete()
}

// Permit implements pool.Owner. It may be called after the request.
func (c *Call) Permit(addr netip.AddrPort) error {
	if c.Policy == nil {
		return nil
	}
	return c.forbid(c.Policy.Gate.Permit(c.Host, addr))
}

// Confirm implements pool.Owner. It may be called after the request.
func (c *Call) Confirm(local, remote netip.AddrPort) error {
	if c.Policy == nil {
		return nil
	}
	return c.forbid(c.Policy.Gate.Confirm(c.Host, local, remote))
}

// Guard implements pool.Owner.
func (c *Call) Guard() any { return c.Policy }

// Source implements pool.Owner.
func (c *Call) Source() any { return c.Resolver }

// Watch implements pool.Owner.
func (c *Call) Watch() func(addr netip.Addr) bool {
	if c.Resolver == nil {
		return nil
	}
	return c.Resolver.Watch(c.Host, c.Complete)
}

// Interface guards
var _ pool.Owner = (*Call)(nil)
