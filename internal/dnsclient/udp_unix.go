//go:build unix

package dnsclient

import (
	"net"
	"os"
	"slices"
	"syscall"
)

// receiver receives the datagrams of a socket. It takes a buffer only when one
// is there, so that a query in flight holds none: with a thousand of them that
// would be 64 MB. A socket has one query at a time, so what passes between
// receive and the callback may stay here, where it costs no allocation.
type receiver struct {
	raw  syscall.RawConn
	read func(fd uintptr) (done bool)
	msg  []byte
	err  error
}

// receive waits for a datagram and returns a copy of it.
func (r *receiver) receive(conn *net.UDPConn) ([]byte, error) {
	if r.raw == nil {
		raw, err := conn.SyscallConn()
		if err != nil {
			return nil, err
		}
		r.raw, r.read = raw, r.tryRead
	}
	if err := r.raw.Read(r.read); err != nil {
		return nil, err
	}
	msg, err := r.msg, r.err
	r.msg = nil
	return msg, err
}

// tryRead reads a datagram and reports whether there is no need to wait for one.
func (r *receiver) tryRead(fd uintptr) bool {
	buffer := buffers.Get().(*[maxMessage]byte)
	defer buffers.Put(buffer)
	for {
		switch n, err := syscall.Read(int(fd), buffer[:]); err {
		case nil:
			r.msg, r.err = slices.Clone(buffer[:n]), nil
			return true
		case syscall.EINTR:
		case syscall.EAGAIN:
			return false
		default:
			r.msg, r.err = nil, os.NewSyscallError("read", err)
			return true
		}
	}
}
