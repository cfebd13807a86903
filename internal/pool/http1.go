package pool

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"time"
)

// exchange is one request and its response over a connection of HTTP/1.1. To the
// client it is the body of the response, whose end gives the connection back.
type exchange struct {
	c             *conn
	req           *http.Request
	res           *http.Response
	br            *bufio.Reader
	upload        *upload // nil: the request has no body
	watched       watched // the state of its watcher
	unzip         bool    // this side asked for gzip
	writtenBefore int64   // octets that were written to the connection before the request
	knocked       bool    // the first octet of the request was sent before: see knock
	unchecked     bool    // the connection was idle and is still to be checked: see defersCheck
	heldRequest   *writer // holds the request until the first read: see connWriter; nil: the request was sent
	responseBegun bool    // the first octet of the response has come
	stamps        *stamps // nil: they are not wanted

	headerWait struct { // for the header of the response
		sync.Mutex
		over  bool
		timer *time.Timer
	}

	mu   sync.Mutex // held while the body is read
	body io.ReadCloser
	err  error // of the next read; nil: the connection is in use
}

// roundTripHTTP1 sends a request and reads the header of the response. fresh is true if
// the connection has carried no request and was never idle. The stamps may be nil.
func (c *conn) roundTripHTTP1(req *http.Request, fresh bool, s *stamps) (*http.Response, error) {
	x := &exchange{c: c, req: req, writtenBefore: c.raw.written.Load(), stamps: s}
	x.knocked = !fresh && c.needsKnock(req)
	x.unchecked = !fresh && c.defersCheck(req)
	c.pool.startWatch(x)
	if x.knocked {
		if err := x.knock(); err != nil {
			return nil, x.fail(Send, err)
		}
	}
	if err := x.send(); err != nil {
		return nil, x.fail(Send, err)
	}
	x.br = c.pool.getReader(c)
	res, err := x.readResponse()
	if e, ok := err.(*sendError); ok {
		return nil, x.fail(Send, e.error)
	}
	if err != nil {
		return nil, x.fail(Response, err)
	}
	if x.upload != nil {
		if err := x.upload.waitHeadWritten(); err != nil {
			return nil, x.fail(Send, err)
		}
	}
	x.stopHeaderWait()
	x.res = res
	c.readKeepAlive(res.Header)
	switch {
	case res.StatusCode == http.StatusSwitchingProtocols:
		x.unwatch()
		c.pool.detach(c)
		res.Body = &upgraded{conn: c, br: x.br}
	case res.Body == http.NoBody:
		x.finish(true)
	default:
		x.body, res.Body = res.Body, x
		if x.unzip && strings.EqualFold(res.Header.Get("Content-Encoding"), "gzip") {
			res.Body = &unzipped{body: x}
			res.Header.Del("Content-Encoding")
			res.Header.Del("Content-Length")
			res.ContentLength = -1
			res.Uncompressed = true
		}
	}
	return res, nil
}

// send writes the request. If it has a body, an upload writes it, since the response
// may come before the end of the body.
func (x *exchange) send() error {
	c, req := x.c, x.req
	config := &c.pool.config
	extra := ""
	if x.unzip = !config.DisableCompression && req.Header.Get("Accept-Encoding") == "" && req.Header.Get("Range") == "" && req.Method != http.MethodHead; x.unzip {
		extra = "Accept-Encoding: gzip\r\n"
	}
	if config.DisableKeepAlive && !req.Close && req.Header["Upgrade"] == nil {
		extra += "Connection: close\r\n"
	}
	skip := 0
	if x.knocked {
		skip = 1
	}
	w := c.pool.getWriter(c, extra, skip)
	if hasBody(req) {
		x.upload = newUpload(x, w)
		go x.upload.run()
		return nil
	}
	if x.unchecked {
		w.conn.unchecked = c
	}
	err := req.Write(w)
	if err == nil {
		w.conn.hold = true
		err = w.Flush()
	}
	switch {
	case err == nil:
		x.requestWritten()
	case w.writeErr() == nil:
		err = &unsendable{err}
	}
	if w.conn.held != nil {
		x.heldRequest, c.raw.unsent = w, w
		return nil
	}
	c.pool.putWriter(w)
	return err
}

// unsendable is an error of the request itself: it cannot be written as it is.
type unsendable struct{ error }

func (e *unsendable) Unwrap() error { return e.error }

// requestWritten begins the ResponseHeaderTimeout.
func (x *exchange) requestWritten() {
	x.stamps.setSent()
	if d := x.c.pool.config.ResponseHeaderTimeout; d > 0 {
		x.abortAfter(d, errResponseHeaderTimeout)
	}
}

// abortAfter aborts the connection if the header of the response has not come in that
// time.
func (x *exchange) abortAfter(d time.Duration, err error) {
	x.headerWait.Lock()
	defer x.headerWait.Unlock()
	if !x.headerWait.over {
		x.headerWait.timer = time.AfterFunc(d, func() {
			x.headerWait.Lock()
			defer x.headerWait.Unlock()
			if !x.headerWait.over {
				x.c.abort(err)
			}
		})
	}
}

// stopHeaderWait is called when the header of the response has come, or the exchange
// has failed.
func (x *exchange) stopHeaderWait() {
	x.headerWait.Lock()
	defer x.headerWait.Unlock()
	x.headerWait.over = true
	if x.headerWait.timer != nil {
		x.headerWait.timer.Stop()
	}
}

// readResponse reads the header of the response, and passes the interim responses
// before it to the request's trace.
func (x *exchange) readResponse() (*http.Response, error) {
	_, err := x.br.Peek(1)
	if x.heldRequest != nil {
		x.c.pool.putWriter(x.heldRequest)
		x.heldRequest = nil
	}
	if err != nil {
		return nil, err
	}
	x.responseBegun = true
	x.stamps.setAnswered()
	limit := &x.c.header
	defer limit.end()
	for interim := 0; ; interim++ {
		limit.begin(x.c.pool.config.MaxResponseHeader)
		res, err := http.ReadResponse(x.br, x.req)
		if err != nil {
			return nil, limit.endOfRead(err)
		}
		switch code := res.StatusCode; {
		case fieldsOf(res.Header) > maxFields:
			return nil, errHeaderFields
		case code < 100 || code > 999:
			return nil, fmt.Errorf("malformed HTTP status code %03d", code)
		case code == http.StatusSwitchingProtocols && !asksForUpgrade(x.req):
			// the client would take its connection for one of HTTP, and send the backend what is for others
			return nil, errUnasked
		case code == http.StatusSwitchingProtocols || code >= 200:
			if x.upload != nil {
				x.upload.answerExpect(!res.Close && !x.req.Close)
			}
			return res, nil
		case interim == maxInterim:
			return nil, errInterim
		case code == http.StatusContinue && x.upload != nil:
			x.upload.answerExpect(true)
		}
		if trace := httptrace.ContextClientTrace(x.req.Context()); trace != nil {
			if trace.Got1xxResponse != nil {
				x.c.pool.config.interim(res.Header)
				if err := trace.Got1xxResponse(res.StatusCode, textproto.MIMEHeader(res.Header)); err != nil {
					return nil, err
				}
			}
		}
	}
}

// fail ends an exchange without a response. The connection is closed. The error is the
// cause why it was aborted, if it was, and an error of the request or of its body comes
// before an error of the connection.
func (x *exchange) fail(ph Phase, err error) *Error {
	c := x.c
	x.stopHeaderWait()
	stuck := x.upload != nil && x.upload.isStuck() && !x.responseBegun
	e := &Error{Phase: ph, Err: c.cause(nil)}
	if e.Err == nil {
		e.Err = err
		e.stale = !x.responseBegun && !IsTimeout(err)
	}
	if u, ok := errors.AsType[*unsendable](e.Err); ok {
		e.Phase, e.Err, e.stale = Prepare, u.error, false
	}
	c.abort(err)
	complete := ph == Response
	if x.upload != nil {
		x.upload.answerExpect(false)
		_ = x.upload.waitHeadWritten()
		if body := x.upload.bodyError(); body != nil {
			e.Phase, e.Err, e.stale = Send, body, false
		}
		complete = x.upload.complete()
		if stuck && (IsTimeout(e.Err) && e.Err != ErrSilent || isWriteError(e.Err)) {
			e.Phase = Send
		}
	}
	switch {
	case c.raw.written.Load() == x.writtenBefore:
		e.Sent = Nothing
	case complete:
		e.Sent = All
	default:
		e.Sent = Part
	}
	if errors.Is(e.Err, io.EOF) {
		e.Err = errClosed
	}
	x.releaseConn(false)
	return e
}

// Read implements io.Reader: it reads the body of the response.
func (x *exchange) Read(p []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.err != nil {
		return 0, x.err
	}
	n, err := x.body.Read(p)
	if err != nil {
		if err != io.EOF {
			err = x.c.cause(err)
		}
		x.err = err
		x.finish(err == io.EOF)
	}
	return n, err
}

// Close implements io.Closer. If the body was not read to its end, that closes the
// connection.
func (x *exchange) Close() error {
	if !x.mu.TryLock() { // a Read is under way
		x.c.abort(http.ErrBodyReadAfterClose)
		x.mu.Lock()
	}
	defer x.mu.Unlock()
	if x.err == nil {
		x.err = http.ErrBodyReadAfterClose
		x.finish(false)
	}
	return nil
}

// finish ends an exchange with a response. Its connection goes back to the pool if
// request and response are complete, no octets are left over, and neither side wants
// to close it.
func (x *exchange) finish(complete bool) {
	keep := complete && !x.res.Close && !x.req.Close && !x.c.pool.config.DisableKeepAlive && x.br.Buffered() == 0 &&
		(x.upload == nil || x.upload.waitComplete())
	x.releaseConn(keep)
}

// releaseConn gives the connection back to the pool, or closes it if keep is false or
// the request was aborted.
func (x *exchange) releaseConn(keep bool) {
	c := x.c
	if !x.unwatch() {
		keep = false
	}
	if x.br != nil {
		c.pool.putReader(x.br)
		x.br = nil
	}
	if keep && c.cause(nil) == nil {
		c.pool.putConn(c, false)
	} else {
		c.pool.discard(c)
	}
}
