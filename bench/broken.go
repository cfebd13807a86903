package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// listenRaw leaves each connection to an address to serve, and returns what ends
// that.
func listenRaw(addr netip.AddrPort, serve func(net.Conn)) (stop func()) {
	listener, err := net.Listen("tcp", addr.String())
	must(err)
	var conns sync.Map
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conns.Store(conn, nil)
			go func() {
				serve(conn)
				conns.Delete(conn)
			}()
		}
	}()
	return func() {
		listener.Close()
		conns.Range(func(conn, _ any) bool {
			conn.(net.Conn).Close()
			return true
		})
	}
}

// hang reads what comes and says nothing.
func hang(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

// resetFirst resets a connection when something has come.
func resetFirst(conn net.Conn) {
	_, _ = conn.Read(make([]byte, 1))
	reset(conn)
}

// blackhole is an address where TCP connections are neither opened nor refused:
// nobody accepts them and the queue is full.
type blackhole struct {
	fd    int
	queue []net.Conn
}

func newBlackhole(addr netip.AddrPort) *blackhole {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	must(err)
	syscall.CloseOnExec(fd)
	must(syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1))
	must(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())}))
	must(syscall.Listen(fd, 0))
	h := &blackhole{fd: fd}
	for {
		conn, err := net.DialTimeout("tcp", addr.String(), 200*time.Millisecond)
		if err != nil {
			return h
		}
		h.queue = append(h.queue, conn)
	}
}

// wake lets backends accept connections there. One that is being opened is open
// when the kernel tries again, a second after its first try.
func (h *blackhole) wake(b *backends) {
	must(syscall.Listen(h.fd, syscall.SOMAXCONN))
	file := os.NewFile(uintptr(h.fd), "")
	listener, err := net.FileListener(file)
	must(err)
	file.Close()
	b.serveOn(listener)
	h.closeQueue()
}

func (h *blackhole) close() {
	_ = syscall.Close(h.fd)
	h.closeQueue()
}

func (h *blackhole) closeQueue() {
	for _, conn := range h.queue {
		conn.Close()
	}
}

// resetter is a backend that resets connections after a part of the request: its
// first byte, its header, some of its body, or all. Not at once: that looks as if
// the connection had not been opened.
type resetter struct {
	read sync.Map // X-Id → received
}

// received is what came of a request before its connection was reset.
type received string

const (
	firstByte  received = "its beginning at most"
	headerOnly received = "its header"
	someBody   received = "a part of its body"
	allBody    received = "all of it"
)

func (s *resetter) serve(conn net.Conn) {
	defer reset(conn)
	r := bufio.NewReader(conn)
	_, err := r.Peek(1)
	how := rand.N(4)
	if err != nil || how == 0 {
		return
	}
	req, err := http.ReadRequest(r)
	if err != nil {
		return
	}
	id := req.Header.Get("X-Id")
	s.read.Store(id, headerOnly)
	switch how {
	case 2:
		n, _ := io.CopyN(io.Discard, req.Body, 1+rand.N(max(req.ContentLength-1, 1)))
		if n > 0 {
			s.read.Store(id, someBody)
		}
	case 3:
		n, _ := io.Copy(io.Discard, req.Body)
		switch n {
		case 0:
		case req.ContentLength:
			s.read.Store(id, allBody)
		default:
			s.read.Store(id, someBody)
		}
	}
}

// wrongName is config with the certificate of a name that is nobody's.
func (a *authority) wrongName(protocols ...string) *tls.Config {
	cert, err := a.issue("somebody.else.test")
	must(err)
	return &tls.Config{NextProtos: protocols, Certificates: []tls.Certificate{*cert}}
}

// listenEverywhere makes the backends answer on all addresses of loopback, and on
// nothing else.
func (b *backends) listenEverywhere() {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		failed := c.Control(func(fd uintptr) { err = syscall.BindToDevice(int(fd), "lo") })
		if failed != nil {
			return failed
		}
		return err
	}}
	listener, err := config.Listen(context.Background(), "tcp4", netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(b.port)).String())
	must(err)
	b.serveOn(listener)
}
