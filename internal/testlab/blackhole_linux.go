package testlab

import (
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Blackhole is an address where TCP connections are neither opened nor refused: no
// server accepts them and the queue is full.
type Blackhole struct {
	Port string

	fd    int
	queue []net.Conn
}

// NewBlackhole makes a blackhole of an IPv4 address and a port, of a free one if port
// is "".
func NewBlackhole(t T, port, addr string) *Blackhole {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	h := &Blackhole{fd: fd}
	t.Cleanup(h.Close)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		t.Fatal(err)
	}
	number, _ := strconv.Atoi(port)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: netip.MustParseAddr(addr).As4(), Port: number}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	h.Port = strconv.Itoa(name.(*unix.SockaddrInet4).Port)
	for range 64 {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(addr, h.Port), 200*time.Millisecond)
		if err != nil {
			return h
		}
		h.queue = append(h.queue, conn)
	}
	t.Fatal("the queue of connections does not fill")
	return nil
}

// Wake ends the blackhole and returns a listener for its address. A connection that is
// being opened is open when the kernel tries again, a second after its first try.
func (h *Blackhole) Wake(t T) net.Listener {
	t.Helper()
	if err := unix.Listen(h.fd, unix.SOMAXCONN); err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(h.fd), "")
	listener, err := net.FileListener(file) // which has a descriptor of its own
	if err != nil {
		t.Fatal(err)
	}
	_ = file.Close()
	h.fd = -1
	h.Close()
	return listener
}

// Close ends the blackhole: connections are refused.
func (h *Blackhole) Close() {
	if h.fd >= 0 {
		_ = unix.Close(h.fd)
		h.fd = -1
	}
	for _, conn := range h.queue {
		_ = conn.Close()
	}
	h.queue = nil
}
