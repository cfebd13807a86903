package pool

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

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

func fieldsOf(header http.Header) (n int) {
	for _, values := range header {
		n += len(values)
	}
	return n
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
