package pool

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// conn is a connection to a backend. One request at a time uses it, or any number
// over HTTP/2.
type conn struct {
	net.Conn // what requests are written to: raw or tls
	raw      *rawConn
	tls      *tls.Conn         // nil: no TLS
	h2       *http2.ClientConn //nolint:staticcheck // nil: HTTP/1.1; see newHTTP2

	pool        *Pool
	destination *destination
	keepAlive   time.Duration // how long the backend leaves it open while it is idle; 0: not known

	// of a response that is being read
	header  headerLimit
	readErr error // of the last read

	bodies       openBodies  // that are read, over HTTP/2
	added        atomic.Bool // it is one of its destination's
	gone         atomic.Bool // it has ended, over HTTP/2
	settingsRead atomic.Bool // it is known how many requests it takes, over HTTP/2
	responded    atomic.Bool // there was a response, over HTTP/2

	// under shard.mu
	index      int  // in destination.conns; negative: not there
	counted    bool // it is in Pool.open and Limits
	idle       bool // it is idle
	prev, next *conn
	active     int       // requests that use it, over HTTP/2
	retired    bool      // it takes no more requests, over HTTP/2
	full       bool      // it takes none just now, over HTTP/2
	wasFull    bool      // it was full once, over HTTP/2
	idleSeq    uint64    // when it became idle, in the order of these
	idleSince  time.Time // the same as a time
	checkedAt  time.Time // when the sweeper last looked at it

	ended struct { // by this side
		sync.Mutex
		closed bool
		cause  error
	}
	silence silence // under the sweeper
}

func newConn(p *Pool, d *destination, c net.Conn) *conn {
	raw := newRawConn(p, c)
	raw.records.on = d.key.secure()
	return &conn{Conn: raw, raw: raw, pool: p, destination: d, index: -1}
}

// abort closes the connection in the middle of its use: what waits for it fails
// with the cause.
func (c *conn) abort(cause error) {
	c.ended.Lock()
	if c.ended.cause == nil {
		c.ended.cause = cause
	}
	c.ended.Unlock()
	if c.h2 != nil {
		c.close()
		return
	}
	_ = c.raw.Close()
}

// cause returns why the connection was aborted, or else err.
func (c *conn) cause(err error) error {
	c.ended.Lock()
	defer c.ended.Unlock()
	if c.ended.cause != nil {
		return c.ended.cause
	}
	return err
}

// close closes the connection, once.
func (c *conn) close() {
	c.ended.Lock()
	closed := c.ended.closed
	c.ended.closed = true
	c.ended.Unlock()
	if closed {
		return
	}
	if c.h2 != nil {
		_ = c.h2.Close()
		return
	}
	c.closeConn()
}

// closeConn closes what is underneath.
func (c *conn) closeConn() {
	switch {
	case c.tls != nil && c.cause(nil) == nil:
		// a close_notify is sent if that takes no time
		_ = c.raw.SetWriteDeadline(time.Now().Add(time.Millisecond))
		c.raw.closing.Store(true)
		_ = c.tls.CloseWrite()
		_ = c.raw.Close()
	default:
		_ = c.raw.Close()
	}
}

// Read reads for the parser of responses. After an error it reads no more: bufio
// passes over one in the middle of a line, and what came after a timeout would be
// taken for the rest.
func (c *conn) Read(p []byte) (n int, err error) {
	switch {
	case c.readErr != nil:
		return 0, c.readErr
	case c.header.counting:
		n, err = c.header.read(c.Conn, p)
	default:
		n, err = c.Conn.Read(p)
	}
	c.readErr = err
	return n, err
}

// usable reports whether an idle connection may be used for a request. The backend
// may have closed it, or sent what nobody asked for.
func (c *conn) usable(req *http.Request) bool {
	if timeout := c.pool.config.IdleTimeout; timeout > 0 && time.Since(c.idleSince) > timeout {
		return false
	}
	if c.keepAlive > 0 && !isReplayable(req) && time.Since(c.idleSince) > c.keepAlive-c.keepAlive/10 {
		return false
	}
	return c.defersCheck(req) || c.quiet()
}

// defersCheck reports whether the connection is looked at only when the request is
// written, which saves a system call.
func (c *conn) defersCheck(req *http.Request) bool {
	return canCombineIO && c.tls == nil && c.raw.control != nil && !hasBody(req) && !c.needsKnock(req)
}

// needsKnock reports whether the first octet of a request is sent ahead: see knock.
func (c *conn) needsKnock(req *http.Request) bool {
	return c.keepAlive == 0 && !isReplayable(req) && time.Since(c.idleSince) >= knockIdle
}

// quiet reports whether the connection is open and nothing has come over it that
// would be taken for the next response.
func (c *conn) quiet() bool {
	if c.tls != nil {
		return c.quietTLS()
	}
	return !c.raw.readable()
}

// quietTLS is quiet for a connection with TLS, which keeps some of what comes to
// itself: session tickets and key updates are read, and are no harm.
func (c *conn) quietTLS() bool {
	c.raw.nonblocking = true
	defer func() { c.raw.nonblocking = false }()
	var b [1]byte
	n, err := c.tls.Read(b[:])
	return n == 0 && err == errWouldBlock && c.raw.records.complete()
}
