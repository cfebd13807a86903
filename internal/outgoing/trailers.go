package outgoing

import (
	"net/http"
	"slices"

	"caddytarget/internal/httpfield"
	"caddytarget/internal/replay"
)

// trailers are the fields that follow the body of a request. A backend may take them
// for header fields. So one is not sent on whose name is that of a header field that a
// client cannot set: reverse_proxy removes or sets those, and what the configuration
// changes, but in the header alone.
type trailers struct {
	fields     http.Header
	operations []string // see Changes
	strip      string   // a header field that is not sent on; empty: none
}

// dropTrailers takes out what is not sent on of a request's trailers, now and when
// the body has been read: all names and values are known only then.
func (r *Request) dropTrailers(fields http.Header, body *replay.Body, c Changes) {
	if fields == nil {
		return
	}
	r.trailers = trailers{fields, c.Operations, c.Strip}
	r.trailers.drop()
	if body != nil {
		body.AtEnd(r.trailers.drop)
	}
}

// drop takes out what is not sent on. If there is nothing to take out, nothing is
// written: others may be reading.
func (t *trailers) drop() {
	for name := range t.fields {
		if name == t.strip || httpfield.IsForHeader(name) || Touches(t.operations, name) {
			delete(t.fields, name)
		}
	}
}

// Touches reports whether header operations may change a field, by the names that they have.
func Touches(operations []string, field string) bool {
	return slices.ContainsFunc(operations, func(name string) bool { return httpfield.MayMatch(name, field) })
}
