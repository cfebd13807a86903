package caddytarget

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"caddytarget/internal/targeturl"
	"caddytarget/internal/testlab"
)

// Backends that misbehave: what their clients and those of others get, and what
// the gateway keeps of it. Those of HTTP/2 are in backend_h2_test.go.

// waitClosed waits until the gateway has closed its connections to a backend.
func waitClosed(t testing.TB, b *testlab.RawBackend) {
	t.Helper()
	testlab.Eventually(t, "no connection is open", func() bool { return b.Open.Load() == 0 })
}

// serveHTTP1 reads requests from a connection, with their bodies, and answers
// them until answer returns false.
func serveHTTP1(conn net.Conn, answer func(r *http.Request) bool) {
	reader := bufio.NewReader(conn)
	for {
		r, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil || !answer(r) {
			return
		}
	}
}

// growth calls f with the numbers from 0 to n-1 and returns by how many octets the
// heap grows for each. That is the median of some parts: other things come and go.
func growth(goroutines, n int, f func(i int)) int {
	const parts = 5
	var grown [parts]int
	before := testlab.Heap()
	for part := range parts {
		inParallel(goroutines, n/parts, func(i int) { f(part*(n/parts) + i) })
		time.Sleep(50 * time.Millisecond) // connections are closed
		after := testlab.Heap()
		grown[part], before = int(after-before)/(n/parts), after
	}
	slices.Sort(grown[:])
	return grown[parts/2]
}

// inParallel calls f with the numbers from 0 to n-1, from some goroutines.
func inParallel(goroutines, n int, f func(i int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				f(i)
			}
		})
	}
	wg.Wait()
}

// wantStatus sends a request, which has to get a status.
func (w *world) wantStatus(t testing.TB, status int, method, path, target string) {
	t.Helper()
	var body io.Reader
	if method == http.MethodPost {
		body = strings.NewReader("body")
	}
	res, err := w.try(method, path, target, body)
	if err != nil || res.StatusCode != status {
		t.Errorf("%s %s of %.60s: %v, %v, want status %d", method, path, target, res, err, status)
	}
}

// TestBusyBackend: a backend that is busy for long before it reads a body has not
// gone silent.
func TestBusyBackend(t *testing.T) {
	w := newWorld(t)
	const busy = 12 * time.Second
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(busy)
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n)
	})
	plain := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, Handler: handler})
	secured := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, Handler: handler, CA: w.ca})
	h2 := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, Handler: handler, CA: w.ca, HTTP2: true})
	w.dns.Has("name.example", "127.0.0.2")
	w.run(w.proxy())
	body := strings.Repeat("x", 3<<20)
	var wg sync.WaitGroup
	for _, target := range []string{"http://name.example:" + plain.Port, "https://name.example:" + secured.Port, "https://name.example:" + h2.Port} {
		wg.Go(func() {
			res, err := w.try(http.MethodPost, "/", target, strings.NewReader(body))
			if err != nil || res.StatusCode != http.StatusOK || res.body != fmt.Sprint(len(body)) {
				t.Errorf("%s: got %v, %v, want status 200 and %d", target, res, err, len(body))
			}
		})
	}
	wg.Wait()
}

// corkedConn holds back what is written while it is corked, so that it is sent in
// one segment.
type corkedConn struct {
	net.Conn
	corked bool
	held   bytes.Buffer
}

func (c *corkedConn) Write(p []byte) (int, error) {
	if c.corked {
		return c.held.Write(p)
	}
	return c.Conn.Write(p)
}

func (c *corkedConn) uncork() {
	c.corked = false
	_, _ = c.held.WriteTo(c.Conn)
}

// surplusTest is a response, and what comes after it.
type surplusTest struct {
	name, method string
	response     func(token string) string
	surplus      string
	late         bool // the surplus comes while the connection is idle
}

// surplusBackend sends the surplus after every other response of a connection.
type surplusBackend struct {
	test   surplusTest
	config *tls.Config    // nil: no TLS
	late   sync.WaitGroup // requests whose surplus has not been sent
}

func (b *surplusBackend) serve(conn net.Conn) {
	cork := &corkedConn{Conn: conn}
	conn = cork
	if b.config != nil {
		conn = tls.Server(cork, b.config)
	}
	n := 0
	serveHTTP1(conn, func(r *http.Request) bool {
		token := strings.TrimPrefix(r.URL.Path, "/")
		if n++; n%2 == 0 {
			_, err := io.WriteString(conn, b.test.response(token))
			return err == nil
		}
		if cork.corked = !b.test.late; b.test.late {
			b.late.Add(1)
			defer b.late.Done()
		}
		_, _ = io.WriteString(conn, b.test.response(token))
		if b.test.late {
			time.Sleep(20 * time.Millisecond)
		}
		_, err := io.WriteString(conn, b.test.surplus)
		cork.uncork()
		return err == nil
	})
}

// TestSurplusOctets: what a backend sends beyond its response is not taken for a
// response to another request.
func TestSurplusOctets(t *testing.T) {
	const stranger = "HTTP/1.1 200 OK\r\nToken: stranger\r\nContent-Length: 8\r\n\r\nstranger"
	ok := func(token string) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nToken: %s\r\nContent-Length: %d\r\n\r\n%[1]s", token, len(token))
	}
	chunked := func(token string) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nToken: %s\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%[1]s\r\n0\r\n\r\n", token, len(token))
	}
	bodyless := func(status string) func(string) string {
		return func(token string) string {
			return fmt.Sprintf("HTTP/1.1 %s\r\nToken: %s\r\n\r\n", status, token)
		}
	}
	for _, test := range []surplusTest{
		{name: "two responses", method: http.MethodGet, response: ok, surplus: stranger},
		{name: "octets after Content-Length", method: http.MethodGet, response: ok, surplus: "\r\n" + stranger},
		{name: "octets after chunks", method: http.MethodGet, response: chunked, surplus: "x\r\n" + stranger},
		{name: "two responses, chunked", method: http.MethodGet, response: chunked, surplus: stranger},
		{name: "HEAD with a body", method: http.MethodHead, response: func(token string) string {
			return fmt.Sprintf("HTTP/1.1 200 OK\r\nToken: %s\r\nContent-Length: %d\r\n\r\n", token, len(stranger))
		}, surplus: stranger},
		{name: "204 with a body", method: http.MethodGet, response: bodyless("204 No Content"), surplus: stranger},
		{name: "304 with a body", method: http.MethodGet, response: bodyless("304 Not Modified"), surplus: stranger},
		{name: "a late response", method: http.MethodGet, response: ok, surplus: stranger, late: true},
	} {
		for _, scheme := range []string{"http", "https"} {
			t.Run(test.name+" over "+scheme, func(t *testing.T) {
				w := newWorld(t)
				var config *tls.Config
				if scheme == "https" {
					config = w.ca.Config()
				}
				backend := &surplusBackend{test: test, config: config}
				b := testlab.NewRawBackend(t, "", "127.0.0.2", nil, backend.serve)
				w.dns.Has("name.example", "127.0.0.2")
				w.run(w.proxy())

				var right, wrong atomic.Int64
				ask := func(i int) {
					token := fmt.Sprint("token-", i)
					res, err := w.try(test.method, "/"+token, scheme+"://name.example:"+b.Port, nil)
					switch {
					case err != nil:
						t.Error(err)
					case res.StatusCode >= 500: // an error of the gateway
					case res.Header.Get("Token") != token || res.body != "" && res.body != token:
						wrong.Add(1)
					default:
						right.Add(1)
					}
				}
				if test.late {
					for i := range 50 {
						ask(i)
						backend.late.Wait()
					}
				} else {
					inParallel(8, 200, ask)
				}
				if wrong.Load() != 0 || right.Load() == 0 {
					t.Errorf("%d responses are right and %d those of others, want some right and none of others", right.Load(), wrong.Load())
				}
			})
		}
	}
}

// TestHeapIsFlat: what is over leaves nothing behind.
func TestHeapIsFlat(t *testing.T) {
	w := newWorld(t)
	closing := testlab.NewRawBackend(t, "", "127.0.0.2", nil, func(conn net.Conn) {
		serveHTTP1(conn, func(*http.Request) bool {
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
			return false
		})
	})
	w.dns.Has("name.example", "127.0.0.2")
	w.run(w.proxy())
	for _, test := range []struct {
		name, target string
		status       int
	}{
		{"closed", "http://name.example:" + closing.Port, http.StatusOK},
		{"refused", "http://name.example:" + testlab.FreePort(t), http.StatusBadGateway},
	} {
		t.Run(test.name, func(t *testing.T) {
			const requests = 4000
			send := func(int) { w.wantStatus(t, test.status, http.MethodGet, "/", test.target) }
			inParallel(1, 1000, send) // so that there is no connection in between
			if n := growth(1, requests, send); n > 100 {
				t.Errorf("%d octets are kept of a request", n)
			}
		})
	}
}

// TestFailuresAreSmall: what is remembered of a failure does not keep the request.
func TestFailuresAreSmall(t *testing.T) {
	w := newWorld(t)
	const first, failures, addrs = 200, 1000, 32
	addr := func(i int) string { return fmt.Sprint("127.0.1.", i%addrs+1) }
	noTLS := ""
	for i := range addrs {
		noTLS = testlab.NewRawBackend(t, noTLS, addr(i), nil, func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 1<<12))
			_, _ = io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\n\r\n")
		}).Port
	}
	for i := range first + failures {
		w.dns.Has(fmt.Sprintf("a%d.example", i), addr(i))
		w.dns.Has(fmt.Sprintf("b%d.example", i), addr(i))
	}
	w.run(w.proxy())
	path := strings.Repeat("x", targeturl.MaxLen-100)
	for _, test := range []struct{ name, format string }{
		{"refused", "http://a%d.example:" + testlab.FreePort(t) + "/%s"},
		{"no TLS", "https://b%d.example:" + noTLS + "/%s"},
	} {
		t.Run(test.name, func(t *testing.T) {
			fail := func(i int) {
				w.wantStatus(t, http.StatusBadGateway, http.MethodGet, "/", fmt.Sprintf(test.format, i, path))
			}
			// many at once: the name is asked for twice, a moment apart
			inParallel(100, first, fail)
			if n := growth(100, failures, func(i int) { fail(first + i) }); n > 2000 {
				t.Errorf("%d octets are kept of a failure", n)
			}
		})
	}
}

// field is a field of a header.
type field struct{ name, value string }

// largeHeader is a header of a response that is large.
type largeHeader struct {
	fields, size int  // of a field, in octets
	passes       bool // by default
	may          bool // with a larger max_response_header
}

// largeHeaders are what backends answer with, by path.
var largeHeaders = map[string]largeHeader{
	"/tiny": {fields: 1 << 20, size: 10},
	"/one":  {fields: 1, size: 300 << 10, may: true},
	"/many": {fields: 2000, size: 20},
	"/fits": {fields: 500, size: 400, passes: true, may: true},
}

// field returns one of the fields.
func (h largeHeader) field(i int) field {
	name := fmt.Sprint("x-", i)
	return field{name, strings.Repeat("v", h.size-len(name))}
}

// all returns all fields.
func (h largeHeader) all(yield func(field) bool) {
	for i := range h.fields {
		if !yield(h.field(i)) {
			return
		}
	}
}

// checkLargeHeaders asks a backend for each of largeHeaders.
func (w *world) checkLargeHeaders(t testing.TB, target string, options ...string) {
	t.Helper()
	for _, raised := range []bool{false, true} {
		site := options
		if raised {
			site = append([]string{"max_response_header 1MiB"}, site...)
		}
		w.run(w.proxy(site...))
		for path, header := range largeHeaders {
			status := http.StatusBadGateway
			if header.passes || raised && header.may {
				status = http.StatusOK
			}
			res, err := w.try(http.MethodGet, path, target, nil)
			if err != nil || res.StatusCode != status {
				t.Errorf("%s, max_response_header raised: %t: %v, %v, want status %d", path, raised, res, err, status)
				continue
			}
			if last := header.field(header.fields - 1); status == http.StatusOK && res.Header.Get(last.name) != last.value {
				t.Errorf("%s: the last field has %d octets", path, len(res.Header.Get(last.name)))
			}
		}
	}
}

// TestLargeHeader: the header of a response is bounded, in octets and in fields.
func TestLargeHeader(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewRawBackend(t, "", "127.0.0.2", nil, func(conn net.Conn) {
		serveHTTP1(conn, func(r *http.Request) bool {
			out := bufio.NewWriter(conn)
			fmt.Fprint(out, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n")
			for f := range largeHeaders[r.URL.Path].all {
				if _, err := fmt.Fprintf(out, "%s: %s\r\n", f.name, f.value); err != nil {
					return false
				}
			}
			fmt.Fprint(out, "\r\n")
			return out.Flush() == nil
		})
	})
	w.dns.Has("name.example", "127.0.0.2")
	w.checkLargeHeaders(t, "http://name.example:"+b.Port)
}

// TestBadStatus: a response whose status is none is no response.
func TestBadStatus(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewRawBackend(t, "", "127.0.0.2", nil, func(conn net.Conn) {
		serveHTTP1(conn, func(r *http.Request) bool {
			_, err := fmt.Fprintf(conn, "HTTP/1.1 %s Fine\r\nContent-Length: 2\r\n\r\nok", strings.TrimPrefix(r.URL.Path, "/"))
			return err == nil
		})
	})
	w.dns.Has("name.example", "127.0.0.2")
	w.run(w.proxy())
	for _, status := range []string{"099", "000", "99999"} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			w.wantStatus(t, http.StatusBadGateway, method, "/"+status, "http://name.example:"+b.Port)
		}
	}
	waitClosed(t, b)
}

// interims is how many interim responses a backend sends that comes to no end.
const interims = 20_000

// finalStatus asks for a target and returns the first status that is final, and
// how many came before.
func (w *world) finalStatus(target string) (status, before int) {
	w.Helper()
	conn, err := net.Dial("tcp", "127.0.0.1:"+w.port)
	if err != nil {
		w.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(testlab.Timeout / 2))
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\nX-Target: %s\r\n\r\n", target)
	reader := bufio.NewReader(conn)
	for ; before < interims; before++ {
		res, err := http.ReadResponse(reader, nil)
		if err != nil {
			w.Fatalf("after %d interim responses: %v", before, err)
		}
		if res.StatusCode >= 200 || res.StatusCode == http.StatusSwitchingProtocols {
			return res.StatusCode, before
		}
	}
	return 0, before
}

// TestEndlessInterims: a backend that sends nothing but interim responses is not
// listened to for ever.
func TestEndlessInterims(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewRawBackend(t, "", "127.0.0.2", nil, func(conn net.Conn) {
		serveHTTP1(conn, func(*http.Request) bool {
			for range interims {
				if _, err := io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"); err != nil {
					return false
				}
			}
			return true
		})
	})
	w.dns.Has("name.example", "127.0.0.2")
	w.run(w.proxy())
	if status, before := w.finalStatus("http://name.example:" + b.Port); status != http.StatusBadGateway {
		t.Errorf("status %d after %d interim responses", status, before)
	}
	waitClosed(t, b)
}

// TestUnsentBodies: clients that do not send their bodies take nothing from
// others, and nothing from the target.
func TestUnsentBodies(t *testing.T) {
	for _, test := range []struct{ name, head, body string }{
		{"Content-Length", "Content-Length: 10\r\n", "0123456789"},
		{"chunked", "Transfer-Encoding: chunked\r\n", "a\r\n0123456789\r\n0\r\n\r\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
			w.dns.Has("name.example", "127.0.0.2")
			w.run(w.proxy("max_requests 20"))
			target := "http://name.example:" + b.Port
			conns := make([]net.Conn, 20)
			for i := range conns {
				conn, err := net.Dial("tcp", "127.0.0.1:"+w.port)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(testlab.Timeout))
				fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: x\r\nX-Target: %s\r\n%s\r\n", target, test.head)
				conns[i] = conn
			}
			time.Sleep(300 * time.Millisecond) // the gateway has them
			if n := b.Opened.Load(); n != 0 {
				t.Errorf("%d connections for requests without their bodies", n)
			}
			w.wantStatus(t, http.StatusOK, http.MethodGet, "/", target)
			for _, conn := range conns {
				_, _ = io.WriteString(conn, test.body)
			}
			for _, conn := range conns {
				res, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Error(err)
					continue
				}
				body, _ := io.ReadAll(res.Body)
				if res.StatusCode != http.StatusOK || !strings.Contains(string(body), "0123456789") {
					t.Errorf("status %d, want 200 with 0123456789: %s", res.StatusCode, body)
				}
			}
		})
	}
}

// TestSitesAreFair: a limit of one site does not make an address failed for
// another site; an error of the network does.
func TestSitesAreFair(t *testing.T) {
	for _, test := range []struct {
		name, option string
		refused      bool
	}{
		{name: "timeout", option: "timeout 200ms"},
		{name: "response_header_timeout", option: "response_header_timeout 200ms"},
		{name: "unhealthy_latency", option: "unhealthy_latency 200ms"},
		{name: "unhealthy_status", option: "unhealthy_status 418"},
		{name: "refused", refused: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			good := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}})
			var met atomic.Int64
			listen := func() *testlab.Backend {
				return testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, Port: good.Port, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
					if r.URL.Path != "/slow" {
						return
					}
					met.Add(1)
					select {
					case <-time.After(time.Second):
						rw.WriteHeader(http.StatusTeapot)
					case <-r.Context().Done():
					}
				})})
			}
			w.dns.Has("two.example", "127.0.0.2", "127.0.0.3")
			target := "http://two.example:" + good.Port
			other := testlab.FreePort(t)
			w.run(w.proxy("fail_duration 10m", test.option) + fmt.Sprintf("\n---\nhttp://:%s {\nbind 127.0.0.1\n%s\n}", other, w.proxy("fail_duration 10m")))

			var slow *testlab.Backend
			if test.refused {
				for range 30 { // of which one meets the address
					w.mustGet("/", target)
				}
				slow = listen()
			} else {
				slow = listen()
				testlab.Eventually(t, "the slow address is met", func() bool {
					w.get("/slow", target)
					return met.Load() > 0
				})
			}
			before := slow.Served.Load()
			for range 30 {
				w.mustGet("/", target, func(r *http.Request) { r.URL.Host = "127.0.0.1:" + other })
			}
			if n := slow.Served.Load() - before; (n > 0) == test.refused {
				t.Errorf("%d of 30 requests of the other site went to the address", n)
			}
		})
	}
}
