package caddytarget

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// attempt is one attempt at a request. It is the context of what is sent, and
// so of the dial that it may cause, which may outlive it: all that a dial looks
// at stays as it is once that has begun.
type attempt struct {
	context.Context
	transport *Transport
	call      *call
	pool      *pool
	repeats   bool              // the request may be sent again whatever has become of it
	crowded   bool              // a connection of the pool may become free before there is another one
	last      bool              // there is no other address to try
	ends      [phases]time.Time // when the time is over that a phase has; zero: it has its own
	cuts      []*cutError       // of the attempts before it
	vars      map[string]any
	traced    context.Context // has the trace by which got is known; nil: it need not be
	url       url.URL
	body      *requestBody // nil: none
	response  responseBody
	begun     time.Time // set if the time until the response matters

	dialled atomic.Bool             // a connection was to be opened for it
	got     atomic.Pointer[gotConn] // if it is traced
}

// gotConn is the connection that an attempt got.
type gotConn struct {
	*trackedConn
	before int64 // what had been written over it until then
	reused bool
}

type attemptKey struct{}

// Value implements context.Context. The request's variables are hidden: they
// are not safe to read while the request goes on.
func (a *attempt) Value(key any) any {
	switch key {
	case attemptKey{}:
		return a
	case caddyhttp.VarsCtxKey:
		if a.vars == nil {
			return nil
		}
		return a.vars
	}
	if a.traced != nil {
		if value := a.traced.Value(key); value != nil {
			return value
		}
	}
	return a.Context.Value(key)
}

const (
	// leastRequest is less than the octets of the header of any request over
	// HTTP/1.1, of which the loop mark takes 60, and more than those of a TLS alert.
	// Of a connection over which less was written nobody can have acted on a request.
	leastRequest = 80

	// maxStale is how many connections that turn out to be closed one attempt
	// may meet.
	maxStale = 3
)

// isRepeatable tells whether a request may be sent again whatever has become of
// it. That is for GET alone: what reverse_proxy repeats, too.
func isRepeatable(method string) bool { return method == http.MethodGet }

// watch makes the attempt know the connection that it gets.
func (a *attempt) watch() {
	var trace httptrace.ClientTrace
	if other := httptrace.ContextClientTrace(a.Context); other != nil {
		trace = *other
	}
	gotConn := trace.GotConn
	trace.GotConn = func(info httptrace.GotConnInfo) {
		if gotConn != nil {
			gotConn(info)
		}
		a.take(info)
	}
	a.traced = httptrace.WithClientTrace(context.Background(), &trace)
}

// take is told of the connection that is going to be used. One that has been
// idle for so long that the backend is likely to be closing it is closed instead:
// nothing is written then, and another one is used.
func (a *attempt) take(info httptrace.GotConnInfo) {
	conn := info.Conn
	if secured, ok := conn.(*tls.Conn); ok {
		conn = secured.NetConn()
	}
	tracked, ok := conn.(*trackedConn)
	if !ok {
		return
	}
	a.got.Store(&gotConn{tracked, tracked.written.Load(), info.Reused})
	if info.WasIdle && tracked.outlived(info.IdleTime) {
		_ = tracked.Close()
	}
}

// send sends a request, over another connection if one turns out to be of no use.
func (a *attempt) send(rt *http.Transport, req *http.Request) (*http.Response, error) {
	for n := 0; ; n++ {
		if a.body != nil {
			body, err := a.open()
			if err != nil {
				return nil, err
			}
			req.Body = body
		}
		res, err := rt.RoundTrip(req)
		if err == nil || n == maxStale || !a.stale(err) {
			return res, err
		}
		again := *req // the one before may still be looked at
		req = &again
	}
}

// unsent tells whether the attempt, which has failed, got a connection but
// nobody can have seen its request. Over HTTP/2 a header may take a few octets.
func (a *attempt) unsent() bool {
	got := a.got.Load()
	if got == nil {
		return false
	}
	n := got.written.Load() - got.before
	return n == 0 || n < leastRequest && !a.pool.h2.Load()
}

// committed tells whether what is being sent may not be sent again: somebody may
// have seen it. A backend that speaks HTTP/2 may still say that it has not.
func (a *attempt) committed() bool {
	got := a.got.Load()
	return got != nil && !a.repeats && !a.pool.h2.Load() && !a.unsent()
}

// fresh tells whether the attempt may have had a new connection.
func (a *attempt) fresh() bool {
	if got := a.got.Load(); got != nil {
		return !got.reused
	}
	return a.dialled.Load()
}

// stale tells whether the attempt failed for nothing but a connection that was
// no longer of use, so that the request can be sent over another one.
func (a *attempt) stale(err error) bool {
	switch {
	case a.Context.Err() != nil, a.fresh(), a.body != nil && !a.body.whole():
		return false
	case !a.repeats && !a.unsent():
		return false
	}
	return !isDialError(err) && !isTimeout(err) && ruleOf(err) == ""
}

// failed records an attempt that got no response, and returns the error for
// reverse_proxy.
func (a *attempt) failed(err error) error {
	c, ended := a.call, a.Context.Err()
	dialling := isDialError(err) // that has been recorded
	if !dialling && ended == nil && a.unsent() && (a.body == nil || a.body.whole()) {
		err = newDialError(a, err)
	}
	if c == nil {
		return err
	}
	c.tried = append(c.tried, a.try(err, dialling))
	c.state.err = err
	if ended != nil {
		c.state.err = fmt.Errorf("%s at %s: %w", c.host, a.pool.key.address, ended)
	}
	if dialling || ruleOf(err) != "" { // or nothing was tried
		return err
	}
	switch received := a.body == nil || a.body.complete.Load(); {
	case errors.Is(ended, context.Canceled), ended != nil && (c.haste || !received), a.body != nil && a.body.broken.Load():
		// the client has left, would not wait, or has not sent its body
	case ended == nil && !a.fresh() && !isTimeout(err):
		// the connection was old; a new one may work
	default:
		a.transport.health.fail(healthID{c.host, a.pool.addr}, true)
	}
	return err
}

// worked records an attempt that got a response.
func (a *attempt) worked(status int) {
	c := a.call
	if c == nil {
		return
	}
	c.state.err = nil
	if a.transport.isUnhealthy(status, a.begun) {
		a.transport.health.works("", a.pool.addr)
		a.transport.health.fail(healthID{c.host, a.pool.addr}, true)
		return
	}
	a.transport.health.works(c.host, a.pool.addr)
	a.transport.health.reached(a.pool.addr.Addr())
}

// try is an attempt at an address.
type try struct {
	addr  netip.AddrPort
	final bool      // there was no connection, or no response in time
	cut   *cutError // it was cut
}

// try returns what is to be remembered of an attempt that failed.
func (a *attempt) try(err error, dialling bool) try {
	r := try{addr: a.pool.addr, final: dialling || isTimeout(err)}
	r.cut, _ = errors.AsType[*cutError](err)
	switch now := time.Now(); {
	case r.cut != nil:
		if end := &a.call.ends[r.cut.phase]; end.IsZero() {
			*end = now.Add(a.transport.wholeTime(r.cut.phase) - firstTime[r.cut.phase])
		}
	case dialling && isTimeout(err): // one address has had all of the time
		a.call.ends = [phases]time.Time{now, now}
	}
	return r
}

// cuts returns the phases of attempts so far that were cut.
func (c *call) cuts() (list []*cutError) {
	for _, t := range c.tried {
		if t.cut != nil {
			list = append(list, t.cut)
		}
	}
	return list
}

// wear is what an address has been through for a request.
type wear int

const (
	untried wear = iota
	ready        // it was cut, but has been connected to by now
	worn         // its connection broke once, or is still to come: it may be tried once more
	spent
)

// wearOf returns what an address has been through for c.
func (c *call) wearOf(addr netip.AddrPort) wear {
	n := untried
	for _, t := range c.tried {
		switch {
		case t.addr != addr:
		case n != untried:
			return spent
		case t.cut != nil:
			switch t.cut.progress.Load() {
			case succeeded:
				n = ready
			case underWay:
				if n = worn; time.Until(c.ends[t.cut.phase]) < firstTime[t.cut.phase] {
					return spent // there is no time left
				}
			default:
				return spent
			}
		case t.final:
			return spent
		default:
			n = worn
		}
	}
	return n
}

// requestBody is the body of a request. As far as it is kept it can be sent
// again, from its beginning. It tells how far the client got with it.
type requestBody struct {
	source io.ReadCloser

	complete, broken atomic.Bool
	lost             atomic.Bool // too much was read to be kept

	trailer http.Header // what follows the body, known at its end
	strip   string      // what of it is not sent on

	reader atomic.Pointer[bodyReader] // the last one

	mu   sync.Mutex
	read int // how much was
	kept []byte
	err  error // at the end
}

// maxKept is how much of a body is kept, in octets.
const maxKept = 64 << 10

var (
	errBodyLost    = errors.New("the body has been sent and is not kept")
	errOtherReader = errors.New("the body is sent elsewhere")
)

// bodyOf returns the body of a request that is to be sent for c, which may be
// nil.
func (c *call) bodyOf(req *http.Request) *requestBody {
	b := &requestBody{source: req.Body}
	if c == nil {
		return b
	}
	if c.body == nil || c.body.source != req.Body {
		b.trailer, b.strip = req.Trailer, c.strip
		c.body = b
	}
	return c.body
}

// whole tells whether the body can be sent from its beginning.
func (b *requestBody) whole() bool { return !b.lost.Load() }

// open returns a reader of the attempt's body from its beginning. The one before
// it reads no more.
func (a *attempt) open() (io.ReadCloser, error) {
	if !a.body.whole() {
		return nil, errBodyLost
	}
	r := &bodyReader{body: a.body, attempt: a}
	a.body.reader.Store(r)
	return r, nil
}

// bodyReader reads the body of a request for one time that it is sent.
type bodyReader struct {
	body    *requestBody
	attempt *attempt
	at      int
}

// Read implements io.Reader. The body's lock is held while the client is waited
// for: whoever reads the same body has to wait for the same.
func (r *bodyReader) Read(p []byte) (int, error) {
	b := r.body
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.reader.Load() != r:
		return 0, errOtherReader
	case r.at < len(b.kept):
		n := copy(p, b.kept[r.at:])
		r.at += n
		return n, nil
	case r.at < b.read:
		return 0, errBodyLost
	case b.err != nil:
		return 0, b.err
	}
	n, err := b.source.Read(p)
	b.keep(p[:n], r.attempt)
	r.at += n
	switch {
	case err == io.EOF:
		strip(b.trailer, b.strip)
		b.complete.Store(true)
	case err != nil:
		b.broken.Store(true)
	}
	b.err = err
	return n, err
}

// keep keeps what was read for an attempt, as long as it may have to be sent again.
func (b *requestBody) keep(p []byte, a *attempt) {
	b.read += len(p)
	switch {
	case b.lost.Load():
	case b.read > maxKept || a.committed():
		b.lost.Store(true)
		b.kept = nil
	default:
		b.kept = append(b.kept, p...)
	}
}

// Close implements io.Closer. A body that may be sent again stays open; the
// server closes it when the request is over.
func (r *bodyReader) Close() error {
	if b := r.body; b.lost.Load() && b.reader.Load() == r {
		return b.source.Close()
	}
	return nil
}

// responseBody is the body of a response. It tells when the request no longer
// needs its connection.
type responseBody struct {
	io.ReadCloser
	attempt *attempt
	once    sync.Once
}

// hold keeps the connection in use until the response has been read or closed.
func (a *attempt) hold(res *http.Response) {
	if res.Body == nil || res.Body == http.NoBody {
		a.transport.registry.release(a.pool)
		return
	}
	a.response.ReadCloser, a.response.attempt = res.Body, a
	if rw, ok := res.Body.(io.ReadWriteCloser); ok {
		res.Body = upgradedBody{&a.response, rw}
		return
	}
	res.Body = &a.response
}

// Read implements io.Reader.
func (b *responseBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.once.Do(b.release)
	}
	return n, err
}

// Close implements io.Closer.
func (b *responseBody) Close() error {
	err := b.ReadCloser.Close()
	b.once.Do(b.release)
	return err
}

func (b *responseBody) release() {
	b.attempt.transport.registry.release(b.attempt.pool)
}

// upgradedBody is the body of a response that switched protocols: the
// connection itself. It is in use until it is closed.
type upgradedBody struct {
	*responseBody
	conn io.ReadWriteCloser
}

// Read implements io.Reader.
func (b upgradedBody) Read(p []byte) (int, error) { return b.conn.Read(p) }

// Write implements io.Writer.
func (b upgradedBody) Write(p []byte) (int, error) { return b.conn.Write(p) }

// CloseWrite ends what is sent; what is received goes on.
func (b upgradedBody) CloseWrite() error { return closeWrite(b.conn) }

func closeWrite(conn any) error {
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}
