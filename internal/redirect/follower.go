package redirect

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"caddytarget/internal/httpfield"
	"caddytarget/internal/replay"
	"caddytarget/internal/targeturl"
)

// Options says which redirects are followed, and what of a request goes with them.
type Options struct {
	Max     int      // how many are followed for one request
	Status  []int    // the status codes that are followed; nil: all that IsStatus has
	MaxBody int      // how much of a body is kept, in octets; 0: replay.MaxKept
	Drop    []string // patterns for dropCredentials
}

// maxBodyLimit is the largest MaxBody.
const maxBodyLimit = 1 << 30

// Validate checks the options. If o is nil, there is nothing to check.
func (o *Options) Validate() error {
	switch {
	case o == nil:
		return nil
	case o.Max < 1:
		return fmt.Errorf("follow_redirects: max %d is not a positive number", o.Max)
	case o.MaxBody < 0 || o.MaxBody > maxBodyLimit:
		return fmt.Errorf("follow_redirects: max_body %d is not a number from 1 to %d", o.MaxBody, maxBodyLimit)
	}
	for _, status := range o.Status {
		if !IsStatus(status) {
			return fmt.Errorf("follow_redirects: status %d is not one of 301, 302, 303, 307 and 308", status)
		}
	}
	for _, field := range o.Drop {
		if !isPattern(field) {
			return fmt.Errorf("follow_redirects: drop: %q is not the name of a header field", field)
		}
	}
	return nil
}

// Follower follows the redirects of one request. For what sends the request it is the
// client: it discards the responses that are followed.
//
// For each attempt Begin comes first, then Responded if the response is a redirect. If the
// response that was written in the end is a redirect to follow, Discarded is true, and Next
// returns the request that follows.
type Follower struct {
	w       http.ResponseWriter // to the client
	options *Options
	all     *replay.Body // of the client's request; nil: none
	length  int64        // Content-Length of the client's request
	body    *replay.Body // all; nil after a redirect without a body
	count   int          // how many redirects were followed

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

// CanFollow reports whether redirects of a request can be followed.
func CanFollow(r *http.Request) bool {
	return !httpfield.IsUpgrade(r.Header) && r.Method != http.MethodConnect
}

// NewFollower returns what follows the redirects of a request, whose response is written to
// w. It takes the request's body over.
func NewFollower(o *Options, w http.ResponseWriter, r *http.Request) *Follower {
	f := &Follower{w: w, options: o, length: r.ContentLength}
	if httpfield.HasBody(r) {
		f.all = replay.New(r.Body, o.MaxBody)
		f.body = f.all
		r.Body, _ = f.all.Open(true)
	}
	return f
}

// Begin forgets the response to the attempt before.
func (f *Follower) Begin() { f.next = nil }

// Discarded reports whether the response that was written is a redirect that is followed.
func (f *Follower) Discarded() bool { return f.discarded }

// Count returns how many redirects were followed.
func (f *Follower) Count() int { return f.count }

// RestoreBody makes the client's body readable from its beginning, for what comes after
// an error.
func (f *Follower) RestoreBody(r *http.Request) {
	if f.all != nil {
		r.Body = f.all.Reopen(false)
	}
}

// ClientBody returns the Content-Length of the client's request, and whether all of its body
// has come. If it has none, ok is false.
func (f *Follower) ClientBody() (length int64, read, ok bool) {
	if f.all == nil {
		return 0, false, false
	}
	return f.length, f.all.Complete() || replay.IsRead(f.all.Source()), true
}

// Next returns the request that follows the redirect, after r, and its target. The header is
// that of the client's request.
func (f *Follower) Next(r *http.Request, header http.Header) (*http.Request, targeturl.URL) {
	f.count++
	f.discarded = false
	to := new(http.Request)
	*to = *r
	to.Header = header
	switch {
	case f.next.method != "":
		f.body = nil
		to.Method, to.Body, to.ContentLength, to.TransferEncoding, to.Trailer = f.next.method, http.NoBody, 0, nil, nil
		dropBodyFields(header)
	case f.next.body != nil:
		to.Body = f.next.body
	}
	return to, f.next.target
}

// DropCredentials deletes the fields that another origin than the client's target must not
// get. f may be nil.
func (f *Follower) DropCredentials(header http.Header) {
	var patterns []string
	if f != nil {
		patterns = f.options.Drop
	}
	dropCredentials(header, patterns)
}

var errTaken = errors.New("handle_response takes it")

// Responded notes a redirect, the response to a request for the URL from. If it is followed,
// its body is dropped; else the error is why not. taken says that something else takes the
// response.
func (f *Follower) Responded(from *targeturl.URL, req *http.Request, res *http.Response, taken bool) (err error) {
	if taken {
		return errTaken
	}
	if f.next, err = f.hop(from, req, res); err == nil {
		dropBody(res)
	}
	return err
}

// hop returns the request that follows a redirect. The error is why it is not followed.
func (f *Follower) hop(from *targeturl.URL, req *http.Request, res *http.Response) (*hop, error) {
	if f.options.Status != nil && !slices.Contains(f.options.Status, res.StatusCode) {
		return nil, fmt.Errorf("its status %d is not to be followed", res.StatusCode)
	}
	if f.count == f.options.Max {
		return nil, fmt.Errorf("%d redirects were followed", f.count)
	}
	locations := res.Header["Location"]
	if len(locations) != 1 {
		return nil, fmt.Errorf("it has %d Location fields", len(locations))
	}
	u, err := from.Resolve(locations[0])
	if err != nil {
		return nil, fmt.Errorf("its Location: %w", err)
	}
	next := &hop{status: res.StatusCode, target: u}
	if method := nextMethod(res.StatusCode, req.Method); method != req.Method {
		next.method = method
	} else if f.body != nil {
		if next.body, err = f.body.Open(true); err != nil {
			return nil, fmt.Errorf("the request's body has more than the %d octets of max_body", f.body.Max())
		}
	}
	return next, nil
}

// WriteHeader implements http.ResponseWriter.
func (f *Follower) WriteHeader(status int) {
	switch {
	case f.discarded:
	case status < 200 && status != http.StatusSwitchingProtocols && f.count < f.options.Max:
		// the response that follows may be a redirect
	case f.next != nil && f.next.status == status:
		f.discarded = true
	default:
		f.w.WriteHeader(status)
	}
}

// Write implements http.ResponseWriter.
func (f *Follower) Write(p []byte) (int, error) {
	if f.discarded {
		return len(p), nil
	}
	return f.w.Write(p)
}

// ReadFrom implements io.ReaderFrom.
func (f *Follower) ReadFrom(r io.Reader) (int64, error) {
	if f.discarded {
		return io.Copy(io.Discard, r)
	}
	if w, ok := f.w.(io.ReaderFrom); ok {
		return w.ReadFrom(r)
	}
	return io.Copy(f.w, r)
}

// FlushError is what http.ResponseController calls to flush.
func (f *Follower) FlushError() error {
	if f.discarded {
		return nil
	}
	return http.NewResponseController(f.w).Flush()
}

// Header implements http.ResponseWriter.
func (f *Follower) Header() http.Header { return f.w.Header() }

// Push implements http.Pusher.
func (f *Follower) Push(target string, opts *http.PushOptions) error {
	if w, ok := f.w.(http.Pusher); ok {
		return w.Push(target, opts)
	}
	return http.ErrNotSupported
}

// Unwrap is what http.ResponseController calls for all else.
func (f *Follower) Unwrap() http.ResponseWriter { return f.w }

// Interface guards
var (
	_ http.ResponseWriter = (*Follower)(nil)
	_ io.ReaderFrom       = (*Follower)(nil)
	_ http.Pusher         = (*Follower)(nil)
)
