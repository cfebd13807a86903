package caddytarget

import (
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"

	"caddytarget/internal/httpfield"
)

// trailers are the fields that follow the body of a request. A backend may take them
// for header fields. So one is not sent on whose name is that of a header field that a
// client cannot set: reverse_proxy removes or sets those, and what the configuration
// changes, but in the header alone.
type trailers struct {
	fields http.Header
	ops    *headers.HeaderOps // of the configuration; nil: none
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
		if name == t.strip || httpfield.IsForHeader(name) || touches(t.ops, name) {
			delete(t.fields, name)
		}
	}
}

// touches reports whether header operations, which may be nil, may change a field.
func touches(ops *headers.HeaderOps, field string) bool {
	if ops == nil {
		return false
	}
	may := func(name string) bool { return httpfield.MayMatch(name, field) }
	for name := range ops.Replace {
		if may(name) {
			return true
		}
	}
	for _, names := range []http.Header{ops.Set, ops.Add} {
		for name := range names {
			if may(name) {
				return true
			}
		}
	}
	return slices.ContainsFunc(ops.Delete, may)
}
