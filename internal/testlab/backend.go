package testlab

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Request is a request as a [Backend] saw it.
type Request struct {
	Address string // of the backend
	Proto   string
	Method  string
	Host    string
	URI     string
	SNI     string
	Header  http.Header
	Body    string
	Conn    int64 // the number of the connection
}

// BackendConfig configures a [Backend].
type BackendConfig struct {
	Addrs []string // default: 127.0.0.1
	Port  string   // of all addresses; default: a free one

	CA        *Authority        // nil: no TLS
	TLS       func(*tls.Config) // changes the configuration of TLS
	HTTP2     bool              // is offered by TLS; without TLS, prior knowledge is taken too
	HTTP2Only bool              // there is no HTTP/1.1

	Handler     http.Handler                    // default: a [Request] as JSON
	IdleTimeout time.Duration                   // default: none
	Listener    func(net.Listener) net.Listener // wraps each listener
}

// Backend is a web server with one port on one or more addresses. Its responses have a
// field Backend with its address and port.
type Backend struct {
	Port         string
	Opened, Open atomic.Int64 // connections: in all, and now
	Served       atomic.Int64 // requests

	config  BackendConfig
	server  *http.Server
	serving sync.WaitGroup

	mu          sync.Mutex
	conns       map[*backendConn]bool
	accepted    map[string]int
	served      map[string]int
	misdirected []string
	certs       map[string]string // by name: the name that the certificate is for instead
}

// NewBackend starts a backend, which ends with the test.
func NewBackend(t T, config BackendConfig) *Backend {
	t.Helper()
	if len(config.Addrs) == 0 {
		config.Addrs = []string{"127.0.0.1"}
	}
	listeners := Listen(t, config.Port, config.Addrs...)
	config.Port = portOf(listeners[0].Addr())
	b := NewUnstartedBackend(t, config)
	for _, l := range listeners {
		b.Serve(l)
	}
	return b
}

// NewUnstartedBackend makes a backend that does not listen yet. Addrs is not used.
func NewUnstartedBackend(t T, config BackendConfig) *Backend {
	b := &Backend{
		Port:     config.Port,
		config:   config,
		conns:    make(map[*backendConn]bool),
		accepted: make(map[string]int),
		served:   make(map[string]int),
		certs:    make(map[string]string),
	}
	b.server = &http.Server{
		Handler:     http.HandlerFunc(b.serve),
		Protocols:   new(http.Protocols),
		ErrorLog:    log.New(io.Discard, "", 0),
		IdleTimeout: config.IdleTimeout,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, accepted(conn))
		},
		ConnState: func(conn net.Conn, state http.ConnState) { accepted(conn).active.Store(state == http.StateActive) },
	}
	b.server.Protocols.SetHTTP1(!config.HTTP2Only)
	b.server.Protocols.SetHTTP2(config.HTTP2)
	b.server.Protocols.SetUnencryptedHTTP2(config.HTTP2 && config.CA == nil)
	if config.CA != nil {
		b.server.TLSConfig = &tls.Config{GetCertificate: b.certificate}
		if config.TLS != nil {
			config.TLS(b.server.TLSConfig)
		}
	}
	t.Cleanup(b.Close)
	return b
}

// Serve serves the connections of a listener too.
func (b *Backend) Serve(l net.Listener) {
	if b.config.Listener != nil {
		l = b.config.Listener(l)
	}
	l = backendListener{l, b}
	b.serving.Go(func() {
		if b.config.CA != nil {
			_ = b.server.ServeTLS(l, "", "")
		} else {
			_ = b.server.Serve(l)
		}
	})
}

// Close ends the backend and its connections, upgraded ones too.
func (b *Backend) Close() {
	_ = b.server.Close()
	b.CloseConns()
	b.serving.Wait()
}

// CloseConns closes all connections.
func (b *Backend) CloseConns() { b.each(func(c *backendConn) { _ = c.Close() }) }

// CloseIdle closes the connections that are not in use.
func (b *Backend) CloseIdle() {
	b.each(func(c *backendConn) {
		if !c.active.Load() {
			_ = c.Close()
		}
	})
}

// ResetConns resets all connections.
func (b *Backend) ResetConns() {
	b.each(func(c *backendConn) {
		if tcp, ok := c.Conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = c.Close()
	})
}

func (b *Backend) each(f func(*backendConn)) {
	b.mu.Lock()
	conns := maps.Clone(b.conns)
	b.mu.Unlock()
	for c := range conns {
		f(c)
	}
}

// SetCertificate makes the backend show the certificate for another name where the one
// for name is due.
func (b *Backend) SetCertificate(name, other string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.certs[name] = other
}

func (b *Backend) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := hello.ServerName
	if name == "" {
		name, _, _ = net.SplitHostPort(hello.Conn.LocalAddr().String())
	}
	b.mu.Lock()
	if other, ok := b.certs[name]; ok {
		name = other
	}
	b.mu.Unlock()
	return b.config.CA.CertFor(name)
}

// RequestsTo returns how many requests an address has got.
func (b *Backend) RequestsTo(addr string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.served[addr]
}

// Arrivals returns how many connections and requests each address has got, in one sum.
func (b *Backend) Arrivals() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	sum := maps.Clone(b.accepted)
	for addr, n := range b.served {
		sum[addr] += n
	}
	return sum
}

// Misdirected returns the requests over TLS whose Host was not the server name of their
// connection.
func (b *Backend) Misdirected() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.misdirected
}

func (b *Backend) serve(w http.ResponseWriter, r *http.Request) {
	b.Served.Add(1)
	conn := r.Context().Value(connKey{}).(*backendConn)
	s := Request{
		Address: conn.addr, Proto: r.Proto, Method: r.Method, Host: r.Host, URI: r.RequestURI, Header: r.Header, Conn: conn.number,
	}
	b.mu.Lock()
	b.served[conn.addr]++
	if r.TLS != nil {
		s.SNI = r.TLS.ServerName
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if host != s.SNI {
			b.misdirected = append(b.misdirected, fmt.Sprintf("%s over connection %d to %s", host, conn.number, s.SNI))
		}
	}
	b.mu.Unlock()
	w.Header()["Backend"] = []string{conn.local}
	if b.config.Handler != nil {
		b.config.Handler.ServeHTTP(w, r)
		return
	}
	var body bytes.Buffer
	if _, err := io.Copy(&body, r.Body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.Body = body.String()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s)
}

// backendListener counts what it accepts.
type backendListener struct {
	net.Listener
	backend *Backend
}

// Accept implements net.Listener.
func (l backendListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	b := l.backend
	c := &backendConn{Conn: conn, backend: b, number: b.Opened.Add(1), local: conn.LocalAddr().String()}
	b.Open.Add(1)
	c.addr, _, _ = net.SplitHostPort(c.local)
	b.mu.Lock()
	b.conns[c] = true
	b.accepted[c.addr]++
	b.mu.Unlock()
	return c, nil
}

// ConnOf returns the number of the connection that a request to a backend came over.
func ConnOf(r *http.Request) int64 { return r.Context().Value(connKey{}).(*backendConn).number }

// connKey is the key of a request's connection in its context.
type connKey struct{}

// backendConn knows when it is closed, hijacked or not.
type backendConn struct {
	net.Conn
	backend *Backend
	local   string // address and port of the backend
	addr    string // without the port
	number  int64
	active  atomic.Bool
	once    sync.Once
}

// accepted returns the connection beneath one that a server has.
func accepted(conn net.Conn) *backendConn {
	if secured, ok := conn.(*tls.Conn); ok {
		conn = secured.NetConn()
	}
	return conn.(*backendConn)
}

// Close implements net.Conn.
func (c *backendConn) Close() error {
	c.once.Do(func() {
		c.backend.Open.Add(-1)
		c.backend.mu.Lock()
		delete(c.backend.conns, c)
		c.backend.mu.Unlock()
	})
	return c.Conn.Close()
}
