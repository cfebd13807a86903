package caddytarget

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"caddytarget/internal/failover"
	"caddytarget/internal/failure"
	"caddytarget/internal/guard"
	"caddytarget/internal/redirect"
	"caddytarget/internal/resolver"
	"caddytarget/internal/targeturl"
)

// call describes what a request calls: the request's target, the name of a source, or
// one record of a service. Only the functions of this file and those that make one
// (newNamed, newRecord) write it.
type call struct {
	failover.Target // name, port and addresses, and what was tried of them

	scheme   string          // empty: that of the transport
	hostport string          // the Host header
	uri      string          // path and query
	answer   resolver.Answer // before the policy left anything out

	client   client
	policy   *policy // nil: the operator wrote the name
	resolver *resolver.Resolver
	complete bool   // the name is not searched for
	strip    string // a header field of the request that is not sent on

	follower *redirect.Follower // nil: redirects are the client's
	foreign  bool               // a redirect led to another origin: it gets no credentials

	exchange *exchange // that the attempts belong to
	state    *requestState
}

// client is what the log tells of the client of a request.
type client struct{ host, remote string }

func clientOf(r *http.Request) client { return client{r.Host, r.RemoteAddr} }

// callContext is the context of a request that has a target.
type callContext struct {
	context.Context
	call call
}

type callKey struct{}

// Value implements context.Context.
func (c *callContext) Value(key any) any {
	if _, ok := key.(callKey); ok {
		return &c.call
	}
	return c.Context.Value(key)
}

// newCall makes the call of a request from the templates. What was called last, if
// there was anything, is where a Location leads from.
func (h *Handler) newCall(r *http.Request, repl *caddy.Replacer, last *call, st *requestState) (*callContext, targeturl.URL, error) {
	ctx := &callContext{Context: r.Context()}
	c := &ctx.call
	u, err := h.parse(r, repl, last, c, st.explained)
	if err != nil {
		return nil, u, failure.NewMalformed(err)
	}
	return ctx, u, h.admitCall(c, r, st)
}

// admitCall completes the call of a request, and checks its target.
func (h *Handler) admitCall(c *call, r *http.Request, st *requestState) error {
	c.Limit, c.Retryable = h.limit, isRetryable(r.Method)
	c.Measured = h.Timeout != "" && h.limit == ""
	c.client, c.strip, c.policy, c.resolver = clientOf(r), h.strip, h.policy, h.resolver
	st.call, c.state = c, st
	return h.policy.checkTarget(c)
}

// parse reads the templates of a request. e is nil unless the request is only explained.
func (h *Handler) parse(r *http.Request, repl *caddy.Replacer, last, c *call, e *explained) (targeturl.URL, error) {
	if err := h.values.Check(r); err != nil {
		return targeturl.URL{}, err
	}
	text, err := h.target(repl, e)
	if err != nil {
		return targeturl.URL{}, fmt.Errorf("target: %w", err)
	}
	u, err := h.read(text, last, c)
	if err != nil {
		return u, err
	}
	if h.Path != "" {
		path, err := expand(repl, h.Path, h.confinePath)
		if err == nil {
			err = targeturl.CheckBytes(path)
		}
		if err != nil {
			return u, fmt.Errorf("path: %w", err) // which may be a secret
		}
		if !strings.HasPrefix(path, "/") {
			path = "/" + path
		}
		path, _, _ = strings.Cut(path, "#")
		u.SetPathAndQuery(path)
	}
	c.setURL(u)
	switch {
	case u.HasPath:
	case strings.HasPrefix(r.RequestURI, "/"):
		c.uri = targeturl.EncodeURI(r.RequestURI) // as it will be sent
	default: // in absolute form, or none
		c.uri = r.URL.RequestURI()
	}
	if h.Host != "" {
		c.hostport = repl.ReplaceAll(h.Host, "")
		if c.hostport == "" || !targeturl.IsHostHeader(c.hostport) {
			return u, fmt.Errorf("host %q is not a valid Host header", c.hostport)
		}
	}
	return u, nil
}

// target returns the target as the request has it.
func (h *Handler) target(repl *caddy.Replacer, e *explained) (string, error) {
	if e != nil && e.url != nil {
		return *e.url, nil
	}
	return expand(repl, h.URL, h.confineURL)
}

// expand puts values in the place of a template's placeholders. It is an error if one of
// them leaves its folder.
func expand(repl *caddy.Replacer, template string, c targeturl.Confinement) (string, error) {
	if c.IsZero() {
		return repl.ReplaceAll(template, ""), nil
	}
	marked, err := repl.ReplaceFunc(template, func(_ string, value any) (any, error) {
		return targeturl.Mark(caddy.ToString(value))
	})
	if err != nil {
		return "", err
	}
	return c.Unmark(marked)
}

// newHop makes the call of the target of a redirect, and checks it.
func (h *Handler) newHop(from *callContext, r *http.Request, u targeturl.URL) (*callContext, error) {
	last, ctx := &from.call, &callContext{Context: from.Context}
	c, st := &ctx.call, last.state
	c.setURL(u)
	if c.foreign = last.foreign || !targeturl.SameOrigin(last.url(""), &u); !c.foreign {
		c.hostport = last.hostport // that of the option host, maybe
	}
	// what is left of the timeout is not what the site gives an address
	c.Retryable = isRetryable(r.Method)
	c.client, c.strip, c.policy, c.resolver = last.client, last.strip, last.policy, last.resolver
	c.state, c.follower = st, last.follower
	st.call, st.returned, st.err = c, false, nil
	return ctx, h.policy.checkTarget(c)
}

// setURL makes c the call of a target. Without a path, it has no path and query yet.
func (c *call) setURL(u targeturl.URL) {
	c.scheme, c.Host, c.Port, c.hostport, c.uri = u.Scheme, u.Host, u.Port, u.HostPort, u.Path
	if u.HasQuery {
		c.uri += "?" + u.Query
	}
}

// origin returns what requests in flight are counted by.
func (c *call) origin() guard.Origin {
	return guard.Origin{Scheme: c.scheme, Host: c.Host, Port: c.Port}
}

// isExplained reports whether the request is only explained. c may be nil.
func (c *call) isExplained() bool { return c != nil && c.state != nil && c.state.explained != nil }

// url returns the URL of a request for c that was sent with a request URI.
func (c *call) url(uri string) *targeturl.URL {
	u := &targeturl.URL{Scheme: c.scheme, Host: c.Host, Port: c.Port}
	u.Path, u.Query, u.HasQuery = strings.Cut(uri, "?")
	return u
}

// addresses is what was found out of the addresses of a call.
type addresses struct {
	answer    resolver.Answer
	addrs     []netip.Addr // that may be called
	preferred int          // so many of addrs, from the first, are preferred
}

// set makes the addresses those of the call.
func (c *call) set(a addresses) { c.answer, c.Addrs, c.Preferred = a.answer, a.addrs, a.preferred }

// resolve sets the addresses of c to those that may be called.
func (c *call) resolve(ctx context.Context, literal netip.Addr) error {
	a, err := c.find(ctx, literal)
	c.set(a)
	return err
}

// find returns the addresses of c that may be called. literal is c's name if that is
// an address.
func (c *call) find(ctx context.Context, literal netip.Addr) (a addresses, err error) {
	switch {
	case literal.IsValid():
		a.answer = resolver.Answer{Addrs: []netip.Addr{literal.Unmap()}, Preferred: 1, From: resolver.Literal}
	case c.complete:
		a.answer, err = c.resolver.LookupComplete(ctx, c.Host)
	default:
		a.answer, err = c.resolver.Lookup(ctx, c.Host)
	}
	if err != nil {
		return a, c.lookupFailed(ctx, err)
	}
	if c.policy != nil {
		gate := &c.policy.gate
		if err := gate.CheckFound(c.Host, a.answer.Found, c); err != nil {
			return a, err
		}
		a.addrs, a.preferred, err = gate.Filter(c.Host, c.Port, a.answer.Addrs, a.answer.Preferred, c)
		return a, err
	}
	a.addrs, a.preferred = a.answer.Addrs, a.answer.Preferred
	return a, nil
}

// lookupFailed returns the error of a lookup.
func (c *call) lookupFailed(ctx context.Context, err error) error {
	e := failure.OfLookup(c.Host, err)
	c.ranOut(ctx.Err(), e)
	return e
}

// ranOut makes an error say that the request's timeout is over, if that ended its context.
func (c *call) ranOut(ended error, e *failure.Error) {
	if errors.Is(ended, context.DeadlineExceeded) && c.state != nil && c.state.timeout > 0 {
		e.RanOut(c.state.timeout)
	}
}

// renew asks for the addresses of c again, for none of those that were known is
// healthy. It reports whether there are others now.
func (c *call) renew(ctx context.Context) bool {
	if c.resolver == nil {
		return false
	}
	renewed, err := c.resolver.Renew(ctx, c.Host, c.answer)
	if err != nil || slices.Equal(renewed.Addrs, c.answer.Addrs) {
		return false
	}
	a := addresses{renewed, renewed.Addrs, renewed.Preferred}
	if c.policy != nil {
		if a.addrs, a.preferred, err = c.policy.gate.Filter(c.Host, c.Port, renewed.Addrs, renewed.Preferred, c); err != nil {
			return false
		}
	}
	c.set(a)
	return true
}

// newNamed makes c the call of a source that has a name.
func (u *Upstreams) newNamed(c *call, r *http.Request, repl *caddy.Replacer, x *exchange, st *requestState) error {
	*c = call{exchange: x, state: st, resolver: u.resolver}
	host, literal, err := targeturl.NormalizeHost(repl.ReplaceAll(u.Name, ""))
	if err != nil {
		return failure.NewMalformed(err)
	}
	port, err := targeturl.ParsePort(repl.ReplaceAll(u.Port, ""))
	if err != nil {
		return failure.NewMalformed(err)
	}
	c.Host, c.Port, c.Retryable = host, port, isRetryable(r.Method)
	c.hostport = r.Host // as long as there is no TLS, the client's
	if u.dynamic {
		c.policy, c.client = u.policy, clientOf(r)
		if err := c.policy.checkTarget(c); err != nil {
			return err
		}
	}
	err = c.resolve(r.Context(), literal)
	st.recordOfSource(r).Resolved(c, err)
	return err
}

// newRecord makes c the call of a record of a service. On an error it has no name.
func (u *Upstreams) newRecord(c *call, r *http.Request, record net.SRV, x *exchange, st *requestState) error {
	*c = call{exchange: x, state: st, resolver: u.resolver, complete: true}
	c.Owner, c.Retryable = c, isRetryable(r.Method)
	c.hostport = r.Host // as long as there is no TLS, the client's
	if u.dynamic {
		c.policy, c.client = u.policy, clientOf(r)
	}
	host, literal, err := targeturl.NormalizeHost(record.Target)
	switch {
	case err != nil:
		return err
	case record.Port == 0:
		return fmt.Errorf("%s: port 0 cannot be called", host)
	}
	c.Host, c.Port = host, record.Port
	if c.policy != nil {
		err = c.policy.gate.Enforce(c.policy.gate.CheckPort(c.Port), c)
	}
	if err == nil && literal.IsValid() {
		err = c.resolve(r.Context(), literal)
	}
	if err != nil {
		c.Host = ""
	}
	return err
}

// isRetryable reports whether a request may be sent again whatever the backend has done
// with it. That is for GET alone: what reverse_proxy repeats, too.
func isRetryable(method string) bool { return method == http.MethodGet }

// limitTime gives a request with a target the time that the handler's timeout says.
// stop has to be called at its end.
func (h *Handler) limitTime(w http.ResponseWriter, r *http.Request, repl *caddy.Replacer, c *callContext) (stop func(), err error) {
	stop = func() {}
	if h.Timeout == "" {
		return stop, nil
	}
	timeout, err := parseTimeout(repl.ReplaceAll(h.Timeout, ""))
	if err != nil {
		return stop, failure.NewMalformed(err)
	}
	if timeout == 0 {
		return stop, nil
	}
	c.call.state.timeout = timeout
	if h.limit == "" {
		c.call.Timeout = timeout
	}
	var cancel context.CancelFunc
	c.Context, cancel = context.WithTimeout(c.Context, timeout)
	if r.ContentLength == 0 {
		return cancel, nil
	}
	// a client that does not send its body must not hold the request up; the moment
	// more lets the context end first
	control := http.NewResponseController(w)
	if control.SetReadDeadline(time.Now().Add(timeout+50*time.Millisecond)) != nil {
		return cancel, nil
	}
	return func() {
		_ = control.SetReadDeadline(time.Time{})
		cancel()
	}, nil
}

func parseTimeout(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := caddy.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("timeout: %w", err)
	}
	if d <= 0 {
		return 0, fmt.Errorf("timeout %s is not positive", s)
	}
	return d, nil
}

// Permit implements pool.Owner. It may be called after the request.
func (c *call) Permit(addr netip.AddrPort) error {
	if c.policy == nil {
		return nil
	}
	return c.policy.forbid(c, c.policy.gate.Permit(c.Host, addr))
}

// Confirm implements pool.Owner. It may be called after the request.
func (c *call) Confirm(local, remote netip.AddrPort) error {
	if c.policy == nil {
		return nil
	}
	return c.policy.forbid(c, c.policy.gate.Confirm(c.Host, local, remote))
}

// Guard implements pool.Owner.
func (c *call) Guard() any { return c.policy }

// Source implements pool.Owner.
func (c *call) Source() any { return c.resolver }

// Watch implements pool.Owner.
func (c *call) Watch() func(addr netip.Addr) bool {
	if c.resolver == nil {
		return nil
	}
	return c.resolver.Watch(c.Host, c.complete)
}
