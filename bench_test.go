package caddytarget

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/miekg/dns"

	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

// The benchmarks here compare whole requests, in process and without a
// network: Caddy's server, the handlers, reverse_proxy and the transport, down
// to where a connection would be taken from the pool.
//
//	go test -run '^$' -bench Request -benchmem -count 7 .

// stubBackend stands in for the connections of an http.Transport.
type stubBackend struct{}

func (stubBackend) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        http.Header{"Content-Type": []string{"text/plain"}},
		Body:          io.NopCloser(strings.NewReader("ok\n")),
		ContentLength: 3, Request: req,
	}, nil
}

// benchServer provisions a site and returns its server, with a stub in place of
// all connections.
func benchServer(b *testing.B, site string) *caddyhttp.Server {
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
		stubConnections(h)
	}
	return server
}

func stubConnections(h caddyhttp.MiddlewareHandler) {
	switch h := h.(type) {
	case *caddyhttp.Subroute:
		for _, r := range h.Routes {
			for _, h := range r.Handlers {
				stubConnections(h)
			}
		}
	case *reverseproxy.Handler:
		switch t := h.Transport.(type) {
		case *Transport:
			t.http.RegisterProtocol("http", stubBackend{})
			// the registry drops keys without connections
			for i := range 8 {
				t.registry.acquire(poolKey{address: fmt.Sprintf("127.0.1.%d:8000", i+1)}, nil)
			}
		case *reverseproxy.HTTPTransport:
			t.Transport.RegisterProtocol("http", stubBackend{})
		}
	}
}

// benchNameserver answers every A question with an address of 127.0.1.0/29.
func benchNameserver(b *testing.B) string {
	b.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		m.Answer = []dns.RR{&dns.A{
			Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 3600},
			A:   net.IPv4(127, 0, 1, 1+byte(len(q.Question[0].Name)%8)),
		}}
		_ = w.WriteMsg(m)
	})}
	go func() { _ = server.ActivateAndServe() }()
	b.Cleanup(func() { _ = server.Shutdown() })
	return conn.LocalAddr().String()
}

// discard is a ResponseWriter that keeps nothing.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}

func benchRequests(n int) []*http.Request {
	list := make([]*http.Request, n)
	for i := range list {
		r := httptest.NewRequest(http.MethodGet, "http://localhost/path?q=1", http.NoBody)
		r.Header.Set("X-Target", fmt.Sprintf("http://d%d.test:8000", i))
		r.Header.Set("User-Agent", "bench/1.0")
		r.Header.Set("Accept", "*/*")
		list[i] = r
	}
	return list
}

// again returns a request as it came in: serving one changes it.
func again(r *http.Request) *http.Request {
	url := *r.URL
	c := *r
	c.URL = &url
	return &c
}

func benchmarkServer(b *testing.B, server *caddyhttp.Server, requests []*http.Request) {
	for _, r := range requests { // names are looked up once before
		var w bytes.Buffer
		rec := &httptest.ResponseRecorder{HeaderMap: make(http.Header), Body: &w}
		server.ServeHTTP(rec, again(r))
		if rec.Code != http.StatusOK {
			b.Fatalf("%s: status %d", r.Header.Get("X-Target"), rec.Code)
		}
	}
	b.ReportAllocs()
	w := &discard{header: make(http.Header)}
	for b.Loop() {
		clear(w.header)
		server.ServeHTTP(w, again(requests[rand.N(len(requests))]))
	}
}

func BenchmarkRequest(b *testing.B) {
	static := benchServer(b, `http://localhost {
	reverse_proxy 127.0.1.1:8000 127.0.1.2:8000 127.0.1.3:8000 127.0.1.4:8000 127.0.1.5:8000 127.0.1.6:8000 127.0.1.7:8000 127.0.1.8:8000
}`)
	target := benchServer(b, `http://localhost {
	target_proxy {header.X-Target} {
		allow_ips 127.0.0.0/8
		resolver `+benchNameserver(b)+`
	}
}`)
	for _, n := range []int{20, 500, 10_000, 100_000} {
		requests := benchRequests(n)
		b.Run(fmt.Sprintf("static/%d", n), func(b *testing.B) { benchmarkServer(b, static, requests) })
		b.Run(fmt.Sprintf("target/%d", n), func(b *testing.B) { benchmarkServer(b, target, requests) })
	}
}
