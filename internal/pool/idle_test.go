package pool

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"testing"
	"time"

	"caddytarget/internal/health"
	"caddytarget/internal/testlab"
)

// secureEcho is echo behind TLS.
func secureEcho(t *testing.T) (serve func(net.Conn, *bufio.Reader), roots *x509.CertPool) {
	t.Helper()
	ca := testlab.NewAuthority(t)
	cert, err := ca.Issue("*.example")
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{*cert}}
	return func(c net.Conn, _ *bufio.Reader) {
		secured := tls.Server(c, config)
		echo(secured, bufio.NewReader(secured))
	}, ca.Pool()
}

// inUse returns what memory and goroutines are in use.
func inUse() (octets int64, goroutines int) {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse), runtime.NumGoroutine()
}

// bareConn opens a connection and sends a request over it, with nothing that is kept but
// the connection.
func bareConn(b *backend, roots *x509.CertPool, secure bool) (net.Conn, error) {
	c, err := net.Dial("tcp", b.addr.String())
	if err != nil {
		return nil, err
	}
	if secure {
		c = tls.Client(c, &tls.Config{RootCAs: roots, ServerName: "n.example"})
	}
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: n.example\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err == nil {
		_, err = io.Copy(io.Discard, res.Body)
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// readAll reads and closes the body of a response.
func readAll(res *http.Response, err error) error {
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return err
}

// TestIdleCost: an idle connection takes at most a quarter of the memory that
// http.Transport takes for it, half with TLS, and no goroutine. What the backend takes
// is measured in a run in which nothing is kept but the socket, or that and TLS.
func TestIdleCost(t *testing.T) {
	const n = 400
	for _, secure := range []bool{false, true} {
		serve, scheme := echo, "http"
		roots := x509.NewCertPool()
		if secure {
			serve, roots = secureEcho(t)
			scheme = "https"
		}
		b := newBackend(t, serve)
		name := func(i int) string { return fmt.Sprintf("n%d.example", i) }
		measure := func(open func(i int) error, closeAll func()) (octets int64, goroutines int) {
			t.Helper()
			testlab.Eventually(t, "all is closed", func() bool { return b.Open.Load() == 0 })
			time.Sleep(20 * time.Millisecond)
			before, goroutinesBefore := inUse()
			for i := range n {
				if err := open(i); err != nil {
					t.Fatal(err)
				}
			}
			after, goroutinesAfter := inUse()
			closeAll()
			return (after - before) / n, goroutinesAfter - goroutinesBefore
		}

		var sockets []net.Conn
		bare, goroutines := measure(func(int) error {
			c, err := bareConn(b, roots, secure)
			if err == nil {
				sockets = append(sockets, c)
			}
			return err
		}, func() {
			for _, c := range sockets {
				_ = c.Close()
			}
			sockets = nil
		})

		transport := &http.Transport{
			MaxIdleConnsPerHost: n,
			TLSClientConfig:     &tls.Config{RootCAs: roots},
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", b.addr.String())
			},
		}
		theirs, theirGoroutines := measure(func(i int) error {
			req := request(t, http.MethodGet, "/", nil)
			req.URL.Scheme, req.URL.Host = scheme, name(i)
			return readAll(transport.RoundTrip(req))
		}, transport.CloseIdleConnections)

		p := New(Config{TLS: &tls.Config{RootCAs: roots}, SessionCache: -1}, health.New(), NewLimits(0, nil))
		ours, ourGoroutines := measure(func(i int) error {
			o := b.order(name(i))
			o.Target = "" // there is nothing to be remembered of it
			if secure {
				o.Key.Protocol, o.Key.ServerName = TLS, name(i)
			}
			return readAll(p.RoundTrip(request(t, http.MethodGet, "/", nil), o))
		}, p.Close)

		t.Logf("%s: %d octets a connection with the backend's side, %d of a bare one, %d with http.Transport; goroutines %d, %d, %d",
			scheme, ours, bare, theirs, ourGoroutines, goroutines, theirGoroutines)
		part := int64(4)
		if secure {
			part = 2
		}
		if ours-bare > (theirs-bare)/part {
			t.Errorf("%s: %d octets more than a bare connection, want at most %d, a part of those of http.Transport", scheme, ours-bare, (theirs-bare)/part)
		}
		if ourGoroutines > goroutines+2 { // the sweeper
			t.Errorf("%s: %d goroutines, want as many as with bare connections (%d) and the sweeper", scheme, ourGoroutines, goroutines)
		}
	}
}
