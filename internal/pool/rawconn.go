package pool

import (
	"cmp"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

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
