package exchange

import (
	"net/http"

	"caddytarget/internal/failover"
	"caddytarget/internal/replay"
)

// Exchange is what all attempts of one reverse_proxy at a request have in common. They
// may call several records of a service, the names of several sources, and static
// upstreams. A route may be entered again, with another target: that is another
// exchange.
type Exchange struct {
	Plan failover.Plan

	// Looped says that the request has come through this server before.
	Looped bool

	request *http.Request // that reverse_proxy has made, for all attempts; nil: no source was asked
	body    *replay.Body  // of the request that is sent
}

// Enter returns the exchange of a request that reverse_proxy asks upstreams for.
func (st *State) Enter(r *http.Request) *Exchange {
	switch {
	case st.exchange == nil:
		st.exchange = &st.first
	case st.exchange.request != r && st.exchange.request != nil:
		st.exchange.Plan.Release()
		st.exchange = new(Exchange)
	}
	st.exchange.request = r
	return st.exchange
}

// HasEntered reports whether reverse_proxy has asked upstreams for a request before.
func (st *State) HasEntered(r *http.Request) bool {
	return st.exchange != nil && st.exchange.request == r
}

// Exchange returns the exchange that the request was in last; nil: none yet.
func (st *State) Exchange() *Exchange { return st.exchange }

// Current returns the exchange that the request is in.
func (st *State) Current() *Exchange {
	if st.exchange == nil {
		st.exchange = &st.first
	}
	return st.exchange
}

// CallIn returns the call of a request that has a target; nil: it has none. It joins the
// exchange x, which may be nil, if it belongs there.
func CallIn(x *Exchange, r *http.Request) *Call {
	c := CallOf(r.Context())
	switch {
	case c == nil:
	case x != nil && x.request != nil && CallOf(x.request.Context()) == c:
		c.Join(x) // beside a source with a name
	case c.Exchange == nil:
		c.Join(new(Exchange))
	}
	return c
}

// bodyOf returns the body of a request that is to be sent, the same one in all
// attempts.
func (x *Exchange) bodyOf(req *http.Request) *replay.Body {
	if x.body == nil || x.body.Source() != req.Body {
		x.body = replay.New(req.Body, 0)
	}
	return x.body
}

// resendable reports whether the request can be sent, or sent again, with all of its
// body: either it is kept here, or reverse_proxy keeps it and has made another reader
// of it.
func (x *Exchange) resendable() bool {
	return x.body.Replayable() || x.request != nil && x.request.Body != x.body.Source()
}
