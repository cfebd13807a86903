package caddytarget

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"caddytarget/internal/health"
	"caddytarget/internal/replay"
	"caddytarget/internal/testlab"
)

// dialler opens connections for a transport.
type dialler func(ctx context.Context, network, address string) (net.Conn, error)

// hookDials puts hook in the place of what opens the TCP connections of the
// running gateway.
func (w *world) hookDials(hook func(next dialler) dialler) {
	w.Helper()
	app, err := caddy.ActiveContext().AppIfConfigured("http")
	if err != nil {
		w.Fatal(err)
	}
	found := false
	var walk func(routes caddyhttp.RouteList)
	var visit func(h caddyhttp.MiddlewareHandler)
	visit = func(h caddyhttp.MiddlewareHandler) {
		switch h := h.(type) {
		case *caddyhttp.Subroute:
			walk(h.Routes)
		case *Handler:
			visit(h.proxy)
		case *reverseproxy.Handler:
			t := h.Transport.(*Transport)
			t.pool.Dial = hook(t.pool.Dial)
			found = true
		}
	}
	walk = func(routes caddyhttp.RouteList) {
		for _, r := range routes {
			for _, h := range r.Handlers {
				visit(h)
			}
		}
	}
	for _, s := range app.(*caddyhttp.App).Servers {
		walk(s.Routes)
	}
	if !found {
		w.Fatal("no transport")
	}
}

// dialled counts the connections that the gateway tries to open, by address.
type dialled struct {
	mu     sync.Mutex
	counts map[string]int
}

func (d *dialled) hook(next dialler) dialler {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if info, ok := reverseproxy.GetDialInfo(ctx); ok {
			address = info.Address
		}
		d.mu.Lock()
		if d.counts == nil {
			d.counts = make(map[string]int)
		}
		d.counts[address]++
		d.mu.Unlock()
		return next(ctx, network, address)
	}
}

// take returns what was counted since the last time.
func (d *dialled) take() map[string]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	counts := d.counts
	d.counts = nil
	return counts
}

// TestEachAddressOnce: what is dead is not dialled again for every retry.
func TestEachAddressOnce(t *testing.T) {
	w := newWorld(t)
	port := testlab.FreePort(t)
	silent := testlab.NewBlackhole(t, "", "127.0.0.9").Port
	w.dns.Has("one.example", "127.0.0.2")
	w.dns.Has("three.example", "127.0.0.2", "127.0.0.3", "127.0.0.4")
	w.dns.Has("silent.example", "127.0.0.9")
	for _, test := range []struct {
		name, target string
		options      []string
		status       int
		addrs, dials int // dials: of each address; 0: more than one
	}{
		{"one", "http://one.example:" + port, nil, 502, 1, 1},
		{"a literal", "http://127.0.0.2:" + port, nil, 502, 1, 1},
		{"three", "http://three.example:" + port, nil, 502, 3, 1},
		{"more retries", "http://three.example:" + port, []string{"lb_retries 10"}, 502, 3, 1},
		{"silent", "http://silent.example:" + silent, []string{"dial_timeout 400ms"}, 504, 1, 1},
		{"for a time", "http://one.example:" + port, []string{"lb_try_duration 400ms", "lb_try_interval 10ms"}, 502, 1, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.run(w.proxy(test.options...))
			var d dialled
			w.hookDials(d.hook)
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				res, err := w.try(method, "/", test.target, strings.NewReader("body"))
				if err != nil || res.StatusCode != test.status {
					t.Errorf("%s: %v, %v, want status %d", method, res, err, test.status)
				}
				counts := d.take()
				if len(counts) != test.addrs {
					t.Errorf("%s: dialled %v, want %d addresses", method, counts, test.addrs)
				}
				for addr, n := range counts {
					if n != test.dials && test.dials > 0 || n < 2 && test.dials == 0 {
						t.Errorf("%s: dialled %s %d times, want %d (0: at least 2)", method, addr, n, test.dials)
					}
				}
			}
		})
	}
}

// TestRenewed: a target that has moved is found, long before its TTL is over.
func TestRenewed(t *testing.T) {
	w := newWorld(t)
	old := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	for _, site := range []struct{ name, config, target string }{
		{"target", w.proxy(), "http://name.example:" + old.Port},
		{"named", fmt.Sprintf("reverse_proxy {\ndynamic target name.example %s\ntransport target\nlb_retries 1\n}", old.Port), ""},
		{"service", w.service("_http._tcp.example", "", "lb_retries 1"), ""},
	} {
		t.Run(site.name, func(t *testing.T) {
			w.dns.Has("name.example", "127.0.0.2")
			w.dns.Set("_http._tcp.example", testlab.Reply{SRV: []string{"1 0 " + old.Port + " name.example."}, TTL: 60})
			b := old
			if site.name != "target" {
				b = testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, Port: old.Port})
			}
			w.resolver = "cache_size " + fmt.Sprint(1000+len(site.name)) // one of its own
			w.run(site.config)
			w.mustGet("/", site.target)
			time.Sleep(1100 * time.Millisecond) // what is known since just now is not asked for again
			b.Close()
			moved := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}, Port: old.Port})
			defer moved.Close()
			w.dns.Has("name.example", "127.0.0.3")
			asked := w.dns.Asked("name.example")
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					res, err := w.try(http.MethodGet, "/", site.target, strings.NewReader("body"))
					if err != nil || res.StatusCode != 200 || res.seen.Address != "127.0.0.3" || res.seen.Body != "body" {
						t.Errorf("got %v, %v, want status 200 from 127.0.0.3 with the body that was sent", res, err)
					}
				})
			}
			wg.Wait()
			// more than once only by who is very late
			if n := w.dns.Asked("name.example") - asked; n < 1 || n > 5 {
				t.Errorf("asked %d times, want 1 to 5", n)
			}
			moved.Close()
			time.Sleep(1100 * time.Millisecond)
			asked = w.dns.Asked("name.example")
			for range 20 {
				if res := w.get("/", site.target); res.StatusCode != http.StatusBadGateway {
					t.Errorf("got %v, want status 502", res)
				}
			}
			if n := w.dns.Asked("name.example") - asked; n > 10 {
				t.Errorf("asked %d times for a target that does not answer", n)
			}
		})
	}
}

// TestRenewedIsChecked: addresses that come when a target has died are checked as
// the first ones were.
func TestRenewedIsChecked(t *testing.T) {
	w := newWorld(t)
	inner := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}})
	w.dns.Has("name.example", "127.0.0.2")
	w.run(fmt.Sprintf("target_proxy {header.X-Target} {\nallow_ips 127.0.0.2\nresolver %s {\nhosts off\n}\n}", w.dns.Addr))
	if res := w.get("/", "http://name.example:"+inner.Port); res.StatusCode != http.StatusBadGateway {
		t.Errorf("got %v, want status 502", res)
	}
	w.dns.Has("name.example", "127.0.0.3")
	for range 5 {
		time.Sleep(200 * time.Millisecond)
		if res := w.get("/", "http://name.example:"+inner.Port); res.StatusCode != http.StatusBadGateway && res.StatusCode != http.StatusForbidden {
			t.Errorf("got %v, want status 502 or 403", res)
		}
	}
	if n := w.dns.Asked("name.example"); n < 2 {
		t.Errorf("asked %d times: this showed nothing", n)
	}
	if n := inner.Opened.Load(); n > 0 {
		t.Errorf("%d connections, want none", n)
	}
}

// brokenConn is a connection that is reset as soon as it is used.
type brokenConn struct{ net.Conn }

func (brokenConn) Write([]byte) (int, error)  { return 0, syscall.ECONNRESET }
func (c brokenConn) Read([]byte) (int, error) { return 0, c.wait() }
func (c brokenConn) wait() error {
	_, _ = c.Conn.Read(make([]byte, 1))
	return syscall.ECONNRESET
}

// TestUnsent: what no backend can have seen is sent elsewhere, whole, whatever the
// method.
func TestUnsent(t *testing.T) {
	w := newWorld(t)
	addrs := []string{"127.0.0.2", "127.0.0.3"}
	good := testlab.NewBackend(t, testlab.BackendConfig{Addrs: addrs})
	w.dns.Has("two.example", addrs...)
	w.run(w.proxy("fail_duration 0"))
	var broken atomic.Int64
	w.hookDials(func(next dialler) dialler {
		return func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := next(ctx, network, address)
			if err == nil && broken.Add(-1) >= 0 {
				return brokenConn{conn}, nil
			}
			return conn, err
		}
	})
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodGet} {
		for _, size := range []int{0, 1, 64_000, 1 << 20} {
			good.CloseConns()
			testlab.Eventually(t, "the pools are empty", func() bool { return good.Open.Load() == 0 })
			time.Sleep(10 * time.Millisecond) // and the gateway knows
			broken.Store(1)
			body := strings.Repeat("x", size)
			res, err := w.try(method, "/", "http://two.example:"+good.Port, strings.NewReader(body))
			if err != nil || res.StatusCode != 200 || res.seen.Body != body {
				t.Errorf("%s of %d octets: got %v, %v, want status 200 and the whole body seen", method, size, res, err)
			}
			if broken.Load() >= 0 {
				t.Errorf("%s of %d octets: no connection was broken", method, size)
			}
		}
	}
}

// cutTCP reads as much of a request as it is told to and resets the connection.
func cutTCP(t testing.TB, port, addr string, octets int64) (requests *atomic.Int64) {
	t.Helper()
	requests = new(atomic.Int64)
	testlab.NewRawBackend(t, port, addr, nil, func(conn net.Conn) {
		_, _ = io.CopyN(io.Discard, conn, octets)
		requests.Add(1)
		testlab.Reset(conn)
	})
	return requests
}

// TestSentOnce: of what may have been seen, only GET is sent again, its body too.
func TestSentOnce(t *testing.T) {
	w := newWorld(t)
	good := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}})
	resets := cutTCP(t, good.Port, "127.0.0.2", 5000)
	w.dns.Has("two.example", "127.0.0.2", "127.0.0.3")
	w.dns.Has("bad.example", "127.0.0.2")
	w.run(w.proxy("fail_duration 0"))
	body := strings.Repeat("x", 50_000)
	for range 20 {
		res, err := w.try(http.MethodGet, "/", "http://two.example:"+good.Port, strings.NewReader(body))
		if err != nil || res.StatusCode != 200 || res.seen.Body != body {
			t.Fatalf("GET: got %v, %v, want status 200 and the whole body seen", res, err)
		}
	}
	for range 20 {
		before := resets.Load()
		res, err := w.try(http.MethodPost, "/", "http://two.example:"+good.Port, strings.NewReader(body))
		if cut := resets.Load() > before; err != nil || (res.StatusCode == 200) == cut || res.StatusCode == 200 && res.seen.Body != body {
			t.Fatalf("POST: %v, %v; sent to the other: %t", res, err, cut)
		}
	}
	before := resets.Load()
	if res, err := w.try(http.MethodGet, "/", "http://bad.example:"+good.Port, strings.NewReader(body)); err != nil || res.StatusCode != http.StatusBadGateway {
		t.Errorf("got %v, %v, want status 502", res, err)
	}
	testlab.Eventually(t, "a GET is sent twice to the only address", func() bool { return resets.Load()-before >= 2 })
	if n := resets.Load() - before; n > 2 {
		t.Errorf("sent %d times, want twice", n)
	}
}

// TestStale: connections that the backend has closed cost no GET, and do not
// count as failures of an address.
func TestStale(t *testing.T) {
	for _, proto := range []string{"http", "https", "h2", "h2c"} {
		t.Run(proto, func(t *testing.T) {
			w := newWorld(t)
			config := testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, HTTP2: proto != "http"}
			scheme, options := proto, []string{"schemes http https h2c", "lb_retries 0"}
			switch proto {
			case "https":
				config.CA = w.ca
				options = append(options, "versions 1.1")
			case "h2":
				config.CA, scheme = w.ca, "https"
			}
			b := testlab.NewBackend(t, config)
			w.dns.Has("name.example", "127.0.0.2")
			shared := acquireShared()
			defer releaseShared()
			w.run(w.proxy(options...))
			for range 100 {
				w.mustGet("/", scheme+"://name.example:"+b.Port)
				b.CloseConns()
			}
			if n := shared.health.Len(); n != 0 {
				t.Errorf("%d failures are remembered", n)
			}
		})
	}
}

// TestKeepAliveLimit: what cannot be repeated does not go over a connection that
// the backend is about to close.
func TestKeepAliveLimit(t *testing.T) {
	w := newWorld(t)
	conns := func(target, method string, pause time.Duration) (first, second int64) {
		t.Helper()
		send := func() int64 {
			res, err := w.try(method, "/", target, strings.NewReader("body"))
			if err != nil || res.StatusCode != 200 {
				t.Fatalf("got %v, %v, want status 200", res, err)
			}
			return res.seen.Conn
		}
		first = send()
		time.Sleep(pause)
		return first, send()
	}
	w.dns.Has("name.example", "127.0.0.2")

	t.Run("told", func(t *testing.T) {
		w.run(w.proxy())
		told := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			rw.Header().Set("Keep-Alive", "max=100, timeout=1")
			rw.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(rw, `{"Conn":%d}`, testlab.ConnOf(r))
		})})
		target := "http://name.example:" + told.Port
		if first, second := conns(target, http.MethodPost, 950*time.Millisecond); first == second {
			t.Error("a POST over a connection that is about to be closed")
		}
		if told.Opened.Load() != 2 {
			t.Errorf("%d connections, want 2", told.Opened.Load())
		}
	})
}

// TestUnhealthy: statuses and latencies count as failures of an address for the
// target, not for others.
func TestUnhealthy(t *testing.T) {
	w := newWorld(t)
	addrs := []string{"127.0.0.2", "127.0.0.3"}
	bad := func(rw http.ResponseWriter, r *http.Request) bool {
		return strings.HasPrefix(r.Host, "bad") && strings.HasPrefix(rw.Header().Get("Backend"), "127.0.0.2")
	}
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: addrs, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch {
		case bad(rw, r) && r.URL.Path == "/status":
			rw.WriteHeader(http.StatusServiceUnavailable)
		case bad(rw, r) && r.URL.Path == "/slow":
			time.Sleep(1500 * time.Millisecond)
		}
	})})
	for _, test := range []struct{ path, option string }{
		{"/status", "unhealthy_status 5xx"},
		{"/status", "unhealthy_status 429 503"},
		{"/slow", "unhealthy_latency 1400ms"},
	} {
		t.Run(test.option, func(t *testing.T) {
			id := strings.ReplaceAll(test.option, " ", "-")
			w.dns.Has("bad-"+id+".example", addrs...)
			w.dns.Has("good-"+id+".example", addrs...)
			w.run(w.proxy(test.option, "fail_duration 1h"))
			get := func(name string) string {
				res := w.get(test.path, "http://"+name+"-"+id+".example:"+b.Port)
				addr, _, _ := strings.Cut(res.Header.Get("Backend"), ":")
				return addr
			}
			testlab.Eventually(t, "the bad address is met", func() bool { return get("bad") == "127.0.0.2" })
			seen := make(map[string]bool)
			for range 50 {
				if get("bad") != "127.0.0.3" {
					t.Fatal("the bad address is met again")
				}
				seen[get("good")] = true
			}
			if len(seen) != 2 {
				t.Errorf("the other target goes to %v", seen)
			}
		})
	}
}

// TestDeadFamily: if nothing of a family can be reached, targets that are new are
// not made to find out.
func TestDeadFamily(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"::1"}})
	w.run(w.proxy(fmt.Sprintf("resolver %s {\nhosts off\nfamily prefer_ipv4\n}", w.dns.Addr), "allow_ips any"))
	var d dialled
	w.hookDials(func(next dialler) dialler {
		return d.hook(func(ctx context.Context, network, address string) (net.Conn, error) {
			if !strings.HasPrefix(address, "[") {
				return nil, fmt.Errorf("dial tcp %s: connect: %w", address, syscall.ENETUNREACH)
			}
			return next(ctx, network, address)
		})
	})
	for i := range 6 {
		name := fmt.Sprintf("n%d.example", i)
		w.dns.Has(name, fmt.Sprintf("10.%d.0.1", i), "::1")
		w.mustGet("/", "http://"+name+":"+b.Port)
		four := 0
		for addr := range d.take() {
			if !strings.HasPrefix(addr, "[") {
				four++
			}
		}
		if dead := i >= 3; dead != (four == 0) {
			t.Errorf("target %d: %d IPv4 addresses were tried", i, four)
		}
	}
}

// TestFamilyAnswers: a response, over whatever connection, shows that its family
// can be reached.
func TestFamilyAnswers(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	w.dns.Has("name.example", "127.0.0.2")
	shared := acquireShared()
	defer releaseShared()
	w.run(w.proxy())
	w.mustGet("/", "http://name.example:"+b.Port)
	for i := range 3 {
		shared.health.Reached(netip.AddrFrom4([4]byte{byte(i + 1)}), false)
	}
	w.mustGet("/", "http://name.example:"+b.Port)
	if b.Opened.Load() != 1 || shared.health.State(new(health.Policy), "", netip.MustParseAddrPort("192.0.2.1:443")) != health.Healthy {
		t.Errorf("%d connections, IPv4 dead: %t", b.Opened.Load(), shared.health.State(new(health.Policy), "", netip.MustParseAddrPort("192.0.2.1:443")) != health.Healthy)
	}
}

// TestHangingHandshake: an address where TLS handshakes hang costs a second while
// there is another one, and then nothing.
func TestHangingHandshake(t *testing.T) {
	w := newWorld(t)
	good := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}, CA: w.ca, HTTP2: true})
	testlab.SilentBackend(t, good.Port, "127.0.0.2")
	w.dns.Has("name.example", "127.0.0.2", "127.0.0.3")
	w.run(w.proxy("tls_timeout 1h", "fail_duration 1h"))
	var d dialled
	w.hookDials(d.hook)
	hung := 0
	for range 50 {
		w.mustGet("/", "https://name.example:"+good.Port)
		good.CloseConns()
		hung += d.take()["127.0.0.2:"+good.Port]
	}
	if hung != 1 {
		t.Errorf("%d handshakes hang, want 1", hung)
	}
}

// TestSlowHandshake: an address that is only slow is used in the end, if the
// others do not work, and what it has begun is not for nothing.
func TestSlowHandshake(t *testing.T) {
	w := newWorld(t)
	var begun atomic.Int64
	slow := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca, HTTP2: true, TLS: func(config *tls.Config) {
		config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
			begun.Add(1)
			time.Sleep(1500 * time.Millisecond)
			return nil, nil
		}
	}})
	w.run(w.proxy("tls_timeout 50s", "fail_duration 0", "lb_policy first"))
	for i := range 3 {
		name := fmt.Sprintf("n%d.example", i)
		w.dns.Has(name, "127.0.0.2", "127.0.0.3", "127.0.0.4") // the other two refuse
		res, err := w.try(http.MethodPost, "/", "https://"+name+":"+slow.Port, strings.NewReader("body"))
		if err != nil || res.StatusCode != 200 || res.seen.Body != "body" {
			t.Errorf("got %v, %v, want status 200 and the body that was sent", res, err)
		}
	}
	if n := begun.Load(); n > 6 {
		t.Errorf("%d handshakes, want at most 6", n)
	}
}

// TestProbe: whether an address works again is found out without a request, and
// then it is used again.
func TestProbe(t *testing.T) {
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			w := newWorld(t)
			config := testlab.BackendConfig{Addrs: []string{"127.0.0.3"}}
			if scheme == "https" {
				config.CA, config.HTTP2 = w.ca, true
			}
			b := testlab.NewBackend(t, config)
			target := scheme + "://name.example:" + b.Port
			w.dns.Has("name.example", "127.0.0.2", "127.0.0.3")
			w.run(w.proxy("lb_policy first", "fail_duration 50ms"))
			for range 2 { // once the dead one comes first, if at all
				w.mustGet("/", target)
			}
			w.run(w.proxy("lb_policy round_robin", "fail_duration 50ms", "lb_retries 0"))
			var d dialled
			w.hookDials(d.hook)
			dead, failed := 0, 0
			testlab.Eventually(t, "the dead address is probed", func() bool {
				if res := w.get("/", target); res.StatusCode != 200 {
					failed++ // the first one may find out
				}
				dead += d.take()["127.0.0.2:"+b.Port]
				return dead >= 5
			})
			if failed > 1 {
				t.Errorf("%d requests failed, want at most 1", failed)
			}
			config.Addrs, config.Port = []string{"127.0.0.2"}, b.Port
			testlab.NewBackend(t, config)
			testlab.Eventually(t, "the address is used again", func() bool { return w.mustGet("/", target).seen.Address == "127.0.0.2" })
		})
	}
}

// TestAllSilent: silent addresses are dialled once each.
func TestAllSilent(t *testing.T) {
	w := newWorld(t)
	w.dns.Has("name.example", "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5")
	w.run(w.proxy("dial_timeout 1s"))
	var d dialled
	w.hookDials(func(dialler) dialler {
		return d.hook(func(ctx context.Context, _, _ string) (net.Conn, error) {
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
			return nil, fmt.Errorf("dial tcp: %w", os.ErrDeadlineExceeded)
		})
	})
	if res, err := w.try(http.MethodPost, "/", "http://name.example", strings.NewReader("body")); err != nil || res.StatusCode != http.StatusGatewayTimeout {
		t.Errorf("got %v, %v, want status 504", res, err)
	}
	counts := d.take()
	for addr, n := range counts {
		if n != 1 {
			t.Errorf("%s was dialled %d times", addr, n)
		}
	}
	if len(counts) != 4 {
		t.Errorf("dialled %v, want 4 addresses", counts)
	}
}

// TestShortage: when this machine has no descriptor left, that is not held
// against an address.
func TestShortage(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	w.dns.Has("name.example", "127.0.0.2")
	shared := acquireShared()
	defer releaseShared()
	w.run(w.proxy())
	var left atomic.Int64
	w.hookDials(func(next dialler) dialler {
		return func(ctx context.Context, network, address string) (net.Conn, error) {
			if left.Add(-1) >= 0 {
				return nil, fmt.Errorf("dial tcp: socket: %w", syscall.EMFILE)
			}
			return next(ctx, network, address)
		}
	})
	left.Store(3)
	w.mustGet("/", "http://name.example:"+b.Port)
	b.CloseConns()
	time.Sleep(10 * time.Millisecond)
	left.Store(1000)
	if res := w.get("/", "http://name.example:"+b.Port); res.StatusCode != http.StatusBadGateway {
		t.Errorf("got %v, want status 502", res)
	}
	if n := shared.health.Len(); n != 0 {
		t.Errorf("%d failures are remembered", n)
	}
}

// TestPolicies: policies that stick to an upstream do, since its address stands
// for the same backend in each request.
func TestPolicies(t *testing.T) {
	w := newWorld(t)
	addrs := []string{"127.0.0.2", "127.0.0.3", "127.0.0.4"}
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: addrs})
	w.dns.Has("name.example", addrs...)
	sources := map[string]string{
		"one":   fmt.Sprintf("dynamic target name.example %s", b.Port),
		"multi": fmt.Sprintf("dynamic multi {\ntarget name.example %s\ntarget other.example %s\n}", b.Port, b.Port),
	}
	w.dns.Has("other.example", "127.0.0.5")
	testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.5"}, Port: b.Port})
	all := map[string]int{"one": 3, "multi": 4}
	for source, config := range sources {
		for _, test := range []struct {
			policy string
			vary   func(i int) func(*http.Request) // nil: all requests are alike
			sticks bool                            // requests that are alike go to one address
		}{
			{"round_robin", nil, false},
			{"least_conn", nil, false},
			{"first", nil, true},
			{"uri_hash", nil, true},
			{"ip_hash", nil, true},
			{"header X-Key", func(i int) func(*http.Request) { return header("X-Key", fmt.Sprint(i)) }, true},
			{"query key", func(i int) func(*http.Request) {
				return func(r *http.Request) { r.URL.RawQuery = fmt.Sprint("key=", i) }
			}, true},
			{"cookie lb secret", nil, false},
		} {
			t.Run(source+" "+test.policy, func(t *testing.T) {
				w.run(fmt.Sprintf("reverse_proxy {\n%s\ntransport target\nlb_policy %s\n}", config, test.policy))
				seen := make(map[string]bool)
				for i := range 40 {
					var change []func(*http.Request)
					if test.vary != nil {
						change = append(change, test.vary(i))
					}
					res := w.mustGet("/", "", change...)
					seen[res.seen.Address] = true
					if cookies := res.Cookies(); len(cookies) > 0 {
						change = append(change, func(r *http.Request) { r.AddCookie(cookies[0]) })
					} else if !test.sticks {
						continue
					}
					for range 3 {
						if again := w.mustGet("/", "", change...); again.seen.Address != res.seen.Address {
							t.Fatalf("first %s, then %s, want the same address", res.seen.Address, again.seen.Address)
						}
					}
				}
				if want := all[source]; (test.vary != nil || !test.sticks) && len(seen) != want {
					t.Errorf("only %v of %d addresses were used", seen, want)
				}
			})
		}
	}
}

// refusingH2C is a backend of HTTP/2 that refuses the first request on each of its
// connections after the first octets of its body. It returns the bodies that it
// accepted.
func refusingH2C(t testing.TB, addr string) (port string, bodies <-chan string) {
	t.Helper()
	accepted := make(chan string, 100)
	b := testlab.NewRawBackend(t, "", addr, nil, func(conn net.Conn) { refuseFirst(conn, accepted) })
	return b.Port, accepted
}

func refuseFirst(conn net.Conn, accepted chan<- string) {
	if _, err := io.CopyN(io.Discard, conn, int64(len(http2.ClientPreface))); err != nil {
		return
	}
	framer := http2.NewFramer(conn, conn)
	_ = framer.WriteSettings()
	refused := uint32(0)
	bodies := make(map[uint32]string)
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return
		}
		var data *http2.DataFrame
		switch f := frame.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = framer.WriteSettingsAck()
			}
			continue
		case *http2.PingFrame:
			if !f.IsAck() {
				_ = framer.WritePing(true, f.Data)
			}
			continue
		case *http2.DataFrame:
			data = f
			if n := f.Header().Length; n > 0 {
				_ = framer.WriteWindowUpdate(0, n)
			}
		default:
			continue
		}
		id := data.StreamID
		if refused == 0 {
			refused = id
			_ = framer.WriteRSTStream(id, http2.ErrCodeRefusedStream)
		}
		if id == refused {
			continue
		}
		bodies[id] += string(data.Data())
		if data.StreamEnded() {
			var block bytes.Buffer
			_ = hpack.NewEncoder(&block).WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
			_ = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
			accepted <- bodies[id]
		}
	}
}

// TestRefusedStream: what a backend of HTTP/2 says it has not looked at is sent
// again, with its body, whatever the method.
func TestRefusedStream(t *testing.T) {
	w := newWorld(t)
	port, bodies := refusingH2C(t, "127.0.0.2")
	w.dns.Has("name.example", "127.0.0.2")
	w.run(w.proxy("schemes h2c"))
	body := strings.Repeat("x", 50_000)
	res, err := w.try(http.MethodPost, "/", "h2c://name.example:"+port, strings.NewReader(body))
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("got %v, %v, want status 200", res, err)
	}
	if got := <-bodies; got != body {
		t.Errorf("the body has %d octets", len(got))
	}
}

// TestSeenOnce: what a backend of HTTP/2 has seen is not sent again, however few
// octets it took; nor is it if that took too long.
func TestSeenOnce(t *testing.T) {
	for _, test := range []struct{ scheme, method, body, fate string }{
		{"h2c", http.MethodPost, "amount=1", "timeout"},
		{"h2c", http.MethodPut, "amount=1", "death"},
		{"https", http.MethodPost, "amount=1", "death"},
		{"https", http.MethodPost, "", "timeout"},
		{"https", http.MethodDelete, "", "death"},
	} {
		t.Run(fmt.Sprint(test), func(t *testing.T) {
			w := newWorld(t)
			var bad atomic.Bool
			var seen atomic.Int64
			var b *testlab.Backend
			addrs := []string{"127.0.0.2", "127.0.0.3"}
			config := testlab.BackendConfig{Addrs: addrs, HTTP2: true, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				switch seen.Add(1); {
				case !bad.Load():
				case test.fate == "death":
					b.CloseConns()
				default:
					<-r.Context().Done()
				}
			})}
			if test.scheme == "https" {
				config.CA = w.ca
			}
			b = testlab.NewBackend(t, config)
			w.dns.Has("two.example", addrs...)
			w.run(w.proxy("schemes https h2c", "response_header_timeout 500ms", "lb_policy round_robin"))
			send := func() int {
				res, err := w.try(test.method, "/pay", test.scheme+"://two.example:"+b.Port, strings.NewReader(test.body))
				if err != nil {
					t.Fatal(err)
				}
				return res.StatusCode
			}
			for range 6 { // a header that was sent before is short
				if status := send(); status != http.StatusOK {
					t.Fatalf("status %d, want 200", status)
				}
			}
			bad.Store(true)
			seen.Store(0)
			if status := send(); status < 500 || seen.Load() != 1 {
				t.Errorf("status %d, seen %d times", status, seen.Load())
			}
		})
	}
}

// TestSlowConnect: an address that takes long to connect to is used in the end if
// the others do not work, and at once by those who come later.
func TestSlowConnect(t *testing.T) {
	for _, others := range []string{"refuse", "refuse late", "are silent"} {
		t.Run(others, func(t *testing.T) {
			w := newWorld(t)
			slow := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
			w.dns.Has("name.example", "127.0.0.2", "127.0.0.3", "127.0.0.4")
			w.run(w.proxy("lb_policy first"))
			var d dialled
			w.hookDials(func(next dialler) dialler {
				return d.hook(func(ctx context.Context, network, address string) (net.Conn, error) {
					wait := map[string]time.Duration{"refuse": 0, "refuse late": 250 * time.Millisecond, "are silent": time.Hour}[others]
					if strings.HasPrefix(address, "127.0.0.2:") {
						wait = 500 * time.Millisecond
					}
					select {
					case <-time.After(wait):
					case <-ctx.Done():
						return nil, ctx.Err()
					}
					if strings.HasPrefix(address, "127.0.0.2:") {
						return next(ctx, network, address)
					}
					return nil, errors.New("dial tcp " + address + ": connect: " + syscall.ECONNREFUSED.Error())
				})
			})
			for range 3 {
				w.mustGet("/", "http://name.example:"+slow.Port)
			}
			if n := d.take()["127.0.0.2:"+slow.Port]; n > 2 {
				t.Errorf("dialled %d times, want at most 2", n)
			}
		})
	}
}

// TestSlowConnectAtTheEnd: a request that may not be tried again waits for the dial that it
// has, even if one that it gave up before ends first.
func TestSlowConnectAtTheEnd(t *testing.T) {
	w := newWorld(t)
	slow := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2", "127.0.0.3"}})
	w.dns.Has("name.example", "127.0.0.2", "127.0.0.3")
	w.run(w.proxy("lb_policy first", "lb_retries 1"))
	w.hookDials(func(next dialler) dialler {
		return func(ctx context.Context, network, address string) (net.Conn, error) {
			select {
			case <-time.After(map[string]time.Duration{"127.0.0.2:" + slow.Port: 500 * time.Millisecond, "127.0.0.3:" + slow.Port: 700 * time.Millisecond}[address]):
				return next(ctx, network, address)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	})
	w.mustGet("/", "http://name.example:"+slow.Port)
}

// TestCutByReload: a reload is no evidence against an address that is slow.
func TestCutByReload(t *testing.T) {
	w := newWorld(t)
	good := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2", "127.0.0.3"}})
	w.dns.Has("name.example", "127.0.0.2", "127.0.0.3")
	shared := acquireShared()
	defer releaseShared()
	w.run(w.proxy("lb_policy first"))
	w.hookDials(func(next dialler) dialler {
		return func(ctx context.Context, network, address string) (net.Conn, error) {
			if info, _ := reverseproxy.GetDialInfo(ctx); strings.HasPrefix(info.Address, "127.0.0.2:") {
				time.Sleep(800 * time.Millisecond)
			}
			return next(ctx, network, address)
		}
	})
	w.mustGet("/", "http://name.example:"+good.Port)
	w.run(w.proxy("lb_policy first", "header_down Run 2"))
	for _, addr := range []string{"127.0.0.2", "127.0.0.3"} {
		at := netip.MustParseAddrPort(addr + ":" + good.Port)
		testlab.Eventually(t, "no address has failed", func() bool {
			return shared.health.State(&health.Policy{MaxFails: 1, EjectFor: time.Hour}, "name.example", at) == health.Healthy
		})
	}
}

// TestLostBody: if a body cannot be sent again, the error is that of the attempt.
func TestLostBody(t *testing.T) {
	w := newWorld(t)
	addrs := []string{"127.0.0.2", "127.0.0.3"}
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: addrs, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})})
	w.dns.Has("two.example", addrs...)
	w.run(w.proxy("response_header_timeout 200ms"))
	res, err := w.try(http.MethodGet, "/", "http://two.example:"+b.Port, strings.NewReader(strings.Repeat("x", 2*replay.MaxKept)))
	if err != nil || res.StatusCode != http.StatusGatewayTimeout {
		t.Errorf("got %v, %v, want status 504", res, err)
	}
}
