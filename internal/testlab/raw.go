package testlab

import (
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
)

// RawBackend is a backend that a test scripts, octet by octet.
type RawBackend struct {
	Port         string
	Opened, Open atomic.Int64 // connections: in all, and now

	listener net.Listener
	serving  sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]bool
	end    chan struct{} // closed by Close
	closed bool
}

// NewRawBackend listens on an address, on a free port if port is "", and leaves each
// connection to serve, which need not close it. Without serve, nothing is read and
// nothing is written. With a configuration the connections are those of TLS, after the
// handshake; then there must be a serve. All are closed at the end of the test.
func NewRawBackend(t T, port, addr string, config *tls.Config, serve func(net.Conn)) *RawBackend {
	t.Helper()
	if config == nil {
		return serveConns(t, Listen(t, port, addr)[0], serve)
	}
	return serveConns(t, Listen(t, port, addr)[0], func(conn net.Conn) {
		secured := tls.Server(conn, config)
		if secured.Handshake() == nil {
			serve(secured)
		}
	})
}

// SilentBackend accepts connections, and reads and writes nothing.
func SilentBackend(t T, port, addr string) *RawBackend {
	t.Helper()
	return NewRawBackend(t, port, addr, nil, nil)
}

// ResettingBackend resets connections after the first octet.
func ResettingBackend(t T, port, addr string) *RawBackend {
	t.Helper()
	return NewRawBackend(t, port, addr, nil, func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 1))
		Reset(conn)
	})
}

// serveConns leaves the connections of a listener to serve.
func serveConns(t T, listener net.Listener, serve func(net.Conn)) *RawBackend {
	b := &RawBackend{
		Port: portOf(listener.Addr()), listener: listener, conns: make(map[net.Conn]bool), end: make(chan struct{}),
	}
	b.serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			b.Opened.Add(1)
			b.Open.Add(1)
			b.mu.Lock()
			b.conns[conn] = true
			if b.closed {
				_ = conn.Close()
			}
			b.mu.Unlock()
			b.serving.Go(func() {
				if serve != nil {
					serve(conn)
				} else {
					<-b.end
				}
				_ = conn.Close()
				b.mu.Lock()
				delete(b.conns, conn)
				b.mu.Unlock()
				b.Open.Add(-1)
			})
		}
	})
	t.Cleanup(b.Close)
	return b
}

// Close ends the backend and its connections.
func (b *RawBackend) Close() {
	_ = b.listener.Close()
	b.mu.Lock()
	if !b.closed {
		b.closed = true
		close(b.end)
	}
	b.mu.Unlock()
	b.CloseConns()
	b.serving.Wait()
}

// CloseConns closes the connections that are open.
func (b *RawBackend) CloseConns() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for conn := range b.conns {
		_ = conn.Close()
	}
}

// Reset closes a connection so that the other side gets an error instead of its end.
func Reset(conn net.Conn) {
	if wrapped, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = wrapped.NetConn()
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}
