package caddytarget

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"golang.org/x/net/http/httpguts"
)

// requestBody is the body of a request. While all of it is kept it can be sent
// again, from its beginning. It knows how far the client got with it.
type requestBody struct {
	source io.ReadCloser
	max    int // how much of it is kept, in octets; 0: maxKept

	complete, broken atomic.Bool
	lost             atomic.Bool // too much was read to be kept

	trailer http.Header // what follows the body, known at its end
	strip   string      // what of it is not sent on

	trailers atomic.Pointer[trailers] // of the last attempt

	failure error // of the attempt after which the body could not be sent again

	reader atomic.Pointer[bodyReader] // the last one

	mu   sync.Mutex
	read int // how much was
	kept []byte
	err  error // at the end
}

const (
	// maxKept is how much of a body is kept, in octets.
	maxKept = 64 << 10

	// firstOctets is how much of a body is waited for at most before a connection
	// is used for its request: what comes at once, and that is one octet or more.
	firstOctets = 4 << 10
)

var (
	errBodyLost    = errors.New("the body has been sent and is not kept")
	errOtherReader = errors.New("the body is sent elsewhere")
)

// whole reports whether the body can be sent from its beginning.
func (b *requestBody) whole() bool { return b == nil || !b.lost.Load() }

// open returns a reader of the body from its beginning. The one before it reads no
// more. Unless it keeps what it reads, the body cannot be sent again.
func (b *requestBody) open(keeps bool) (io.ReadCloser, error) {
	if !b.whole() {
		return nil, cmp.Or(b.failure, errBodyLost)
	}
	r := &bodyReader{body: b, keeps: keeps}
	b.reader.Store(r)
	return r, nil
}

// begin waits for the first octets, unless the client may be silent, and until no
// attempt before this one reads.
func (b *requestBody) begin(silent bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if silent || b.read > 0 || b.err != nil {
		return nil
	}
	buf := make([]byte, firstOctets)
	for b.read == 0 && b.err == nil {
		n, err := b.source.Read(buf)
		b.took(n, err)
		b.kept = buf[:n]
	}
	if b.err == io.EOF {
		return nil
	}
	return b.err
}

// took notes how much was read and with what error; b.mu is held.
func (b *requestBody) took(n int, err error) {
	b.read += n
	switch {
	case err == io.EOF:
		strip(b.trailer, b.strip)
		b.trailers.Load().drop()
		b.complete.Store(true)
	case err != nil:
		b.broken.Store(true)
	}
	b.err = err
}

// bodyReader reads the body of a request for one time that it is sent.
type bodyReader struct {
	body  *requestBody
	keeps bool
	at    int
}

// Read implements io.Reader. The body's lock is held while the client is waited
// for: another reader of the same body has to wait for the same.
func (r *bodyReader) Read(p []byte) (int, error) {
	b := r.body
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.reader.Load() != r:
		return 0, errOtherReader
	case r.at < len(b.kept):
		n := copy(p, b.kept[r.at:])
		if r.at += n; r.at == b.read && b.err == io.EOF {
			return n, io.EOF
		}
		return n, nil
	case r.at < b.read:
		return 0, errBodyLost
	case b.err != nil:
		return 0, b.err
	}
	n, err := b.source.Read(p)
	b.took(n, err)
	r.at += n
	switch {
	case n == 0 || b.lost.Load():
	case b.reader.Load() == r && (b.read > cmp.Or(b.max, maxKept) || !r.keeps):
		b.lost.Store(true)
		b.kept = nil
	default:
		b.kept = append(b.kept, p[:n]...)
	}
	return n, err
}

// Close implements io.Closer. A body that may be sent again stays open; the
// server closes it when the request is over.
func (r *bodyReader) Close() error {
	if b := r.body; (b.lost.Load() || b.broken.Load()) && b.reader.Load() == r {
		return b.source.Close()
	}
	return nil
}

// reopen returns a reader of all of the body for another handler of the same request, or
// nil if r.Body is still that: nothing of it was read. returned says that the handlers
// that sent it have returned; else reverse_proxy still has it, in handle_response.
func (b *requestBody) reopen(r *http.Request, returned bool) io.ReadCloser {
	if !returned {
		if body, err := b.open(true); err == nil {
			return body
		}
		return sentBody{}
	}
	if !b.mu.TryLock() { // an attempt waits for the client
		return sentBody{}
	}
	defer b.mu.Unlock()
	switch {
	case b.read == 0 && b.err == nil:
		return nil
	case b.whole() && (b.complete.Load() || int64(b.read) == r.ContentLength):
		return io.NopCloser(bytes.NewReader(b.kept))
	}
	return sentBody{}
}

// reopenBody makes the body of a request readable once more, for another handler than
// the one that made c, which may be nil; returned as for requestBody.reopen.
func (c *call) reopenBody(r *http.Request, returned bool) {
	switch {
	case c == nil || !hasBody(r):
	case returned && c.follower != nil:
		c.follower.restoreBody(r)
	case c.exchange != nil && c.exchange.body != nil:
		if body := c.exchange.body.reopen(r, returned); body != nil {
			r.Body = body
		}
	}
}

// restoreBody makes the client's body readable from its beginning, for what comes after
// an error.
func (f *follower) restoreBody(r *http.Request) {
	if f.all == nil {
		return
	}
	r.Body = sentBody{}
	if f.all.mu.TryLock() { // else an attempt waits for the client
		f.all.mu.Unlock()
		if body, err := f.all.open(true); err == nil {
			r.Body = body
		}
	}
}

// sentBody is the body of a request that cannot be sent again.
type sentBody struct{}

// Read implements io.Reader.
func (sentBody) Read([]byte) (int, error) { return 0, errBodySent }

// Close implements io.Closer.
func (sentBody) Close() error { return nil }

var errBodySent = fmt.Errorf("it was sent to another target, and only up to %d octets of it are kept to be sent again", maxKept)

// hasBody reports whether a request has a body.
func hasBody(r *http.Request) bool { return r.Body != nil && r.Body != http.NoBody }

// mayBeSilent reports whether the client may rightly send nothing of the body
// before something has come from the backend: in a stream of gRPC.
func mayBeSilent(r *http.Request) bool {
	return r.ProtoMajor >= 2 && r.ContentLength < 0 && isGRPC(r.Header)
}

func isGRPC(header http.Header) bool {
	const prefix = "application/grpc"
	value := header.Get("Content-Type")
	return len(value) >= len(prefix) && value[:len(prefix)] == prefix
}

// expectsContinue reports whether the client waits for the backend's 100
// (Continue).
func expectsContinue(r *http.Request) bool {
	return r.ProtoAtLeast(1, 1) && httpguts.HeaderValuesContainsToken(r.Header["Expect"], "100-continue")
}

// begunBody is the body of a client's request of which the first octets have come.
type begunBody struct {
	io.ReadCloser
	first []byte // not read yet
	err   error  // after them
}

// beginBody waits for the first octets of a body.
func beginBody(body io.ReadCloser) (io.ReadCloser, error) {
	b := &begunBody{ReadCloser: body, first: make([]byte, firstOctets)}
	for {
		n, err := body.Read(b.first)
		if err != nil && err != io.EOF {
			return body, err
		}
		if n > 0 || err != nil {
			b.first, b.err = b.first[:n], err
			return b, nil
		}
	}
}

// isRead reports whether all of a body has been read from the client.
func isRead(body io.ReadCloser) bool {
	b, ok := body.(*begunBody)
	return ok && b.err == io.EOF
}

// Read implements io.Reader.
func (b *begunBody) Read(p []byte) (int, error) {
	if len(b.first) > 0 {
		n := copy(p, b.first)
		if b.first = b.first[n:]; len(b.first) == 0 {
			return n, b.err
		}
		return n, nil
	}
	if b.err != nil {
		return 0, b.err
	}
	return b.ReadCloser.Read(p)
}
