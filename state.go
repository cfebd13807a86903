package caddytarget

import (
	"context"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"caddytarget/internal/failover"
	"caddytarget/internal/failure"
	"caddytarget/internal/httpfield"
	"caddytarget/internal/record"
	"caddytarget/internal/replay"
	"caddytarget/internal/targeturl"
)

// requestState is what the modules of this package know of a request. It stands
// behind the placeholders, and stays in the request's variables: there may be several
// handlers one after the other, or one that is entered again by handle_errors, and
// those after them do not see the handler's context.
type requestState struct {
	progress
	exchange  *exchange // the last one
	first     exchange
	explained *explained // nil: the request is a real one
}

// explained is what makes a request one that is only explained: nothing of it is counted
// or logged, and it is not sent.
type explained struct {
	url *string // the value of the template Handler.URL; nil: it is read as always
}

// progress is what is known since the last handler began.
type progress struct {
	call     *call // the last one that was parsed
	returned bool  // the handlers that call it have returned
	err      error // why there is no going on
	reported bool  // err is in the log
	record   *record.Request

	timeout     time.Duration  // of the handler, as it is configured; zero: none
	attempts    int            // how many were made
	address     netip.AddrPort // of the last one
	reused      bool           // its connection had carried other requests
	opened      bool           // an attempt was sent over a new connection
	unavailable bool           // all addresses were known to fail when they were first offered

	redirects   int   // how many were followed
	notFollowed error // why one was not
}

const stateVar = "caddytarget.state"

// stateOf returns the state of a request; it is made when it is first asked for.
func stateOf(ctx context.Context) *requestState {
	if st, ok := caddyhttp.GetVar(ctx, stateVar).(*requestState); ok {
		return st
	}
	st := new(requestState)
	caddyhttp.SetVar(ctx, stateVar, st)
	if repl, ok := ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Map(st.placeholder)
	}
	return st
}

// begin forgets what the handler before this one has left, and returns what it called.
// returned reports whether the handlers that called it have returned.
func (st *requestState) begin() (last *call, returned bool) {
	last, returned = st.call, st.returned
	st.progress = progress{}
	return last, returned
}

// placeholder gives the values of the placeholders of Handler.
func (st *requestState) placeholder(key string) (any, bool) {
	name, ok := strings.CutPrefix(key, "http.target.")
	if !ok {
		return nil, false
	}
	switch name {
	case "error":
		return st.errorText(), true
	case "failure":
		return string(st.failure().Token), true
	case "phase":
		return string(st.failure().Phase), true
	case "rule":
		return st.failure().Rule, true
	case "attempts":
		return st.attempts, true
	case "address":
		if !st.address.IsValid() {
			return "", true
		}
		return st.address.String(), true
	case "reused":
		return st.reused, true
	case "redirects":
		return st.redirects, true
	case "not_followed":
		return failure.Text(st.notFollowed), true
	}
	if st.call == nil {
		return new(call).placeholder(name)
	}
	return st.call.placeholder(name)
}

// placeholder gives the values of those placeholders that are about the target.
func (c *call) placeholder(name string) (any, bool) {
	switch name {
	case "url":
		if c.scheme == "" {
			return "", true
		}
		return c.scheme + "://" + targeturl.JoinHostPort(c.scheme, c.Host, c.Port) + c.uri, true
	case "scheme":
		return c.scheme, true
	case "host":
		return c.Host, true
	case "port":
		if c.Port == 0 {
			return "", true
		}
		return c.Port, true
	case "hostport":
		return c.hostport, true
	case "addresses":
		list := make([]string, len(c.Addrs))
		for i, a := range c.Addrs {
			list[i] = a.String()
		}
		return strings.Join(list, ","), true
	case "lookup":
		return c.answer.From, true
	case "lookup_ms":
		return float64(c.answer.Waited.Microseconds()) / 1e3, true
	}
	return nil, false
}

// exchange is what all attempts of one reverse_proxy at a request have in common. They
// may call several records of a service, the names of several sources, and static
// upstreams. A route may be entered again, with another target: that is another
// exchange.
type exchange struct {
	request *http.Request // that reverse_proxy has made, for all attempts; nil: no source was asked
	looped  bool          // the request has come through this server before

	named []*named // of sources that have a name of their own
	plan  failover.Plan
	body  *replay.Body // of the request that is sent
}

// named is what a source with a name of its own calls.
type named struct {
	source  *Upstreams
	call    call     // unless it is a service
	service *service // nil: one name
	offers  []offer
	room    [1]offer // for those of one name
}

// offer is upstreams for some addresses of a call.
type offer struct {
	call      *call
	upstreams []*reverseproxy.Upstream
}

// enter returns the exchange of a request that reverse_proxy asks upstreams for.
func (st *requestState) enter(r *http.Request) *exchange {
	switch {
	case st.exchange == nil:
		st.exchange = &st.first
	case st.exchange.request != r && st.exchange.request != nil:
		st.exchange.plan.Release()
		st.exchange = new(exchange)
	}
	st.exchange.request = r
	return st.exchange
}

// current returns the exchange that the request is in.
func (st *requestState) current() *exchange {
	if st.exchange == nil {
		st.exchange = &st.first
	}
	return st.exchange
}

// enter makes c a call of an exchange. What was tried in another one does not count.
func (c *call) enter(x *exchange) {
	c.exchange, c.Owner = x, c
	x.plan.Add(&c.Target)
}

// callOf returns what is called by way of an upstream, and the exchange that this
// belongs to: nil if neither a handler nor a source of this module knows of it.
func callOf(r *http.Request, upstream *reverseproxy.Upstream) (*call, *exchange) {
	ctx := r.Context()
	var x *exchange
	if st, ok := caddyhttp.GetVar(ctx, stateVar).(*requestState); ok && st.exchange != nil {
		x = st.exchange
		for _, n := range x.named {
			for _, o := range n.offers {
				if slices.Contains(o.upstreams, upstream) {
					return o.call, x
				}
			}
		}
	}
	c, ok := ctx.Value(callKey{}).(*call)
	switch {
	case !ok:
		return nil, x
	case x != nil && x.request != nil && x.request.Context().Value(callKey{}) == c:
		c.enter(x) // beside a source with a name
	case c.exchange == nil:
		c.enter(new(exchange))
	}
	return c, c.exchange
}

// of returns what a source has called in the exchange; nil if it has not yet.
func (x *exchange) of(u *Upstreams) *named {
	if i := slices.IndexFunc(x.named, func(n *named) bool { return n.source == u }); i >= 0 {
		return x.named[i]
	}
	return nil
}

// bodyOf returns the body of a request that is to be sent, the same one in all
// attempts.
func (x *exchange) bodyOf(req *http.Request) *replay.Body {
	if x.body == nil || x.body.Source() != req.Body {
		x.body = replay.New(req.Body, 0)
	}
	return x.body
}

// reopenBody makes the body of a request readable once more, for another handler than
// the one that made c, which may be nil. returned says that the handlers that sent it
// have returned; else reverse_proxy still has it, in handle_response.
func (c *call) reopenBody(r *http.Request, returned bool) {
	switch {
	case c == nil || !httpfield.HasBody(r):
	case returned && c.follower != nil:
		c.follower.RestoreBody(r)
	case c.exchange == nil || c.exchange.body == nil:
	case !returned:
		r.Body = c.exchange.body.Reopen(true)
	default:
		if body := c.exchange.body.Rest(r.ContentLength); body != nil {
			r.Body = body
		}
	}
}

// resendable reports whether the request can be sent, or sent again, with all of its
// body: either it is kept here, or reverse_proxy keeps it and has made another reader
// of it.
func (x *exchange) resendable() bool {
	return x.body.Replayable() || x.request != nil && x.request.Body != x.body.Source()
}
