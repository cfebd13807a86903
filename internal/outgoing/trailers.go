package outgoing

import (
	"net/http"
	"slices"

	"caddytarget/internal/httpfield"
	"caddytarget/internal/replay"
)

// dropTrailers takes out what is not sent on of a request's trailers, the fields that follow
// its body, now and when the body has been read: all names and values are known only then. A
// backend may take them for header fields. So one is not sent on whose name is that of a
// header field that a client cannot set: reverse_proxy removes or sets those, and what the
// configuration changes, but in the header alone.
func dropTrailers(fields http.Header, body *replay.Body, c Changes) {
	if fields == nil {
		return
	}
	c.dropFrom(fields)
	if body != nil {
		body.AtEnd(func() { c.dropFrom(fields) })
	}
}

// dropFrom takes out what is not sent on of trailers. If there is nothing to take out,
// nothing is written: others may be reading.
func (c Changes) dropFrom(trailers http.Header) {
	for name := range trailers {
		if name == c.Strip || httpfield.IsForHeader(name) || Touches(c.Operations, name) {
			delete(trailers, name)
		}
	}
}

// Touches reports whether header operations may change a field, by the names that they have.
func Touches(operations []string, field string) bool {
	return slices.ContainsFunc(operations, func(name string) bool { return httpfield.MayMatch(name, field) })
}
