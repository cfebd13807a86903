package pool

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
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

// rawConn is a connection without TLS. It counts what is written, and can be read
// and looked at without waiting.
type rawConn struct {
	net.Conn
	control syscall.RawConn // nil: there is no such thing
	poller  poller

	readTimeout, writeTimeout time.Duration

	written     atomic.Int64 // octets
	closing     atomic.Bool  // no time is left to write
	nonblocking bool         // Read does not wait
	unsent      *writer      // has what is written before Read reads
	records     tlsRecords   // of TLS, in what was read
}

func newRawConn(p *Pool, c net.Conn) *rawConn {
	r := &rawConn{Conn: c, readTimeout: p.config.ReadTimeout, writeTimeout: p.config.WriteTimeout}
	if s, ok := c.(syscall.Conn); ok {
		r.control, _ = s.SyscallConn()
	}
	return r
}

// Read implements net.Conn.
func (r *rawConn) Read(p []byte) (n int, err error) {
	if r.nonblocking {
		n, err = r.readNow(p)
		r.records.follow(p[:n])
		return n, err
	}
	if r.readTimeout > 0 {
		if err := r.SetReadDeadline(time.Now().Add(r.readTimeout)); err != nil {
			return 0, err
		}
	}
	if w := r.unsent; w != nil {
		r.unsent = nil
		return r.writeThenRead(w, p)
	}
	n, err = r.Conn.Read(p)
	r.records.follow(p[:n])
	return n, err
}

// writeThenRead looks at the connection, writes what the writer has kept and reads what
// comes then.
func (r *rawConn) writeThenRead(w *writer, p []byte) (int, error) {
	request, x := w.conn.held, &w.combined
	err := x.run(r.control, request, p)
	r.written.Add(int64(x.written))
	switch {
	case x.err == errNotQuiet:
		return 0, &sendError{x.err}
	case x.err != nil && x.written < len(request):
		return 0, &sendError{r.opError("write", x.err)}
	case x.err == io.EOF:
		return 0, io.EOF
	case x.err != nil:
		return 0, r.opError("read", x.err)
	case err != nil:
		return 0, r.opError("read", cmp.Or(errors.Unwrap(err), err))
	case x.written == len(request):
		return x.n, nil
	}
	if _, err := r.Write(request[x.written:]); err != nil {
		return 0, &sendError{err}
	}
	return r.Conn.Read(p)
}

// opError makes of an error one as net returns it.
func (r *rawConn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: r.LocalAddr(), Addr: r.RemoteAddr(), Err: err}
}

// errNotQuiet is the error of a request that was not sent, since the connection has
// ended or something has come over it that no request asked for.
var errNotQuiet = errors.New("the connection cannot be used again")

// sendError is the error of a read before which the request was to be written.
type sendError struct{ error }

func (e *sendError) Unwrap() error { return e.error }

// Write implements net.Conn.
func (r *rawConn) Write(p []byte) (int, error) {
	if r.writeTimeout > 0 && !r.closing.Load() {
		if err := r.SetWriteDeadline(time.Now().Add(r.writeTimeout)); err != nil {
			return 0, err
		}
	}
	n, err := r.Conn.Write(p)
	r.written.Add(int64(n))
	return n, err
}

// SetWriteDeadline implements net.Conn. While the connection is closed, TLS does not
// get the time that it would take.
func (r *rawConn) SetWriteDeadline(t time.Time) error {
	if r.closing.Load() {
		return nil
	}
	return r.Conn.SetWriteDeadline(t)
}

// CloseWrite ends what is sent.
func (r *rawConn) CloseWrite() error { return closeWrite(r.Conn) }

func closeWrite(conn any) error {
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}

// errWouldBlock is the error of a read that would have to wait. It does not end a
// connection with TLS.
var errWouldBlock net.Error = &timeoutError{os.ErrDeadlineExceeded.Error()}

// tlsRecords follows the records of TLS in what is read, to know where one ends.
type tlsRecords struct {
	on     bool
	left   int // of the record
	header [5]byte
	got    int // of the header
}

func (r *tlsRecords) follow(p []byte) {
	for r.on && len(p) > 0 {
		if r.left > 0 {
			n := min(r.left, len(p))
			r.left, p = r.left-n, p[n:]
			continue
		}
		n := copy(r.header[r.got:], p)
		r.got, p = r.got+n, p[n:]
		if r.got == len(r.header) {
			r.got, r.left = 0, int(r.header[3])<<8|int(r.header[4])
		}
	}
}

// complete reports whether what was read ends where a record does.
func (r *tlsRecords) complete() bool { return r.left == 0 && r.got == 0 }

// headerLimit bounds the header of a response while it is read.
type headerLimit struct {
	counting bool
	octets   int64 // that may come
	lines    int   // that may come
	empty    bool  // the line has nothing so far
	err      error // why there is no more
}

func (l *headerLimit) begin(octets int64) {
	*l = headerLimit{counting: true, octets: octets, lines: maxFields + 2} // and the status line and the end
}

func (l *headerLimit) end() { l.counting = false }

func (l *headerLimit) read(r io.Reader, p []byte) (int, error) {
	if l.octets <= 0 {
		l.err = errHeaderSize
		return 0, l.err
	}
	if int64(len(p)) > l.octets {
		p = p[:l.octets]
	}
	n, err := r.Read(p)
	l.octets -= int64(n)
	for p = p[:n]; ; {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			l.empty = l.empty && (len(p) == 0 || len(p) == 1 && p[0] == '\r')
			break
		}
		if i == 0 && l.empty || i == 1 && l.empty && p[0] == '\r' {
			l.lines = maxFields + 2 // what follows is no header, or another one
			break
		}
		l.empty, p = true, p[i+1:]
		if l.lines--; l.lines < 0 {
			l.err = errHeaderFields
			return 0, l.err
		}
	}
	return n, err
}

// readKeepAlive takes from a response how long the backend leaves the connection
// open (RFC 2068, section 19.7.1.1, which Node.js and Apache follow).
func (c *conn) readKeepAlive(header http.Header) {
	for _, value := range header["Keep-Alive"] {
		for param := range strings.SplitSeq(value, ",") {
			text, ok := strings.CutPrefix(strings.TrimSpace(param), "timeout=")
			seconds, err := strconv.ParseUint(text, 10, 16)
			if ok && err == nil && seconds > 0 {
				c.keepAlive = time.Duration(seconds) * time.Second
			}
		}
	}
}

// getReader and writer return buffers for a request.
func (p *Pool) getReader(c *conn) *bufio.Reader {
	if r, ok := p.readers.Get().(*bufio.Reader); ok {
		r.Reset(c)
		return r
	}
	return bufio.NewReaderSize(c, p.config.ReadBuffer)
}

func (p *Pool) putReader(r *bufio.Reader) {
	r.Reset(nil)
	p.readers.Put(r)
}

func (p *Pool) getWriter(c *conn, extra string, skip int) *writer {
	w, ok := p.writers.Get().(*writer)
	if !ok {
		w = new(writer)
		w.bw = bufio.NewWriterSize(&w.conn, p.config.WriteBuffer)
	}
	w.conn = connWriter{w: c.Conn, skip: skip}
	w.extraFields, w.atLineStart = extra, false
	w.headerDone.Store(false)
	return w
}

func (p *Pool) putWriter(w *writer) {
	w.conn = connWriter{}
	w.bw.Reset(&w.conn)
	p.writers.Put(w)
}

// writer is what a request is written to. It adds fields to the end of the header,
// as net/http does with those that its transport adds. It has no ReadFrom: a body
// comes in parts as large as net/http reads them.
type writer struct {
	bw          *bufio.Writer
	conn        connWriter
	combined    combinedIO
	extraFields string      // fields
	atLineStart bool        // of a line
	headerDone  atomic.Bool // the header has
}

// connWriter writes what is written to it but for its first octets.
type connWriter struct {
	w    io.Writer
	skip int

	unchecked *conn  // is to be looked at before something is written; nil: none
	hold      bool   // what comes next is all that is left
	held      []byte // what came then; it is still to be written
}

// Write implements io.Writer.
func (r *connWriter) Write(p []byte) (int, error) {
	if r.unchecked != nil {
		if r.hold {
			r.held = p
			return len(p), nil
		}
		if !r.unchecked.quiet() {
			return 0, errNotQuiet
		}
		r.unchecked = nil
	}
	skipped := min(r.skip, len(p))
	r.skip -= skipped
	n, err := r.w.Write(p[skipped:])
	return skipped + n, err
}

// writeFailed reports whether the connection did not take what was written.
func (w *writer) writeFailed() bool {
	_, err := w.bw.Write(nil)
	return err != nil
}

// Flush sends what is left.
func (w *writer) Flush() error { return w.bw.Flush() }

// WriteByte implements io.ByteWriter, by which net/http knows that there is a
// buffer.
func (w *writer) WriteByte(c byte) error { return w.bw.WriteByte(c) }

// Write implements io.Writer.
func (w *writer) Write(p []byte) (int, error) {
	if !w.headerDone.Load() && len(p) > 0 {
		w.atLineStart = p[len(p)-1] == '\n'
	}
	return w.bw.Write(p)
}

// WriteString implements io.StringWriter.
func (w *writer) WriteString(s string) (int, error) {
	if !w.headerDone.Load() && len(s) > 0 {
		if w.atLineStart && s == "\r\n" {
			w.headerDone.Store(true)
			_, _ = w.bw.WriteString(w.extraFields) // an error stays
		}
		w.atLineStart = s[len(s)-1] == '\n'
	}
	return w.bw.WriteString(s)
}
