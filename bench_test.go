package caddytarget

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"github.com/miekg/dns"
	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"caddytarget/internal/exchange"
	"caddytarget/internal/failover"
	"caddytarget/internal/health"
	"caddytarget/internal/targeturl"
	"caddytarget/internal/testlab"
	"caddytarget/internal/topk"
)

// The benchmarks here compare whole requests, in process: Caddy's server, the handlers,
// reverse_proxy and the transport with its pool. Over HTTP/1.1 the connections are in
// memory. Over HTTP/2 they are those of TLS to a backend in this process, which allocates
// nothing for a request.
//
//	go test -run '^$' -bench 'Request|Overhead' -benchmem .
//	go test -run '^$' -bench 'Request/.*h2/500|Overhead/h2' -benchmem .

// memoryConn is a connection to a backend that answers at once.
type memoryConn struct {
	net.Conn
	requests, end chan struct{}
	left          string // of the response
}

func dialMemory(context.Context, string, string) (net.Conn, error) {
	return &memoryConn{requests: make(chan struct{}, 1), end: make(chan struct{})}, nil
}

func (c *memoryConn) Write(p []byte) (int, error) {
	if bytes.HasSuffix(p, []byte("\r\n\r\n")) {
		c.requests <- struct{}{}
	}
	return len(p), nil
}

func (c *memoryConn) Read(p []byte) (int, error) {
	if c.left == "" {
		select {
		case <-c.requests:
		case <-c.end:
			return 0, io.EOF
		}
		c.left = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n"
	}
	n := copy(p, c.left)
	c.left = c.left[n:]
	return n, nil
}

func (*memoryConn) LocalAddr() net.Addr  { return memoryAddr }
func (*memoryConn) RemoteAddr() net.Addr { return memoryAddr }

var memoryAddr = &net.UnixAddr{Name: "memory", Net: "unix"}

func (c *memoryConn) Close() error {
	close(c.end)
	return nil
}

// newHTTP2Backend returns the function that opens connections to a backend of HTTP/2.
func newHTTP2Backend(b *testing.B, ca *testlab.Authority) dialFunc {
	port := testlab.NewRawBackend(b, "", "127.0.0.1", ca.Config("h2"), answerHTTP2).Port
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, "127.0.0.1:"+port)
	}
}

// answerHTTP2 answers each request at once. It reads the headers of the frames alone.
func answerHTTP2(conn net.Conn) {
	const window = 1 << 30
	block := "\x88\x0f\x10\x0atext/plain\x0f\x0d\x013" // :status 200, content-type, content-length: not indexed
	reply := "\x00\x00" + string(rune(len(block))) + "\x01\x04\x00\x00\x00\x00" + block + "\x00\x00\x03\x00\x01\x00\x00\x00\x00ok\n"
	out := []byte(reply)
	data := 9 + len(block) // where the DATA frame begins
	r, fr := bufio.NewReader(conn), http2.NewFramer(conn, nil)
	if fr.WriteSettings() != nil || fr.WriteSettingsAck() != nil || fr.WriteWindowUpdate(0, window) != nil {
		return
	}
	if _, err := r.Discard(len(http2.ClientPreface)); err != nil {
		return
	}
	var header [9]byte
	for {
		if _, err := io.ReadFull(r, header[:]); err != nil {
			return
		}
		if _, err := r.Discard(int(header[0])<<16 | int(header[1])<<8 | int(header[2])); err != nil {
			return
		}
		if http2.FrameType(header[3]) != http2.FrameHeaders {
			continue
		}
		copy(out[5:], header[5:])
		copy(out[data+5:], header[5:])
		if _, err := conn.Write(out); err != nil {
			return
		}
	}
}

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// benchServer provisions a site and returns its server, with connections that dial opens.
func benchServer(b *testing.B, dial dialFunc, site string) *caddyhttp.Server {
	b.Helper()
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte("{\n\tadmin off\n}\n"+site), nil)
	if err != nil {
		b.Fatal(err)
	}
	var config caddy.Config
	if err := caddy.StrictUnmarshalJSON(adapted, &config); err != nil {
		b.Fatal(err)
	}
	ctx, err := caddy.ProvisionContext(&config)
	if err != nil {
		b.Fatal(err)
	}
	_ = ctx // lives as long as the process: nothing was started
	app, err := ctx.App("http")
	if err != nil {
		b.Fatal(err)
	}
	server := app.(*caddyhttp.App).Servers["srv0"]
	for _, h := range server.Routes[0].Handlers {
		stubConnections(h, dial)
	}
	return server
}

func stubConnections(h caddyhttp.MiddlewareHandler, dial dialFunc) {
	switch h := h.(type) {
	case *caddyhttp.Subroute:
		for _, r := range h.Routes {
			for _, h := range r.Handlers {
				stubConnections(h, dial)
			}
		}
	case *Handler:
		stubConnections(h.proxy, dial)
	case *reverseproxy.Handler:
		switch t := h.Transport.(type) {
		case *Transport:
			t.pool.Dial = dial
		case *reverseproxy.HTTPTransport:
			t.Transport.DialContext = dial
		}
	}
}

// benchNameserver answers every A question with an address of 127.0.1.0/29.
func benchNameserver(b *testing.B) string {
	b.Helper()
	return testlab.ServeDNS(b, dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		name := q.Question[0].Name
		m.Answer = testlab.Records(fmt.Sprintf("%s 3600 IN A 127.0.1.%d", name, 1+len(name)%8))
		_ = w.WriteMsg(m)
	}))
}

// discard is a ResponseWriter that keeps nothing.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}

func benchRequests(scheme string, n int) []*http.Request {
	list := make([]*http.Request, n)
	for i := range list {
		r := httptest.NewRequest(http.MethodGet, "http://localhost/path?q=1", http.NoBody)
		r.Header.Set("X-Target", fmt.Sprintf("%s://d%d.test:8000", scheme, i))
		r.Header.Set("User-Agent", "bench/1.0")
		r.Header.Set("Accept", "*/*")
		list[i] = r
	}
	return list
}

// again returns a request as it came in: serving one changes it. Its header is
// new in memory, as that of a request that was read just now.
func again(r *http.Request) *http.Request {
	url := *r.URL
	c := *r
	c.URL = &url
	c.Header = make(http.Header, len(r.Header))
	for name, values := range r.Header {
		c.Header[name] = []string{strings.Clone(values[0])}
	}
	return &c
}

// serveOnce serves each request once, so that all names are known.
func serveOnce(b *testing.B, server *caddyhttp.Server, requests []*http.Request) {
	b.Helper()
	for _, r := range requests {
		rec := httptest.NewRecorder()
		server.ServeHTTP(rec, again(r))
		if rec.Code != http.StatusOK {
			b.Fatalf("%s: status %d, want 200", r.Header.Get("X-Target"), rec.Code)
		}
	}
}

func benchmarkServer(b *testing.B, server *caddyhttp.Server, requests []*http.Request) {
	serveOnce(b, server, requests)
	b.ReportAllocs()
	w := &discard{header: make(http.Header)}
	for b.Loop() {
		clear(w.header)
		server.ServeHTTP(w, again(requests[rand.N(len(requests))]))
	}
}

// benchSides are static upstreams and targets that serve the same requests.
type benchSides struct {
	protocol       string // "": HTTP/1.1 without TLS
	scheme         string
	static, target *caddyhttp.Server
	sizes          []int // how many targets there are
}

// name returns the name of a benchmark with n targets.
func (s *benchSides) name(n int) string { return path.Join(s.protocol, strconv.Itoa(n)) }

// benchServers returns what is compared, over HTTP/1.1 and over HTTP/2.
func benchServers(b *testing.B) []*benchSides {
	const static = "reverse_proxy 127.0.1.1:8000 127.0.1.2:8000 127.0.1.3:8000 127.0.1.4:8000 127.0.1.5:8000 127.0.1.6:8000 127.0.1.7:8000 127.0.1.8:8000"
	const target = "target_proxy {header.X-Target} {\nallow_ips 127.0.0.0/8\n"
	resolver := "resolver " + benchNameserver(b) + "\n"
	site := func(dial dialFunc, text string) *caddyhttp.Server {
		return benchServer(b, dial, "http://localhost {\n"+text+"\n}")
	}
	ca := testlab.NewAuthority(b)
	dial, trust := newHTTP2Backend(b, ca), "tls_trust_pool file "+ca.File+"\n"
	return []*benchSides{
		{"", "http", site(dialMemory, static), site(dialMemory, target+resolver+"}"), []int{20, 500, 10_000, 100_000}},
		{
			"h2", "https",
			site(dial, static+" {\ntransport http {\ntls_server_name static.test\n"+trust+"}\n}"),
			site(dial, target+resolver+trust+"}"),
			[]int{20, 500}, // each target has a connection
		},
	}
}

func BenchmarkRequest(b *testing.B) {
	for _, s := range benchServers(b) {
		for _, n := range s.sizes {
			requests := benchRequests(s.scheme, n)
			b.Run("static/"+s.name(n), func(b *testing.B) { benchmarkServer(b, s.static, requests) })
			b.Run("target/"+s.name(n), func(b *testing.B) { benchmarkServer(b, s.target, requests) })
		}
	}
}

// BenchmarkOverhead serves the same requests in turns by static upstreams, by
// targets, and by the same static upstreams again, in short batches, and
// reports the medians of the differences: what targets cost, and how far two
// identical servers seem to differ; in time, and in CPU time of the process, which a
// busy machine changes less.
func BenchmarkOverhead(b *testing.B) {
	for _, s := range benchServers(b) {
		for _, n := range s.sizes {
			b.Run(s.name(n), func(b *testing.B) { benchmarkOverhead(b, s, n) })
		}
	}
}

func benchmarkOverhead(b *testing.B, s *benchSides, n int) {
	requests := benchRequests(s.scheme, n)
	serveOnce(b, s.target, requests)
	w := &discard{header: make(http.Header)}
	const size = 50
	batch := func(server *caddyhttp.Server) (took, cpu float64) {
		var batch [size]*http.Request
		for i := range batch {
			batch[i] = again(requests[rand.N(len(requests))])
		}
		start, before := time.Now(), cpuTime(b)
		for _, r := range batch {
			clear(w.header)
			server.ServeHTTP(w, r)
		}
		return float64(time.Since(start).Nanoseconds()) / size, float64((cpuTime(b) - before).Nanoseconds()) / size
	}
	var base, more, noise, baseCPU, moreCPU, noiseCPU []float64
	for b.Loop() {
		first, firstCPU := batch(s.static)
		targets, targetsCPU := batch(s.target)
		second, secondCPU := batch(s.static)
		base, baseCPU = append(base, first), append(baseCPU, firstCPU)
		more, moreCPU = append(more, targets-(first+second)/2), append(moreCPU, targetsCPU-(firstCPU+secondCPU)/2)
		noise, noiseCPU = append(noise, second-first), append(noiseCPU, secondCPU-firstCPU)
	}
	report := func(list []float64, unit string) {
		slices.Sort(list)
		b.ReportMetric(list[len(list)/2], unit)
	}
	report(base, "static-ns")
	report(more, "more-ns")
	report(noise, "noise-ns")
	report(baseCPU, "static-cpu-ns")
	report(moreCPU, "more-cpu-ns")
	report(noiseCPU, "noise-cpu-ns")
	b.ReportMetric(0, "ns/op")
}

// cpuTime returns how long CPUs have worked for this process.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkSource(b *testing.B) {
	u := &Upstreams{MaxUpstreams: defaultMaxUpstreams}
	u.source.Source = failover.Source{Health: health.New(), Max: u.MaxUpstreams, MaxFails: 1, EjectFor: time.Duration(defaultFailDuration)}
	for _, n := range []int{1, 4} {
		b.Run(fmt.Sprintf("addresses/%d", n), func(b *testing.B) {
			c := &exchange.Context{Context: b.Context()}
			c.Call.Port, c.Call.State = 8000, new(exchange.State)
			for i := range n {
				c.Call.Addrs = append(c.Call.Addrs, netip.AddrFrom4([4]byte{127, 0, 1, byte(i)}))
			}
			c.Call.Preferred = n
			r := httptest.NewRequest(http.MethodGet, "/", http.NoBody).WithContext(c)
			b.ReportAllocs()
			for b.Loop() {
				if list, err := u.GetUpstreams(r); err != nil || len(list) != n {
					b.Fatalf("got %d upstreams, %v, want %d", len(list), err, n)
				}
			}
		})
	}
}

// BenchmarkNamedSource measures a source with a name of its own, in a request of its own.
func BenchmarkNamedSource(b *testing.B) {
	u := &Upstreams{Name: "127.0.0.1", Port: "8000", MaxUpstreams: defaultMaxUpstreams}
	u.source.Source = failover.Source{Health: health.New(), Max: u.MaxUpstreams, MaxFails: 1, EjectFor: time.Duration(defaultFailDuration)}
	r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
	ctx := context.WithValue(r.Context(), caddy.ReplacerCtxKey, caddy.NewEmptyReplacer())
	b.ReportAllocs()
	for b.Loop() {
		r := r.WithContext(context.WithValue(ctx, caddyhttp.VarsCtxKey, make(map[string]any)))
		if list, err := u.GetUpstreams(r); err != nil || len(list) != 1 {
			b.Fatalf("got %d upstreams, %v, want 1", len(list), err)
		}
	}
}

// BenchmarkTarget measures what the handler does: parse, check, resolve.
func BenchmarkTarget(b *testing.B) {
	r, err := acquireResolver((&Resolver{Nameservers: []string{benchNameserver(b)}}).config())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = r.release() })
	policy := newTestPolicy(b, Guard{AllowIPs: []string{"127.0.0.0/8"}})
	for _, n := range []int{1, 1000, 100_000} {
		list := make([]string, n)
		for i := range list {
			list[i] = fmt.Sprintf("http://d%d.test:8000/path?q=1", i)
		}
		run := func(s string) error {
			u, err := targeturl.Parse(s)
			if err != nil {
				return err
			}
			c := &new(exchange.Context).Call // as the handler makes it
			c.Resolver, c.Policy = r.Resolver, policy
			c.SetURL(u)
			if err := c.Check(); err != nil {
				return err
			}
			return c.Resolve(b.Context(), u.Addr)
		}
		for _, s := range list {
			if err := run(s); err != nil {
				b.Fatal(err)
			}
		}
		b.Run(fmt.Sprintf("serial/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_ = run(list[rand.N(n)])
			}
		})
		b.Run(fmt.Sprintf("parallel/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					_ = run(list[rand.N(n)])
				}
			})
		})
	}
}

// BenchmarkTelemetry measures what is counted of a request that works, of one of n targets:
// the metrics and the sketch. What BenchmarkRequest measures has it in it.
func BenchmarkTelemetry(b *testing.B) {
	m := newShared().metrics.Requests
	for _, n := range []int{20, 500, 10_000, 100_000} {
		hosts := make([]string, n)
		for i := range hosts {
			hosts[i] = fmt.Sprintf("d%d.test", i)
		}
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				m.Answered(true)
				m.Top.Observe(hosts[rand.N(n)], topk.Observation{Latency: time.Millisecond})
			}
		})
	}
}
