package caddytarget

import (
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"caddytarget/internal/outgoing"
	"caddytarget/internal/pool"
	"caddytarget/internal/targeturl"
)

// proxyProtocolVar is where reverse_proxy leaves what the embedded transport
// needs to know for the PROXY protocol.
const proxyProtocolVar = "reverse_proxy.proxy_protocol_info"

// setOrder sets what the attempt wants of the pool.
func (a *attempt) setOrder(req *http.Request, info reverseproxy.DialInfo) {
	t, c, o := a.transport, a.call, &a.order
	if o.Last = true; c != nil {
		a.exchange.plan.FillOrder(&c.Target, &t.via, o)
	}
	key := &o.Key
	outgoing.SetKey(key, info.Network, info.Address, t.schemeOf(c), req.Header)
	if c != nil {
		c.state.attempts++
		o.Reused = &c.state.reused
		c.state.address = key.Addr
	}
	key.Host = o.Target
	if key.Protocol == pool.TLS || key.Protocol == pool.TLSHTTP1 {
		key.ServerName = t.serverName(req, c, info)
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
	t, c := a.transport, a.call
	changes := outgoing.Changes{Scheme: "http", Address: info.Address, Operations: t.headerOps}
	if a.order.Key.ServerName != "" {
		changes.Scheme = "https"
	}
	if c != nil {
		changes.Strip = c.strip
		if c.foreign {
			c.follower.DropCredentials(req.Header)
		}
	}
	a.out.Set(req, a.body, changes)
	if !t.hostViaHeaderOps || a.out.Host == hostTemplate || a.out.Host == "" {
		a.out.Host = hostOf(req, c, info, changes.Scheme)
	}
	if r := a.recorded; r != nil && r.span != nil {
		a.out.Header = r.span.Header(req.Header)
	}
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
		return c.Host
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
		return targeturl.JoinHostPort(scheme, c.Host, c.Port)
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
