package pool

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
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
	return n, err
}

// Close implements net.Conn. The client of HTTP/2 calls it with its locks held, so the
// connection is removed by another goroutine.
func (f *settingsConn) Close() error {
	c := f.c
	c.gone.Store(true)
	c.closeConn()
	if c.added.Load() { // otherwise the dial finds it gone
		go c.pool.discard(c)
	}
	return nil
}

// roundTripHTTP2 sends a request over a stream that was claimed, and returns the
// response. The stamps may be nil.
func (c *conn) roundTripHTTP2(req *http.Request, s *stamps) (*http.Response, error) {
	ctx := newTracedContext(req.Context(), &c.pool.config, s)
	req = req.WithContext(ctx)
	var body *streamUpload
	if req.Body != nil && req.Body != http.NoBody {
		body = &streamUpload{ReadCloser: req.Body}
		req.Body = body
	}
	res, err := c.h2.RoundTrip(req)
	if err == nil {
		if ctx.err = checkResponse(res); ctx.err != nil {
			_ = res.Body.Close()
			err = ctx.err
		}
	}
	if err != nil {
		return nil, c.failHTTP2(ctx, body, err)
	}
	c.responded.Store(true)
	received := &streamBody{body: res.Body, c: c}
	received.changedAt.Store(time.Now().UnixNano())
	c.bodies.add(received)
	res.Body = received
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
	trace context.Context // has the trace
	count int             // of interim responses
	err   error           // the error with which the trace ended the request
}

// newTracedContext returns the context for a request with the context ctx. If there are
// stamps, its trace sets them.
func newTracedContext(ctx context.Context, config *Config, s *stamps) *tracedContext {
	t := &tracedContext{Context: ctx}
	var trace httptrace.ClientTrace
	if outer := httptrace.ContextClientTrace(ctx); outer != nil {
		trace = *outer
	}
	interim := trace.Got1xxResponse
	trace.Got1xxResponse = func(code int, header textproto.MIMEHeader) error {
		if t.count++; code == http.StatusSwitchingProtocols {
			t.err = errSwitching
		} else if t.count > maxInterim {
			t.err = errInterim
		}
		if t.err != nil || interim == nil {
			return t.err
		}
		config.interim(http.Header(header))
		return interim(code, header)
	}
	if s != nil {
		s.trace(&trace)
	}
	t.trace = httptrace.WithClientTrace(context.Background(), &trace)
	return t
}

// Value implements context.Context.
func (t *tracedContext) Value(key any) any {
	if value := t.trace.Value(key); value != nil {
		return value
	}
	return t.Context.Value(key)
}
