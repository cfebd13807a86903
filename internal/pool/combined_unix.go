//go:build unix

package pool

import (
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// canCombineIO reports whether combinedIO works on this system.
const canCombineIO = true

// combinedIO checks a connection that was idle, writes a request and reads the begin of
// the response in one call of the runtime's poller. A Write and a Read would each call
// it, and the check would be a third system call. A combinedIO belongs to a writer, so
// that it needs no new memory for each request.
type combinedIO struct {
	request, into []byte
	checked       bool
	written, n    int
	err           error
	stepFunc      func(fd uintptr) (done bool)
}

// run checks, writes and reads. The results are in x: err is errNotQuiet if the check
// failed, or an error of a write or a read. If not all of the request was written,
// without an error, nothing was read. run itself returns the errors of the poller, such
// as the end of a deadline.
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

// step is called at once, and then each time that there may be something to be read,
// until it is done.
func (x *combinedIO) step(fd int) (done bool) {
	n, err := ignoringEINTR(unix.Read, fd, x.into)
	if !x.checked {
		if err != unix.EAGAIN {
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
	switch {
	case err == unix.EAGAIN:
		return false
	case err != nil:
		x.err = os.NewSyscallError("read", err)
	case n == 0:
		x.err = io.EOF
	default:
		x.n = n
	}
	return true
}

// ignoringEINTR makes a system call, once more if it is interrupted. It returns no
// negative number.
func ignoringEINTR(call func(fd int, p []byte) (int, error), fd int, p []byte) (int, error) {
	for {
		n, err := call(fd, p)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}
