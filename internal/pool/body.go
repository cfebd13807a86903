package pool

import (
	"bufio"
	"compress/gzip"
	"io"
)

// upgraded is the body of a response that switched protocols. Reads and writes go to
// the connection.
type upgraded struct {
	conn *conn
	br   *bufio.Reader // what came with the header; nil: nothing is left
}

// Read implements io.Reader.
func (u *upgraded) Read(p []byte) (int, error) {
	if u.br != nil {
		if n := u.br.Buffered(); n > 0 {
			return u.br.Read(p[:min(n, len(p))])
		}
		u.conn.pool.putReader(u.br)
		u.br = nil
	}
	return u.conn.Conn.Read(p)
}

// Write implements io.Writer.
func (u *upgraded) Write(p []byte) (int, error) { return u.conn.Conn.Write(p) }

// CloseWrite closes the writing side. Reading goes on.
func (u *upgraded) CloseWrite() error { return closeWrite(u.conn.Conn) }

// Close implements io.Closer.
func (u *upgraded) Close() error {
	u.conn.pool.discard(u.conn)
	return nil
}

// unzipped is the body of a response that is compressed because this side asked for it,
// not the client.
type unzipped struct {
	body io.ReadCloser
	zr   *gzip.Reader
	err  error
}

// Read implements io.Reader.
func (u *unzipped) Read(p []byte) (int, error) {
	if u.zr == nil {
		if u.err == nil {
			u.zr, u.err = gzip.NewReader(u.body)
		}
		if u.err != nil {
			return 0, u.err
		}
	}
	return u.zr.Read(p)
}

// Close implements io.Closer.
func (u *unzipped) Close() error { return u.body.Close() }
