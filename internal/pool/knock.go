package pool

import (
	"io"
	"time"
)

const (
	// knockIdle is how long a connection has to have been idle for a knock before a
	// request that cannot be sent again.
	knockIdle = 500 * time.Millisecond

	// knock waits knockTime for the backend's acknowledgement, and then knockGrace
	// for the end of the connection.
	knockTime  = time.Second
	knockGrace = 3 * time.Millisecond
)

// knock sends the first octet of the request and waits until the backend has it. A
// backend that was about to close the idle connection does that now. It cannot have
// acted on a request of one octet, so the request may be sent over another connection.
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
