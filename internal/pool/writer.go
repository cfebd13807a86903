package pool

import (
	"bufio"
	"io"
	"sync/atomic"
)

// getReader returns a buffer for the responses over a connection, and putReader takes
// it back.
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

// getWriter returns a writer for one request, which leaves out the first octets (skip)
// and adds fields to the header (extra). putWriter takes it back.
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

// writer is what http.Request.Write writes a request to. It adds fields to the end of
// the header, as http.Transport does with its own. It has no ReadFrom: a body comes in
// parts as large as net/http reads them.
type writer struct {
	bw          *bufio.Writer // writes to conn
	conn        connWriter
	combined    combinedIO
	extraFields string
	atLineStart bool
	headerDone  atomic.Bool // the header has ended
}

// connWriter writes to a connection, without the first octets, which were sent before.
// A connection that was idle is checked first. If the whole request is in the buffer,
// connWriter holds it, so that combinedIO can check and write in one.
type connWriter struct {
	w    io.Writer
	skip int

	unchecked *conn  // to be checked before the first octet is written; nil: none
	hold      bool   // the next Write has the whole request
	held      []byte // by that Write: the request, which is still to be written
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

// writeErr returns the error with which a write to the connection failed, or nil.
func (w *writer) writeErr() error {
	_, err := w.bw.Write(nil)
	return err
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
			_, _ = w.bw.WriteString(w.extraFields) // the next write returns an error, too
		}
		w.atLineStart = s[len(s)-1] == '\n'
	}
	return w.bw.WriteString(s)
}
