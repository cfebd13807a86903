package caddytarget

import (
	"context"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"caddytarget/internal/health"
)

// pass holds what all attempts of one reverse_proxy at a request have in common: they may
// call several records of a service, the names of several sources, and static upstreams.
// A route may be entered again, with another target: that is another pass.
type pass struct {
	request *http.Request // that reverse_proxy has made, for all attempts; nil: no source was asked

	looped    bool         // the request has come through this server before
	named     []*namedCall // of sources that have a name of their own
	target    *call        // of a source that has none; nil: there is no such source
	offered   bool         // addresses of target
	deadlines [2]time.Time // when the time for a phase of dialling is over; zero: each dial has its own
	body      *requestBody // of the request that is sent
}

// enter returns the pass of a request that reverse_proxy asks upstreams for.
func (st *requestState) enter(r *http.Request) *pass {
	switch {
	case st.pass == nil:
		st.pass = &st.first
	case st.pass.request != r && st.pass.request != nil:
		st.pass.release(nil)
		st.pass = new(pass)
	}
	st.pass.request = r
	return st.pass
}

// current returns the pass that the request is in.
func (st *requestState) current() *pass {
	if st.pass == nil {
		st.pass = &st.first
	}
	return st.pass
}

// enter makes c the call of a pass to the request's target. What was tried in another
// one does not count.
func (c *call) enter(p *pass) {
	if c.pass != p {
		c.pass, c.tried = p, nil
	}
	p.target = c
}

// inPass returns the pass that c belongs to.
func (c *call) inPass() *pass {
	if c.pass == nil {
		c.pass = new(pass)
	}
	return c.pass
}

// bodyOf returns the body of a request that is to be sent, the same one in all
// attempts; header fields named drop are not sent on.
func (p *pass) bodyOf(req *http.Request, drop string) *requestBody {
	if p.body == nil || p.body.source != req.Body {
		p.body = &requestBody{source: req.Body, trailer: req.Trailer, strip: drop}
	}
	return p.body
}

// sendable reports whether the request can be sent, or sent again, with all of its body:
// either it is kept here, or reverse_proxy keeps it and has made another reader of it.
func (p *pass) sendable() bool {
	return p.body.whole() || p.request != nil && p.request.Body != p.body.source
}

// calls returns the calls of the pass, c, which may be nil, among them.
func (p *pass) calls(c *call) func(yield func(*call) bool) {
	return func(yield func(*call) bool) {
		for _, n := range p.named {
			if &n.call == c {
				c = nil
			}
			if n.call.host != "" && !yield(&n.call) {
				return
			}
		}
		if p.target != nil && p.target != c && !yield(p.target) {
			return
		}
		if c != nil {
			yield(c)
		}
	}
}

// offersBeside reports whether a source offers something beside that of c.
func (p *pass) offersBeside(c *call) bool {
	for _, n := range p.named {
		if len(n.offers) > 0 && &n.call != c && (c.service == nil || n.call.service != c.service) {
			return true
		}
	}
	return p.target != nil && p.target != c && p.offered
}

// release gives up what was claimed and not begun.
func (p *pass) release(c *call) {
	for other := range p.calls(c) {
		other.release()
	}
}

// claim is an address that a request is going to try, or to probe in the background,
// since it failed a while ago. It is given up if that does not begin before the request
// is over.
type claim struct {
	addr  netip.Addr
	trial health.Trial
	taken atomic.Bool // begun, or given up
}

// claim reserves an address that needs a trial, or a probe, for this request. It returns
// nil if another request was before it.
func (u *Upstreams) claim(ctx context.Context, c *call, p *health.Policy, a netip.Addr, s health.State) *claim {
	state, trial := u.health.Claim(p, c.host, netip.AddrPortFrom(a, c.port))
	if state != s {
		if state != health.Ejected && state != health.Healthy {
			trial.Release()
		}
		return nil
	}
	l := &claim{addr: a, trial: trial}
	context.AfterFunc(ctx, l.release)
	return l
}

// begin reports whether the probe or the attempt may begin.
func (l *claim) begin() bool { return l.taken.CompareAndSwap(false, true) }

// release gives the claim up, unless the probe or the attempt has begun.
func (l *claim) release() {
	if l.begin() {
		l.trial.Release()
	}
}

// release gives up what was claimed for c and not begun.
func (c *call) release() {
	for _, l := range c.probe {
		l.release()
	}
	c.probe = nil
	if c.trial != nil {
		c.trial.release()
		c.trial = nil
	}
}

// stateFor returns the state of a request that a transport sends; a new one if no module
// of ours has seen it.
func stateFor(ctx context.Context) *requestState {
	if st, ok := caddyhttp.GetVar(ctx, stateVar).(*requestState); ok {
		return st
	}
	if repl, ok := ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		return stateOf(ctx, repl)
	}
	return new(requestState)
}
