package caddytarget

import (
	"context"
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"caddytarget/internal/exchange"
)

// requestState is what the modules of this package know of a request. It stands
// behind the placeholders, and stays in the request's variables: there may be several
// handlers one after the other, or one that is entered again by handle_errors, and
// those after them do not see the handler's context.
type requestState struct {
	exchange.State

	named   []*named           // of sources that have a name of their own
	namedIn *exchange.Exchange // for which they were asked
}

// named is what a source with a name of its own calls.
type named struct {
	source  *exchange.Source
	call    exchange.Call     // unless it is a service
	service *exchange.Service // nil: one name
	offers  []offer
	room    [1]offer // for those of one name
}

// offer is upstreams for some addresses of a call.
type offer struct {
	call      *exchange.Call
	upstreams []*reverseproxy.Upstream
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
		repl.Map(st.Placeholder)
	}
	return st
}

// namedOf returns what the sources with names have called in an exchange.
func (st *requestState) namedOf(x *exchange.Exchange) []*named {
	if st.namedIn != x {
		st.named, st.namedIn = nil, x
	}
	return st.named
}

// callOf returns what is called by way of an upstream, and the exchange that this
// belongs to: nil if neither a handler nor a source of this module knows of it.
func callOf(r *http.Request, upstream *reverseproxy.Upstream) (*exchange.Call, *exchange.Exchange) {
	var x *exchange.Exchange
	if st, ok := caddyhttp.GetVar(r.Context(), stateVar).(*requestState); ok && st.Exchange() != nil {
		x = st.Exchange()
		for _, n := range st.namedOf(x) {
			for _, o := range n.offers {
				if slices.Contains(o.upstreams, upstream) {
					return o.call, x
				}
			}
		}
	}
	if c := exchange.CallIn(x, r); c != nil {
		return c, c.Exchange
	}
	return nil, x
}
