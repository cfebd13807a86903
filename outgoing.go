package caddytarget

import (
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"caddytarget/internal/exchange"
	"caddytarget/internal/httpfield"
	"caddytarget/internal/outgoing"
	"caddytarget/internal/pool"
	"caddytarget/internal/targeturl"
)

// proxyProtocolVar is where reverse_proxy leaves what the embedded transport
// needs to know for the PROXY protocol.
const proxyProtocolVar = "reverse_proxy.proxy_protocol_info"

// newAttempt returns an attempt at a request.
func (t *Transport) newAttempt(req *http.Request, info reverseproxy.DialInfo) *exchange.Attempt {
	c, x := callOf(req, info.Upstream)
	if x == nil && httpfield.HasBody(req) {
		x = stateOf(req.Context()).Current()
	}
	return exchange.NewAttempt(&t.via, c, x)
}

// setOrder sets what the attempt wants of the pool.
func (t *Transport) setOrder(a *exchange.Attempt, req *http.Request, info reverseproxy.DialInfo) {
	a.SetOrder(info.Network, info.Address, t.schemeOf(a.Call), req.Header)
	key := &a.Order.Key
	if key.Protocol == pool.TLS || key.Protocol == pool.TLSHTTP1 {
		key.ServerName = t.serverName(req, a.Call, info)
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
func (t *Transport) prepare(a *exchange.Attempt, req *http.Request, info reverseproxy.DialInfo) {
	scheme := "http"
	if a.Order.Key.ServerName != "" {
		scheme = "https"
	}
	a.SetOut(req, outgoing.Changes{Scheme: scheme, Address: info.Address, Operations: t.headerOps})
	if !t.hostViaHeaderOps || a.Out.Host == hostTemplate || a.Out.Host == "" {
		a.Out.Host = hostOf(req, a.Call, info, scheme)
	}
}

// schemeOf returns the scheme for a call.
func (t *Transport) schemeOf(c *exchange.Call) string {
	scheme := "http"
	switch {
	case c != nil && c.Scheme != "":
		scheme = c.Scheme
	case t.TLS != nil:
		scheme = "https"
	}
	if scheme == "http" && slices.Contains(t.Versions, "h2c") {
		return "h2c"
	}
	return scheme
}

// serverName returns the name that the backend has to prove.
func (t *Transport) serverName(req *http.Request, c *exchange.Call, info reverseproxy.DialInfo) string {
	switch {
	case t.TLS != nil && t.TLS.ServerName != "":
		if repl, ok := req.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
			return repl.ReplaceAll(t.TLS.ServerName, "")
		}
		return t.TLS.ServerName
	case c != nil:
		return c.Host
	}
	return info.Host
}

// hostOf returns the Host header: that of the target, or, where no target
// handler has seen the request, what the HTTP transport would send, but the
// name instead of one of its addresses.
func hostOf(req *http.Request, c *exchange.Call, info reverseproxy.DialInfo, scheme string) string {
	switch {
	case c != nil && c.Scheme != "":
		return c.HostPort
	case scheme == "https" && c != nil:
		return targeturl.JoinHostPort(scheme, c.Host, c.Port)
	case scheme == "https":
		return info.Address
	case req.Host != hostTemplate && req.Host != "":
		return req.Host
	case c != nil:
		return c.HostPort
	}
	if orig, ok := req.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		return orig.Host
	}
	return info.Address
}
