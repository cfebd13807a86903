package caddytarget

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/quic-go/quic-go/http3"

	"caddytarget/internal/exchange"
	"caddytarget/internal/failure"
	"caddytarget/internal/health"
	"caddytarget/internal/pool"
	"caddytarget/internal/testlab"
)

// TestVirtualHosts: many https domains on one address. Each request reaches its
// own, over a connection that was opened for it.
func TestVirtualHosts(t *testing.T) {
	const names, rounds = 50, 6
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("HTTP/2 %t", h2), func(t *testing.T) {
			w := newWorld(t)
			b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca, HTTP2: h2})
			// a certificate for another of the names, which is valid but for that
			b.SetCertificate("n7.example", "n8.example")
			for i := range names {
				w.dns.Has(fmt.Sprintf("n%d.example", i), "127.0.0.2")
			}
			w.run(w.proxy())
			proto := "HTTP/1.1"
			if h2 {
				proto = "HTTP/2.0"
			}
			var wg sync.WaitGroup
			for i := range names {
				wg.Go(func() {
					name := fmt.Sprintf("n%d.example", i)
					for range rounds {
						res, err := w.try(http.MethodGet, "/", "https://"+name+":"+b.Port, nil)
						switch {
						case err != nil:
							t.Error(err)
						case i == 7:
							if res.StatusCode != http.StatusBadGateway || !strings.Contains(res.body, "x509") {
								t.Errorf("wrong certificate: got %s, want status 502, x509", res)
							}
						case res.StatusCode != 200 || res.seen.SNI != name || res.seen.Host != name+":"+b.Port || res.seen.Proto != proto:
							t.Errorf("%s: SNI %q, Host %q, %s, want the name in both and %s: %s", name, res.seen.SNI, res.seen.Host, res.seen.Proto, proto, res)
						}
					}
				})
			}
			wg.Wait()
			for _, shared := range b.Misdirected() {
				t.Errorf("a connection served more than one name: %s", shared)
			}
			if n := b.Served.Load(); n != (names-1)*rounds {
				t.Errorf("%d requests arrived, want %d", n, (names-1)*rounds)
			}
			// one for each name, and one for each attempt at the bad one
			if n := b.Opened.Load(); n > names+4*rounds {
				t.Errorf("%d connections opened, want at most %d", n, names+4*rounds)
			}
		})
	}
}

// TestVerification: certificates are verified by default, and against the name.
func TestVerification(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca, HTTP2: true})
	w.dns.Has("a.example", "127.0.0.2")
	b.SetCertificate("127.0.0.2", "a.example")
	ca := fmt.Sprintf("tls_trust_pool file %q", w.ca.File)
	for _, test := range []struct {
		name, options, target string
		status                int
		reason, sni           string
	}{
		{"unknown authority", "", "https://a.example:", 502, "certificate", ""},
		{"known authority", ca, "https://a.example:", 200, "", "a.example"},
		{"another name configured", ca + "\ntls_server_name b.example", "https://a.example:", 200, "", "b.example"},
		{"name by placeholder", ca + "\ntls_server_name {header.X-Name}.example", "https://a.example:", 200, "", "c.example"},
		{"an address that the certificate has not", ca, "https://127.0.0.2:", 502, "x509", ""},
		{"told not to look", "tls_insecure_skip_verify", "https://127.0.0.2:", 200, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.run("target_proxy {header.X-Target} {\nallow_ips 127.0.0.0/8\n" + test.options + "\n}\n" +
				`handle_errors {
					respond "{err.status_code} {http.target.error}"
				}`)
			res := w.get("/", test.target+b.Port, header("X-Name", "c"))
			if res.StatusCode != test.status || !strings.Contains(res.body, test.reason) || res.seen.SNI != test.sni {
				t.Errorf("SNI %q, want %q; got %s, want status %d, %s", res.seen.SNI, test.sni, res, test.status, test.reason)
			}
		})
	}
}

// wsHandler upgrades connections and sends back what it gets, in upper case.
func wsHandler(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "websocket" {
		fmt.Fprint(w, r.Proto)
		return
	}
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Host: %s\r\n\r\n", r.Host)
	for {
		line, err := buf.ReadString('\n')
		if errors.Is(err, io.EOF) {
			_, _ = io.WriteString(conn, "THE END\n") // only the other direction has ended
			return
		}
		if err != nil {
			return
		}
		if _, err := io.WriteString(conn, strings.ToUpper(line)); err != nil {
			return
		}
	}
}

// webSocket is a connection that was upgraded through the gateway.
type webSocket struct {
	net.Conn
	r *bufio.Reader
}

func (w *world) webSocket(target string) *webSocket {
	w.Helper()
	conn, err := net.Dial("tcp", "127.0.0.1:"+w.port)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(testlab.Timeout))
	fmt.Fprintf(conn, "GET /ws HTTP/1.1\r\nHost: client.example\r\nX-Target: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", target)
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		w.Fatal(err)
	}
	if res.StatusCode != http.StatusSwitchingProtocols || res.Header.Get("Upgrade") != "websocket" {
		body, _ := io.ReadAll(res.Body)
		w.Fatalf("status %s, want 101 to websocket: %s", res.Status, body)
	}
	return &webSocket{conn, r}
}

// echo sends a line and waits for it.
func (ws *webSocket) echo(text string) error {
	if _, err := fmt.Fprintln(ws, text); err != nil {
		return err
	}
	got, err := ws.r.ReadString('\n')
	if err == nil && got != strings.ToUpper(text)+"\n" {
		err = fmt.Errorf("got %q", got)
	}
	return err
}

func TestWebSocket(t *testing.T) {
	w := newWorld(t)
	w.dns.Has("a.example", "127.0.0.2")
	plain := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, Handler: http.HandlerFunc(wsHandler)})
	secure := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca, HTTP2: true, Handler: http.HandlerFunc(wsHandler)})
	w.run(w.proxy())
	for _, target := range []string{"http://a.example:" + plain.Port, "https://a.example:" + secure.Port} {
		t.Run(target[:5], func(t *testing.T) {
			before := w.mustGet("/", target).body
			ws := w.webSocket(target)
			for i := range 100 {
				if err := ws.echo(fmt.Sprint("line ", i)); err != nil {
					t.Fatal(err)
				}
			}
			// one direction may end before the other
			if err := ws.Conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if line, err := ws.r.ReadString('\n'); err != nil || line != "THE END\n" {
				t.Errorf("after the client's end: %q, %v", line, err)
			}
			if after := w.mustGet("/", target).body; after != before {
				t.Errorf("%s before, %s after, want the same", before, after)
			}
			_ = ws.Close()
		})
	}
}

// TestServerSentEvents: each event arrives before the next is made.
func TestServerSentEvents(t *testing.T) {
	w := newWorld(t)
	w.dns.Has("a.example", "127.0.0.2")
	next := make(chan struct{})
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca, HTTP2: true, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 5 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			_ = http.NewResponseController(w).Flush()
			<-next
		}
	})})
	w.run(w.proxy())
	req, cancel := w.request(http.MethodGet, "/", "https://a.example:"+b.Port, nil)
	defer cancel()
	res, err := w.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	r := bufio.NewReader(res.Body)
	for i := range 5 {
		line, err := r.ReadString('\n')
		if want := fmt.Sprintf("data: %d\n", i); err != nil || line != want {
			t.Fatalf("got %q, %v, want %q", line, err, want)
		}
		_, _ = r.ReadString('\n')
		next <- struct{}{}
	}
}

// noise is so many octets that do not repeat, and their hash.
type noise struct {
	io.Reader
	hash hash.Hash
	sent atomic.Int64
}

func newNoise(n int64) *noise {
	s := &noise{hash: sha256.New()}
	s.Reader = io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), n), s.hash)
	return s
}

func (s *noise) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	s.sent.Add(int64(n))
	return n, err
}

// standsStill waits until a count does not change any more.
func standsStill(count *atomic.Int64) int64 {
	last := int64(-1)
	for n := count.Load(); n != last || n == 0; n = count.Load() {
		last = n
		time.Sleep(200 * time.Millisecond)
	}
	return last
}

// TestLargeBodies: 100 MB each way, and no more in memory than connections hold.
func TestLargeBodies(t *testing.T) {
	const size, held = 100 << 20, 40 << 20
	w := newWorld(t)
	w.dns.Has("a.example", "127.0.0.2", "127.0.0.3")
	var read chan struct{}
	var download *noise
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_, _ = io.Copy(w, download)
			return
		}
		<-read
		sum := sha256.New()
		_, err := io.Copy(sum, r.Body)
		fmt.Fprintf(w, "%x %v", sum.Sum(nil), err)
	})
	plain := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, Handler: handler})
	secure := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca, HTTP2: true, Handler: handler})
	w.run(w.proxy())
	for _, target := range []string{"http://a.example:" + plain.Port, "https://a.example:" + secure.Port} {
		t.Run(target[:5], func(t *testing.T) {
			read = make(chan struct{})
			body := newNoise(size)
			done := make(chan struct{})
			go func() {
				defer close(done)
				res, err := w.try(http.MethodPost, "/", target, body)
				if want := fmt.Sprintf("%x <nil>", body.hash.Sum(nil)); err != nil || res.body != want {
					t.Errorf("upload: %s %v, want %s", res, err, want)
				}
			}()
			if n := standsStill(&body.sent); n > held {
				t.Errorf("%d octets sent to a backend that reads nothing", n)
			}
			close(read)
			<-done

			download = newNoise(size)
			req, cancel := w.request(http.MethodGet, "/", target, nil)
			defer cancel()
			res, err := w.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if n := standsStill(&download.sent); n > held {
				t.Errorf("%d octets sent to a client that reads nothing", n)
			}
			sum := sha256.New()
			n, err := io.Copy(sum, res.Body)
			if err != nil || n != size || !bytes.Equal(sum.Sum(nil), download.hash.Sum(nil)) {
				t.Errorf("download: got %d octets, %v, want %d octets as they were sent", n, err, size)
			}
		})
	}
}

// secureSite adds a site with TLS, for clients of HTTP/2 and HTTP/3.
func (w *world) secureSite(port string, options ...string) string {
	w.Helper()
	cert, key := w.ca.Files(w, "gateway.example")
	return "respond plain\n---\n" + fmt.Sprintf("https://gateway.example:%s {\nbind 127.0.0.1\ntls %q %q\n%s\n}\n", port, cert, key, w.proxy(options...))
}

// TestClients: HTTP/1.1, HTTP/2 and HTTP/3 on the client's side, with backends
// of each kind.
func TestClients(t *testing.T) {
	w := newWorld(t)
	w.dns.Has("a.example", "127.0.0.2", "127.0.0.3")
	plain := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	h1 := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca})
	h2 := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca, HTTP2: true})
	h2c := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, HTTP2: true, HTTP2Only: true})
	port := testlab.FreePort(t)
	w.run(w.secureSite(port, "schemes http https h2c"))
	config := &tls.Config{RootCAs: w.ca.Pool(), ServerName: "gateway.example"}
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, "127.0.0.1:"+port)
	}
	one := &http.Transport{DialContext: dial, TLSClientConfig: config.Clone(), TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}}
	two := &http.Transport{DialContext: dial, TLSClientConfig: config.Clone(), ForceAttemptHTTP2: true}
	three := &http3.Transport{TLSClientConfig: config.Clone()}
	t.Cleanup(func() {
		one.CloseIdleConnections()
		two.CloseIdleConnections()
		_ = three.Close()
	})
	body := randomBody(t)
	for _, client := range []struct {
		proto, host string
		rt          http.RoundTripper
	}{
		{"HTTP/1.1", "gateway.example", one},
		{"HTTP/2.0", "gateway.example", two},
		{"HTTP/3.0", "127.0.0.1", three},
	} {
		for _, backend := range []struct{ target, proto string }{
			{"http://a.example:" + plain.Port, "HTTP/1.1"},
			{"https://a.example:" + h1.Port, "HTTP/1.1"},
			{"https://a.example:" + h2.Port, "HTTP/2.0"},
			{"h2c://a.example:" + h2c.Port, "HTTP/2.0"},
		} {
			t.Run(client.proto+" to "+backend.target[:5]+backend.proto, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(context.Background(), testlab.Timeout)
				defer cancel()
				for _, method := range []string{http.MethodGet, http.MethodPost} {
					send := ""
					if method == http.MethodPost {
						send = body
					}
					req, err := http.NewRequestWithContext(ctx, method, "https://"+client.host+":"+port+"/x?y", strings.NewReader(send))
					if err != nil {
						t.Fatal(err)
					}
					req.Host = "gateway.example:" + port
					req.Header.Set("X-Target", backend.target)
					res, err := do(&http.Client{Transport: client.rt}, req)
					if err != nil {
						t.Fatal(err)
					}
					if res.StatusCode != 200 || res.Proto != client.proto || res.seen.Proto != backend.proto || res.seen.Body != send || res.seen.URI != "/x?y" {
						t.Errorf("%s %s: the backend saw %s %s: %s", method, res.Proto, res.seen.Proto, res.seen.URI, res)
					}
					if _, want, _ := strings.Cut(backend.target, "://"); res.seen.Host != want || res.seen.Header.Get("X-Forwarded-Host") != "gateway.example:"+port {
						t.Errorf("%s: the backend saw Host %q, X-Forwarded-Host %q", method, res.seen.Host, res.seen.Header.Get("X-Forwarded-Host"))
					}
				}
			})
		}
	}
}

// TestGRPC: a stream both ways over HTTP/2, with trailers, as gRPC has it.
func TestGRPC(t *testing.T) {
	w := newWorld(t)
	w.dns.Has("a.example", "127.0.0.2")
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Te") != "trailers" || r.ProtoMajor != 2 {
			http.Error(w, "not gRPC", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		_ = http.NewResponseController(w).Flush()
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			fmt.Fprintln(w, strings.ToUpper(lines.Text()))
			_ = http.NewResponseController(w).Flush()
		}
		w.Header().Set("Grpc-Status", "0")
		w.Header().Set(http.TrailerPrefix+"Grpc-Message", "unannounced")
	})
	h2c := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, HTTP2: true, HTTP2Only: true, Handler: handler})
	h2 := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca, HTTP2: true, Handler: handler})
	port := testlab.FreePort(t)
	w.run(w.secureSite(port, "schemes h2c https"))
	rt := &http.Transport{
		TLSClientConfig:    &tls.Config{RootCAs: w.ca.Pool(), ServerName: "gateway.example"},
		ForceAttemptHTTP2:  true,
		DisableCompression: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, "127.0.0.1:"+port)
		},
	}
	t.Cleanup(rt.CloseIdleConnections)
	for _, target := range []string{"h2c://a.example:" + h2c.Port, "https://a.example:" + h2.Port} {
		t.Run(target[:5], func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), testlab.Timeout)
			defer cancel()
			body, send := io.Pipe()
			defer send.Close()
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://gateway.example:"+port+"/pkg.Service/Method", body)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-Target", target)
			req.Header.Set("Te", "trailers")
			req.Header.Set("Content-Type", "application/grpc")
			res, err := rt.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if res.StatusCode != 200 || res.ProtoMajor != 2 {
				text, _ := io.ReadAll(res.Body)
				t.Fatalf("got %s %s: %s, want HTTP/2 and status 200", res.Proto, res.Status, text)
			}
			r := bufio.NewReader(res.Body)
			for i := range 20 {
				fmt.Fprintf(send, "message %d\n", i)
				line, err := r.ReadString('\n')
				if want := fmt.Sprintf("MESSAGE %d\n", i); err != nil || line != want {
					t.Fatalf("got %q, %v, want %q", line, err, want)
				}
			}
			_ = send.Close()
			if _, err := r.ReadString('\n'); !errors.Is(err, io.EOF) {
				t.Error(err)
			}
			if res.Trailer.Get("Grpc-Status") != "0" || res.Trailer.Get("Grpc-Message") != "unannounced" {
				t.Errorf("trailers %v, want Grpc-Status 0, unannounced", res.Trailer)
			}
		})
	}
}

// TestInformational: early hints pass, and clients that wait for 100 are told.
func TestInformational(t *testing.T) {
	w := newWorld(t)
	w.dns.Has("a.example", "127.0.0.2")
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			w.WriteHeader(http.StatusEarlyHints)
		}
		_, _ = io.Copy(w, r.Body)
	})})
	w.run(w.proxy())
	for _, test := range []struct{ head, body, want string }{
		{"GET / HTTP/1.1\r\n", "", "[103 200]"},
		{"POST / HTTP/1.1\r\nContent-Length: 4\r\nExpect: 100-continue\r\n", "body", "[100 200]"},
	} {
		conn, err := net.Dial("tcp", "127.0.0.1:"+w.port)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(testlab.Timeout))
		fmt.Fprintf(conn, "%sHost: x\r\nX-Target: http://a.example:%s\r\n\r\n", test.head, b.Port)
		r := bufio.NewReader(conn)
		var statuses []int
		for done := false; !done; {
			res, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			statuses = append(statuses, res.StatusCode)
			if res.StatusCode == http.StatusContinue {
				_, _ = io.WriteString(conn, test.body)
			}
			if done = res.StatusCode >= 200; done {
				if body, _ := io.ReadAll(res.Body); string(body) != test.body {
					t.Errorf("body %q, want %q", body, test.body)
				}
			}
		}
		_ = conn.Close()
		statuses = slices.Compact(statuses) // Caddy sends 100 itself, and passes the backend's on
		if got := fmt.Sprint(statuses); got != test.want {
			t.Errorf("statuses %s, want %s", got, test.want)
		}
	}
}

// TestDialError: what reverse_proxy asks of an error.
func TestDialError(t *testing.T) {
	for _, test := range []struct {
		name    string
		err     error
		timeout bool
	}{
		{"refused", errors.New("refused"), false},
		{"no time", os.ErrDeadlineExceeded, true},
		{"TLS timeout", fmt.Errorf("TLS handshake: %w", context.DeadlineExceeded), true},
	} {
		t.Run(test.name, func(t *testing.T) {
			failed := failure.OfPool("a.example", "192.0.2.1:80", &pool.Error{Phase: pool.Connect, Err: test.err})
			err := forProxy(exchange.Unsent{Failure: failed}, false)
			var dial reverseproxy.DialError
			if !errors.As(err, &dial) { //nolint:modernize // as reverse_proxy asks
				t.Error("no DialError, want one")
			}
			if dial.Error() != test.err.Error() {
				t.Errorf("the DialError is about %v", dial)
			}
			if n, ok := err.(net.Error); !ok || n.Timeout() != test.timeout {
				t.Errorf("timeout: got %v, want a net.Error with Timeout() %t", n, test.timeout)
			}
			if !errors.Is(err, test.err) || !strings.HasPrefix(err.Error(), "a.example at 192.0.2.1:80: ") {
				t.Error(err)
			}
		})
	}
}

// TestDialIsChecked checks the last line of defence: whatever address an attempt
// comes with, one that may not be called is not dialled.
func TestDialIsChecked(t *testing.T) {
	policy := newTestPolicy(t, Guard{})
	for _, address := range []string{"127.0.0.1:80", "169.254.169.254:80", "[::ffff:10.0.0.1]:80", "[fd00::1]:443"} {
		p := pool.New(pool.Config{}, health.New(), pool.NewLimits(0, nil))
		p.Dial = func(context.Context, string, string) (net.Conn, error) {
			t.Errorf("%s was dialled, want it refused before", address)
			return nil, io.EOF
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://a.example", nil)
		if err != nil {
			t.Fatal(err)
		}
		a := exchange.NewAttempt(new(exchange.Transport), &exchange.Call{Policy: policy, State: new(exchange.State)}, nil)
		a.Out.Request = *req
		a.Call.Host = "a.example"
		a.Order.Key.Addr, a.Order.Key.Protocol, a.Order.Owner = netip.MustParseAddrPort(address), pool.TLS, a.Call
		_, err = p.RoundTrip(req, &a.Order)
		p.Close()
		var handlerErr caddyhttp.HandlerError
		if err = forProxy(a.Failed(err.(*pool.Error)), false); !errors.As(err, &handlerErr) || handlerErr.StatusCode != http.StatusForbidden {
			t.Errorf("%s: got %v, want status 403", address, err)
		}
	}
}

// TestResumption checks that new connections resume TLS sessions, unless that is
// turned off.
func TestResumption(t *testing.T) {
	w := newWorld(t)
	w.dns.Has("a.example", "127.0.0.2")
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprint(rw, r.TLS.DidResume)
	})})
	for option, want := range map[string]string{"tls_session_cache 10": "true", "tls_session_cache off": "false"} {
		w.run(w.proxy("keepalive off", option))
		w.mustGet("/", "https://a.example:"+b.Port)
		if res := w.mustGet("/", "https://a.example:"+b.Port); res.body != want {
			t.Errorf("%s: resumed: got %s, want %s", option, res.body, want)
		}
	}
}
