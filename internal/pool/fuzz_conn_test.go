//go:build linux

package pool

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// half is one direction of a connection in memory. Each segment is read by itself.
type half struct {
	mu       sync.Mutex
	changed  chan struct{} // closed when anything below changes
	segments [][]byte
	size     int
	limit    int          // octets that may wait to be read; 0: any
	end      error        // after the segments; nil: more may come
	broken   bool         // writes fail
	deadline [2]time.Time // of reads and writes
	done     [2]bool      // the reader, the writer has closed it
}

func newHalf(limit int) *half { return &half{changed: make(chan struct{}), limit: limit} }

// change calls f and wakes the goroutines that wait.
func (h *half) change(do func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	do()
	close(h.changed)
	h.changed = make(chan struct{})
}

// push adds segments, and then the end, at once.
func (h *half) push(end error, segments ...[]byte) {
	h.change(func() {
		if h.broken || h.end != nil {
			return
		}
		for _, s := range segments {
			if len(s) > 0 {
				h.segments = append(h.segments, slices.Clone(s))
				h.size += len(s)
			}
		}
		h.end = end
	})
}

// wait waits until ready returns true; h.mu is held. side is 0 for reads, 1 for writes.
func (h *half) wait(side int, ready func() bool) error {
	for {
		deadline := h.deadline[side]
		left := time.Until(deadline)
		switch {
		case h.done[side]:
			return net.ErrClosed
		case !deadline.IsZero() && left <= 0:
			return os.ErrDeadlineExceeded
		case ready():
			return nil
		}
		changed := h.changed
		h.mu.Unlock()
		if deadline.IsZero() {
			<-changed
		} else {
			timer := time.NewTimer(left)
			select {
			case <-changed:
			case <-timer.C:
			}
			timer.Stop()
		}
		h.mu.Lock()
	}
}

func (h *half) read(p []byte) (n int, err error) {
	h.change(func() {
		if err = h.wait(0, func() bool { return len(h.segments) > 0 || h.end != nil || len(p) == 0 }); err != nil || len(p) == 0 {
			return
		}
		if len(h.segments) == 0 {
			err = h.end
			return
		}
		n = copy(p, h.segments[0])
		h.size -= n
		if h.segments[0] = h.segments[0][n:]; len(h.segments[0]) == 0 {
			h.segments = h.segments[1:]
		}
	})
	return n, err
}

func (h *half) write(p []byte) (n int, err error) {
	h.change(func() {
		for len(p) > 0 && err == nil {
			full := func() bool { return h.limit > 0 && h.size >= h.limit }
			if err = h.wait(1, func() bool { return h.broken || !full() }); err != nil {
				return
			}
			if h.broken || h.end != nil {
				err = unix.EPIPE
				return
			}
			k := len(p)
			if h.limit > 0 {
				k = min(k, h.limit-h.size)
			}
			h.segments = append(h.segments, slices.Clone(p[:k]))
			h.size += k
			n, p = n+k, p[k:]
			close(h.changed) // what there is can be read
			h.changed = make(chan struct{})
		}
	})
	return n, err
}

// memConn is one end of a connection in memory, which takes the time of a synctest
// bubble. It can be polled and read without waiting like a socket.
type memConn struct {
	in, out *half

	// pair holds what a poll or a read without waiting has found, for those need a
	// descriptor; under in.mu.
	pair [2]int
}

const memLimit = 64 << 10 // octets of requests

// memPipe returns the client's and the backend's end of a connection.
func memPipe() (client, backend *memConn) {
	up, down := newHalf(memLimit), newHalf(0)
	return &memConn{in: down, out: up, pair: [2]int{-1, -1}}, &memConn{in: up, out: down, pair: [2]int{-1, -1}}
}

func (c *memConn) Read(p []byte) (int, error) {
	c.in.mu.Lock()
	if c.pair[0] >= 0 && !c.in.done[0] {
		if n, err := unix.Read(c.pair[0], p); err == nil && n > 0 {
			c.in.mu.Unlock()
			return n, nil
		}
	}
	c.in.mu.Unlock()
	return c.in.read(p)
}

func (c *memConn) Write(p []byte) (int, error) { return c.out.write(p) }

// Close implements net.Conn.
func (c *memConn) Close() error { return c.closeWith(io.EOF) }

// closeWith closes the connection; the other end reads an error after what was sent.
func (c *memConn) closeWith(end error) error {
	closed := false
	c.in.change(func() {
		closed = c.in.done[0]
		c.in.done[0], c.in.broken = true, true
		for i, fd := range c.pair {
			if fd >= 0 {
				_ = unix.Close(fd)
			}
			c.pair[i] = -1
		}
	})
	if closed {
		return net.ErrClosed
	}
	c.out.change(func() {
		if c.out.done[1] = true; c.out.end == nil {
			c.out.end = end
		}
	})
	return nil
}

// lose takes back what was sent and not read, as some resets do.
func (c *memConn) lose() {
	c.out.change(func() { c.out.segments, c.out.size = nil, 0 })
}

// CloseWrite closes the writing side.
func (c *memConn) CloseWrite() error {
	c.out.push(io.EOF)
	return nil
}

func (c *memConn) LocalAddr() net.Addr  { return memAddr }
func (c *memConn) RemoteAddr() net.Addr { return memAddr }

var memAddr = net.TCPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.1:80"))

func (c *memConn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *memConn) SetReadDeadline(t time.Time) error  { return c.in.until(0, t) }
func (c *memConn) SetWriteDeadline(t time.Time) error { return c.out.until(1, t) }

func (h *half) until(side int, t time.Time) (err error) {
	h.change(func() {
		if h.done[side] {
			err = net.ErrClosed
		}
		h.deadline[side] = t
	})
	return err
}

// SyscallConn implements syscall.Conn.
func (c *memConn) SyscallConn() (syscall.RawConn, error) { return (*memRaw)(c), nil }

type memRaw memConn

// idle is a descriptor from which there is nothing to be read.
var idle = sync.OnceValue(func() int {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		panic(err)
	}
	return fd
})

// Control calls f with a descriptor from which can be read what the connection has.
func (r *memRaw) Control(f func(fd uintptr)) error {
	h := r.in
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.done[0] {
		return net.ErrClosed
	}
	if r.pair[0] < 0 && len(h.segments) == 0 && h.end == nil {
		f(uintptr(idle()))
		return nil
	}
	r.open()
	r.fill(len(h.segments))
	f(uintptr(r.pair[0]))
	return nil
}

// open makes the descriptors; in.mu is held.
func (r *memRaw) open() {
	if r.pair[0] >= 0 {
		return
	}
	var err error
	if r.pair, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		panic(err)
	}
}

// fill makes up to n segments readable, and the end after the last one; in.mu is held.
func (r *memRaw) fill(n int) {
	h := r.in
	for ; n > 0 && len(h.segments) > 0; n-- {
		k, err := unix.Write(r.pair[1], h.segments[0])
		if k <= 0 || err != nil {
			break
		}
		h.size -= k
		if h.segments[0] = h.segments[0][k:]; len(h.segments[0]) == 0 {
			h.segments = h.segments[1:]
		}
	}
	if len(h.segments) == 0 && h.end != nil && r.pair[1] >= 0 {
		_ = unix.Shutdown(r.pair[1], unix.SHUT_WR)
	}
}

// Read calls f with a descriptor that can be read and written, and again each time
// that there is something to read, until f returns true.
func (r *memRaw) Read(f func(fd uintptr) (done bool)) error {
	h := r.in
	for {
		h.mu.Lock()
		if h.done[0] {
			h.mu.Unlock()
			return &net.OpError{Op: "raw-read", Err: net.ErrClosed}
		}
		r.open()
		r.fill(1)
		done := f(uintptr(r.pair[0]))
		var sent []byte
		buf := make([]byte, memLimit)
		for {
			n, err := unix.Read(r.pair[1], buf)
			if n <= 0 || err != nil {
				break
			}
			sent = append(sent, buf[:n]...)
		}
		h.mu.Unlock()
		r.out.push(nil, sent) // no deadline matters here
		if done {
			return nil
		}
		h.mu.Lock()
		err := h.wait(0, func() bool { return len(h.segments) > 0 || h.end != nil })
		h.mu.Unlock()
		if err != nil {
			return &net.OpError{Op: "raw-read", Err: err}
		}
	}
}

// Write is not used.
func (*memRaw) Write(func(uintptr) bool) error { return errors.ErrUnsupported }
