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
	group       *connGroup // in which it counts; set before it is added to its destination
	openedAt    time.Time  // when the dial of the TCP connection ended

	// HTTP/1.1
	keepAlive time.Duration // how long the backend keeps it open while it is idle; 0: not known
	header    headerLimit   // of the response that is being read
	readErr   error         // the first error of Read

	// HTTP/2
	bodies       openBodies
	added        atomic.Bool // it was added to its destination
	gone         atomic.Bool // it has ended, by either side
	settingsRead atomic.Bool // the backend's SETTINGS, which say how many streams it takes, were read
	responded    atomic.Bool // there was a response

	// under shard.mu
	index      int       // in destination.conns; negative: not there
	counted    bool      // in Pool.open and Limits
	detached   bool      // see detach
	idle       bool      // and in the list of the shard's idle connections
	prev, next *conn     // in that list
	idleSeq    uint64    // the order in which connections of the pool became idle
	idleSince  time.Time // the time at which it did
	checkedAt  time.Time // when the sweeper last checked it

	// under shard.mu, HTTP/2
	active  int  // how many requests use it
	retired bool // it gets no more requests
	full    bool // it takes no request at the moment
	wasFull bool // it was full once

	unclaimed atomic.Int32 // streams that are reserved and not claimed, over HTTP/2

	ended struct { // by this side
		sync.Mutex
		closed bool
		cause  error
	}
	silence silence // used by the sweeper alone

	spare atomic.Pointer[spare] // nil: it was opened for a request, or one has used it
}

// newConn returns a connection that does not belong to its destination yet: see addConn.
func newConn(p *Pool, d *destination, c net.Conn) *conn {
	raw := newRawConn(p, c)
	raw.records.on = d.key.secure()
	return &conn{Conn: raw, raw: raw, pool: p, destination: d, openedAt: time.Now(), index: -1}
}

// abort closes the connection while it is in use. Its requests fail with the first
// cause.
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

// closeConn closes the TLS connection, unless it was aborted, and that of TCP.
func (c *conn) closeConn() {
	if c.tls != nil && c.cause(nil) == nil {
		// A close_notify is sent if that takes no time.
		_ = c.raw.SetWriteDeadline(time.Now().Add(time.Millisecond))
		c.raw.closing.Store(true)
		_ = c.tls.CloseWrite()
	}
	_ = c.raw.Close()
}

// Read reads for the parser of responses. After an error it reads no more: bufio
// ignores one in the middle of a line, and would take what came after a timeout for
// the rest of the line.
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

// usable reports whether a connection that was idle may be used for a request. The
// backend may have closed it, or may have sent octets that no request asked for.
func (c *conn) usable(req *http.Request) bool {
	if timeout := c.pool.config.IdleTimeout; timeout > 0 && time.Since(c.idleSince) > timeout {
		return false
	}
	if c.keepAlive > 0 && !isReplayable(req) && time.Since(c.idleSince) > c.keepAlive-c.keepAlive/10 {
		return false
	}
	return c.defersCheck(req) || c.quiet()
}

// defersCheck reports whether the connection is checked only when the request is
// written, which saves a system call: see combinedIO.
func (c *conn) defersCheck(req *http.Request) bool {
	return canCombineIO && c.tls == nil && c.raw.control != nil && !hasBody(req) && !c.needsKnock(req)
}

// needsKnock reports whether the first octet of a request is sent before the others:
// see knock.
func (c *conn) needsKnock(req *http.Request) bool {
	return c.keepAlive == 0 && !isReplayable(req) && time.Since(c.idleSince) >= knockIdle
}

// quiet reports whether an idle connection is open and has no octets to be read, which
// would be taken for the next response.
func (c *conn) quiet() bool {
	if c.tls != nil {
		return c.quietTLS()
	}
	return !c.raw.readable()
}

// quietTLS is quiet for a connection with TLS. It reads session tickets and key
// updates, which are no part of a response.
func (c *conn) quietTLS() bool {
	c.raw.nonblocking = true
	defer func() { c.raw.nonblocking = false }()
	var b [1]byte
	n, err := c.tls.Read(b[:])
	return n == 0 && err == errWouldBlock && c.raw.records.complete()
}
