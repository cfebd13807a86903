package caddytarget

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/pool"
	"caddytarget/internal/testlab"
)

// TestConnectionTotal: the bound on connections holds for HTTP/2 too, and when
// the configuration ends none is left.
func TestConnectionTotal(t *testing.T) {
	const names, total = 300, 20
	for _, h2 := range []bool{true, false} {
		t.Run(fmt.Sprintf("HTTP/2 %t", h2), func(t *testing.T) {
			w := newWorld(t)
			b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca, HTTP2: h2, Handler: http.HandlerFunc(wsHandler)})
			target := func(i int) string { return fmt.Sprintf("https://n%d.example:%s", i, b.Port) }
			for i := range names {
				w.dns.Has(fmt.Sprintf("n%d.example", i), "127.0.0.2")
			}
			w.run(w.proxy(fmt.Sprintf("keepalive_idle_conns %d", total)))
			var wg sync.WaitGroup
			for worker := range 6 {
				wg.Go(func() {
					for i := worker; i < names; i += 6 {
						for range 2 {
							if res, err := w.try(http.MethodGet, "/", target(i), nil); err != nil || res.StatusCode != 200 {
								t.Errorf("got %v, %v, want status 200", res, err)
							}
						}
					}
				})
			}
			wg.Wait()
			testlab.Eventually(t, "the total", func() bool { return b.Open.Load() == total })
			if n := b.Opened.Load(); n < names {
				t.Errorf("only %d connections opened for %d names", n, names)
			}

			// upgraded ones count, and are not closed in use
			ws := w.webSocket(target(0))
			for i := range names / 4 {
				w.mustGet("/", target(i))
			}
			testlab.Eventually(t, "the total, an upgraded one included", func() bool { return b.Open.Load() == total })
			if err := ws.echo("still there"); err != nil {
				t.Error(err)
			}
			_ = ws.Close()
			testlab.Eventually(t, "the upgraded one to end", func() bool { return b.Open.Load() == total-1 })

			w.run(w.proxy())
			testlab.Eventually(t, "the connections of the old configuration to end", func() bool { return b.Open.Load() == 0 })
			for i := range 50 {
				w.mustGet("/", target(i))
			}
			ws = w.webSocket(target(0))
			if err := ws.echo("Caddy knows of it now, too"); err != nil {
				t.Error(err)
			}
			if n := b.Open.Load(); n != 51 {
				t.Errorf("%d connections open, want 51", n)
			}
			if err := caddy.Stop(); err != nil {
				t.Fatal(err)
			}
			testlab.Eventually(t, "the connections to end with the last configuration", func() bool { return b.Open.Load() == 0 })
		})
	}
}

// TestShareConnections: without TLS, targets on one address share its connections
// if that is configured.
func TestShareConnections(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	w.run(w.proxy("share_connections"))
	for i := range 50 {
		w.dns.Has(fmt.Sprintf("n%d.example", i), "127.0.0.2")
		for range 2 {
			if got, want := w.mustGet("/", fmt.Sprintf("http://n%d.example:%s", i, b.Port)).seen.Host, fmt.Sprintf("n%d.example:%s", i, b.Port); got != want {
				t.Fatalf("Host %q, want %q", got, want)
			}
		}
	}
	if n := b.Opened.Load(); n > 3 {
		t.Errorf("%d connections for one request after the other", n)
	}
	w.run(w.proxy())
	before := b.Opened.Load()
	for i := range 50 {
		for range 2 {
			w.mustGet("/", fmt.Sprintf("http://n%d.example:%s", i, b.Port))
		}
	}
	if n := b.Opened.Load() - before; n != 50 {
		t.Errorf("%d connections for 50 targets that do not share them", n)
	}
	if shared := b.Misdirected(); len(shared) > 3 {
		t.Errorf("%d connections carried requests of several targets", len(shared))
	}
}

// TestReloadInTheMiddle: requests that are on their way when the configuration
// changes are answered, and leave nothing behind.
func TestReloadInTheMiddle(t *testing.T) {
	w := newWorld(t)
	hold := make(chan struct{})
	var arrived atomic.Int64
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca, HTTP2: true, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/body") {
			_ = http.NewResponseController(w).Flush() // the rest of the body comes later
		}
		arrived.Add(1)
		<-hold
		fmt.Fprint(w, "done")
	})})
	w.run(w.proxy())
	const n = 10
	var wg sync.WaitGroup
	for i := range n {
		w.dns.Has(fmt.Sprintf("n%d.example", i), "127.0.0.2")
		wg.Go(func() {
			path := []string{"/", "/body"}[i%2]
			res, err := w.try(http.MethodPost, path, fmt.Sprintf("https://n%d.example:%s", i, b.Port), nil)
			if err != nil || res.StatusCode != 200 || res.body != "done" {
				t.Errorf("got %v, %v, want status 200 and done", res, err)
			}
		})
	}
	testlab.Eventually(t, "the requests arrive", func() bool { return arrived.Load() == n })
	w.run(w.proxy("dial_timeout 4s"))
	w.run(w.proxy("dial_timeout 5s"))
	if got := b.Open.Load(); got != n {
		t.Errorf("%d connections open, want %d", got, n)
	}
	close(hold)
	wg.Wait()
	testlab.Eventually(t, "their connections to end", func() bool { return b.Open.Load() == 0 })
}

// TestReloadBeforeRetry: a request of the old configuration may have to dial
// when that has ended already.
func TestReloadBeforeRetry(t *testing.T) {
	w := newWorld(t)
	good := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3", "127.0.0.4"}, CA: w.ca, HTTP2: true})
	// at one address TLS handshakes hang until they are cut
	l := testlab.Listen(t, good.Port, "127.0.0.2")[0]
	var mu sync.Mutex
	var hung []net.Conn
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			hung = append(hung, conn)
			mu.Unlock()
		}
	})
	cut := func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range hung {
			_ = c.Close()
		}
	}
	t.Cleanup(cut)
	t.Cleanup(accepting.Wait)
	t.Cleanup(func() { _ = l.Close() })

	w.run(w.proxy("tls_timeout 50s"))
	const n = 30
	var done atomic.Int64
	var wg sync.WaitGroup
	for i := range n {
		w.dns.Has(fmt.Sprintf("n%d.example", i), "127.0.0.2", "127.0.0.3", "127.0.0.4")
		wg.Go(func() {
			res, err := w.try(http.MethodPost, "/", fmt.Sprintf("https://n%d.example:%s", i, good.Port), strings.NewReader("body"))
			if err != nil || res.StatusCode != 200 || res.seen.Body != "body" {
				t.Errorf("got %v, %v, want status 200 and the body that was sent", res, err)
			}
			done.Add(1)
		})
	}
	testlab.Eventually(t, "all are served or hang", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return int(done.Load())+len(hung) >= n // a connection that was given up hangs, too
	})
	w.run(w.proxy("header_down Run 2"))
	_ = l.Close()
	cut()
	wg.Wait()
	if len(hung) == 0 {
		t.Error("nothing hung: this showed nothing")
	}
}

// TestConnectionLimit: where too many connections are in use another one is refused,
// with the reason, and one domain does not get all of them.
func TestConnectionLimit(t *testing.T) {
	w := newWorld(t)
	b, arrived, hold := newHolding(t)
	shared := acquireShared()
	defer releaseShared()
	defer func(limits *pool.Limits) { shared.limits = limits }(shared.limits)
	shared.limits = pool.NewLimits(20, dnscache.DomainOf)
	for _, name := range []string{"one.greedy.example", "two.greedy.example", "other.example"} {
		w.dns.Has(name, "127.0.0.2")
	}
	w.run(w.proxy())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(hold)
	for i := range 4 { // a quarter of what is free then
		wg.Go(func() {
			name := []string{"one", "two"}[i%2]
			if res, err := w.try(http.MethodGet, "/hold", fmt.Sprintf("http://%s.greedy.example:%s", name, b.Port), nil); err != nil || res.StatusCode != 200 {
				t.Errorf("got %v, %v, want status 200", res, err)
			}
		})
	}
	testlab.Eventually(t, "four requests arrive", func() bool { return arrived.Load() == 4 })
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		res, err := w.try(method, "/", "http://one.greedy.example:"+b.Port, nil)
		if err != nil || res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(res.body, pool.ErrLimit.Error()) || res.Header.Get("Retry-After") != "1" {
			t.Errorf("%s: %s, %v, want status 503 with Retry-After and %q", method, res, err, pool.ErrLimit)
		}
	}
	w.mustGet("/", "http://other.example:"+b.Port)
	if n := shared.health.Len(); n != 0 {
		t.Errorf("%d failures are remembered", n)
	}
}
