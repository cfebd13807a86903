package caddytarget

import (
	"cmp"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"golang.org/x/net/http/httpguts"

	"caddytarget/internal/health"
	"caddytarget/internal/pool"
	"caddytarget/internal/targeturl"
)

// Transport is Caddy's HTTP transport for targets: scheme, Host header and TLS
// server name follow the target of each request. Connections are pooled by
// address, port, target and TLS server name, so that one that was opened for a
// domain is never used for another. They outlive a reload that does not change the
// settings of the transport.
//
// The fields of the [HTTP transport](/docs/json/apps/http/servers/routes/handle/reverse_proxy/transport/http/)
// work here too, with these differences: 512 idle connections per key and 150
// seconds idle by default; `max_idle_conns` bounds the open connections over
// which idle ones are closed, HTTP/2 included, by default half of the file
// descriptors that the process may have; the TLS handshake takes 5 seconds at
// most by default; the header of a response may have 256 KiB and 1000 fields by
// default. `network_proxy`, `forward_proxy_url`, `resolver`,
// `dial_fallback_delay`, `except_ports` and version 3 are refused, and proxies
// are not taken from the environment.
//
// Where no target handler has seen the request, it is used as the HTTP transport
// is: TLS if that is configured. Behind a target handler every upstream is
// checked and called as the target.
type Transport struct {
	reverseproxy.HTTPTransport

	// How many TLS sessions are kept to be resumed, with 64 MiB in all. None is kept
	// with certificates of more than 16 KiB. Default: 4096; negative: none.
	TLSSessionCache int `json:"tls_session_cache,omitempty"`

	// Status codes of responses that count as failures of the address for the target:
	// 503, or 5 for all from 500 to 599. They count for requests with the same limits.
	// Default: none.
	UnhealthyStatus []int `json:"unhealthy_status,omitempty"`

	// How long a response may take before it counts as a failure of the address for
	// the target, for requests with the same limits. Default: no limit.
	UnhealthyLatency caddy.Duration `json:"unhealthy_latency,omitempty"`

	// Whether targets share connections without TLS that lead to the same address
	// and port. By default a connection that has carried a request for one target
	// never carries one for another: a backend that answers more than it was asked
	// could reach the clients of others. Use it where all backends are trusted.
	ShareConnections bool `json:"share_connections,omitempty"`

	pool   *sharedPool
	limit  health.Limit // under which failures count that this configuration makes ones
	health *health.Tracker
	shared *shared

	released bool

	hostByOps bool // the Host header is set by operations, before those of the user
	retries   int  // how often a request that fails is tried again

	headerOps *headers.HeaderOps          // those of the user; nil: none
	handlers  []caddyhttp.ResponseHandler // of reverse_proxy
}

// CaddyModule returns the Caddy module information.
func (*Transport) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.reverse_proxy.transport.target",
		New: func() caddy.Module { return new(Transport) },
	}
}

// Provision sets up the transport.
func (t *Transport) Provision(ctx caddy.Context) error {
	if err := t.refused(); err != nil {
		return err
	}
	app, err := appOf(ctx)
	if err != nil {
		return err
	}
	t.shared, t.health = app.shared, app.health
	t.lookAtProxy(ctx)
	if t.limit, err = t.limitsOwn(); err != nil {
		return err
	}
	config, err := t.poolConfig(ctx)
	if err != nil {
		return err
	}
	t.pool, err = app.acquirePool(t, config)
	return err
}

// poolConfig returns what the pool has to know. What is configured stays as it is.
func (t *Transport) poolConfig(ctx caddy.Context) (config pool.Config, err error) {
	var keepAlive reverseproxy.KeepAlive
	if t.KeepAlive != nil {
		keepAlive = *t.KeepAlive
	}
	var tlsConfig reverseproxy.TLSConfig
	if t.TLS != nil {
		tlsConfig = *t.TLS
	}
	if config.TLS, err = tlsConfig.MakeTLSClientConfig(ctx); err != nil {
		return config, fmt.Errorf("making TLS client config: %v", err)
	}
	if config.TLS == nil {
		config.TLS = new(tls.Config)
	}
	if versions := t.tlsVersions(); slices.Contains(versions, "2") {
		config.TLS.NextProtos = []string{"h2", "http/1.1"}
	}
	if config.Dialer, err = t.dialer(keepAlive.ProbeInterval); err != nil {
		return config, err
	}
	if config.ProxyProtocol, err = t.proxyProtocol(); err != nil {
		return config, err
	}
	config.SessionCache = cmp.Or(t.TLSSessionCache, 4096)
	config.DialTimeout = t.fullTimeout(pool.Connect)
	config.HandshakeTimeout = t.fullTimeout(pool.Handshake)
	config.ReadTimeout, config.WriteTimeout = time.Duration(t.ReadTimeout), time.Duration(t.WriteTimeout)
	config.ResponseHeaderTimeout = time.Duration(t.ResponseHeaderTimeout)
	config.ExpectContinueTimeout = time.Duration(t.ExpectContinueTimeout)
	config.MaxResponseHeader = t.MaxResponseHeaderSize
	config.ReadBuffer, config.WriteBuffer = t.ReadBufferSize, t.WriteBufferSize
	config.DisableCompression = t.Compression != nil && !*t.Compression
	config.DisableKeepAlive = keepAlive.Enabled != nil && !*keepAlive.Enabled
	config.MaxIdlePerKey = cmp.Or(keepAlive.MaxIdleConnsPerHost, 512)
	config.MaxPerKey = t.MaxConnsPerHost
	config.MaxIdle = cmp.Or(keepAlive.MaxIdleConns, defaultMaxConns())
	config.IdleTimeout = time.Duration(cmp.Or(keepAlive.IdleConnTimeout, caddy.Duration(150*time.Second)))
	return config, nil
}

// fullTimeout returns how long a phase of dialling may take at all.
func (t *Transport) fullTimeout(ph pool.Phase) time.Duration {
	if ph == pool.Handshake {
		if t.TLS != nil && t.TLS.HandshakeTimeout != 0 {
			return time.Duration(t.TLS.HandshakeTimeout)
		}
		return 5 * time.Second
	}
	return time.Duration(cmp.Or(t.DialTimeout, caddy.Duration(3*time.Second)))
}

// tlsVersions returns the versions of HTTP that are spoken over TLS.
func (t *Transport) tlsVersions() []string {
	versions := slices.DeleteFunc(slices.Clone(t.Versions), func(v string) bool { return v == "h2c" })
	if len(versions) == 0 {
		return []string{"1.1", "2"}
	}
	return versions
}

// dialer returns what opens TCP connections.
func (t *Transport) dialer(probes caddy.Duration) (d net.Dialer, err error) {
	setDefault(&probes, caddy.Duration(30*time.Second))
	d.KeepAlive = time.Duration(probes)
	d.KeepAliveConfig = net.KeepAliveConfig{Enable: probes > 0, Interval: time.Duration(probes)}
	if t.LocalAddress == "" {
		return d, nil
	}
	addr, err := caddy.ParseNetworkAddressWithDefaults(t.LocalAddress, "tcp", 0)
	switch {
	case err != nil:
		return d, err
	case addr.PortRangeSize() > 1:
		return d, errors.New("local_address must be a single address, not a port range")
	}
	switch addr.Network {
	case "tcp", "tcp4", "tcp6":
		d.LocalAddr, err = net.ResolveTCPAddr(addr.Network, addr.JoinHostPort(0))
	case "unix", "unixgram", "unixpacket":
		d.LocalAddr, err = net.ResolveUnixAddr(addr.Network, addr.JoinHostPort(0))
	case "udp", "udp4", "udp6":
		err = errors.New("local_address must be a TCP address, not a UDP address")
	default:
		err = fmt.Errorf("local_address: unsupported network %s", addr.Network)
	}
	return d, err
}

func (t *Transport) proxyProtocol() (byte, error) {
	switch t.ProxyProtocol {
	case "":
		return 0, nil
	case "v1":
		return 1, nil
	case "v2":
		return 2, nil
	}
	return 0, fmt.Errorf("unexpected proxy_protocol version %q: expecting v1 or v2", t.ProxyProtocol)
}

// limitsOwn names the limits of this configuration that make failures of what
// others may take for a success, or wait for; "" if there are none.
func (t *Transport) limitsOwn() (health.Limit, error) {
	limits := struct {
		Header, Read, Write, Latency caddy.Duration
		Status                       []int
	}{t.ResponseHeaderTimeout, t.ReadTimeout, t.WriteTimeout, t.UnhealthyLatency, t.UnhealthyStatus}
	if limits.Header+limits.Read+limits.Write+limits.Latency == 0 && len(limits.Status) == 0 {
		return "", nil
	}
	text, err := json.Marshal(limits)
	return health.Limit(text), err
}

// defaultMaxConns returns how many connections may be open before idle ones are
// closed: half of the descriptors that this process may have.
func defaultMaxConns() int {
	const least, most = 64, 1 << 16
	return min(max(cmp.Or(pool.DescriptorLimit(), 2048)/2, least), most)
}

// refused returns what of the HTTP transport has no place here.
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

// isStatus reports whether n is a status code, or stands for a class of them.
func isStatus(n int) bool { return n >= 1 && n <= 5 || n >= 100 && n <= 599 }

// Cleanup releases the connections. If no other configuration uses them, those that
// are idle are closed, and those in use as soon as they no longer are.
func (t *Transport) Cleanup() error {
	if t.pool == nil || t.released {
		return nil
	}
	t.released = true // requests in flight still use it
	return t.shared.releasePool(t.pool)
}

// hostTemplate stays as it is, or becomes empty, in requests that no target
// handler has seen.
const hostTemplate = "{http.target.hostport}"

// RequestHeaderOps sets the Host header to that of the target, in place of that
// of the HTTP transport, which would set it to an address. That is left to
// RoundTrip, where it costs nothing, if no other module changes it.
func (t *Transport) RequestHeaderOps() *headers.HeaderOps {
	if !t.hostByOps {
		return nil
	}
	return &headers.HeaderOps{Set: http.Header{"Host": []string{hostTemplate}}}
}

// touchesHost reports whether header operations may change the Host header.
func touchesHost(ops *headers.HeaderOps) bool {
	return touches(ops, "Host")
}

// lookAtProxy takes from the reverse_proxy that the transport belongs to what
// it has to know of it.
func (t *Transport) lookAtProxy(ctx caddy.Context) {
	proxy := proxyOf(ctx)
	if proxy == nil {
		t.hostByOps = true
		return
	}
	t.handlers = proxy.HandleResponse
	if proxy.Headers != nil && proxy.Headers.Request != nil {
		t.headerOps = proxy.Headers.Request
		t.hostByOps = touchesHost(t.headerOps)
	}
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
// whatever the client sends from then on, unchecked.
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
	a := &attempt{transport: t}
	a.call, a.pass = callOf(req, info.Upstream)
	defer a.end()
	if err := a.refuse(req); err != nil {
		return nil, err
	}
	a.choose(req, info)
	if c := a.call; c != nil && c.judge != nil {
		if err := c.judge.upstream(c, a.order.Key.Addr); err != nil {
			c.state.err = err
			return nil, caddyhttp.Error(http.StatusForbidden, err)
		}
	}
	body, err := a.takeBody(req)
	if err != nil {
		return nil, err
	}
	a.prepare(req, info)
	a.out.Body = body
	a.begin()
	if t.UnhealthyLatency > 0 || a.call != nil && a.call.measured {
		a.begun = time.Now()
	}
	res, err := t.pool.RoundTrip(&a.out, &a.order)
	if err != nil {
		return nil, a.failed(err.(*pool.Error))
	}
	a.worked(res.StatusCode)
	if c := a.call; c != nil && c.follower != nil {
		c.follower.responded(c, req, res, t.handlers)
	}
	return res, nil
}

// refuse returns why a request is not sent at all.
func (a *attempt) refuse(req *http.Request) error {
	c := a.call
	if err := req.Context().Err(); err != nil { // reverse_proxy tries again even then
		if c != nil && c.state.err == nil {
			c.state.err = fmt.Errorf("%s: %w", c.host, err)
		}
		return err
	}
	if req.Method != http.MethodConnect { // a WebSocket over HTTP/2 is none any more
		return nil
	}
	err := malformedError{errConnect}
	if c != nil {
		c.state.err = err
		if c.judge != nil {
			c.judge.failed(c, http.StatusBadRequest, err)
		}
	}
	return caddyhttp.Error(http.StatusBadRequest, err)
}

// choose sets what the attempt wants of the pool.
func (a *attempt) choose(req *http.Request, info reverseproxy.DialInfo) {
	t, c, o := a.transport, a.call, &a.order
	o.Last = true
	if c != nil {
		o.Target, o.Owner = c.host, c
		o.Deadlines, o.Pending = a.pass.deadlines, c.cuts()
		o.Last = !c.more && !a.pass.offersBeside(c) || c.attempts() >= t.retries
	}
	key := &o.Key
	if addr, err := netip.ParseAddrPort(info.Address); err == nil && info.Network == "tcp" {
		key.Addr = addr
	} else {
		key.Dial = info.Network + " " + info.Address
	}
	key.Host = o.Target
	switch t.schemeOf(c) {
	case "https":
		key.Protocol = pool.TLS
		if isUpgrade(req.Header) {
			key.Protocol = pool.TLSHTTP1
		}
		key.ServerName = t.serverName(req, c, info)
	case "h2c":
		if !isUpgrade(req.Header) { // which HTTP/2 does not have
			key.Protocol = pool.HTTP2
		}
	}
	if t.ShareConnections && key.ServerName == "" {
		key.Host = ""
	}
	if t.ProxyProtocol != "" {
		if client, ok := caddyhttp.GetVar(req.Context(), proxyProtocolVar).(reverseproxy.ProxyProtocolInfo); ok {
			key.Client = client.AddrPort
		}
	}
}

// prepare makes what is sent of the request, but for its body.
func (a *attempt) prepare(req *http.Request, info reverseproxy.DialInfo) {
	// header and trailer are reverse_proxy's copies, made for this request; an
	// attempt before this one may still be reading them, but then has changed
	// them already
	dropH2CUpgrade(req.Header)
	if a.call != nil {
		strip(req.Header, a.call.strip)
		strip(req.Trailer, a.call.strip) // and again when its values are known
		if a.call.foreign {
			a.call.dropCredentials(req.Header)
		}
	}
	a.dropTrailers(req)
	getBody := a.out.GetBody
	a.out, a.url = *req, *req.URL
	a.out.GetBody = getBody
	scheme := "http"
	if a.order.Key.ServerName != "" {
		scheme = "https"
	}
	a.url.Scheme, a.url.Host, a.url.Opaque = scheme, info.Address, ""
	a.out.URL = &a.url
	if t := a.transport; !t.hostByOps || a.out.Host == hostTemplate || a.out.Host == "" {
		a.out.Host = hostOf(req, a.call, info, scheme)
	}
	if !slices.Contains(req.Header[loopHeader], loopID) {
		req.Header[loopHeader] = append(req.Header[loopHeader], loopID)
	}
}

// takeBody returns the body of a request, which can be sent more than once. It
// waits for its first octets: a client that sends nothing must not hold a
// connection. One that waits for the backend may.
func (a *attempt) takeBody(req *http.Request) (io.ReadCloser, error) {
	if !hasBody(req) {
		return req.Body, nil
	}
	drop := ""
	if a.call != nil {
		drop = a.call.strip
	}
	if a.pass == nil {
		a.pass = stateFor(req.Context()).current()
	}
	a.body = a.pass.bodyOf(req, drop)
	body, err := a.openBody(req)
	if err != nil {
		return nil, a.bodyFailed(err)
	}
	a.out.GetBody = func() (io.ReadCloser, error) { return a.openBody(req) }
	if err := a.body.begin(mayBeSilent(req) || a.transport.ExpectContinueTimeout > 0 && expectsContinue(req)); err != nil {
		return nil, a.bodyFailed(err)
	}
	return body, nil
}

// bodyFailed returns the error of an attempt for want of the request's body.
func (a *attempt) bodyFailed(err error) error {
	if c := a.call; c != nil {
		c.state.err = fmt.Errorf("%s: reading the request's body: %w", c.host, err)
	}
	return err
}

// begin opens connections to addresses that failed a while ago, as they would be opened
// for the attempt, to see whether they work again; and begins the trial of the
// attempt's address if it needs one.
func (a *attempt) begin() {
	if a.pass == nil {
		return
	}
	for c := range a.pass.calls(a.call) {
		if a.call != nil && len(c.probe) > 0 {
			a.probe(c)
		}
		if l := c.trial; l != nil && c == a.call && l.addr == a.order.Key.Addr.Addr() && l.begin() {
			a.trial = l
		}
	}
}

// probe is begin for a call that might have been that of the attempt.
func (a *attempt) probe(c *call) {
	for _, l := range c.probe {
		if !l.begin() {
			continue
		}
		o := &pool.Order{Key: a.order.Key, Target: c.host, Owner: c, Last: true}
		o.Key.Addr = netip.AddrPortFrom(l.addr, c.port)
		if o.Key.Host == a.call.host {
			o.Key.Host = c.host
		}
		if o.Key.ServerName == a.call.host {
			o.Key.ServerName = c.host
		}
		if !a.transport.pool.Probe(o) {
			l.trial.Release()
		}
	}
}

// end gives up what was claimed and has not begun, or has ended without an outcome.
func (a *attempt) end() {
	if a.trial != nil {
		a.trial.trial.Release()
	}
	if a.pass != nil {
		a.pass.release(a.call)
	}
}

// isUnhealthy reports whether a response counts as a failure of the address.
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
		return targeturl.JoinHostPort(scheme, c.host, c.port)
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
