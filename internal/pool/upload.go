package pool

import (
	"errors"
	"io"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
)

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
