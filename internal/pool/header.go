package pool

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"time"
)

// headerLimit bounds the header of a response while it is read.
type headerLimit struct {
	counting bool
	octets   int64 // that may still come
	lines    int   // that may still come
	empty    bool  // the line has no octets so far
	err      error // the limit that was exceeded; nil: none
	readErr  error // with which reading from the connection ended; nil: it has not
}

// begin is called before the header of a response, and end after it.

func (l *headerLimit) begin(octets int64) {
	*l = headerLimit{counting: true, octets: octets, lines: maxFields + 2} // with the status line and the empty one
}

func (l *headerLimit) end() { l.counting = false }

// read reads from r no more than the limits allow.
func (l *headerLimit) read(r io.Reader, p []byte) (int, error) {
	if l.octets <= 0 {
		l.err = errHeaderSize
		return 0, l.err
	}
	if int64(len(p)) > l.octets {
		p = p[:l.octets]
	}
	n, err := r.Read(p)
	l.readErr = err
	l.octets -= int64(n)
	for p = p[:n]; ; {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			l.empty = l.empty && (len(p) == 0 || len(p) == 1 && p[0] == '\r')
			break
		}
		if i == 0 && l.empty || i == 1 && l.empty && p[0] == '\r' {
			l.lines = maxFields + 2 // the body follows, or another header after an interim response
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

// endOfRead returns why a header could not be read, from the error of the parser. That
// takes a line which the connection did not bring to its end for a malformed one.
func (l *headerLimit) endOfRead(err error) error {
	_, malformed := errors.AsType[textproto.ProtocolError](err)
	switch {
	case l.err != nil:
		return l.err
	case l.readErr == nil || !malformed && err != io.ErrUnexpectedEOF:
		return err
	case l.readErr == io.EOF:
		return errHeaderCut
	}
	return l.readErr
}

// fieldsOf returns the number of fields of a header.
func fieldsOf(header http.Header) (n int) {
	for _, values := range header {
		n += len(values)
	}
	return n
}

// readKeepAlive takes from a response how long the backend keeps the connection open
// (RFC 2068, section 19.7.1.1, which Node.js and Apache follow).
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
