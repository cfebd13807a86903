package caddytarget

import (
	"net/http"

	"caddytarget/internal/httpfield"
)

// reopenBody makes the body of a request readable once more, for another handler than
// the one that made c, which may be nil. returned says that the handlers that sent it
// have returned; else reverse_proxy still has it, in handle_response.
func (c *call) reopenBody(r *http.Request, returned bool) {
	switch {
	case c == nil || !httpfield.HasBody(r):
	case returned && c.follower != nil:
		c.follower.restoreBody(r)
	case c.exchange == nil || c.exchange.body == nil:
	case !returned:
		r.Body = c.exchange.body.Reopen(true)
	default:
		if body := c.exchange.body.Rest(r.ContentLength); body != nil {
			r.Body = body
		}
	}
}

// restoreBody makes the client's body readable from its beginning, for what comes after
// an error.
func (f *follower) restoreBody(r *http.Request) {
	if f.all != nil {
		r.Body = f.all.Reopen(false)
	}
}
