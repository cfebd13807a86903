package caddytarget

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"golang.org/x/net/http/httpguts"
)

// Transport is Caddy's HTTP transport for targets: scheme, Host header and TLS
// server name follow the target of each request. Connections are pooled by
// address, port and TLS server name, so that one that was opened for a domain
// is never used for another; without TLS they are shared by address and port.
//
// The fields of the [HTTP transport](/docs/json/apps/http/servers/routes/handle/reverse_proxy/transport/http/)
// work here too, with these differences: 512 idle connections per key and 150
// seconds idle by default; `max_idle_conns` bounds the open connections over
// which idle ones are closed, HTTP/2 included, by default half of the file
// descriptors that the process may have; the TLS handshake takes 5 seconds at
// most by default. `network_proxy`, `forward_proxy_url`, `resolver`,
// `dial_fallback_delay`, `except_ports` and version 3 are refused, and proxies
// are not taken from the environment.
//
// Where no target handler has seen the request, it is used as the HTTP transport
// is: TLS if that is configured. Behind a target handler every upstream is
// judged and called as the target.
type Transport struct {
	reverseproxy.HTTPTransport

	// How many TLS sessions are kept to be resumed. Default: 4096; negative:
	// none.
	TLSSessionCache int `json:"tls_session_cache,omitempty"`

	http, h2c   *http.Transport
	tlsConfig   *tls.Config
	dialTimeout time.Duration
	dialTCP     func(ctx context.Context, network, address string) (net.Conn, error)
	registry    *registry
	health      *health

	hostByOps bool // the Host header is set by operations, before those of the user
	retries   int  // how often a request that fails is tried again

	ctx    context.Context // ends with the transport; for dials that nobody waits for
	cancel context.CancelFunc
	life   sync.Mutex // guards the end of ctx against dials
	dials  sync.WaitGroup
}

// CaddyModule returns the Caddy module information.
func (*Transport) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.reverse_proxy.transport.target",
		New: func() caddy.Module { return new(Transport) },
	}
}

const (
	// firstConnect is how long a TCP connection may take while there is another
	// address to try.
	firstConnect = 300 * time.Millisecond

	// pingAfter is how long an HTTP/2 connection may be silent before it is
	// pinged, and pingTimeout how long the answer may take.
	pingAfter   = 15 * time.Second
	pingTimeout = 5 * time.Second
)

// Provision sets up the transport.
func (t *Transport) Provision(ctx caddy.Context) error {
	if err := t.refused(); err != nil {
		return err
	}
	app, err := appOf(ctx)
	if err != nil {
		return err
	}
	t.health = app.health
	t.lookAtProxy(ctx)
	t.ctx, t.cancel = context.WithCancel(context.Background())

	// the transports are built from copies: what is configured stays as it is
	base := t.HTTPTransport
	var keepAlive reverseproxy.KeepAlive
	if base.KeepAlive != nil {
		keepAlive = *base.KeepAlive
	}
	setDefault(&keepAlive.MaxIdleConnsPerHost, 512)
	setDefault(&keepAlive.IdleConnTimeout, caddy.Duration(150*time.Second))
	setDefault(&keepAlive.MaxIdleConns, defaultMaxConns())
	base.KeepAlive = &keepAlive
	var tlsConfig reverseproxy.TLSConfig
	if base.TLS != nil {
		tlsConfig = *base.TLS
	}
	setDefault(&tlsConfig.HandshakeTimeout, caddy.Duration(5*time.Second))
	base.TLS = &tlsConfig
	t.registry = newRegistry(keepAlive.MaxIdleConns)

	https := base
	https.Versions = slices.DeleteFunc(slices.Clone(base.Versions), func(v string) bool { return v == "h2c" })
	if len(https.Versions) == 0 {
		https.Versions = []string{"1.1", "2"}
	}
	if t.http, err = t.build(ctx, &https); err != nil {
		return err
	}
	h2cOnly := base
	h2cOnly.Versions, h2cOnly.TLS = []string{"h2c"}, nil
	if t.h2c, err = t.build(ctx, &h2cOnly); err != nil {
		return err
	}

	t.tlsConfig = t.http.TLSClientConfig.Clone()
	if t.tlsConfig == nil {
		t.tlsConfig = new(tls.Config)
	}
	if t.TLSSessionCache >= 0 {
		n := t.TLSSessionCache
		setDefault(&n, 4096)
		t.tlsConfig.ClientSessionCache = tls.NewLRUClientSessionCache(n)
	}
	return nil
}

// build makes one of the two http.Transports.
func (t *Transport) build(ctx caddy.Context, config *reverseproxy.HTTPTransport) (*http.Transport, error) {
	rt, err := config.NewTransport(ctx)
	if err != nil {
		return nil, err
	}
	t.dialTCP, t.dialTimeout = rt.DialContext, time.Duration(config.DialTimeout)
	rt.Proxy = nil
	rt.DialContext = t.dial
	rt.DialTLSContext = t.dialTLS
	rt.HTTP2 = &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout}
	return rt, nil
}

// refused tells what of the HTTP transport has no place here.
func (t *Transport) refused() error {
	switch {
	case len(t.NetworkProxyRaw) > 0 || t.ForwardProxyURL != "":
		return errors.New("a proxy for the transport is not supported: it would connect to addresses that nobody judged")
	case t.Resolver != nil:
		return errors.New("resolvers (in JSON, resolver) is not supported: names are resolved by the target's resolver")
	case t.FallbackDelay != 0:
		return errors.New("dial_fallback_delay is not supported: every address is dialled on its own")
	case t.TLS != nil && len(t.TLS.ExceptPorts) > 0:
		return errors.New("tls_except_ports is not supported: the scheme of the target decides")
	case slices.Contains(t.Versions, "3"):
		return errors.New("HTTP version 3 is not supported: its connections would not be pooled by target")
	}
	for _, v := range t.Versions {
		if v != "1.1" && v != "2" && v != "h2c" {
			return fmt.Errorf("unknown HTTP version %q: expecting 1.1, 2 or h2c", v)
		}
	}
	return nil
}

// Cleanup closes the connections: those in use as soon as they no longer are.
func (t *Transport) Cleanup() error {
	if t.cancel != nil {
		t.life.Lock()
		t.cancel()
		t.life.Unlock()
		t.dials.Wait()
	}
	if t.registry != nil {
		t.registry.close()
	}
	for _, rt := range []*http.Transport{t.http, t.h2c} {
		if rt != nil {
			rt.CloseIdleConnections()
		}
	}
	return nil
}

// hostTemplate stays as it is, or becomes empty, in requests that no target
// handler has seen.
const hostTemplate = "{http.target.hostport}"

// RequestHeaderOps sets the Host header to that of the target, in place of that
// of the HTTP transport, which would set it to an address. That is left to
// RoundTrip, where it costs nothing, if nobody else has a say in it.
func (t *Transport) RequestHeaderOps() *headers.HeaderOps {
	if !t.hostByOps {
		return nil
	}
	return &headers.HeaderOps{Set: http.Header{"Host": []string{hostTemplate}}}
}

// touchesHost tells whether header operations may change the Host header.
func touchesHost(ops *headers.HeaderOps) bool {
	may := func(field string) bool {
		return strings.EqualFold(field, "Host") || strings.ContainsAny(field, "*{")
	}
	for field := range ops.Set {
		if may(field) {
			return true
		}
	}
	for field := range ops.Add {
		if may(field) {
			return true
		}
	}
	for field := range ops.Replace {
		if may(field) {
			return true
		}
	}
	return slices.ContainsFunc(ops.Delete, may)
}

// lookAtProxy takes from the reverse_proxy that the transport belongs to what
// it has to know of it.
func (t *Transport) lookAtProxy(ctx caddy.Context) {
	proxy := proxyOf(ctx)
	if proxy == nil {
		t.hostByOps = true
		return
	}
	t.hostByOps = proxy.Headers != nil && proxy.Headers.Request != nil && touchesHost(proxy.Headers.Request)
	if lb := proxy.LoadBalancing; lb != nil {
		t.retries = lb.Retries
		if lb.Retries == 0 && lb.TryDuration > 0 {
			t.retries = math.MaxInt
		}
	}
}

// proxyOf returns the reverse_proxy to which the module that is being
// provisioned belongs.
func proxyOf(ctx caddy.Context) *reverseproxy.Handler {
	for _, m := range slices.Backward(ctx.Modules()) {
		if proxy, ok := m.(*reverseproxy.Handler); ok {
			return proxy
		}
	}
	return nil
}

// attempt is one attempt at a request. It is the context of what is sent, and
// so of the dial that it may cause, which may outlive it: all but the two
// bodies, which no dial looks at, stays as it is once that has begun.
type attempt struct {
	context.Context
	transport *Transport
	call      *call
	pool      *pool
	last      bool // there is no other address to try
	vars      map[string]any
	url       url.URL
	sent      sentBody
	body      body
}

type attemptKey struct{}

// Value implements context.Context. The request's variables are hidden: they
// are not safe to read while the request goes on.
func (a *attempt) Value(key any) any {
	switch key {
	case attemptKey{}:
		return a
	case caddyhttp.VarsCtxKey:
		if a.vars == nil {
			return nil
		}
		return a.vars
	}
	return a.Context.Value(key)
}

// proxyProtocolVar is where reverse_proxy leaves what the embedded transport
// needs to know for the PROXY protocol.
const proxyProtocolVar = "reverse_proxy.proxy_protocol_info"

// dropH2CUpgrade takes out a request to go on in HTTP/2 on this connection (RFC
// 7540, section 3.2; RFC 9113 has it no more). A backend that agreed would take
// whatever the client sends from then on, and nobody on the way would look at it.
func dropH2CUpgrade(header http.Header) {
	if httpguts.HeaderValuesContainsToken(header["Upgrade"], "h2c") {
		delete(header, "Upgrade")
		delete(header, "Connection")
	}
	strip(header, "Http2-Settings")
}

// strip takes out a field. If it is not there nothing is written: others may be
// reading.
func strip(header http.Header, field string) {
	if _, ok := header[field]; ok { //nolint:staticcheck // delete counts as a write in any case
		delete(header, field)
	}
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	info, ok := reverseproxy.GetDialInfo(req.Context())
	if !ok {
		return nil, errors.New("transport target: called by something other than reverse_proxy")
	}
	a := &attempt{Context: req.Context(), transport: t, call: callOf(req, info.Upstream), last: true}
	if err := req.Context().Err(); err != nil { // reverse_proxy tries again even then
		if a.call != nil && a.call.state.err == nil {
			a.call.state.err = fmt.Errorf("%s: %w", a.call.host, err)
		}
		return nil, err
	}
	if req.Method == http.MethodConnect { // a WebSocket over HTTP/2 is none any more
		err := malformedError{errConnect}
		if c := a.call; c != nil {
			c.state.err = err
			if c.judge != nil {
				c.judge.failed(c, http.StatusBadRequest, err)
			}
		}
		return nil, caddyhttp.Error(http.StatusBadRequest, err)
	}
	key := poolKey{address: info.Address}
	if c := a.call; c != nil && c.attempts() < t.retries {
		a.last = !c.othersThan(info.Address)
	}

	// header and trailer are reverse_proxy's copies, made for this request; an
	// attempt before this one may still be reading them, but then has changed
	// them already
	dropH2CUpgrade(req.Header)
	if a.call != nil {
		strip(req.Header, a.call.strip)
		strip(req.Trailer, a.call.strip) // and again when its values are known
	}

	scheme, rt := "http", t.http
	switch t.schemeOf(a.call) {
	case "https":
		scheme, key.kind = "https", secure
		key.name = t.serverName(req, a.call, info)
		if isUpgrade(req.Header) {
			key.kind = upgrade
		}
	case "h2c":
		if !isUpgrade(req.Header) { // which HTTP/2 has no word for
			rt, key.kind = t.h2c, h2c
		}
	}
	if t.ProxyProtocol != "" {
		if client, ok := caddyhttp.GetVar(req.Context(), proxyProtocolVar).(reverseproxy.ProxyProtocolInfo); ok {
			key.client = client.AddrPort
			a.vars = map[string]any{proxyProtocolVar: client}
		}
	}

	a.pool = t.registry.acquire(key, a.call)
	if c := a.call; c != nil && c.judge != nil {
		if err := c.judge.upstream(c, a.pool.addr); err != nil {
			t.registry.release(a.pool)
			c.state.err = err
			return nil, caddyhttp.Error(http.StatusForbidden, err)
		}
	}
	a.url = *req.URL
	a.url.Scheme, a.url.Host, a.url.Opaque = scheme, a.pool.host, ""
	out := req.WithContext(a)
	out.URL = &a.url
	if req.Body != nil && req.Body != http.NoBody {
		a.sent.ReadCloser = req.Body
		if a.call != nil {
			a.sent.trailer, a.sent.strip = req.Trailer, a.call.strip
		}
		out.Body = &a.sent
	}
	if !t.hostByOps || out.Host == hostTemplate || out.Host == "" {
		out.Host = hostOf(req, a.call, info, scheme)
	}
	if !slices.Contains(out.Header[loopHeader], loopID) {
		out.Header[loopHeader] = append(out.Header[loopHeader], loopID)
	}

	res, err := rt.RoundTrip(out)
	if err != nil {
		t.registry.release(a.pool)
		a.failed(err)
		return nil, err
	}
	a.worked()
	a.hold(res)
	return res, nil
}

// schemeOf returns the scheme for a call.
func (t *Transport) schemeOf(c *call) string {
	scheme := "http"
	switch {
	case c != nil && c.scheme != "":
		scheme = c.scheme
	case t.TLS != nil:
		scheme = "https"
	}
	if scheme == "http" && slices.Contains(t.Versions, "h2c") {
		return "h2c"
	}
	return scheme
}

// serverName returns the name that the backend has to prove.
func (t *Transport) serverName(req *http.Request, c *call, info reverseproxy.DialInfo) string {
	switch {
	case t.TLS != nil && t.TLS.ServerName != "":
		if repl, ok := req.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
			return repl.ReplaceAll(t.TLS.ServerName, "")
		}
		return t.TLS.ServerName
	case c != nil:
		return c.host
	}
	return info.Host
}

// hostOf returns the Host header: that of the target, or, where no target
// handler has seen the request, what the HTTP transport would send, but the
// name instead of one of its addresses.
func hostOf(req *http.Request, c *call, info reverseproxy.DialInfo, scheme string) string {
	switch {
	case c != nil && c.scheme != "":
		return c.hostport
	case scheme == "https" && c != nil:
		return hostport(scheme, c.host, c.port)
	case scheme == "https":
		return info.Address
	case req.Host != hostTemplate && req.Host != "":
		return req.Host
	case c != nil:
		return c.hostport
	}
	if orig, ok := req.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		return orig.Host
	}
	return info.Address
}

func isUpgrade(header http.Header) bool {
	return header["Upgrade"] != nil && httpguts.HeaderValuesContainsToken(header["Connection"], "Upgrade")
}

// failed records an attempt that got no response.
func (a *attempt) failed(err error) {
	if a.call == nil {
		return
	}
	a.call.tried = append(a.call.tried, a.pool.addr)
	a.call.state.err = err
	if ended := a.Context.Err(); ended != nil {
		a.call.state.err = fmt.Errorf("%s at %s: %w", a.call.host, a.pool.key.address, ended)
	}
	if _, ok := errors.AsType[*dialError](err); ok {
		return // has been recorded
	}
	if ruleOf(err) != "" {
		return // nothing was tried
	}
	ended := a.Context.Err()
	sent := a.sent.ReadCloser == nil || a.sent.complete.Load()
	if errors.Is(ended, context.Canceled) || ended != nil && (a.call.haste || !sent) || a.sent.broken.Load() {
		return // the client has left, would not wait, or has not sent its body: that is not the backend's fault
	}
	a.transport.health.fail(healthID{a.call.host, a.pool.addr})
}

// sentBody is the body of a request. It tells how far the client got with it.
type sentBody struct {
	io.ReadCloser
	complete, broken atomic.Bool

	trailer http.Header // what follows the body, known at its end
	strip   string      // what of it is not sent on
}

// Read implements io.Reader.
func (b *sentBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	switch {
	case err == io.EOF:
		strip(b.trailer, b.strip)
		b.complete.Store(true)
	case err != nil:
		b.broken.Store(true)
	}
	return n, err
}

// worked records an attempt that got a response.
func (a *attempt) worked() {
	if a.call == nil {
		return
	}
	a.call.state.err = nil
	a.transport.health.works(a.call.host, a.pool.addr)
}

// body is the body of a response. It tells when the request no longer needs its
// connection.
type body struct {
	io.ReadCloser
	attempt *attempt
	once    sync.Once
}

// hold keeps the connection in use until the response has been read or closed.
func (a *attempt) hold(res *http.Response) {
	if res.Body == nil || res.Body == http.NoBody {
		a.transport.registry.release(a.pool)
		return
	}
	a.body.ReadCloser, a.body.attempt = res.Body, a
	if rw, ok := res.Body.(io.ReadWriteCloser); ok {
		res.Body = upgradedBody{&a.body, rw}
		return
	}
	res.Body = &a.body
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.once.Do(b.release)
	}
	return n, err
}

// Close implements io.Closer.
func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.once.Do(b.release)
	return err
}

func (b *body) release() {
	b.attempt.transport.registry.release(b.attempt.pool)
}

// upgradedBody is the body of a response that switched protocols: the
// connection itself. It is in use until it is closed.
type upgradedBody struct {
	*body
	conn io.ReadWriteCloser
}

// Read implements io.Reader.
func (b upgradedBody) Read(p []byte) (int, error) { return b.conn.Read(p) }

// Write implements io.Writer.
func (b upgradedBody) Write(p []byte) (int, error) { return b.conn.Write(p) }

// CloseWrite ends what is sent; what is received goes on.
func (b upgradedBody) CloseWrite() error { return closeWrite(b.conn) }

func closeWrite(conn any) error {
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}

// dial opens a TCP connection for an attempt.
func (t *Transport) dial(ctx context.Context, network, address string) (net.Conn, error) {
	a := ctx.Value(attemptKey{}).(*attempt)
	if c := a.call; c != nil && c.judge != nil {
		if err := c.judge.dial(c, a.pool.addr); err != nil {
			return nil, caddyhttp.Error(http.StatusForbidden, err)
		}
	}
	conn, err := t.connect(ctx, a, network, address)
	if err != nil {
		return nil, newDialError(a, err)
	}
	if conn, err = t.registry.track(a.pool, conn); err != nil {
		return nil, newDialError(a, err)
	}
	return conn, nil
}

// dialTLS opens a TLS connection for an attempt. The certificate is verified
// for the name that is part of the pool's key.
func (t *Transport) dialTLS(ctx context.Context, network, address string) (net.Conn, error) {
	a := ctx.Value(attemptKey{}).(*attempt)
	conn, err := t.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	config := t.tlsConfig.Clone()
	config.ServerName = a.pool.key.name
	if a.pool.key.kind == upgrade {
		config.NextProtos = []string{"http/1.1"}
	}
	ctx, cancel := context.WithTimeout(ctx, t.http.TLSHandshakeTimeout)
	defer cancel()
	tlsConn := tls.Client(conn, config)
	if err := tlsConn.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		if a.call != nil && !errors.Is(err, context.Canceled) {
			t.health.fail(healthID{a.call.host, a.pool.addr})
		}
		return nil, newDialError(a, fmt.Errorf("TLS handshake: %w", err))
	}
	return tlsConn, nil
}

// errSlow is why a connection attempt was cut.
var errSlow = &net.OpError{Op: "dial", Net: "tcp", Err: context.DeadlineExceeded}

// connect opens a TCP connection and tells health how that went. While there is
// another address to try it waits only a short time; the attempt goes on in the
// background then, and is a failure only if it fails.
func (t *Transport) connect(ctx context.Context, a *attempt, network, address string) (net.Conn, error) {
	if a.call == nil {
		return t.open(ctx, network, address)
	}
	id := healthID{addr: a.pool.addr}
	if a.last {
		conn, err := t.open(ctx, network, address)
		if err != nil && ctx.Err() == nil {
			t.health.fail(id)
		}
		return conn, err
	}

	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result)
	cut, ended := make(chan struct{}), make(chan struct{})
	dialCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(ended)
		defer cancel()
		conn, err := t.open(dialCtx, network, address)
		if err != nil && dialCtx.Err() == nil {
			t.health.fail(id)
		}
		select {
		case results <- result{conn, err}:
		case <-cut:
			if err == nil {
				_ = conn.Close()
				t.health.works("", a.pool.addr)
			}
		}
	}()
	timer := time.NewTimer(firstConnect)
	defer timer.Stop()
	select {
	case r := <-results:
		return r.conn, r.err
	case <-timer.C:
		t.health.suspect(id, t.dialTimeout-firstConnect)
		close(cut)
		t.leave(cancel, ended)
		return nil, errSlow
	case <-ctx.Done():
		close(cut)
		t.leave(cancel, ended)
		return nil, context.Cause(ctx)
	}
}

// leave lets a dial go on that nobody waits for any more, until the transport
// ends. Until then a dial is the request's, which may outlive the configuration.
func (t *Transport) leave(cancel context.CancelFunc, ended <-chan struct{}) {
	t.life.Lock()
	defer t.life.Unlock()
	if t.ctx.Err() != nil {
		cancel()
		return
	}
	stop := context.AfterFunc(t.ctx, cancel)
	t.dials.Go(func() {
		<-ended
		stop()
	})
}

// open opens a TCP connection. Why the embedded transport could not is not to
// be had from its error, which does not unwrap.
func (t *Transport) open(ctx context.Context, network, address string) (net.Conn, error) {
	start := time.Now()
	conn, err := t.dialTCP(ctx, network, address)
	switch {
	case err == nil:
		return conn, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case time.Since(start) >= t.dialTimeout:
		return nil, timeoutError{err}
	}
	return nil, err
}

// timeoutError is an error that there was no time left.
type timeoutError struct{ error }

func (e timeoutError) Unwrap() error { return e.error }

// Timeout is looked for by those who want to know.
func (timeoutError) Timeout() bool { return true }

// dialError is a failure before anything of the request was sent. For
// reverse_proxy it is a reverseproxy.DialError, so that any request may be
// tried elsewhere, and a net.Error, so that a timeout becomes status 504.
type dialError struct {
	target string // target and address
	err    error
}

func newDialError(a *attempt, err error) error {
	target := a.pool.key.address
	if a.call != nil {
		target = a.call.host + " at " + target
	}
	return &dialError{target, err}
}

func (e *dialError) Error() string { return e.target + ": " + e.err.Error() }

func (e *dialError) Unwrap() error { return e.err }

// As makes e a reverseproxy.DialError for errors.As. Its value stays empty:
// only the type can be had outside of its package, and reverse_proxy looks at
// nothing else.
func (e *dialError) As(target any) bool {
	_, ok := target.(*reverseproxy.DialError)
	return ok
}

// Timeout implements net.Error.
func (e *dialError) Timeout() bool {
	var t interface{ Timeout() bool }
	return errors.As(e.err, &t) && t.Timeout()
}

// Temporary implements net.Error.
func (e *dialError) Temporary() bool { return false }

// Interface guards
var (
	_ caddy.Provisioner                                = (*Transport)(nil)
	_ caddy.CleanerUpper                               = (*Transport)(nil)
	_ http.RoundTripper                                = (*Transport)(nil)
	_ reverseproxy.TLSTransport                        = (*Transport)(nil)
	_ reverseproxy.H2CTransport                        = (*Transport)(nil)
	_ reverseproxy.HealthCheckSchemeOverriderTransport = (*Transport)(nil)
	_ reverseproxy.ProxyProtocolTransport              = (*Transport)(nil)
	_ reverseproxy.RequestHeaderOpsTransport           = (*Transport)(nil)
	_ net.Error                                        = (*dialError)(nil)
)
