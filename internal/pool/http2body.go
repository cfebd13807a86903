package pool

import (
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// A connection gets no more requests while maxUnread responses over it have not
	// been read for unreadTime: their octets may soon take all of maxConnBuffer.
	maxUnread  = maxConnBuffer/maxStreamBuffer - 1
	unreadTime = 100 * time.Millisecond

	// Where maxUnread responses that have not been read for stallTime keep a client of
	// another one over the same connection waiting for starveTime, the one that has
	// not been read for longest is ended.
	stallTime  = 10 * time.Second
	starveTime = 5 * time.Second
)

// streamBody is the body of a response over HTTP/2. It knows for how long its client has
// been reading, or has not been.
type streamBody struct {
	body       io.ReadCloser
	c          *conn
	selfEnding bool // read to its end, the stream ends by itself: no upload, no reader of gzip
	once       sync.Once
	ended      atomic.Bool // nothing is left for Close

	reading   atomic.Bool           // a Read is under way
	changedAt atomic.Int64          // when reading changed, in nanoseconds
	endErr    atomic.Pointer[error] // with which this side ended the response

	prev, next *streamBody // in openBodies, under its mu
}

// Read implements io.Reader.
func (s *streamBody) Read(p []byte) (int, error) {
	s.changedAt.Store(time.Now().UnixNano())
	s.reading.Store(true)
	n, err := s.body.Read(p)
	s.reading.Store(false)
	s.changedAt.Store(time.Now().UnixNano())
	if err != nil {
		if other := s.endErr.Load(); other != nil {
			err = *other
		} else if err != io.EOF {
			err = s.c.cause(err)
		}
		s.end(err == io.EOF)
	}
	return n, err
}

// Close implements io.Closer.
func (s *streamBody) Close() error {
	if s.ended.Load() {
		return nil
	}
	err := s.body.Close()
	s.end(false)
	return err
}

// end releases the stream, once. If it was read to its end, nothing is left for Close but to
// wait until the client of HTTP/2 has noticed that, which matters where streams are few.
func (s *streamBody) end(read bool) {
	s.once.Do(func() {
		s.c.bodies.remove(s)
		wasFull := s.c.pool.releaseStream(s.c)
		s.ended.Store(read && s.selfEnding && !wasFull)
	})
}

// streamUpload is the body of a request over HTTP/2.
type streamUpload struct {
	io.ReadCloser
	reading atomic.Bool // the body is awaited, not the backend
	ended   atomic.Bool
}

// Read implements io.Reader.
func (u *streamUpload) Read(p []byte) (int, error) {
	u.reading.Store(true)
	n, err := u.ReadCloser.Read(p)
	if err != nil {
		u.ended.Store(true)
	}
	u.reading.Store(false)
	return n, err
}

// isStuck reports whether the rest of the body waits for the backend to take it. The
// last octets are not known to wait.
func (u *streamUpload) isStuck() bool {
	return u != nil && !u.reading.Load() && !u.ended.Load()
}

// openBodies are the bodies of responses over a connection that have not ended.
type openBodies struct {
	mu    sync.Mutex
	n     int
	first *streamBody
}

func (l *openBodies) add(s *streamBody) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n++
	if s.next = l.first; s.next != nil {
		s.next.prev = s
	}
	l.first = s
}

func (l *openBodies) remove(s *streamBody) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n--
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		l.first = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	}
}

// congested reports whether responses that are not read may soon keep others over the
// connection waiting.
func (c *conn) congested() bool {
	l := &c.bodies
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n < maxUnread {
		return false
	}
	unread, since := 0, time.Now().Add(-unreadTime).UnixNano()
	for s := l.first; s != nil; s = s.next {
		if !s.reading.Load() && s.changedAt.Load() < since {
			unread++
		}
	}
	return unread >= maxUnread
}

// unblock ends the response that has not been read for longest, if such responses keep
// another one waiting.
func (c *conn) unblock(now time.Time) {
	l := &c.bodies
	l.mu.Lock()
	var longest *streamBody
	stalled, starving := 0, false
	for s := l.first; s != nil; s = s.next {
		switch at := s.changedAt.Load(); {
		case s.reading.Load():
			starving = starving || now.UnixNano()-at > int64(starveTime)
		case now.UnixNano()-at > int64(stallTime):
			if stalled++; longest == nil || at < longest.changedAt.Load() {
				longest = s
			}
		}
	}
	l.mu.Unlock()
	err := errStalled
	if starving && stalled >= maxUnread && longest.endErr.CompareAndSwap(nil, &err) {
		go longest.body.Close() // Close may have to wait for the backend
	}
}
