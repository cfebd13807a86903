package pool

import (
	"io"
	"time"
)

const (
	// knockIdle is how long a connection has been idle of which it is found out
	// whether it is still open before a request is sent over it that cannot be
	// repeated.
	knockIdle = 500 * time.Millisecond

	// knockTime is how long the backend's acknowledgement is waited for, and
	// knockGrace how long a backend has then to end the connection.
	knockTime  = time.Second
	knockGrace = 3 * time.Millisecond
)

// knock sends the first octet of the request and waits until the backend has it.
// A backend that was about to close the connection for being idle does that now,
// and nobody acts upon a request of one octet: it can be sent over another
// connection.
func (x *exchange) knock() error {
	c := x.c
	acked := c.raw.acked()
	if _, err := c.Conn.Write([]byte(x.req.Method[:1])); err != nil {
		return err
	}
	x.writtenBefore = c.raw.written.Load()
	begun := time.Now()
	for wait := 50 * time.Microsecond; acked > 0 && c.raw.acked() == acked && time.Since(begun) < knockTime; wait *= 2 {
		if c.raw.readable() {
			break
		}
		time.Sleep(wait)
	}
	time.Sleep(knockGrace)
	if !c.quiet() {
		return io.EOF
	}
	return nil
}
