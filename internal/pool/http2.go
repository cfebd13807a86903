package pool

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"time"

	"golang.org/x/net/http2"
)

const (
	// maxStreamBuffer and maxConnBuffer are how many octets of responses a backend
	// may send ahead of those who read them, over one stream and over one connection.
	maxStreamBuffer = 256 << 10
	maxConnBuffer   = 1 << 20

	// fullTime is for how long it is looked whether a connection that was full takes
	// more requests, once one has ended.
	recheckTime = 200 * time.Millisecond

	// A connection gets no more requests while maxUnread responses on it have not
	// been read for unreadTime: their octets would soon take all of the window.
	maxUnread  = maxConnBuffer/maxStreamBuffer - 1
	unreadTime = 100 * time.Millisecond

	// Where responses that were not read for stallTime keep another one on the same
	// connection waiting for starveTime, the one that was not read for longest ends.
	stallTime  = 10 * time.Second
	starveTime = 5 * time.Second
)

// newHTTP2 returns what makes connections of HTTP/2 from others, with or without TLS.
// The package is deprecated in favour of net/http, whose http.ClientConn is the same;
// but that of Go 1.26 locks itself up for good when a WINDOW_UPDATE makes a window too
// large.
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
		panic(err) // it is configured once
	}
	return t
}

// startHTTP2 makes the connection one of HTTP/2.
func (c *conn) startHTTP2() (err error) {
	if c.h2, err = c.pool.http2.NewClientConn(&settingsConn{Conn: c.Conn, c: c}); err != nil { //nolint:staticcheck // see newHTTP2
		_ = c.raw.Close()
	}
	return err
}

// settingsConn is what the client of HTTP/2 reads and writes. It knows when the client
// has read the backend's SETTINGS, which come first and say how many requests the
// connection takes.
type settingsConn struct {
	net.Conn
	c *conn

	octets int     // octets
	header [3]byte // of the first frame: its length
}

// Read implements net.Conn.
func (f *settingsConn) Read(p []byte) (int, error) {
	const frameHeader = 9
	settled := f.c.settingsRead.Load()
	if !settled && f.octets >= frameHeader+int(f.header[0])<<16+int(f.header[1])<<8+int(f.header[2]) {
		f.c.settingsRead.Store(true)
		if f.c.added.Load() {
			go f.c.pool.streamFreed(f.c)
		}
	}
	n, err := f.Conn.Read(p)
	if !settled {
		if f.octets < len(f.header) {
			copy(f.header[f.octets:], p[:n])
		}
		f.octets += n
	}
	return n, err
}

// Close implements net.Conn. It is called at the end of the connection, also by the
// client of HTTP/2, with locks that are not ours.
func (f *settingsConn) Close() error {
	c := f.c
	c.gone.Store(true)
	c.closeConn()
	if c.added.Load() { // or else it is seen then that it is gone
		go c.pool.discard(c)
	}
	return nil
}

// reserveStream takes a place for a request on a connection of HTTP/2 and reports
// whether there may be one, which claim finds out; shard.mu is held. No lock of the
// client of HTTP/2 is waited for meanwhile.
func (c *conn) reserveStream() bool {
	// as long as it is not known how many requests it takes, that is one
	if c.retired || c.full || c.gone.Load() || c.active > 0 && !c.settingsRead.Load() || c.congested() {
		return false
	}
	c.active++
	c.destination.shard.unlistIdle(c)
	return true
}

// claimStream makes a place that was reserved one of the client's. If there is none, the
// place is given back.
func (c *conn) claimStream() bool {
	if c.h2.ReserveNewRequest() {
		return true
	}
	p, s := c.pool, c.destination.shard
	ending := c.gone.Load() || !c.settingsRead.Load() && !c.h2.CanTakeNewRequest()
	s.mu.Lock()
	c.active--
	c.full, c.wasFull = true, true
	over := c.active == 0 && ending || p.idleOrSurplus(c)
	s.mu.Unlock()
	if over {
		p.discard(c)
	} else {
		go p.recheck(c)
	}
	return false
}

// recheck waits until a connection that was full takes requests again. The client of
// HTTP/2 takes notice of the end of a stream a little later than those who read it.
// A connection that takes none although none is in flight, after a GOAWAY, is closed.
func (p *Pool) recheck(c *conn) {
	for wait := 50 * time.Microsecond; wait < recheckTime && !c.gone.Load(); wait *= 2 {
		if c.h2.CanTakeNewRequest() {
			p.streamFreed(c)
			return
		}
		time.Sleep(wait)
	}
	s := c.destination.shard
	s.mu.Lock()
	over := c.active == 0
	s.mu.Unlock()
	if over {
		p.discard(c)
	}
}

// serveWaiters gives places on a connection to requests that wait and reports whether
// the connection is in use; shard.mu is held.
func (p *Pool) serveWaiters(c *conn, fresh bool) bool {
	d := c.destination
	for len(d.waiters) > 0 && c.index >= 0 && c.reserveStream() {
		p.deliver(d, c, fresh)
		fresh = false
	}
	return c.active > 0
}

// streamFreed is called when there is a place on a connection again.
func (p *Pool) streamFreed(c *conn) {
	s := c.destination.shard
	s.mu.Lock()
	defer s.mu.Unlock()
	c.full = false
	p.serveWaiters(c, false)
	p.assignDials(c.destination)
}

// idleOrSurplus lists a connection as idle if no request uses it and reports whether it is
// to be closed instead; shard.mu is held.
func (p *Pool) idleOrSurplus(c *conn) (surplus bool) {
	d := c.destination
	if c.active > 0 || c.index < 0 || c.idle {
		return false
	}
	if c.retired || p.closed.Load() || p.config.DisableKeepAlive {
		return true
	}
	c.idleSince = time.Now()
	d.shard.listIdle(c)
	return false
}

// releaseStream is called when a request needs its place on a connection no more.
func (p *Pool) releaseStream(c *conn) {
	s := c.destination.shard
	s.mu.Lock()
	c.active--
	recheck := c.full
	if !recheck && len(c.destination.waiters) > 0 {
		if recheck = c.wasFull; !recheck {
			p.serveWaiters(c, false)
		}
	}
	surplus := p.idleOrSurplus(c)
	s.mu.Unlock()
	if recheck && !surplus {
		go p.recheck(c)
	}
	if surplus {
		p.discard(c)
	}
	p.closeSurplus()
}

// retire keeps requests from a connection. It is closed when no request uses it any
// more.
func (p *Pool) retire(c *conn) {
	d := c.destination
	d.shard.mu.Lock()
	defer d.shard.mu.Unlock()
	c.retired = true
	if i := slices.Index(d.h2Conns, c); i >= 0 {
		d.h2Conns = slices.Delete(d.h2Conns, i, i+1)
	}
}

// roundTripHTTP2 sends a request over HTTP/2.
func (c *conn) roundTripHTTP2(req *http.Request) (*http.Response, error) {
	ctx := newTracedContext(req.Context())
	res, err := c.h2.RoundTrip(req.WithContext(ctx))
	if err == nil {
		if ctx.err = checkResponse(res); ctx.err != nil {
			_ = res.Body.Close()
			err = ctx.err
		}
	}
	if err != nil {
		e := &Error{Phase: Response, Sent: All, Err: c.cause(err)}
		switch {
		case req.Context().Err() != nil:
			e.Err = context.Cause(req.Context())
		case ctx.err != nil: // a backend that does so is no good for others either
			e.Err = ctx.err
			c.pool.retire(c)
		case isTooLarge(err):
			e.Phase, e.Sent = Prepare, Nothing
		case isRefused(err):
			e.Sent, e.Refused = Nothing, true
			e.stale = true
			e.bounced = !isStreamError(err) && c.responded.Load()
		default:
			e.stale = c.gone.Load() && !isTimeout(err)
		}
		c.pool.releaseStream(c)
		return nil, e
	}
	c.responded.Store(true)
	s := &stream{body: res.Body, c: c}
	s.changedAt.Store(time.Now().UnixNano())
	c.bodies.add(s)
	res.Body = s
	return res, nil
}

// checkResponse returns what is wrong with a response.
func checkResponse(res *http.Response) error {
	switch {
	case res.StatusCode < 100 || res.StatusCode > 999:
		return fmt.Errorf("malformed HTTP status code %03d", res.StatusCode)
	case fieldsOf(res.Header) > maxFields:
		return errHeaderFields
	}
	return nil
}

// tracedContext is the context of a request over HTTP/2. Its trace bounds the interim
// responses.
type tracedContext struct {
	context.Context
	trace context.Context
	count int
	err   error // why the request was ended
}

func newTracedContext(ctx context.Context) *tracedContext {
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
		return interim(code, header)
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
