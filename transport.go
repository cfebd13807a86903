package caddytarget

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"slices"
	"strings"
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

	// Status codes of responses that speak against the address for the target, as
	// if there had been none: 503, or 5 for all from 500 to 599. Default: none.
	UnhealthyStatus []int `json:"unhealthy_status,omitempty"`

	// How long a response may take before it speaks against the address for the
	// target, as if there had been none. Default: no limit.
	UnhealthyLatency caddy.Duration `json:"unhealthy_latency,omitempty"`

	http, h2c   *http.Transport
	tlsConfig   *tls.Config
	dialTimeout time.Duration
	dialTCP     func(ctx context.Context, network, address string) (net.Conn, error)
	registry    *registry
	resumed     *sessionCache
	*shared

	hostByOps bool // the Host header is set by operations, before those of the user
	retries   int  // how often a request that fails is tried again

	keeper *keeper // of what nobody waits for
}

// CaddyModule returns the Caddy module information.
func (*Transport) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.reverse_proxy.transport.target",
		New: func() caddy.Module { return new(Transport) },
	}
}

const (
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
	t.shared = app.shared
	t.lookAtProxy(ctx)
	t.keeper = newKeeper()

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
		if t.resumed, err = t.shared.sessions.acquire(n, t.TLS, t.tlsConfig); err != nil {
			return err
		}
		t.tlsConfig.ClientSessionCache = t.resumed
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
	for _, status := range t.UnhealthyStatus {
		if !isStatus(status) {
			return fmt.Errorf("unhealthy_status %d is neither a status code nor a class of them (1 to 5)", status)
		}
	}
	if t.UnhealthyLatency < 0 {
		return fmt.Errorf("unhealthy_latency %s is negative", time.Duration(t.UnhealthyLatency))
	}
	for _, v := range t.Versions {
		if v != "1.1" && v != "2" && v != "h2c" {
			return fmt.Errorf("unknown HTTP version %q: expecting 1.1, 2 or h2c", v)
		}
	}
	return nil
}

// isStatus tells whether n is a status code, or stands for a class of them.
func isStatus(n int) bool { return n >= 1 && n <= 5 || n >= 100 && n <= 599 }

// Cleanup closes the connections: those in use as soon as they no longer are.
func (t *Transport) Cleanup() error {
	if t.keeper != nil {
		t.keeper.end()
	}
	if t.registry != nil {
		t.registry.close()
	}
	for _, rt := range []*http.Transport{t.http, t.h2c} {
		if rt != nil {
			rt.CloseIdleConnections()
		}
	}
	if t.resumed != nil {
		t.sessions.release(t.resumed)
		t.resumed = nil
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
	if c := a.call; c != nil {
		a.ends, a.cuts = c.ends, c.cuts()
		a.last = !c.more || c.attempts() >= t.retries
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

	a.pool, a.crowded = t.registry.acquire(key, a.call)
	a.repeats = isRepeatable(req.Method)
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
	if !t.hostByOps || out.Host == hostTemplate || out.Host == "" {
		out.Host = hostOf(req, a.call, info, scheme)
	}
	if !slices.Contains(out.Header[loopHeader], loopID) {
		out.Header[loopHeader] = append(out.Header[loopHeader], loopID)
	}
	if !a.repeats || a.crowded {
		a.watch()
	}
	if req.Body != nil && req.Body != http.NoBody {
		a.body = a.call.bodyOf(req)
		out.GetBody = a.open
	}
	if t.UnhealthyLatency > 0 {
		a.begun = time.Now()
	}

	t.probe(a)
	res, err := a.send(rt, out)
	if err != nil {
		t.registry.release(a.pool)
		return nil, a.failed(err)
	}
	a.pool.keepAlive(res.Header)
	a.worked(res.StatusCode)
	a.hold(res)
	return res, nil
}

// isUnhealthy tells whether a response speaks against the address.
func (t *Transport) isUnhealthy(status int, begun time.Time) bool {
	return t.UnhealthyLatency > 0 && time.Since(begun) >= time.Duration(t.UnhealthyLatency) ||
		slices.ContainsFunc(t.UnhealthyStatus, func(s int) bool { return caddyhttp.StatusCodeMatches(status, s) })
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
