package caddytarget

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/dustin/go-humanize"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"caddytarget/internal/guard"
	"caddytarget/internal/httpfield"
	"caddytarget/internal/redirect"
	"caddytarget/internal/replay"
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

// UnmarshalCaddyfile sets up redirects from Caddyfile tokens. Syntax:
//
//	follow_redirects <n> {
//	    status   <code...>
//	    max_body <size>
//	    drop     <field...>
//	}
func (f *Redirects) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume option name
	if err := numberOption(&f.Max)(d); err != nil {
		return err
	}
	_, err := parseBlock(d, options{
		"status":   checked(codesOption(&f.Status, "not a status code", func(n int) bool { return n >= 100 }), f.validate),
		"max_body": checked(sizeOption(&f.MaxBody), f.validate),
		"drop":     listOption(&f.Drop, f.validate),
	}, nil)
	return err
}

func redirectsOption(to **Redirects) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		*to = new(Redirects)
		return (*to).UnmarshalCaddyfile(d.NewFromNextSegment())
	}
}

// sizeOption is a number of octets.
func sizeOption(to *int) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		name, arg := d.Val(), ""
		if !d.AllArgs(&arg) {
			return d.ArgErr()
		}
		size, err := humanize.ParseBytes(arg)
		if err != nil || size < 1 || size > math.MaxInt {
			return d.Errf("%s: %q is not a size", name, arg)
		}
		*to = int(size)
		return nil
	}
}

// maxBodyLimit is the largest max_body.
const maxBodyLimit = 1 << 30

// validate checks the configuration. If f is nil, there is nothing to check.
func (f *Redirects) validate() error {
	switch {
	case f == nil:
		return nil
	case f.Max < 1:
		return fmt.Errorf("follow_redirects: max %d is not positive", f.Max)
	case f.MaxBody < 0 || f.MaxBody > maxBodyLimit:
		return fmt.Errorf("follow_redirects: max_body %d is not in 0 to %d", f.MaxBody, maxBodyLimit)
	}
	for _, status := range f.Status {
		if !redirect.IsStatus(status) {
			return fmt.Errorf("follow_redirects: status %d is not one of 301, 302, 303, 307 and 308", status)
		}
	}
	for _, field := range f.Drop {
		if !redirect.ValidPattern(field) {
			return fmt.Errorf("follow_redirects: drop: %q is not the name of a header field", field)
		}
	}
	return nil
}

// follower follows the redirects of one request. For the handlers after the target handler
// it is the client. It discards the responses that are followed.
type follower struct {
	*caddyhttp.ResponseWriterWrapper
	config *Redirects
	all    *replay.Body // of the client's request; nil: none
	length int64        // Content-Length of the client's request
	body   *replay.Body // all; nil after a redirect without a body
	count  int          // how many redirects were followed

	next      *hop // set if the last response is a redirect that is followed
	discarded bool // that response was discarded
}

// hop is the request that follows a redirect.
type hop struct {
	status int // of the redirect
	target targeturl.URL
	method string        // empty: method and body are those of the request before
	body   io.ReadCloser // nil: none
}

// canFollow reports whether the handler follows redirects of a request.
func (h *Handler) canFollow(r *http.Request) bool {
	return h.FollowRedirects != nil && !httpfield.IsUpgrade(r.Header) && r.Method != http.MethodConnect
}

// follow calls the target of a request, and those of the redirects that it leads to.
func (h *Handler) follow(w http.ResponseWriter, r *http.Request, c *callContext, u targeturl.URL, next caddyhttp.Handler) error {
	f := &follower{ResponseWriterWrapper: &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}, config: h.FollowRedirects, length: r.ContentLength}
	if httpfield.HasBody(r) {
		f.all = replay.New(r.Body, f.config.MaxBody)
		f.body = f.all
		r.Body, _ = f.all.Open(true)
	}
	client := r
	// the handlers that come next change these, and get them unchanged for each redirect
	header, response := r.Header.Clone(), w.Header().Clone()
	groups, _ := r.Context().Value(routeGroups).(map[string]struct{})
	satisfied := maps.Clone(groups)

	for {
		c.call.follower, f.next = f, nil
		err := h.forward(f, r, c, u, next)
		if err != nil {
			f.restoreBody(client)
		}
		if err != nil || !f.discarded {
			return err
		}
		f.count++
		f.discarded = false
		restore(w.Header(), response.Clone())
		restore(groups, satisfied)
		r = f.request(r, header.Clone())
		u = f.next.target
		from := c.call.Host
		if c, err = h.newHop(c, r, u); err != nil {
			c.call.state.returned = true
			f.restoreBody(client)
			return h.refuse(w, r, c.call.state, err)
		}
		h.followed(r, &c.call, from)
	}
}

// restoreBody makes the client's body readable from its beginning, for what comes after
// an error.
func (f *follower) restoreBody(r *http.Request) {
	if f.all != nil {
		r.Body = f.all.Reopen(false)
	}
}

// routeGroups is Caddy's context key for the groups of routes that have a match.
const routeGroups = caddy.CtxKey("route_group")

func restore[M ~map[K]V, K comparable, V any](to, from M) {
	clear(to)
	maps.Copy(to, from)
}

// request returns the request that follows the redirect.
func (f *follower) request(r *http.Request, header http.Header) *http.Request {
	to := new(http.Request)
	*to = *r
	to.Header = header
	switch {
	case f.next.method != "":
		f.body = nil
		to.Method, to.Body, to.ContentLength, to.TransferEncoding, to.Trailer = f.next.method, http.NoBody, 0, nil, nil
		redirect.DropBodyFields(header)
	case f.next.body != nil:
		to.Body = f.next.body
	}
	return to
}

// followed notes that a redirect, which a target has sent, leads to c.
func (h *Handler) followed(r *http.Request, c *call, from string) {
	if c.foreign {
		r.Trailer = nil
	}
	c.state.redirects++
	if ce := h.policy.log.Check(zapcore.DebugLevel, "redirect followed"); ce != nil {
		ce.Write(zap.Int("redirects", c.state.redirects), zap.String("from", from), zap.String("scheme", c.scheme),
			zap.String("name", c.Host), zap.Uint16("port", c.Port), zap.String("method", r.Method), zap.String("remote", c.client.remote))
	}
}

// responded sets f.next if a response to c is a redirect that is followed, and drops the
// response's body.
func (f *follower) responded(c *call, req *http.Request, res *http.Response, handlers []caddyhttp.ResponseHandler) {
	f.next = nil
	if !redirect.IsStatus(res.StatusCode) {
		return
	}
	next, err := f.hop(c, req, res, handlers)
	if err != nil {
		c.state.notFollowed = err
		if ce := c.policy.log.Check(zapcore.DebugLevel, "redirect not followed"); ce != nil {
			ce.Write(append(fields(c, err), zap.Int("status", res.StatusCode), zap.Int("redirects", f.count))...)
		}
		return
	}
	f.next = next
	redirect.DropBody(res)
}

var errHandledRedirect = errors.New("handle_response takes it")

// hop returns the request that follows a redirect. The error is why it is not followed.
func (f *follower) hop(c *call, req *http.Request, res *http.Response, handlers []caddyhttp.ResponseHandler) (*hop, error) {
	if slices.ContainsFunc(handlers, func(h caddyhttp.ResponseHandler) bool {
		return h.Match == nil || h.Match.Match(res.StatusCode, res.Header)
	}) {
		return nil, errHandledRedirect
	}
	if f.config.Status != nil && !slices.Contains(f.config.Status, res.StatusCode) {
		return nil, fmt.Errorf("its status %d is not to be followed", res.StatusCode)
	}
	if f.count == f.config.Max {
		return nil, fmt.Errorf("%d redirects were followed", f.count)
	}
	locations := res.Header["Location"]
	if len(locations) != 1 {
		return nil, fmt.Errorf("it has %d Location fields", len(locations))
	}
	u, err := c.url(req.URL.RequestURI()).Resolve(locations[0])
	if err != nil {
		return nil, fmt.Errorf("its Location: %w", err)
	}
	next := &hop{status: res.StatusCode, target: u}
	if method := redirect.Method(res.StatusCode, req.Method); method != req.Method {
		next.method = method
	} else if f.body != nil {
		if next.body, err = f.body.Open(true); err != nil {
			return nil, fmt.Errorf("the request's body has more than the %d octets of max_body", f.body.Max())
		}
	}
	return next, nil
}

// WriteHeader implements http.ResponseWriter.
func (f *follower) WriteHeader(status int) {
	switch {
	case f.discarded:
	case status < 200 && status != http.StatusSwitchingProtocols && f.count < f.config.Max:
		// the response that follows may be a redirect
	case f.next != nil && f.next.status == status:
		f.discarded = true
	default:
		f.ResponseWriter.WriteHeader(status)
	}
}

// Write implements http.ResponseWriter.
func (f *follower) Write(p []byte) (int, error) {
	if f.discarded {
		return len(p), nil
	}
	return f.ResponseWriter.Write(p)
}

// ReadFrom implements io.ReaderFrom.
func (f *follower) ReadFrom(r io.Reader) (int64, error) {
	if f.discarded {
		return io.Copy(io.Discard, r)
	}
	return f.ResponseWriterWrapper.ReadFrom(r)
}

// FlushError is what http.ResponseController calls to flush.
func (f *follower) FlushError() error {
	if f.discarded {
		return nil
	}
	return http.NewResponseController(f.ResponseWriter).Flush()
}

// locationURL is the URL of a handler that follows a redirect by itself, in a
// handle_response of reverse_proxy.
const locationURL = "{http.reverse_proxy.header.Location}"

// read reads the target of a request. A Location is relative to last, the call before, if
// there was one.
func (h *Handler) read(text string, last, c *call) (targeturl.URL, error) {
	if h.URL != locationURL || last == nil || text == "" {
		return targeturl.Parse(text)
	}
	from := last.url(last.uri)
	u, err := from.Resolve(text)
	if err == targeturl.ErrDowngrade {
		err = fmt.Errorf("a redirect from https: %w", &guard.Refusal{Kind: guard.KindScheme, Value: u.Scheme, Rule: guard.RuleSchemes})
	}
	if err == nil {
		c.foreign = last.foreign || !targeturl.SameOrigin(from, &u)
	}
	return u, err
}

// dropCredentials deletes the fields that only the origin of the request's target may get.
func (c *call) dropCredentials(header http.Header) {
	var patterns []string
	if c.follower != nil {
		patterns = c.follower.config.Drop
	}
	redirect.DropCredentials(header, patterns)
}

// Interface guards
var (
	_ caddyfile.Unmarshaler = (*Redirects)(nil)
	_ http.ResponseWriter   = (*follower)(nil)
	_ io.ReaderFrom         = (*follower)(nil)
)
