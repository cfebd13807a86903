package caddytarget

import (
	"net/http"
	"net/netip"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"caddytarget/internal/httpfield"
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
	if addr, err := netip.ParseAddrPort(info.Address); err == nil && info.Network == "tcp" {
		key.Addr = addr
	} else {
		key.Dial = info.Network + " " + info.Address
	}
	if c != nil {
		c.state.attempts++
		o.Reused = &c.state.reused
		c.state.address = key.Addr
	}
	key.Host = o.Target
	switch t.schemeOf(c) {
	case "https":
		key.Protocol = pool.TLS
		if httpfield.IsUpgrade(req.Header) {
			key.Protocol = pool.TLSHTTP1
		}
		key.ServerName = t.serverName(req, c, info)
	case "h2c":
		if !httpfield.IsUpgrade(req.Header) { // which HTTP/2 does not have
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
	httpfield.DropH2CUpgrade(req.Header)
	if a.call != nil {
		httpfield.Delete(req.Header, a.call.strip)
		if a.call.foreign {
			a.call.dropCredentials(req.Header)
		}
	}
	a.dropTrailers(req)
	body, getBody := a.out.Body, a.out.GetBody
	a.out, a.url = *req, *req.URL
	a.out.Body, a.out.GetBody = body, getBody
	scheme := "http"
	if a.order.Key.ServerName != "" {
		scheme = "https"
	}
	a.url.Scheme, a.url.Host, a.url.Opaque = scheme, info.Address, ""
	a.out.URL = &a.url
	if t := a.transport; !t.hostViaHeaderOps || a.out.Host == hostTemplate || a.out.Host == "" {
		a.out.Host = hostOf(req, a.call, info, scheme)
	}
	if !slices.Contains(req.Header[loopHeader], loopID) {
		req.Header[loopHeader] = append(req.Header[loopHeader], loopID)
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
