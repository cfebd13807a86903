package pool

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"
)

// upload writes a request that has a body, in a goroutine of its own, while the
// goroutine of the exchange reads the response. For http.Request.Write it is the body.
type upload struct {
	x    *exchange
	w    *writer
	body io.ReadCloser

	headWritten  chan struct{} // closed when the header of the request has been written
	headOnce     sync.Once
	expectAnswer chan bool // whether the backend wants the body; nil: it was not asked
	bodyBegun    bool
	reading      atomic.Bool // the body is awaited, not the backend

	mu       sync.Mutex
	bodyErr  error         // of reading the body
	done     chan struct{} // closed at the end of run
	writeErr error         // of run, once done is closed
}

// errBodyNotWanted ends a body that the backend did not ask for.
var errBodyNotWanted = errors.New("the backend has answered without the body")

const (
	// writeGrace is how long the end of a request is waited for when its response is
	// complete, before the connection is closed. net/http does the same.
	writeGrace = 50 * time.Millisecond

	// lateResponseTime is how long a response is waited for when the rest of the
	// request cannot be sent.
	lateResponseTime = time.Second
)

// newUpload returns an upload that begins with run.
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
	failed := u.w.writeErr()
	if err != nil && failed != nil {
		err = failed // net/http hides it where it came from Flush in Read
	}
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
	case failed == nil:
		c.abort(&unsendable{err})
	case IsTimeout(err):
		c.abort(err)
	default: // the response may be there nevertheless
		u.x.abortAfter(lateResponseTime, err)
	}
	u.writeErr = err
	close(u.done)
}

// Read implements io.Reader: it reads the body of the request. It sends first what it
// returned before, since the next octets may take long.
func (u *upload) Read(p []byte) (int, error) {
	if !u.w.headerDone.Load() { // net/http reads an octet to know whether there is a body, before it writes the fields
		return u.read(p)
	}
	if err := u.w.Flush(); err != nil {
		return 0, err
	}
	u.reading.Store(true)
	defer u.reading.Store(false)
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

// read reads the body and keeps an error of it.
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

// awaitContinue waits for the backend's answer to Expect: 100-continue and reports
// whether the body is to be sent. That is so, too, if no answer comes in time.
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

// answerExpect passes the backend's answer to awaitContinue. Only the first one counts.
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

// waitHeadWritten waits until the header of the request has been written: the caller
// of RoundTrip may change it after that. A backend that answers and does not read the
// header gets lateResponseTime.
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
		case <-time.After(lateResponseTime): // run may wait for a body of which net/http wants an octet first
		}
		return err
	}
}

// bodyError returns the error with which reading the body failed, or nil.
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

// isStuck reports whether the rest of the request waits, or waited, for the backend to
// take it.
func (u *upload) isStuck() bool { return !u.complete() && !u.reading.Load() }

// waitComplete is complete, after writeGrace if need be.
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
