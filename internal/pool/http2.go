package pool

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

const (
	// maxStreamBuffer and maxConnBuffer are how many octets of responses a backend
	// may send before clients read them, over one stream and over one connection.
	maxStreamBuffer = 256 << 10
	maxConnBuffer   = 1 << 20
)

// newHTTP2 returns the Transport that makes a client of HTTP/2 from a connection, with
// or without TLS. The package is deprecated in favour of net/http, whose
// http.ClientConn is the same; but that of Go 1.26 deadlocks when a WINDOW_UPDATE makes
// a window too large.
func (p *Pool) newHTTP2() *http2.Transport { //nolint:staticcheck // see above
	config := &p.config
	t, err := http2.ConfigureTransports(&http.Transport{ //nolint:staticcheck // see above
		DisableCompression:     config.DisableCompression,
		DisableKeepAlives:      config.DisableKeepAlive,
		ResponseHeaderTimeout:  config.ResponseHeaderTimeout,
		ExpectContinueTimeout:  config.ExpectContinueTimeout,
		MaxResponseHeaderBytes: config.MaxResponseHeader,
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream:     maxStreamBuffer,
			MaxReceiveBufferPerConnection: maxConnBuffer,
			SendPingTimeout:               pingAfter,
			PingTimeout:                   pingTimeout,
		},
	})
	if err != nil {
		panic(err) // it fails only for a Transport that was configured before
	}
	return t
}

// startHTTP2 makes the connection one of HTTP/2. If that fails, it is closed.
func (c *conn) startHTTP2() (err error) {
	if c.h2, err = c.pool.http2.NewClientConn(&settingsConn{Conn: c.Conn, c: c}); err != nil { //nolint:staticcheck // see newHTTP2
		_ = c.raw.Close()
	}
	return err
}

// settingsConn is the connection below the client of HTTP/2. It notices when the client
// has read the backend's SETTINGS, which come first and limit the number of streams,
// and when the client closes the connection.
type settingsConn struct {
	net.Conn
	c *conn

	octets int     // that were read
	length [3]byte // of the first frame

	readEnded atomic.Bool // Read has returned an error
	freed     atomic.Bool // freeHTTP2 was called
}

// Read implements net.Conn.
func (f *settingsConn) Read(p []byte) (int, error) {
	const frameHeader = 9
	settingsRead := f.c.settingsRead.Load()
	if !settingsRead && f.octets >= frameHeader+int(f.length[0])<<16+int(f.length[1])<<8+int(f.length[2]) {
		f.c.settingsRead.Store(true)
		if f.c.added.Load() {
			go f.c.pool.streamFreed(f.c)
		}
	}
	n, err := f.Conn.Read(p)
	if !settingsRead {
		if f.octets < len(f.length) {
			copy(f.length[f.octets:], p[:n])
		}
		f.octets += n
	}
	if err != nil {
		f.readEnded.Store(true)
	}
	return n, err
}

// Close implements net.Conn. The client of HTTP/2 calls it with its locks held, so the
// connection is removed by another goroutine. The client closes a connection for the last
// time when it has stopped reading.
func (f *settingsConn) Close() error {
	c, readEnded := f.c, f.readEnded.Load() // before what follows ends it
	c.gone.Store(true)
	c.closeConn()
	if !c.added.Load() { // the dial finds it gone
		return nil
	}
	last := readEnded && f.freed.CompareAndSwap(false, true)
	go func() {
		c.pool.discard(c)
		if last {
			c.freeHTTP2()
		}
	}()
	return nil
}

// freeHTTP2 frees the memory of a client of HTTP/2 that has ended. The client would keep it
// for five seconds after its last request, for a pool of connections that is not used here:
// 20 kB for each connection that was closed meanwhile. A request stops the timer that does
// so, before it fails since the connection is closed.
func (c *conn) freeHTTP2() {
	if res, err := c.h2.RoundTrip(&http.Request{Method: http.MethodGet, URL: new(url.URL)}); err == nil {
		_ = res.Body.Close()
	}
}

// stream is a request over HTTP/2 with its response: what is kept of them, in one piece of
// memory.
type stream struct {
	ctx      tracedContext
	req      http.Request // which is sent; its context is ctx
	upload   streamUpload // its body, if it has one
	received streamBody   // the body of the response
}

// roundTripHTTP2 sends a request over a stream that was claimed, and returns the
// response. The stamps may be nil.
func (c *conn) roundTripHTTP2(req *http.Request, stamps *stamps) (*http.Response, error) {
	s := new(stream)
	s.ctx.init(req.Context(), &c.pool.config, stamps)
	s.req = *req.WithContext(&s.ctx)
	var upload *streamUpload
	if hasBody(req) {
		upload = &s.upload
		upload.ReadCloser = req.Body
		s.req.Body = upload
	}
	res, err := c.h2.RoundTrip(&s.req)
	if err == nil {
		if s.ctx.err = checkResponse(res); s.ctx.err != nil {
			_ = res.Body.Close()
			err = s.ctx.err
		}
	}
	if err != nil {
		return nil, c.failHTTP2(&s.ctx, upload, err)
	}
	c.responded.Store(true)
	s.received.body, s.received.c, s.received.selfEnding = res.Body, c, upload == nil && !res.Uncompressed
	s.received.changedAt.Store(time.Now().UnixNano())
	c.bodies.add(&s.received)
	res.Body = &s.received
	return res, nil
}

// failHTTP2 ends a request without a response. The body is nil if the request has none.
func (c *conn) failHTTP2(ctx *tracedContext, body *streamUpload, err error) *Error {
	stuck := body.isStuck()
	e := &Error{Phase: Response, Sent: All, Err: c.cause(err)}
	switch {
	case ctx.Err() != nil:
		e.Err = context.Cause(ctx.Context)
	case ctx.err != nil: // the backend broke the protocol: other requests are kept from the connection, too
		e.Err = ctx.err
		c.pool.retire(c)
	case isTooLarge(err):
		e.Phase, e.Sent = Prepare, Nothing
	case isRefused(err):
		e.Sent, e.Refused = Nothing, true
		e.stale = true
		e.bounced = !isStreamError(err) && c.responded.Load()
	default:
		e.stale = c.gone.Load() && !IsTimeout(err)
	}
	if stuck && IsTimeout(e.Err) && e.Err != ErrSilent {
		e.Phase, e.Sent = Send, Part
	}
	c.pool.releaseStream(c)
	return e
}

// checkResponse returns an error if a response is not allowed.
func checkResponse(res *http.Response) error {
	switch {
	case res.StatusCode < 100 || res.StatusCode > 999:
		return fmt.Errorf("malformed HTTP status code %03d", res.StatusCode)
	case fieldsOf(res.Header) > maxFields:
		return errHeaderFields
	}
	return nil
}

// tracedContext is the context of a request over HTTP/2. Its trace ends a request with
// too many interim responses, and passes the others to the caller's trace.
type tracedContext struct {
	context.Context
	trace  httptrace.ClientTrace
	config *Config
	outer  func(code int, header textproto.MIMEHeader) error // of the caller's trace; nil: it is not wanted
	count  int                                               // of interim responses
	err    error                                             // the error with which the trace ended the request
}

// init makes t the context for a request with the context ctx. If there are stamps, its
// trace sets them.
func (t *tracedContext) init(ctx context.Context, config *Config, s *stamps) {
	t.Context, t.config = ctx, config
	if outer := httptrace.ContextClientTrace(ctx); outer != nil {
		t.trace, t.outer = *outer, outer.Got1xxResponse
	}
	t.trace.Got1xxResponse = t.got1xx
	if s != nil {
		s.trace(&t.trace)
	}
}

// got1xx is called for each interim response.
func (t *tracedContext) got1xx(code int, header textproto.MIMEHeader) error {
	if t.count++; code == http.StatusSwitchingProtocols {
		t.err = errSwitching
	} else if t.count > maxInterim {
		t.err = errInterim
	}
	if t.err != nil || t.outer == nil {
		return t.err
	}
	t.config.interim(http.Header(header))
	return t.outer(code, header)
}

// Value implements context.Context.
func (t *tracedContext) Value(key any) any {
	if key == traceKey {
		return &t.trace
	}
	return t.Context.Value(key)
}

// traceKey is the key under which a context has its trace, which package httptrace does
// not export.
var traceKey = func() (key any) {
	httptrace.ContextClientTrace(keyContext{context.Background(), &key})
	return key
}()

// keyContext is a context that notes the key of the value that it is asked for.
type keyContext struct {
	context.Context
	key *any
}

// Value implements context.Context.
func (c keyContext) Value(key any) any {
	*c.key = key
	return nil
}
