// Package replay lets the body of a request be sent more than once: by several
// attempts, to the targets of redirects, by the handlers of an error.
//
// A [Body] reads from the client once and keeps what it has read, up to a maximum
// ([MaxKept] by default). Each time that it is sent, [Body.Open] returns another reader,
// from the beginning; the reader before it reads no more.
//
// [Await] keeps nothing to be sent again. It is for a body that is sent once, but not
// before the client has sent its first octets.
package replay

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

// Body is the body of a request. While all of it is kept it can be sent again, from its
// beginning. It knows how far the client got with it. A nil Body is none, which can
// always be sent.
type Body struct {
	source io.ReadCloser
	max    int // how much of it is kept, in octets

	complete, broken atomic.Bool
	lost             atomic.Bool // too much was read to be kept

	failure error                  // of the attempt after which the body could not be sent again
	reader  atomic.Pointer[reader] // the last one
	atEnd   atomic.Pointer[func()] // what is done when all of it was read

	mu   sync.Mutex // held while the client is waited for
	read int        // how much was
	kept []byte
	err  error // at the end
}

const (
	// MaxKept is how much of a body is kept by default, in octets.
	MaxKept = 64 << 10

	// firstOctets is how much of a body is waited for at most: what comes at once, and
	// that is one octet or more.
	firstOctets = 4 << 10
)

var (
	errLost        = errors.New("the body has been sent and is not kept")
	errOtherReader = errors.New("the body is sent elsewhere")
	errSent        = fmt.Errorf("it was sent to another target, and only up to %d octets of it are kept to be sent again", MaxKept)
)

// New returns a body that is read from source. So much of it is kept, in octets;
// 0: MaxKept.
func New(source io.ReadCloser, max int) *Body {
	return &Body{source: source, max: cmp.Or(max, MaxKept)}
}

// Source returns what the body is read from.
func (b *Body) Source() io.ReadCloser { return b.source }

// Max returns how much of the body is kept, in octets.
func (b *Body) Max() int { return b.max }

// Replayable reports whether the body can be sent from its beginning.
func (b *Body) Replayable() bool { return b == nil || !b.lost.Load() }

// Complete reports whether all of the body was read.
func (b *Body) Complete() bool { return b == nil || b.complete.Load() }

// Broken reports whether reading the body failed.
func (b *Body) Broken() bool { return b != nil && b.broken.Load() }

// Fail notes with what error an attempt failed after which the body cannot be sent
// again: that is why not. If the body still can, it does nothing.
func (b *Body) Fail(err error) {
	if !b.Replayable() {
		b.failure = err
	}
}

// AtEnd sets what is done when all of the body was read, before its reader knows, in
// place of what was set before.
func (b *Body) AtEnd(do func()) { b.atEnd.Store(&do) }

// Open returns a reader of the body from its beginning. The one before it reads no
// more. Unless it keeps what it reads, the body cannot be sent again.
func (b *Body) Open(keeps bool) (io.ReadCloser, error) {
	if !b.Replayable() {
		return nil, cmp.Or(b.failure, errLost)
	}
	r := &reader{body: b, keeps: keeps}
	b.reader.Store(r)
	return r, nil
}

// AwaitFirst waits for the first octets, unless the client may be silent, and until no
// reader before reads any more.
func (b *Body) AwaitFirst(silent bool) error {
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
func (b *Body) took(n int, err error) {
	b.read += n
	switch {
	case err == io.EOF:
		if do := b.atEnd.Load(); do != nil {
			(*do)()
		}
		b.complete.Store(true)
	case err != nil:
		b.broken.Store(true)
	}
	b.err = err
}

// Reopen is Open for what comes after the body was sent. If it cannot be sent again, or
// unless wait is true an attempt is waiting for the client, the reader that it returns
// fails.
func (b *Body) Reopen(wait bool) io.ReadCloser {
	if !wait {
		if !b.mu.TryLock() {
			return sent{}
		}
		b.mu.Unlock()
	}
	if body, err := b.Open(true); err == nil {
		return body
	}
	return sent{}
}

// Rest returns what another handler of the same request reads in place of Source, once
// no reader reads any more. length is that of the body; negative: not known. Nil means
// Source itself: nothing of it was read.
func (b *Body) Rest(length int64) io.ReadCloser {
	if !b.mu.TryLock() {
		return sent{}
	}
	defer b.mu.Unlock()
	switch {
	case b.read == 0 && b.err == nil:
		return nil
	case b.Replayable() && (b.complete.Load() || int64(b.read) == length):
		return io.NopCloser(bytes.NewReader(b.kept))
	}
	return sent{}
}

// reader reads a body for one time that it is sent.
type reader struct {
	body  *Body
	keeps bool
	at    int
}

// Read implements io.Reader. The body's lock is held while the client is waited
// for: another reader of the same body has to wait for the same.
func (r *reader) Read(p []byte) (int, error) {
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
		return 0, errLost
	case b.err != nil:
		return 0, b.err
	}
	n, err := b.source.Read(p)
	b.took(n, err)
	r.at += n
	switch {
	case n == 0 || b.lost.Load():
	case b.reader.Load() == r && (b.read > b.max || !r.keeps):
		b.lost.Store(true)
		b.kept = nil
	default:
		b.kept = append(b.kept, p[:n]...)
	}
	return n, err
}

// Close implements io.Closer. The source stays open: the body may be sent again, and the
// server closes it when the request is over. If it were closed before its end, the server
// would not know that the rest is still to come, and take that for the next request:
// net/http finds out only of a body of its own, and Caddy puts another one in its place
// (as of 2.11.9).
func (*reader) Close() error { return nil }

// sent is the body of a request that cannot be sent again.
type sent struct{}

// Read implements io.Reader.
func (sent) Read([]byte) (int, error) { return 0, errSent }

// Close implements io.Closer.
func (sent) Close() error { return nil }

// awaited is a body of which the first octets have come.
type awaited struct {
	io.ReadCloser
	first []byte // not read yet
	err   error  // after them
}

// Await waits for the first octets of a body, and returns all of it.
func Await(body io.ReadCloser) (io.ReadCloser, error) {
	b := &awaited{ReadCloser: body, first: make([]byte, firstOctets)}
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

// IsRead reports whether all of a body has come from the client, if Await has returned
// it.
func IsRead(body io.ReadCloser) bool {
	b, ok := body.(*awaited)
	return ok && b.err == io.EOF
}

// Read implements io.Reader.
func (b *awaited) Read(p []byte) (int, error) {
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
