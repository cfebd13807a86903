package pool

import (
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// stream is the body of a response over HTTP/2.
type stream struct {
	body io.ReadCloser
	c    *conn
	once sync.Once

	reading   atomic.Bool  // somebody waits for more
	changedAt atomic.Int64 // since when that is so, or not
	endErr    atomic.Pointer[error]

	prev, next *stream // under streams.mu
}

// Read implements io.Reader.
func (s *stream) Read(p []byte) (int, error) {
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
		s.end()
	}
	return n, err
}

// Close implements io.Closer.
func (s *stream) Close() error {
	err := s.body.Close()
	s.end()
	return err
}

func (s *stream) end() {
	s.once.Do(func() {
		s.c.bodies.remove(s)
		s.c.pool.releaseStream(s.c)
	})
}

// openBodies are the responses that are read from a connection.
type openBodies struct {
	mu    sync.Mutex
	n     int
	first *stream
}

func (l *openBodies) add(s *stream) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n++
	if s.next = l.first; s.next != nil {
		s.next.prev = s
	}
	l.first = s
}

func (l *openBodies) remove(s *stream) {
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

// congested reports whether responses that are not read may soon keep others on
// the connection waiting.
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

// unblock ends the response that was not read for longest, if others wait for
// theirs because of such responses.
func (c *conn) unblock(now time.Time) {
	l := &c.bodies
	l.mu.Lock()
	var longest *stream
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
		go longest.body.Close() // which may have to wait for the backend
	}
}
