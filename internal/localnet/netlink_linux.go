package localnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// newRequest returns a netlink message.
func newRequest(kind, flags uint16, payload []byte) []byte {
	b := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(payload))
	binary.NativeEndian.PutUint32(b, uint32(cap(b)))
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|flags)
	return append(b, payload...)
}

// replyError is an error that the kernel replied.
type replyError struct{ syscall.Errno }

// bufferSize is the largest size of a datagram of the kernel, in octets.
const bufferSize = 1 << 15

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// ask sends a request to the kernel and hands over each message of the reply. It
// does not wait: the kernel has replied when the request is sent.
func ask(protocol int, request []byte, reply func(kind uint16, data []byte)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return fmt.Errorf("opening a netlink socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	dump := binary.NativeEndian.Uint16(request[6:])&unix.NLM_F_DUMP == unix.NLM_F_DUMP
	if dump && protocol == unix.NETLINK_ROUTE { // so that it has the table alone that was asked for
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1); err != nil {
			return errUnsupported
		}
	}
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("asking the kernel: %w", err)
	}
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	for {
		n, _, err := unix.Recvfrom(fd, buf[:], 0)
		if err != nil {
			return fmt.Errorf("reading the kernel's reply: %w", err)
		}
		if done, err := readReply(buf[:n], reply); done || err != nil || !dump {
			return err
		}
	}
}

var errReply = errors.New("the kernel's reply is malformed")

// readReply reads the messages of a datagram. It reports whether it has the last one.
func readReply(b []byte, reply func(kind uint16, data []byte)) (done bool, err error) {
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return true, errReply
		}
		kind, data := binary.NativeEndian.Uint16(b[4:]), b[unix.SizeofNlMsghdr:size]
		switch kind {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if len(data) < 4 {
				return true, errReply
			}
			if errno := int32(binary.NativeEndian.Uint32(data)); errno != 0 {
				return true, replyError{syscall.Errno(-errno)}
			}
			return true, nil
		}
		reply(kind, data)
		b = b[min(align(size), len(b)):]
	}
	return false, nil
}

// attributes returns the attributes of a message by their kinds.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			size := int(binary.NativeEndian.Uint16(b))
			if size < unix.SizeofRtAttr || size > len(b) || !yield(binary.NativeEndian.Uint16(b[2:]), b[unix.SizeofRtAttr:size]) {
				return
			}
			b = b[min(align(size), len(b)):]
		}
	}
}

// align rounds up to where the next message or attribute begins.
func align(n int) int { return (n + 3) &^ 3 }
