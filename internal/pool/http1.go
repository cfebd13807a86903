package pool

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
)

// exchange is one request and its response over a connection of HTTP/1.1. It is
// the body of the response.
type exchange struct {
	c             *conn
	req           *http.Request
	res           *http.Response
	br            *bufio.Reader
	upload        *upload // nil: the request has no body
	watched       watched
	unzip         bool    // this side has asked for gzip
	writtenBefore int64   // what had been written to the connection before
	knocked       bool    // the first octet of the request is sent ahead
	unchecked     bool    // the connection is still to be looked at
	heldRequest   *writer // has the request, which is written before something is read; nil: no
	responseBegun bool    // something of a response

	headerWait struct { // for the header of the response
		sync.Mutex
		over  bool
		timer *time.Timer
	}

	mu   sync.Mutex // held while the body is read
	body io.ReadCloser
	err  error // of reads from now on; nil: the connection is in use
}

// roundTripHTTP1 sends a request over HTTP/1.1.
func (c *conn) roundTripHTTP1(req *http.Request, fresh bool) (*http.Response, error) {
	x := &exchange{c: c, req: req, writtenBefore: c.raw.written.Load()}
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

const (
	// knockIdle is how long a connection has been idle of which it is found out
	// whether it is still open before a request is sent over it that cannot be
	// repeated.
	knockIdle = 500 * time.Millisecond

	// knockTime is how long the backend's acknowledgement is waited for, and
	// knockGrace how long a backend has then to end the connection.
	knockTime  = time.Second
	knockGrace = 3 * time.Millisecond
)

// knock sends the first octet of the request and waits until the backend has it.
// A backend that was about to close the connection for being idle does that now,
// and nobody acts upon a request of one octet: it can be sent over another
// connection.
func (x *exchange) knock() error {
	c := x.c
	acked := c.raw.acked()
	if _, err := c.Conn.Write([]byte(x.req.Method[:1])); err != nil {
		return err
	}
	x.writtenBefore = c.raw.written.Load()
	begun := time.Now()
	for wait := 50 * time.Microsecond; acked > 0 && c.raw.acked() == acked && time.Since(begun) < knockTime; wait *= 2 {
		if c.raw.readable() {
			break
		}
		time.Sleep(wait)
	}
	time.Sleep(knockGrace)
	if !c.quiet() {
		return io.EOF
	}
	return nil
}

// send writes the request. A body is written in the background, since the response
// may come before its end.
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
	case !w.writeFailed():
		err = &unsendable{err}
	}
	if w.conn.held != nil {
		x.heldRequest, c.raw.unsent = w, w
		return nil
	}
	c.pool.putWriter(w)
	return err
}

// unsendable is the error of a request that cannot be written as it is.
type unsendable struct{ error }

func (e *unsendable) Unwrap() error { return e.error }

// requestWritten is called when the request has been written.
func (x *exchange) requestWritten() {
	if d := x.c.pool.config.ResponseHeaderTimeout; d > 0 {
		x.abortAfter(d, errResponseHeaderTimeout)
	}
}

// abortAfter ends the connection if the header of the response has not come by
// then.
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

// stopHeaderWait is called when the header of the response has come, or never will.
func (x *exchange) stopHeaderWait() {
	x.headerWait.Lock()
	defer x.headerWait.Unlock()
	x.headerWait.over = true
	if x.headerWait.timer != nil {
		x.headerWait.timer.Stop()
	}
}

// readResponse reads the header of the response, and the interim responses before
// it.
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
	limit := &x.c.header
	defer limit.end()
	for interim := 0; ; interim++ {
		limit.begin(x.c.pool.config.MaxResponseHeader)
		res, err := http.ReadResponse(x.br, x.req)
		if err != nil {
			if limit.err != nil {
				err = limit.err
			}
			return nil, err
		}
		switch code := res.StatusCode; {
		case fieldsOf(res.Header) > maxFields:
			return nil, errHeaderFields
		case code < 100 || code > 999:
			return nil, fmt.Errorf("malformed HTTP status code %03d", code)
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
				if err := trace.Got1xxResponse(res.StatusCode, textproto.MIMEHeader(res.Header)); err != nil {
					return nil, err
				}
			}
		}
	}
}

func fieldsOf(header http.Header) (n int) {
	for _, values := range header {
		n += len(values)
	}
	return n
}

// fail ends an exchange without a response.
func (x *exchange) fail(ph Phase, err error) *Error {
	c := x.c
	x.stopHeaderWait()
	e := &Error{Phase: ph, Err: c.cause(nil)}
	if e.Err == nil {
		e.Err = err
		e.stale = !x.responseBegun && !isTimeout(err)
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
	if !x.mu.TryLock() { // somebody reads
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

// finish ends an exchange with a response: its connection goes back to the pool if
// request and response are complete, nothing is left over and nobody said that it
// ends.
func (x *exchange) finish(complete bool) {
	keep := complete && !x.res.Close && !x.req.Close && !x.c.pool.config.DisableKeepAlive && x.br.Buffered() == 0 &&
		(x.upload == nil || x.upload.waitComplete())
	x.releaseConn(keep)
}

// releaseConn gives the connection back.
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

// upload is the body of a request while it is sent.
type upload struct {
	x    *exchange
	w    *writer
	body io.ReadCloser

	headWritten  chan struct{} // closed when the header of the request has been written
	headOnce     sync.Once
	expectAnswer chan bool // whether the body is to be sent; nil: it is
	bodyBegun    bool

	mu       sync.Mutex
	bodyErr  error // of reading the body
	done     chan struct{}
	writeErr error // of all, once done is closed
}

// errNotWanted is the end of a body that the backend did not ask for.
var errBodyNotWanted = errors.New("the backend has answered without the body")

// writeGrace is how long it is waited for the end of a request whose response is
// complete before its connection is closed, as net/http does it, and lastWords for a
// response when the request could not be sent any more.
const (
	writeGrace       = 50 * time.Millisecond
	lateResponseTime = time.Second
)

func newUpload(x *exchange, w *writer) *upload {
	u := &upload{x: x, w: w, body: x.req.Body, headWritten: make(chan struct{}), done: make(chan struct{})}
	if x.req.ProtoAtLeast(1, 1) && httpguts.HeaderValuesContainsToken(x.req.Header["Expect"], "100-continue") {
		u.expectAnswer = make(chan bool, 1)
	}
	return u
}

// run writes the request.
func (u *upload) run() {
	c, req := u.x.c, *u.x.req
	req.Body = u
	err := req.Write(u.w)
	if err == nil {
		err = u.w.Flush()
	}
	failed := u.w.writeFailed()
	c.pool.putWriter(u.w)
	u.headOnce.Do(func() { close(u.headWritten) })
	u.mu.Lock()
	body := u.bodyErr
	u.mu.Unlock()
	switch {
	case err == nil:
		u.x.requestWritten()
	case body == errBodyNotWanted:
	case body != nil:
		c.abort(body)
	case !failed:
		c.abort(&unsendable{err})
	case isTimeout(err):
		c.abort(err)
	default: // the response may be there nevertheless
		u.x.abortAfter(lateResponseTime, err)
	}
	u.writeErr = err
	close(u.done)
}

// Read implements io.Reader: it reads the body of the request. What came before is
// sent first, since there may be nothing more for long.
func (u *upload) Read(p []byte) (int, error) {
	if !u.w.headerDone.Load() { // net/http looks whether there is a body, before it writes the fields
		return u.read(p)
	}
	if err := u.w.Flush(); err != nil {
		return 0, err
	}
	if !u.bodyBegun {
		u.bodyBegun = true
		u.headOnce.Do(func() { close(u.headWritten) })
		if !u.awaitContinue() {
			u.setBodyError(errBodyNotWanted)
			return 0, errBodyNotWanted
		}
	}
	return u.read(p)
}

func (u *upload) read(p []byte) (int, error) {
	n, err := u.body.Read(p)
	if err != nil && err != io.EOF {
		u.setBodyError(err)
	}
	return n, err
}

func (u *upload) setBodyError(err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.bodyErr = err
}

// awaitContinue waits until it is known whether the backend wants the body.
func (u *upload) awaitContinue() bool {
	if u.expectAnswer == nil {
		return true
	}
	timer := time.NewTimer(u.x.c.pool.config.ExpectContinueTimeout)
	defer timer.Stop()
	select {
	case wanted := <-u.expectAnswer:
		return wanted
	case <-timer.C:
		return true
	}
}

// answerExpect lets the body be sent, or not.
func (u *upload) answerExpect(wanted bool) {
	if u.expectAnswer == nil {
		return
	}
	select {
	case u.expectAnswer <- wanted:
	default:
	}
}

// Close implements io.Closer.
func (u *upload) Close() error {
	u.headOnce.Do(func() { close(u.headWritten) })
	return u.body.Close()
}

// waitHeadWritten waits until the header of the request has been written: until then
// it must not be changed. A backend that answers and does not read it would be
// waited for in vain.
func (u *upload) waitHeadWritten() error {
	select {
	case <-u.headWritten:
		return nil
	default:
	}
	timer := time.NewTimer(lateResponseTime)
	defer timer.Stop()
	select {
	case <-u.headWritten:
		return nil
	case <-timer.C:
		err := &timeoutError{"the backend does not read the request"}
		u.x.c.abort(err)
		select {
		case <-u.headWritten:
		case <-time.After(lateResponseTime): // a body is waited for that nobody asked for
		}
		return err
	}
}

// bodyError returns the error of reading the body, if there was one.
func (u *upload) bodyError() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.bodyErr == errBodyNotWanted {
		return nil
	}
	return u.bodyErr
}

// complete reports whether all of the request has been written.
func (u *upload) complete() bool {
	select {
	case <-u.done:
		return u.writeErr == nil
	default:
		return false
	}
}

// waitComplete is complete, after a moment if need be.
func (u *upload) waitComplete() bool {
	select {
	case <-u.done:
	default:
		timer := time.NewTimer(writeGrace)
		defer timer.Stop()
		select {
		case <-u.done:
		case <-timer.C:
			return false
		}
	}
	return u.writeErr == nil
}

// upgraded is the body of a response that switched protocols: the connection
// itself.
type upgraded struct {
	conn *conn
	br   *bufio.Reader // what came with the header; nil: nothing is left
}

// Read implements io.Reader.
func (u *upgraded) Read(p []byte) (int, error) {
	if u.br != nil {
		if n := u.br.Buffered(); n > 0 {
			return u.br.Read(p[:min(n, len(p))])
		}
		u.conn.pool.putReader(u.br)
		u.br = nil
	}
	return u.conn.Conn.Read(p)
}

// Write implements io.Writer.
func (u *upgraded) Write(p []byte) (int, error) { return u.conn.Conn.Write(p) }

// CloseWrite ends what is sent; what is received goes on.
func (u *upgraded) CloseWrite() error { return closeWrite(u.conn.Conn) }

// Close implements io.Closer.
func (u *upgraded) Close() error {
	u.conn.pool.discard(u.conn)
	return nil
}

// unzipped is the body of a response that this side has asked to be compressed.
type unzipped struct {
	body io.ReadCloser
	zr   *gzip.Reader
	err  error
}

// Read implements io.Reader.
func (u *unzipped) Read(p []byte) (int, error) {
	if u.zr == nil {
		if u.err == nil {
			u.zr, u.err = gzip.NewReader(u.body)
		}
		if u.err != nil {
			return 0, u.err
		}
	}
	return u.zr.Read(p)
}

// Close implements io.Closer.
func (u *unzipped) Close() error { return u.body.Close() }

// validate returns why a request cannot be sent, as net/http decides it.
func validate(req *http.Request) error {
	for _, header := range [...]http.Header{req.Header, req.Trailer} {
		for name, values := range header {
			if !httpguts.ValidHeaderFieldName(name) {
				return fmt.Errorf("invalid header field name %q", name)
			}
			for _, value := range values {
				if !httpguts.ValidHeaderFieldValue(value) {
					return fmt.Errorf("invalid value of the header field %q", name) // which may be a secret
				}
			}
		}
	}
	for i := range len(req.Method) {
		if !httpguts.IsTokenRune(rune(req.Method[i])) {
			return fmt.Errorf("invalid method %q", req.Method)
		}
	}
	return nil
}
