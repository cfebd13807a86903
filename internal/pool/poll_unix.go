//go:build unix

package pool

import (
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// poller holds the arguments and results of a rawConn's system calls, so that they need
// no memory for each call.
type poller struct {
	fds   [1]unix.PollFd
	ready bool
	poll  func(fd uintptr)

	into []byte
	n    int
	err  error
	read func(fd uintptr)
}

// readable reports whether a read would return at once: with octets, or because the
// connection has ended.
func (r *rawConn) readable() bool {
	if r.control == nil {
		return false
	}
	l := &r.poller
	if l.poll == nil {
		l.poll = func(fd uintptr) {
			l.fds[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
			n, err := unix.Poll(l.fds[:], 0)
			l.ready = n > 0 || err != nil && err != unix.EINTR
		}
	}
	l.ready = true
	if err := r.control.Control(l.poll); err != nil {
		return true
	}
	return l.ready
}

// peek is readable for the sweeper: another goroutine may use the connection, and with
// it the poller, at the same time.
func (r *rawConn) peek() (ready bool) {
	if r.control == nil {
		return false
	}
	_ = r.control.Control(func(fd uintptr) {
		fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds[:], 0)
		ready = n > 0 && err == nil
	})
	return ready
}

// readNow reads without waiting.
func (r *rawConn) readNow(p []byte) (int, error) {
	if r.control == nil {
		return 0, errWouldBlock
	}
	l := &r.poller
	if l.read == nil {
		l.read = func(fd uintptr) { l.n, l.err = unix.Read(int(fd), l.into) }
	}
	l.into, l.n, l.err = p, 0, net.ErrClosed
	err := r.control.Control(l.read)
	l.into = nil
	switch {
	case err != nil:
		return 0, err
	case l.err == unix.EAGAIN || l.err == unix.EINTR:
		return 0, errWouldBlock
	case l.err != nil:
		return 0, l.err
	case l.n == 0 && len(p) > 0:
		return 0, io.EOF
	}
	return l.n, nil
}
