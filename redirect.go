package caddytarget

import (
	"maps"
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"caddytarget/internal/exchange"
	"caddytarget/internal/redirect"
	"caddytarget/internal/targeturl"
)

// Redirects makes the handler follow redirects (status 301, 302, 303, 307 and 308),
// where by default the client gets them. The target of each is read, checked and
// resolved as the request's is, and the handlers that come after this one run again
// for it. The client gets the last response; nothing of those before it is sent on, nor are
// interim responses, unless no more redirects are followed.
//
// Method and body are those of RFC 9110, section 15.4: 303 makes a GET of every
// method but HEAD, 301 and 302 make one of a POST; otherwise both stay, and the
// fields that describe the body with it. If scheme, host or port change, fields that
// hold credentials are not sent any more, nor trailers: Authorization, Cookie,
// Proxy-Authorization, those whose name has `auth`, `cookie`, `credential`,
// `password`, `secret`, `session` or `token` in it or ends in `key` (but not
// Idempotency-Key), and those of Drop.
//
// A redirect that is not followed goes on to the client as it is: one with a status
// that Status does not have, one from https to http, one too many, one whose Location
// cannot be read or has another scheme than http and https, one that needs a body
// which was not kept, and one that a `handle_response` of reverse_proxy takes.
// Requests for an upgrade, such as those of WebSockets, are not redirected. If the
// target of a redirect may not be called, or fails, that is an error as it is for a
// target.
//
// Only `transport target` finds redirects, and only those of the request's target.
type Redirects struct {
	// How many redirects are followed for one request.
	Max int `json:"max,omitempty"`

	// The status codes of redirects that are followed. Default: 301, 302, 303, 307 and
	// 308.
	Status []int `json:"status,omitempty"`

	// How much of a request's body is kept in memory, in octets, so that it can be
	// sent again. Default: 65536.
	MaxBody int `json:"max_body,omitempty"`

	// More header fields that are not sent to another scheme, host or port. `X-Key*`,
	// `*-Key` and `*key*` stand for all fields that begin or end so, or have it in
	// them.
	Drop []string `json:"drop,omitempty"`
}

// options returns the options of what follows redirects.
func (f *Redirects) options() *redirect.Options { return (*redirect.Options)(f) }

// validate checks the configuration. If f is nil, there is nothing to check.
func (f *Redirects) validate() error { return f.options().Validate() }

// follow calls the target of a request, and those of the redirects that it leads to.
func (h *Handler) follow(w http.ResponseWriter, r *http.Request, c *exchange.Context, u targeturl.URL, next caddyhttp.Handler) error {
	client := r
	f := redirect.NewFollower(h.FollowRedirects.options(), &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}, r)
	// the handlers that come next change these, and get them unchanged for each redirect
	header, response := r.Header.Clone(), w.Header().Clone()
	groups, _ := r.Context().Value(routeGroups).(map[string]struct{})
	satisfied := maps.Clone(groups)

	for {
		c.Call.Follower = f
		f.Begin()
		err := h.forward(f, r, c, u, next)
		if err != nil {
			f.RestoreBody(client)
		}
		if err != nil || !f.Discarded() {
			return err
		}
		restore(w.Header(), response.Clone())
		restore(groups, satisfied)
		r, u = f.Next(r, header.Clone())
		from := c.Call.Host
		if c, err = c.Hop(r, u); err != nil {
			c.Call.State.Returned = true
			f.RestoreBody(client)
			return h.refuse(w, r, c.Call.State, err)
		}
		c.Call.Followed(r, from)
	}
}

// routeGroups is Caddy's context key for the groups of routes that have a match.
const routeGroups = caddy.CtxKey("route_group")

func restore[M ~map[K]V, K comparable, V any](to, from M) {
	clear(to)
	maps.Copy(to, from)
}

// locationURL is the URL of a handler that follows a redirect by itself, in a
// handle_response of reverse_proxy.
const locationURL = "{http.reverse_proxy.header.Location}"

// read reads the target of a request. A Location is relative to last, the call before, if
// there was one.
func (h *Handler) read(text string, last, c *exchange.Call) (targeturl.URL, error) {
	if h.URL != locationURL || last == nil || text == "" {
		return targeturl.Parse(text)
	}
	return c.ReadLocation(text, last)
}
