package caddytarget

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"golang.org/x/net/http/httpguts"

	"caddytarget/internal/health"
	"caddytarget/internal/pool"
	"caddytarget/internal/targeturl"
)

// Handler takes the target of a request from a template, judges it, resolves
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
// `{http.target.error}` | Why the target was refused, could not be resolved, or did not answer
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

	// The resolver. Default: that of the app.
	Resolver *Resolver `json:"resolver,omitempty"`

	// The handler that calls the target, such as `reverse_proxy` with this module's
	// upstreams and transport, in place of the handlers that come next. The directive
	// `target_proxy` has one. Default: none.
	ProxyRaw json.RawMessage `json:"proxy,omitempty" caddy:"namespace=http.handlers inline_key=handler"`

	proxy caddyhttp.MiddlewareHandler // nil: the handlers that come next

	confineURL, confinePath targeturl.Confinement
	values                  singleValues // of which a request has one each

	strip    string       // the header field that is not sent on
	limit    health.Limit // the timeout, if it is fixed
	judge    *judge
	resolver *resolver
	inFlight inFlight
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
	h.values = singleValuesOf(h.URL, h.Path, h.Host, h.Timeout)
	if h.StripHeader {
		h.strip, _ = headerOf(h.URL)
	}
	if h.Timeout != "" && !strings.Contains(h.Timeout, "{") {
		h.limit = health.Limit("timeout " + h.Timeout)
	}
	if h.judge, err = app.judge(&h.Guard, ctx.Logger()); err != nil || h.ProxyRaw == nil {
		return err
	}
	proxy, err := ctx.LoadModule(h, "ProxyRaw")
	if err != nil {
		return fmt.Errorf("loading proxy: %w", err)
	}
	h.proxy = proxy.(caddyhttp.MiddlewareHandler)
	return nil
}

// headerOf returns the name of the header field that a template consists of.
func headerOf(template string) (string, bool) {
	name, ok := strings.CutPrefix(template, "{http.request.header.")
	if !ok {
		return "", false
	}
	name, ok = strings.CutSuffix(name, "}")
	return http.CanonicalHeaderKey(name), ok && !strings.ContainsAny(name, "{}")
}

// Validate checks the configuration.
func (h *Handler) Validate() error {
	if h.URL == "" {
		return errors.New("no url")
	}
	if _, ok := headerOf(h.URL); h.StripHeader && !ok {
		return fmt.Errorf("strip_header: the url %s is not one header field", h.URL)
	}
	if h.MaxRequests < 0 {
		return fmt.Errorf("max_requests %d is negative", h.MaxRequests)
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
	if !strings.Contains(h.Host, "{") && !isHostHeader(h.Host) {
		return fmt.Errorf("host %q is not a valid Host header", h.Host)
	}
	if h.Timeout != "" && !strings.Contains(h.Timeout, "{") {
		if _, err := parseTimeout(h.Timeout); err != nil {
			return err
		}
	}
	return nil
}

// call is what is to be called, and how far that has come. What a dial looks at
// is set once, before anybody else sees it; the rest belongs to the goroutine of
// the request.
type call struct {
	scheme   string
	host     string // the name: it is resolved, judged, verified and, with the port, sent
	port     uint16
	hostport string // the Host header
	uri      string // path and query

	answer

	client client       // for the log
	limit  health.Limit // of the handler; empty: none, or the client has chosen it

	timeout  time.Duration // that the client has chosen; zero: none
	measured bool          // the client may have chosen one: what the target usually takes matters

	repeats  bool   // it may be sent again whatever the backend has done with it
	strip    string // a header field of the request that is not sent on
	judge    *judge // nil: not judged, the operator wrote the name
	resolver *resolver
	service  *serviceCall // that it belongs to, if to any
	follower *follower    // of redirects; nil: they are the client's
	foreign  bool         // a redirect led to another origin: it gets no credentials
	over     bool         // the handlers that call it have returned

	more  bool     // there is another address to try than the one that is chosen
	probe []*claim // to be found out about in the background
	trial *claim   // on the address that is offered, if it needs a trial
	tried []try    // by the attempts so far
	pass  *pass    // that the attempts belong to
	state *requestState
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

// requestState is what the handler leaves for those after it that do not see
// its context: it stands behind the placeholders. It stays in the request's
// variables, since there may be several handlers on the way, or one that is
// entered again by handle_errors.
type requestState struct {
	call *call // the last one that was parsed
	err  error // why there is no going on

	redirects   int   // how many were followed
	notFollowed error // why one was not

	pass  *pass // the last one
	first pass
}

const stateVar = "caddytarget.state"

// stateOf returns the state of a request; it is made when it is first asked for.
func stateOf(ctx context.Context, repl *caddy.Replacer) *requestState {
	if st, ok := caddyhttp.GetVar(ctx, stateVar).(*requestState); ok {
		return st
	}
	st := new(requestState)
	caddyhttp.SetVar(ctx, stateVar, st)
	repl.Map(st.placeholder)
	return st
}

// placeholder gives the values of the placeholders of Handler.
func (st *requestState) placeholder(key string) (any, bool) {
	name, ok := strings.CutPrefix(key, "http.target.")
	if !ok {
		return nil, false
	}
	if name == "error" {
		if st.err == nil {
			return "", true
		}
		return st.err.Error(), true
	}
	c := st.call
	if c == nil {
		c = new(call)
	}
	switch name {
	case "redirects":
		return st.redirects, true
	case "not_followed":
		if st.notFollowed == nil {
			return "", true
		}
		return st.notFollowed.Error(), true
	case "url":
		if c.scheme == "" {
			return "", true
		}
		return c.scheme + "://" + targeturl.JoinHostPort(c.scheme, c.host, c.port) + c.uri, true
	case "scheme":
		return c.scheme, true
	case "host":
		return c.host, true
	case "port":
		if c.port == 0 {
			return "", true
		}
		return c.port, true
	case "hostport":
		return c.hostport, true
	case "addresses":
		list := make([]string, len(c.addrs))
		for i, a := range c.addrs {
			list[i] = a.String()
		}
		return strings.Join(list, ","), true
	case "lookup":
		return c.lookup, true
	case "lookup_ms":
		return float64(c.waited.Microseconds()) / 1e3, true
	}
	return nil, false
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	st := stateOf(r.Context(), repl)
	last := st.call
	st.call, st.err = nil, nil
	st.redirects, st.notFollowed = 0, nil

	if hasLoopID(r.Header) {
		return h.refuse(w, r, st, errLoop)
	}
	if r.Method == http.MethodConnect && !isExtendedConnect(r) {
		// a backend that is a proxy, too, would open a tunnel
		return h.refuse(w, r, st, malformedError{errConnect})
	}
	if r.URL.Opaque != "" {
		// as in "GET x:http://other.example/ HTTP/1.1": it would be sent as it
		// is, in place of the target's host and path
		return h.refuse(w, r, st, malformedError{errors.New("the request line has no path")})
	}
	c := &callContext{Context: r.Context()}
	u, err := h.parse(r, repl, last, &c.call)
	if err != nil {
		return h.refuse(w, r, st, malformedError{err})
	}
	st.call, c.call.state = &c.call, st
	if err := h.judge.target(&c.call); err != nil {
		return h.refuse(w, r, st, err)
	}

	if h.Timeout != "" {
		timeout, err := parseTimeout(repl.ReplaceAll(h.Timeout, ""))
		if err != nil {
			return h.refuse(w, r, st, malformedError{err})
		}
		if timeout > 0 {
			var cancel context.CancelFunc
			c.Context, cancel = context.WithTimeout(c.Context, timeout)
			defer cancel()
			if h.limit == "" {
				c.call.timeout = timeout
			}
			if r.ContentLength != 0 {
				// a client that does not send its body must not hold the
				// request up; the moment more lets the context end first
				control := http.NewResponseController(w)
				if control.SetReadDeadline(time.Now().Add(timeout+50*time.Millisecond)) == nil {
					defer func() { _ = control.SetReadDeadline(time.Time{}) }()
				}
			}
		}
	}
	last.again(r)
	if err := h.begin(r); err != nil {
		return h.refuse(w, r, st, fmt.Errorf("%s: reading the request's body: %w", c.call.host, err))
	}
	if h.canFollow(r) {
		return h.follow(w, r, c, u, next)
	}
	return h.forward(w, r, c, u, next)
}

// forward resolves the target of a request and hands the request on to be sent
// there.
func (h *Handler) forward(w http.ResponseWriter, r *http.Request, c *callContext, u targeturl.URL, next caddyhttp.Handler) error {
	st := c.call.state
	if h.MaxRequests > 0 {
		done, ok := h.inFlight.enter(&c.call, h.MaxRequests)
		if !ok {
			return h.refuse(w, r, st, fmt.Errorf("%s: %w: %d", c.call.host, errMaxRequests, h.MaxRequests))
		}
		defer done()
	}

	if err := c.call.resolve(c.Context, u.Addr); err != nil {
		return h.refuse(w, r, st, err)
	}

	if u.HasPath {
		u.Apply(r.URL)
		r.RequestURI = c.call.uri
	}
	err := h.callNext(w, r.WithContext(c), next)
	c.call.over = true
	if errors.Is(err, pool.ErrLimit) {
		retryLater(w)
	}
	if b := c.call.inPass().body; err != nil && (b == nil || !b.complete.Load()) {
		h.answerAtOnce(w, r, &c.call)
	}
	return err
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
func (h *Handler) answerAtOnce(w http.ResponseWriter, r *http.Request, c *call) {
	length, read := r.ContentLength, isRead(r.Body)
	if c != nil && c.follower != nil && c.follower.all != nil {
		all := c.follower.all
		length, read = c.follower.length, all.complete.Load() || isRead(all.source)
	}
	if h.Timeout != "" && length != 0 && r.ProtoMajor == 1 && !read {
		w.Header().Set("Connection", "close")
	}
}

// begin waits for the first octets of the request's body, so that a client that
// sends nothing holds no place of MaxRequests.
func (h *Handler) begin(r *http.Request) (err error) {
	if h.MaxRequests > 0 && hasBody(r) && !mayBeSilent(r) {
		r.Body, err = beginBody(r.Body)
	}
	return err
}

// parse makes the call of a request from the templates. What the handler before it
// called is last, if there was one.
func (h *Handler) parse(r *http.Request, repl *caddy.Replacer, last, c *call) (targeturl.URL, error) {
	if err := h.values.check(r); err != nil {
		return targeturl.URL{}, err
	}
	text, err := expand(repl, h.URL, h.confineURL)
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
	c.scheme, c.host, c.port, c.hostport = u.Scheme, u.Host, u.Port, u.HostPort
	switch {
	case u.HasPath && u.HasQuery:
		c.uri = u.Path + "?" + u.Query
	case u.HasPath:
		c.uri = u.Path
	case strings.HasPrefix(r.RequestURI, "/"):
		c.uri = targeturl.EncodeURI(r.RequestURI) // as it will be sent
	default: // in absolute form, or none
		c.uri = r.URL.RequestURI()
	}
	c.limit, c.repeats = h.limit, isRepeatable(r.Method)
	c.measured = h.Timeout != "" && h.limit == ""
	c.client, c.strip, c.judge, c.resolver = clientOf(r), h.strip, h.judge, h.resolver
	if h.Host != "" {
		c.hostport = repl.ReplaceAll(h.Host, "")
		if c.hostport == "" || !isHostHeader(c.hostport) {
			return u, fmt.Errorf("host %q is not a valid Host header", c.hostport)
		}
	}
	return u, nil
}

// isHostHeader tells whether a Host header can be sent as it is. The zone of an
// address cannot: over HTTP/1 net/http takes it out.
func isHostHeader(s string) bool {
	if strings.HasPrefix(s, "[") && strings.Contains(s, "%") {
		return false
	}
	return httpguts.ValidHostHeader(s)
}

// resolve sets the addresses of c to those that may be called.
func (c *call) resolve(ctx context.Context, literal netip.Addr) error {
	if literal.IsValid() {
		c.answer = answer{addrs: []netip.Addr{literal.Unmap()}, preferred: 1, lookup: "literal"}
	} else {
		var err error
		if c.service != nil { // the targets of its records are complete names
			c.answer, err = c.resolver.lookupComplete(ctx, c.host)
		} else {
			c.answer, err = c.resolver.lookup(ctx, c.host)
		}
		if err != nil {
			return err
		}
	}
	if c.judge == nil {
		return nil
	}
	if err := c.judge.found(c); err != nil {
		return err
	}
	return c.judge.addresses(c)
}

// retryLater says when a request that comes at a bad time may be made again (RFC 9110,
// section 10.2.3).
func retryLater(w http.ResponseWriter) { w.Header().Set("Retry-After", "1") }

// refuse ends a request that cannot be sent on.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, st *requestState, err error) error {
	h.answerAtOnce(w, r, st.call)
	st.err = err
	status := statusOf(err)
	if status == http.StatusServiceUnavailable {
		retryLater(w)
	}
	h.judge.failed(st.call, status, err)
	return caddyhttp.Error(status, err)
}

var (
	errLoop        = errors.New("the request has already come through this server")
	errMaxRequests = errors.New("too many requests in flight")
	errConnect     = errors.New("CONNECT asks for a tunnel, and a target is none")
)

// malformedError is an error in what the request says.
type malformedError struct{ error }

func (e malformedError) Unwrap() error { return e.error }

// statusClientGone is what Caddy reports of a request whose client has left.
const statusClientGone = 499

// statusOf returns the status of a request that cannot be sent on.
func statusOf(err error) int {
	switch ruleOf(err) {
	case "":
	case ruleNoTarget, ruleMalformed:
		return http.StatusBadRequest
	case ruleLoop:
		return http.StatusLoopDetected
	case ruleMaxRequests, ruleMaxLookups, ruleNewNames:
		return http.StatusServiceUnavailable
	default:
		return http.StatusForbidden
	}
	switch {
	case isTimeout(err):
		return http.StatusGatewayTimeout
	case errors.Is(err, context.Canceled):
		return statusClientGone
	}
	return http.StatusBadGateway
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

// isExtendedConnect tells whether a request opens a WebSocket over HTTP/2 or
// HTTP/3 (RFC 8441, RFC 9220), which reverse_proxy turns into one of HTTP/1.1.
func isExtendedConnect(r *http.Request) bool {
	switch r.ProtoMajor {
	case 2:
		return r.Header.Get(":protocol") == "websocket"
	case 3:
		return r.Proto == "websocket"
	}
	return false
}

// hasLoopID tells whether a request has come through this process before.
func hasLoopID(header http.Header) bool {
	for _, value := range header[loopHeader] {
		if strings.Contains(value, loopID) {
			return true
		}
	}
	return false
}

// inFlight counts the requests in flight to each target.
type inFlight struct {
	mu     sync.Mutex
	counts map[inFlightKey]int
}

type inFlightKey struct {
	scheme, host string
	port         uint16
}

// enter counts a request, unless there are limit already.
func (f *inFlight) enter(c *call, limit int) (done func(), ok bool) {
	key := inFlightKey{c.scheme, c.host, c.port}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.counts == nil {
		f.counts = make(map[inFlightKey]int)
	}
	if f.counts[key] >= limit {
		return nil, false
	}
	f.counts[key]++
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.counts[key]--; f.counts[key] == 0 {
			delete(f.counts, key)
		}
	}, true
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.Validator             = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
