// Package outgoing makes of a request what an attempt sends: without the fields and trailers
// that a backend must not get (trailers.go), to the address that was chosen, over a connection
// of the right protocol, and with a mark by which a request that comes back is recognized
// (loop.go).
package outgoing

import (
	"net/http"
	"net/netip"
	"net/url"

	"caddytarget/internal/httpfield"
	"caddytarget/internal/pool"
	"caddytarget/internal/replay"
)

// Request is what an attempt sends.
type Request struct {
	http.Request
	url url.URL
}

// Changes is how what is sent differs from the request.
type Changes struct {
	Scheme, Address string // of the URL

	// Strip is a header field that is not sent on; empty: none.
	Strip string

	// Operations are the names of the header fields that the configuration changes, as it
	// has them. They are changed by now, but trailers are not.
	Operations []string
}

// Set makes r what is sent of a request, but for its body, which r has: that is read from
// body, which is nil if there is none. The header and the trailers of the request become
// those of r. An attempt before this one may still be reading them, but then has changed
// them already.
func (r *Request) Set(from *http.Request, body *replay.Body, c Changes) {
	httpfield.DropH2CUpgrade(from.Header)
	httpfield.Delete(from.Header, c.Strip)
	dropTrailers(from.Trailer, body, c)
	out, getBody := r.Body, r.GetBody
	r.Request, r.url = *from, *from.URL
	r.Body, r.GetBody = out, getBody
	r.url.Scheme, r.url.Host, r.url.Opaque = c.Scheme, c.Address, ""
	r.URL = &r.url
	addLoopID(from.Header)
}

// SetKey sets where a connection for a request leads, and what is spoken over it.
func SetKey(key *pool.Key, network, address, scheme string, header http.Header) {
	if addr, err := netip.ParseAddrPort(address); err == nil && network == "tcp" {
		key.Addr = addr
	} else {
		key.Dial = network + " " + address
	}
	upgrade := httpfield.IsUpgrade(header)
	switch {
	case scheme == "https" && upgrade:
		key.Protocol = pool.TLSHTTP1
	case scheme == "https":
		key.Protocol = pool.TLS
	case scheme == "h2c" && !upgrade: // which HTTP/2 does not have
		key.Protocol = pool.HTTP2
	}
}
