//go:build !unix

package pool

import (
	"syscall"
	"time"
)

type poller struct{}

// lookTime is how long it is waited for something to come where a system cannot
// say whether a read would wait.
const lookTime = 100 * time.Microsecond

// readable reports whether a read would return at once. What comes is lost: with
// it, the connection is of no use. With TLS it is not known: see drained.
func (r *rawConn) readable() bool {
	if r.records.on {
		return true
	}
	var b [1]byte
	_, err := r.readNow(b[:])
	return err != errWouldBlock
}

// peek is readable for a connection that others may be using: that is not known.
func (r *rawConn) peek() bool { return true }

// readNow reads without waiting long.
func (r *rawConn) readNow(p []byte) (int, error) {
	if err := r.SetReadDeadline(time.Now().Add(lookTime)); err != nil {
		return 0, err
	}
	n, err := r.Conn.Read(p)
	if isTimeout(err) {
		err = errWouldBlock
	}
	if err2 := r.SetReadDeadline(time.Time{}); err == nil {
		err = err2
	}
	return n, err
}

// canExchange reports whether exchanger works on this system.
const canExchange = false

type exchanger struct {
	written, n int
	err        error
}

func (x *exchanger) run(syscall.RawConn, []byte, []byte) error { return nil }
