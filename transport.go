package caddytarget

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
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

	"caddytarget/internal/exchange"
	"caddytarget/internal/health"
	"caddytarget/internal/outgoing"
	"caddytarget/internal/pool"
)

func init() { caddy.RegisterModule(new(Transport)) }

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

	// The connections that are kept open to the targets that are called most. Default: none.
	Warm *Warm `json:"warm,omitempty"`

	pool     *pool.Shared
	via      exchange.Transport
	shared   *shared
	released bool

	hostViaHeaderOps bool     // the Host header is set by header operations, before those of the user
	headerOps        []string // the names in those of the user
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
	if err := t.checkWarm(); err != nil {
		return err
	}
	app, err := appOf(ctx)
	if err != nil {
		return err
	}
	t.shared, t.via.Health = app.shared, app.shared.health
	app.log = ctx.Logger()
	t.readProxyConfig(proxyOf(ctx))
	t.via.Limit, t.via.Answered = t.limit(), app.shared.metrics.Requests.Answered
	t.via.Continue = t.ExpectContinueTimeout > 0
	t.via.UnhealthyStatus, t.via.UnhealthyLatency = t.UnhealthyStatus, time.Duration(t.UnhealthyLatency)
	config, err := t.poolConfig(ctx)
	if err != nil {
		return err
	}
	t.via.Timeouts = [2]time.Duration{pool.Connect: config.DialTimeout, pool.Handshake: config.HandshakeTimeout}
	app.warms = app.warms || t.Warm != nil
	if t.pool, err = app.acquirePool(&t.HTTPTransport, config); err != nil {
		return err
	}
	t.via.Probe = t.pool.Probe
	return nil
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
	var ok bool
	if config.ProxyProtocol, ok = proxyProtocols[t.ProxyProtocol]; !ok {
		return config, fmt.Errorf("unexpected proxy_protocol version %q: expecting v1 or v2", t.ProxyProtocol)
	}
	config.SessionCache = cmp.Or(t.TLSSessionCache, 4096)
	config.DialTimeout = time.Duration(cmp.Or(t.DialTimeout, caddy.Duration(3*time.Second)))
	config.HandshakeTimeout = time.Duration(cmp.Or(tlsConfig.HandshakeTimeout, caddy.Duration(5*time.Second)))
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
	config.IdleTimeout = time.Duration(cmp.Or(keepAlive.IdleConnTimeout, caddy.Duration(defaultIdleTimeout)))
	return config, nil
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
	d.KeepAlive = cmp.Or(time.Duration(probes), 30*time.Second)
	d.KeepAliveConfig = net.KeepAliveConfig{Enable: d.KeepAlive > 0, Interval: d.KeepAlive}
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

// proxyProtocols are the versions of the PROXY protocol by the option's values.
var proxyProtocols = map[string]byte{"": 0, "v1": 1, "v2": 2}

// limit names the limits of this configuration that make failures of what others may
// take for a success, or wait for; "" if there are none.
func (t *Transport) limit() health.Limit {
	var all []string
	for _, limit := range []struct {
		option string
		after  caddy.Duration
	}{
		{"response_header_timeout", t.ResponseHeaderTimeout},
		{"read_timeout", t.ReadTimeout},
		{"write_timeout", t.WriteTimeout},
		{"unhealthy_latency", t.UnhealthyLatency},
	} {
		if limit.after != 0 {
			all = append(all, fmt.Sprint(limit.option, " ", time.Duration(limit.after)))
		}
	}
	if len(t.UnhealthyStatus) > 0 {
		all = append(all, fmt.Sprint("unhealthy_status ", t.UnhealthyStatus))
	}
	return health.Limit(strings.Join(all, ", "))
}

// defaultMaxConns returns how many connections may be open before idle ones are
// closed: half of the descriptors that this process may have.
func defaultMaxConns() int {
	const minConns, maxConns = 64, 1 << 16
	return min(max(cmp.Or(pool.DescriptorLimit(), 2048)/2, minConns), maxConns)
}

// refused returns what of the HTTP transport has no place here.
func (t *Transport) refused() error {
	switch {
	case len(t.NetworkProxyRaw) > 0 || t.ForwardProxyURL != "":
		return errors.New("a proxy for the transport is not supported: it would connect to addresses that were not checked")
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
		return fmt.Errorf("unhealthy_latency %s is not a positive duration", time.Duration(t.UnhealthyLatency))
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
	t.shared.pools.Release(t.pool)
	return nil
}

// hostTemplate stays as it is, or becomes empty, in requests that no target
// handler has seen.
const hostTemplate = "{http.target.hostport}"

// RequestHeaderOps sets the Host header to that of the target, in place of that
// of the HTTP transport, which would set it to an address. That is left to
// RoundTrip, where it costs nothing, if no other module changes it.
func (t *Transport) RequestHeaderOps() *headers.HeaderOps {
	if !t.hostViaHeaderOps {
		return nil
	}
	return &headers.HeaderOps{Set: http.Header{"Host": []string{hostTemplate}}}
}

// readProxyConfig takes from the reverse_proxy that the transport belongs to what
// it has to know of it.
func (t *Transport) readProxyConfig(proxy *reverseproxy.Handler) {
	if proxy == nil {
		t.hostViaHeaderOps = true
		return
	}
	if handlers := proxy.HandleResponse; handlers != nil {
		t.via.Takes = func(res *http.Response) bool {
			return slices.ContainsFunc(handlers, func(h caddyhttp.ResponseHandler) bool {
				return h.Match == nil || h.Match.Match(res.StatusCode, res.Header)
			})
		}
	}
	if proxy.Headers != nil && proxy.Headers.Request != nil {
		t.headerOps = operationsOf(proxy.Headers.Request)
		t.hostViaHeaderOps = outgoing.Touches(t.headerOps, "Host")
	}
	if lb := proxy.LoadBalancing; lb != nil {
		t.via.Retries = lb.Retries
		if lb.Retries == 0 && lb.TryDuration > 0 {
			t.via.Retries = math.MaxInt
		}
		if t.via.Interval = time.Duration(lb.TryInterval); lb.TryInterval == 0 && lb.TryDuration > 0 {
			t.via.Interval = 250 * time.Millisecond // Caddy's default, which is set later
		}
	}
}

// operationsOf returns the names of fields that header operations have.
func operationsOf(ops *headers.HeaderOps) []string {
	names := slices.Clone(ops.Delete)
	names = slices.AppendSeq(names, maps.Keys(ops.Replace))
	names = slices.AppendSeq(names, maps.Keys(ops.Set))
	return slices.AppendSeq(names, maps.Keys(ops.Add))
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

// RoundTrip implements http.RoundTripper: one attempt at a request.
func (t *Transport) RoundTrip(req *http.Request) (res *http.Response, err error) {
	info, ok := reverseproxy.GetDialInfo(req.Context())
	if !ok {
		return nil, errors.New("transport target: called by something other than reverse_proxy")
	}
	a := t.newAttempt(req, info)
	defer func() {
		a.End()
		err = forProxy(err, err != nil && a.IsLast(req))
	}()
	if err := a.Refuse(req); err != nil {
		return nil, err
	}
	t.setOrder(a, req, info)
	if a.BeginRecord(req) {
		defer func() { a.EndRecord(res, err) }()
	}
	if err := a.CheckAddress(); err != nil {
		return nil, err
	}
	if err := a.TakeBody(req); err != nil {
		return nil, err
	}
	t.prepare(a, req, info)
	a.Begin()
	res, err = t.pool.RoundTrip(&a.Out.Request, &a.Order)
	if err != nil {
		return nil, a.Failed(err.(*pool.Error))
	}
	a.Worked(req, res)
	return res, nil
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
)
