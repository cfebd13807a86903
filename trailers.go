package caddytarget

import (
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"golang.org/x/net/http/httpguts"
)

// trailers are the fields that follow the body of a request. A backend may take them
// for header fields. So one is not sent on whose name is that of a header field that a
// client cannot set: reverse_proxy removes or sets those, and what the configuration
// changes, but in the header alone.
type trailers struct {
	fields http.Header
	ops    *headers.HeaderOps // of the configuration
	strip  string             // a header field that is not sent on; empty: none
}

// dropTrailers takes out what is not sent on of a request's trailers, now and when
// the body has been read: all names and values are known only then.
func (a *attempt) dropTrailers(req *http.Request) {
	if req.Trailer == nil {
		return
	}
	a.trailers = trailers{fields: req.Trailer, ops: a.transport.headerOps}
	if a.call != nil {
		a.trailers.strip = a.call.strip
	}
	a.trailers.drop()
	if a.body != nil {
		a.body.AtEnd(a.trailers.drop)
	}
}

// drop takes out what is not sent on. If there is nothing to take out, nothing is
// written: others may be reading.
func (t *trailers) drop() {
	for name := range t.fields {
		if name == t.strip || isForHeader(name) || t.ops != nil && touches(t.ops, name) {
			delete(t.fields, name)
		}
	}
}

// isForHeader reports whether a field means something in a header that it may not
// mean in a trailer (RFC 9110, section 6.5.1), or is one that a gateway sets.
func isForHeader(name string) bool {
	if !httpguts.ValidTrailerHeader(name) || hasPrefixFold(name, "X-Forwarded-") || hasPrefixFold(name, "Proxy-") {
		return true
	}
	switch http.CanonicalHeaderKey(name) {
	case "Forwarded", "Via", loopHeader, "Upgrade", "Http2-Settings", "Alt-Svc":
		return true
	}
	return false
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// touches reports whether header operations may change a field.
func touches(ops *headers.HeaderOps, field string) bool {
	may := func(name string) bool {
		return strings.EqualFold(name, field) || strings.Contains(name, "{") || strings.Contains(name, "*") && matchesWildcard(name, field)
	}
	for name := range ops.Set {
		if may(name) {
			return true
		}
	}
	for name := range ops.Add {
		if may(name) {
			return true
		}
	}
	for name := range ops.Replace {
		if may(name) {
			return true
		}
	}
	return slices.ContainsFunc(ops.Delete, may)
}

// matchesWildcard reports whether a name with wildcards at its ends, as Caddy takes it
// in what is deleted and replaced, may mean a field.
func matchesWildcard(name, field string) bool {
	name, field = strings.ToLower(name), strings.ToLower(field)
	inner := strings.Trim(name, "*")
	switch {
	case strings.HasPrefix(name, "*") && strings.HasSuffix(name, "*"):
		return strings.Contains(field, inner)
	case strings.HasPrefix(name, "*"):
		return strings.HasSuffix(field, inner)
	case strings.HasSuffix(name, "*"):
		return strings.HasPrefix(field, inner)
	}
	return true // in the middle it means nothing to Caddy
}
