package caddytarget

import (
	"net/http"

	"golang.org/x/net/http/httpguts"
)

// reopenBody makes the body of a request readable once more, for another handler than
// the one that made c, which may be nil. returned says that the handlers that sent it
// have returned; else reverse_proxy still has it, in handle_response.
func (c *call) reopenBody(r *http.Request, returned bool) {
	switch {
	case c == nil || !hasBody(r):
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

// hasBody reports whether a request has a body.
func hasBody(r *http.Request) bool { return r.Body != nil && r.Body != http.NoBody }

// mayBeSilent reports whether the client may rightly send nothing of the body
// before something has come from the backend: in a stream of gRPC.
func mayBeSilent(r *http.Request) bool {
	return r.ProtoMajor >= 2 && r.ContentLength < 0 && isGRPC(r.Header)
}

func isGRPC(header http.Header) bool {
	const prefix = "application/grpc"
	value := header.Get("Content-Type")
	return len(value) >= len(prefix) && value[:len(prefix)] == prefix
}

// expectsContinue reports whether the client waits for the backend's 100
// (Continue).
func expectsContinue(r *http.Request) bool {
	return r.ProtoAtLeast(1, 1) && httpguts.HeaderValuesContainsToken(r.Header["Expect"], "100-continue")
}
