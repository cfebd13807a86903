//go:build unix

package pool

import (
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// poller holds what the system calls of a rawConn take and return, so that they
// need no memory of their own.
type poller struct {
	fds   [1]unix.PollFd
	ready bool
	poll  func(fd uintptr)

	into []byte
	n    int
	err  error
	read func(fd uintptr)
}

// readable reports whether a read would return at once: with something that came,
// or because the connection has ended.
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

// peek is readable for a connection that others may be using.
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

// canExchange reports whether exchanger works on this system.
const canCombineIO = true

// combinedIO looks whether something has come, writes a request and reads what comes
// then, in one call of the runtime's poller, which would look once more before it
// waits. It keeps nothing of a connection, but what it needs no new memory for.
type combinedIO struct {
	request, into []byte
	checked       bool
	written, n    int
	err           error
	stepFunc      func(fd uintptr) (done bool)
}

// run looks, writes and reads. If written says that not all was written, without an
// error, nothing was read. It returns an error if the poller has one, as at the end of
// a deadline.
func (x *combinedIO) run(control syscall.RawConn, request, into []byte) error {
	if x.stepFunc == nil {
		x.stepFunc = func(fd uintptr) bool { return x.step(int(fd)) }
	}
	x.request, x.into = request, into
	x.checked, x.written, x.n, x.err = false, 0, 0, nil
	err := control.Read(x.stepFunc)
	x.request, x.into = nil, nil
	return err
}

// step is called at first, and then each time when something may have come.
func (x *combinedIO) step(fd int) (done bool) {
	n, err := ignoringEINTR(unix.Read, fd, x.into)
	switch {
	case x.checked && err == unix.EAGAIN:
		return false
	case x.checked && err != nil:
		x.err = os.NewSyscallError("read", err)
		return true
	case x.checked && n == 0:
		x.err = io.EOF
		return true
	case x.checked:
		x.n = n
		return true
	case err != unix.EAGAIN:
		x.err = errNotQuiet
		return true
	}
	x.checked = true
	x.written, err = ignoringEINTR(unix.Write, fd, x.request)
	if err != nil && err != unix.EAGAIN {
		x.err = os.NewSyscallError("write", err)
		return true
	}
	return x.written < len(x.request)
}

// ignoringEINTR makes a system call, once more if it is interrupted. It returns no negative
// number.
func ignoringEINTR(call func(fd int, p []byte) (int, error), fd int, p []byte) (int, error) {
	for {
		n, err := call(fd, p)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}
