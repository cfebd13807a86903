//go:build !unix

package pool

import "time"

type poller struct{}

// pollTime is how long readNow waits, where the system does not report whether a read
// would wait.
const pollTime = 100 * time.Microsecond

// readable reports whether a read would return at once. It loses the octet that it
// reads, so the connection cannot be used after that. With TLS that would lose session
// tickets: there, quietTLS reads.
func (r *rawConn) readable() bool {
	if r.records.on {
		return true
	}
	var b [1]byte
	_, err := r.readNow(b[:])
	return err != errWouldBlock
}

// peek is readable for a connection that another goroutine may use. That is not known
// here.
func (r *rawConn) peek() bool { return true }

// readNow reads and waits no longer than pollTime.
func (r *rawConn) readNow(p []byte) (int, error) {
	if err := r.SetReadDeadline(time.Now().Add(pollTime)); err != nil {
		return 0, err
	}
	n, err := r.Conn.Read(p)
	if IsTimeout(err) {
		err = errWouldBlock
	}
	if err2 := r.SetReadDeadline(time.Time{}); err == nil {
		err = err2
	}
	return n, err
}
