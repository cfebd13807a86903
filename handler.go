package caddytarget

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap/zapcore"

	"caddytarget/internal/exchange"
	"caddytarget/internal/failure"
	"caddytarget/internal/guard"
	"caddytarget/internal/health"
	"caddytarget/internal/httpfield"
	"caddytarget/internal/outgoing"
	"caddytarget/internal/pool"
	"caddytarget/internal/record"
	"caddytarget/internal/redirect"
	"caddytarget/internal/replay"
	"caddytarget/internal/resolver"
	"caddytarget/internal/targeturl"
	"caddytarget/internal/topk"
	"caddytarget/internal/trace"
	"caddytarget/internal/warm"
)

func init() { caddy.RegisterModule(new(Handler)) }

// Handler takes the target of a request from a template, checks it, resolves
// its name, and sets path and query to those of the target. A `reverse_proxy`
// after it with `dynamic target` and `transport target` calls the target.
//
// It sets these placeholders:
//
// Placeholder | Description
// ------------|-------------
// `{http.target.url}` | The target with the path and the query that are called
// `{http.target.scheme}` | `http`, `https` or `h2c`
// `{http.target.host}` | The name or the IP address, without brackets
// `{http.target.port}` | The port, also where it is the scheme's default
// `{http.target.hostport}` | The Host header: the port only if it is not the scheme's default
// `{http.target.addresses}` | The addresses that may be called, separated by commas
// `{http.target.lookup}` | Where they came from: `hit`, `stale`, `miss`, `literal` or `hosts`
// `{http.target.lookup_ms}` | How long that took, in milliseconds
// `{http.target.redirects}` | How many redirects were followed; the others are about the last target
// `{http.target.not_followed}` | Why a redirect went on to the client instead of being followed
// `{http.target.address}` | The address that was called last
// `{http.target.attempts}` | How many attempts were made to send the request
// `{http.target.reused}` | Whether the response came over a connection that had been used before
// `{http.target.phase}` | How far a request that failed had come: `request`, `policy`, `dns`, `connect`, `tls`, `send` or `response`
// `{http.target.failure}` | What failed, in one word; docs/failures.md has all of them
// `{http.target.rule}` | The rule by which the request was refused
// `{http.target.error}` | Why the target was refused, could not be resolved, or did not answer, for people. It may stand in a JSON string
//
// A request that fails here is an error that `handle_errors` can route on:
// status 400 if there is no target or it cannot be read, if a template takes a
// header field or a query parameter that the request has twice, or the request is one
// that a target cannot have (CONNECT, no path), 403 if it may not be called, 502
// if it has no address, 503 if too many lookups or requests to it are in flight
// or there are too many new names, 504 if there was no answer in time, 508 if the
// request has come through this server before.
type Handler struct {
	// The target: `scheme://host[:port][/path][?query]`, or `host[:port]`,
	// which means http, or https on port 443. A target with a path replaces
	// path and query of the request. Placeholders are expected here. What one
	// brings to the path stays below the folder in which it stands.
	URL string `json:"url,omitempty"`

	// Path and query to use, instead of the target's and the request's.
	// Placeholders are expected here. What one brings to the path stays below
	// the folder in which it stands.
	Path string `json:"path,omitempty"`

	// If the URL is one header field, `{http.request.header.NAME}`: whether
	// `transport target` keeps that field from being sent on. Default: false;
	// `target_proxy` sets it.
	StripHeader bool `json:"strip_header,omitempty"`

	// The Host header, if it has to differ from the target's. Placeholders are
	// supported.
	Host string `json:"host,omitempty"`

	Guard

	// How long the whole exchange with the target may take, the lookup
	// included, as a [duration](/docs/conventions#durations). Placeholders are
	// supported; an empty value means no limit. An address that does not answer in
	// a fixed time counts as failed; in a time that a placeholder gave, if it lets
	// three requests in a row run out that waited longer than the target usually
	// takes. Default: no limit.
	Timeout string `json:"timeout,omitempty"`

	// How many requests may be in flight to one target, which is scheme, host
	// and port; beyond that there is status 503. Default: no limit.
	MaxRequests int `json:"max_requests,omitempty"`

	// How redirects are followed. Default: they are not, the client gets them.
	FollowRedirects *Redirects `json:"follow_redirects,omitempty"`

	// The level at which a request that failed is logged: `debug`, `info`, `warn` or
	// `error`. Of one reason, 100 lines are logged at once and 10 a second, unless the
	// level is `debug`. Default: `info`.
	LogFailures string `json:"log_failures,omitempty"`

	// Whether error responses say in the field Proxy-Status (RFC 9209) what failed: `on`,
	// `details`, which adds what `{http.target.error}` says, or `off`. Default: `on`.
	ProxyStatus string `json:"proxy_status,omitempty"`

	// The resolver. Default: that of the app.
	Resolver *Resolver `json:"resolver,omitempty"`

	// The handler that calls the target, such as `reverse_proxy` with this module's
	// upstreams and transport, in place of the handlers that come next. The directive
	// `target_proxy` has one. Default: none.
	ProxyRaw json.RawMessage `json:"proxy,omitempty" caddy:"namespace=http.handlers inline_key=handler"`

	proxy caddyhttp.MiddlewareHandler // nil: the handlers that come next

	confineURL, confinePath targeturl.Confinement
	values                  targeturl.SingleValues // of which a request has one each

	failures record.FailureLog
	trace    *trace.Hub

	strip    string       // the header field that is not sent on
	limit    health.Limit // the timeout, if it is fixed
	policy   *exchange.Policy
	resolver *resolver.Resolver
	inFlight guard.InFlight
	warm     atomic.Pointer[warm.Site] // that counts its targets; nil: none
}

// CaddyModule returns the Caddy module information.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.target",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision sets up the handler.
func (h *Handler) Provision(ctx caddy.Context) error {
	app, err := appOf(ctx)
	if err != nil {
		return err
	}
	if h.resolver, err = app.acquire(h.Resolver); err != nil {
		return err
	}
	h.confineURL, h.confinePath = targeturl.ConfineURL(h.URL), targeturl.ConfinePath(h.Path)
	h.values = targeturl.SingleValuesOf(h.URL, h.Path, h.Host, h.Timeout)
	if h.StripHeader {
		h.strip, _ = targeturl.HeaderOf(h.URL)
	}
	if h.Timeout != "" && !strings.Contains(h.Timeout, "{") {
		h.limit = health.Limit("timeout " + h.Timeout)
	}
	if h.policy, err = app.policy(&h.Guard, ctx.Logger()); err != nil {
		return err
	}
	h.policy.Quiet, h.trace = true, app.shared.trace
	h.failures.Log = h.policy.Log
	if h.failures.Level, err = h.failureLevel(); err != nil || h.ProxyRaw == nil {
		return err
	}
	proxy, err := ctx.LoadModule(h, "ProxyRaw")
	if err != nil {
		return fmt.Errorf("loading proxy: %w", err)
	}
	h.proxy = proxy.(caddyhttp.MiddlewareHandler)
	return nil
}

// failureLevel returns the level at which failures are logged.
func (h *Handler) failureLevel() (zapcore.Level, error) {
	switch h.LogFailures {
	case "debug":
		return zapcore.DebugLevel, nil
	case "", "info":
		return zapcore.InfoLevel, nil
	case "warn":
		return zapcore.WarnLevel, nil
	case "error":
		return zapcore.ErrorLevel, nil
	}
	return 0, fmt.Errorf("log_failures %q is none of debug, info, warn and error", h.LogFailures)
}

// Validate checks the configuration.
func (h *Handler) Validate() error {
	if h.URL == "" {
		return errors.New("no url")
	}
	if _, ok := targeturl.HeaderOf(h.URL); h.StripHeader && !ok {
		return fmt.Errorf("strip_header: the url %s is not one header field", h.URL)
	}
	if h.MaxRequests < 0 {
		return fmt.Errorf("max_requests %d is not a positive number", h.MaxRequests)
	}
	if _, err := h.failureLevel(); err != nil {
		return err
	}
	switch h.ProxyStatus {
	case "", proxyStatusOn, proxyStatusDetails, proxyStatusOff:
	default:
		return fmt.Errorf("proxy_status %q is none of on, details and off", h.ProxyStatus)
	}
	if err := h.FollowRedirects.validate(); err != nil {
		return err
	}
	// what holds no placeholder can be checked now
	if !strings.Contains(h.URL, "{") {
		if _, err := targeturl.Parse(h.URL); err != nil {
			return err
		}
	}
	if !strings.Contains(h.Path, "{") {
		if err := targeturl.CheckBytes(h.Path); err != nil {
			return fmt.Errorf("path %q: %w", h.Path, err)
		}
	}
	if !strings.Contains(h.Host, "{") && !targeturl.IsHostHeader(h.Host) {
		return fmt.Errorf("host %q is not a valid Host header", h.Host)
	}
	if h.Timeout != "" && !strings.Contains(h.Timeout, "{") {
		if _, err := parseTimeout(h.Timeout); err != nil {
			return err
		}
	}
	return nil
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) (err error) {
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	st := &stateOf(r.Context()).State
	last, returned := st.Begin()
	failure.DropProxyStatus(w.Header())
	var c *exchange.Context
	begun := time.Now()
	rec := record.New(r, begun, h.policy.Log, h.trace)
	if st.Record = rec; rec != nil {
		w = rec.Watch(w)
	}
	defer func() {
		if c != nil {
			h.policy.Metrics.Top.Observe(c.Call.Host, topk.Observation{
				Failed: err != nil || st.Err != nil, Latency: time.Since(begun), NewConn: st.Opened,
			})
			if site := h.warm.Load(); site != nil && err == nil {
				usedOf(st, site)
			}
		}
		h.report(w, st, err)
		if rec != nil {
			st.EndRecord(rec, statusOf(err))
		}
	}()
	var u targeturl.URL
	var stop func()
	if c, u, stop, err = h.admit(w, r, repl, last, st); err != nil {
		return h.refuse(w, r, st, err)
	}
	defer stop()
	last.ReopenBody(r, returned)
	if err := h.awaitBody(r); err != nil {
		return h.refuse(w, r, st, exchange.BodyFailed(c.Call.Host, err))
	}
	if h.FollowRedirects != nil && redirect.CanFollow(r) {
		return h.follow(w, r, c, u, next)
	}
	return h.forward(w, r, c, u, next)
}

// admit makes the call of a request, if it may be called, and gives it the time that the
// timeout says. stop has to be called at the end, unless there is an error. c is nil if
// there is no target.
func (h *Handler) admit(w http.ResponseWriter, r *http.Request, repl *caddy.Replacer, last *exchange.Call, st *exchange.State) (c *exchange.Context, u targeturl.URL, stop func(), err error) {
	if err = acceptable(r); err != nil {
		return c, u, nil, err
	}
	if c, u, err = h.newCall(r, repl, last, st); err != nil {
		return c, u, nil, err
	}
	st.Record.TargetRead(&c.Call)
	stop, err = h.limitTime(w, r, repl, c)
	return c, u, stop, err
}

// acceptable returns why no target can have a request, or nil.
func acceptable(r *http.Request) error {
	switch {
	case outgoing.HasLoopID(r.Header):
		return failure.ErrLoop
	case r.Method == http.MethodConnect && !httpfield.IsExtendedConnect(r):
		// a backend that is a proxy, too, would open a tunnel
		return failure.NewMalformed(failure.ErrConnect)
	case r.URL.Opaque != "":
		// as in "GET x:http://other.example/ HTTP/1.1": it would be sent as it
		// is, in place of the target's host and path
		return failure.NewMalformed(failure.ErrNoPath)
	}
	return nil
}

// forward resolves the target of a request and hands the request on to be sent
// there.
func (h *Handler) forward(w http.ResponseWriter, r *http.Request, c *exchange.Context, u targeturl.URL, next caddyhttp.Handler) error {
	st := c.Call.State
	if h.MaxRequests > 0 {
		done, ok := h.inFlight.Enter(c.Call.Origin(), h.MaxRequests)
		if !ok {
			return h.refuse(w, r, st, h.tooMany(&c.Call))
		}
		defer done()
	}
	err := c.Call.Resolve(c.Context, u.Addr)
	st.Record.Resolved(&c.Call, err)
	if err != nil {
		return h.refuse(w, r, st, err)
	}
	if u.HasPath {
		u.Apply(r.URL)
		r.RequestURI = c.Call.URI
	}
	err = h.callNext(w, r.WithContext(c), next)
	st.Returned = true
	if errors.Is(err, pool.ErrLimit) {
		retryLater(w)
	}
	if err != nil && !c.Call.IsBodySent() {
		h.answerAtOnce(w, r, &c.Call)
	}
	return err
}

// tooMany returns the error of a request beyond MaxRequests.
func (h *Handler) tooMany(c *exchange.Call) error {
	return fmt.Errorf("%s: %w: %d", c.Host, failure.ErrMaxRequests, h.MaxRequests)
}

// callNext hands a request with a target to what calls it.
func (h *Handler) callNext(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if h.proxy != nil {
		return h.proxy.ServeHTTP(w, r, next)
	}
	return next.ServeHTTP(w, r)
}

// answerAtOnce lets an error be answered over HTTP/1 before all of the request's body has
// come, where there is a timeout. If the connection were to be used again, net/http would
// read the rest first, for which a client may let it wait. (EnableFullDuplex would let it
// answer, too; but then net/http does not serve the next request, as of Go 1.26: what it
// starts at the end of the body reads from the connection, beside its own reading.)
func (h *Handler) answerAtOnce(w http.ResponseWriter, r *http.Request, c *exchange.Call) {
	length, read := r.ContentLength, replay.IsRead(r.Body)
	if c != nil && c.Follower != nil {
		if ofClient, all, ok := c.Follower.ClientBody(); ok {
			length, read = ofClient, all
		}
	}
	if h.Timeout != "" && length != 0 && r.ProtoMajor == 1 && !read {
		w.Header().Set("Connection", "close")
	}
}

// awaitBody waits for the first octets of the request's body, so that a client that
// sends nothing holds no place of MaxRequests.
func (h *Handler) awaitBody(r *http.Request) (err error) {
	if h.MaxRequests > 0 && httpfield.HasBody(r) && !httpfield.MayBeSilent(r) {
		r.Body, err = replay.Await(r.Body)
	}
	return err
}

// refuse ends a request that cannot be sent on.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, st *exchange.State, err error) error {
	h.answerAtOnce(w, r, st.Call)
	st.Err = err
	status := failure.StatusOf(err)
	if status == http.StatusServiceUnavailable {
		retryLater(w)
	}
	h.policy.Failed(st.Call, status, err)
	return caddyhttp.Error(status, err)
}

// retryLater says when a request that comes at a bad time may be made again (RFC 9110,
// section 10.2.3).
func retryLater(w http.ResponseWriter) { w.Header().Set("Retry-After", "1") }

// Interface guards
var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.Validator             = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
