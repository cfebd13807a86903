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

// rawConn is a TCP connection, below TLS if there is TLS. It sets a deadline for each
// read and write, counts the octets that were written, and can be checked and read
// without waiting (poll_unix.go).
type rawConn struct {
	net.Conn
	control syscall.RawConn // nil: Conn is no socket
	poller  poller

	readTimeout, writeTimeout time.Duration

	written     atomic.Int64 // octets
	closing     atomic.Bool  // the write deadline stays as it is
	nonblocking bool         // Read does not wait
	unsent      *writer      // has the request that the next Read writes first; nil: none
	records     tlsRecords
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

// writeThenRead checks the connection, writes the request that the writer holds, and
// reads.
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

// opError returns the error as package net would.
func (r *rawConn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: r.LocalAddr(), Addr: r.RemoteAddr(), Err: err}
}

// errNotQuiet is the error of a request that was not sent, because its connection
// turned out not to be quiet.
var errNotQuiet = errors.New("the connection cannot be used again")

// sendError is returned by a read that was to write the request first, and could not.
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

// SetWriteDeadline implements net.Conn. While the connection is closing, tls.Conn
// cannot set the longer deadline that it would take for its close_notify.
func (r *rawConn) SetWriteDeadline(t time.Time) error {
	if r.closing.Load() {
		return nil
	}
	return r.Conn.SetWriteDeadline(t)
}

// CloseWrite closes the writing side.
func (r *rawConn) CloseWrite() error { return closeWrite(r.Conn) }

// closeWrite calls the CloseWrite of a connection that has it.
func closeWrite(conn any) error {
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}

// errWouldBlock is the error of a read that would have to wait. It is a timeout, so a
// tls.Conn can be read again after it.
var errWouldBlock net.Error = &timeoutError{os.ErrDeadlineExceeded.Error()}
