package exchange

import (
	"fmt"
	"net/http"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"caddytarget/internal/guard"
	"caddytarget/internal/redirect"
	"caddytarget/internal/targeturl"
)

// redirected has a response followed if it is a redirect.
func (a *Attempt) redirected(req *http.Request, res *http.Response) {
	c, t := a.Call, a.transport
	c.Follower.Begin()
	if !redirect.IsStatus(res.StatusCode) {
		return
	}
	err := c.Follower.Responded(c.url(req.URL.RequestURI()), req, res, t.Takes != nil && t.Takes(res))
	if err == nil {
		return
	}
	c.State.notFollowed = err
	if ce := c.Policy.Log.Check(zapcore.DebugLevel, "redirect not followed"); ce != nil {
		ce.Write(append(fields(c, err), zap.Int("status", res.StatusCode), zap.Int("redirects", c.Follower.Count()))...)
	}
}

// Hop makes the call of the target of a redirect that a request was answered with, and checks
// it.
func (c *Context) Hop(r *http.Request, u targeturl.URL) (*Context, error) {
	last, ctx := &c.Call, &Context{Context: c.Context}
	next, st := &ctx.Call, last.State
	next.SetURL(u)
	if next.Foreign = last.Foreign || !targeturl.SameOrigin(last.url(""), &u); !next.Foreign {
		next.HostPort = last.HostPort // that of the option host, maybe
	}
	// what is left of the timeout is not what the site gives an address
	next.Retryable = IsRetryable(r.Method)
	next.Client, next.Strip, next.Policy, next.Resolver = last.Client, last.Strip, last.Policy, last.Resolver
	next.State, next.Follower = st, last.Follower
	st.Call, st.Returned, st.Err = next, false, nil
	return ctx, next.Check()
}

// Followed notes that a redirect, which a target has sent, leads to c; from is the host that
// has sent it.
func (c *Call) Followed(r *http.Request, from string) {
	if c.Foreign {
		r.Trailer = nil
	}
	c.State.Redirects++
	if ce := c.Policy.Log.Check(zapcore.DebugLevel, "redirect followed"); ce != nil {
		ce.Write(zap.Int("redirects", c.State.Redirects), zap.String("from", from), zap.String("scheme", c.Scheme),
			zap.String("name", c.Host), zap.Uint16("port", c.Port), zap.String("method", r.Method), zap.String("remote", c.Client.Remote))
	}
}

// ReadLocation reads the Location of a response that last was answered with, for a handler
// that follows it by itself: c is what that calls.
func (c *Call) ReadLocation(text string, last *Call) (targeturl.URL, error) {
	from := last.url(last.URI)
	u, err := from.Resolve(text)
	if err == targeturl.ErrDowngrade {
		err = fmt.Errorf("a redirect from https: %w", &guard.Refusal{Kind: guard.KindScheme, Value: u.Scheme, Rule: guard.RuleSchemes})
	}
	if err == nil {
		c.Foreign = last.Foreign || !targeturl.SameOrigin(from, &u)
	}
	return u, err
}
