package caddytarget

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// fakeConn is a connection that only knows if it is closed.
type fakeConn struct {
	net.Conn
	closed atomic.Int32
}

func (c *fakeConn) Close() error {
	c.closed.Add(1)
	return nil
}

// open makes a request for a key that opens a connection.
func (g *registry) openFor(t testing.TB, name string) (*pool, net.Conn, *fakeConn) {
	t.Helper()
	p, _ := g.acquire(poolKey{address: "192.0.2.1:443", name: name, kind: secure}, nil)
	fake := new(fakeConn)
	conn, err := g.track(p, fake)
	if err != nil {
		t.Fatal(err)
	}
	return p, conn, fake
}

// pools returns the number of keys.
func (g *registry) pools() (n int) {
	for i := range g.shards {
		s := &g.shards[i]
		s.mu.Lock()
		n += len(s.pools)
		s.mu.Unlock()
	}
	return n
}

func checkClosed(t *testing.T, what string, conns []*fakeConn, want ...bool) {
	t.Helper()
	var got []bool
	for _, c := range conns {
		got = append(got, c.closed.Load() > 0)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s: closed %v, want %v", what, got, want)
	}
}

func TestRegistryTotal(t *testing.T) {
	g := newRegistry(2)
	defer g.close()
	var conns []*fakeConn
	var pools []*pool
	use := func(name string) {
		p, _, c := g.openFor(t, name)
		pools, conns = append(pools, p), append(conns, c)
	}
	use("a")
	use("b")
	use("c")
	checkClosed(t, "all in use", conns, false, false, false)
	g.release(pools[1])
	checkClosed(t, "the only idle one goes", conns, false, true, false)
	g.release(pools[0])
	g.release(pools[2])
	checkClosed(t, "two may stay", conns, false, true, false)
	// a is used again, so c is the one that was idle longest
	if p, _ := g.acquire(pools[0].key, nil); p != pools[0] {
		t.Error("a new generation without need")
	} else {
		g.release(p)
	}
	use("d")
	checkClosed(t, "the longest idle one goes", conns, false, true, true, false)
	g.release(pools[3])
	if n := g.open.Load(); n != 2 || g.pools() != 2 {
		t.Errorf("%d connections, %d keys", n, g.pools())
	}
	// a key with two connections goes as a whole
	p, _ := g.acquire(pools[0].key, nil)
	second := new(fakeConn)
	if _, err := g.track(p, second); err != nil {
		t.Fatal(err)
	}
	checkClosed(t, "d made room", conns, false, true, true, true)
	g.release(p)
	use("e")
	checkClosed(t, "both", append(conns, second), true, true, true, true, false, true)
	g.release(pools[4])
	for i, c := range append(conns, second) {
		if n := c.closed.Load(); n > 1 {
			t.Errorf("connection %d was closed %d times", i, n)
		}
	}
}

func TestRegistryGenerations(t *testing.T) {
	g := newRegistry(10)
	defer g.close()
	p, conn, fake := g.openFor(t, "a")
	other, _ := g.acquire(poolKey{address: "192.0.2.1:443", name: "b", kind: secure}, nil)
	if other == p || other.host == p.host {
		t.Error("two names share a pool")
	}
	g.release(other) // has no connection
	if n := g.pools(); n != 1 {
		t.Errorf("%d keys; one without connections and requests has to go", n)
	}
	if _, err := g.track(other, new(fakeConn)); !errors.Is(err, errRetired) {
		t.Errorf("connection into a pool that is retired: %v", err)
	}

	again, _ := g.acquire(p.key, nil)
	if again != p {
		t.Error("requests of a key do not share its pool")
	}
	g.release(p)
	g.release(again)
	_ = conn.Close() // http.Transport, when it has been idle for too long
	_ = conn.Close()
	if n := g.open.Load(); n != 0 {
		t.Errorf("%d connections open", n)
	}
	if fake.closed.Load() == 0 || !p.retired {
		t.Error("the pool of a connection that was closed is not retired")
	}
	next, _ := g.acquire(p.key, nil)
	if next == p || next.host == p.host {
		t.Error("a retired generation was handed out")
	}

	// a dial that nobody waited for
	late := new(fakeConn)
	if _, err := g.track(p, late); !errors.Is(err, errRetired) || late.closed.Load() != 1 {
		t.Errorf("late connection: %v, closed %d times", err, late.closed.Load())
	}
	if n := g.open.Load(); n != 0 {
		t.Errorf("%d connections open", n)
	}
	g.release(next)

	// one that nobody waits for, into a pool that is idle: it may be closed too
	p, _, _ = g.openFor(t, "a")
	g.release(p)
	if _, err := g.track(p, new(fakeConn)); err != nil || !p.listed {
		t.Errorf("late connection: %v", err)
	}
}

func TestRegistryClose(t *testing.T) {
	g := newRegistry(10)
	idle, _, idleConn := g.openFor(t, "idle")
	g.release(idle)
	busy, _, busyConn := g.openFor(t, "busy")
	g.close()
	checkClosed(t, "after the end", []*fakeConn{idleConn, busyConn}, true, false)
	// a request that comes late
	late, _, lateConn := g.openFor(t, "late")
	g.release(late)
	g.release(busy)
	checkClosed(t, "after the last request", []*fakeConn{idleConn, busyConn, lateConn}, true, true, true)
	if g.open.Load() != 0 || g.pools() != 0 {
		t.Errorf("%d connections, %d keys", g.open.Load(), g.pools())
	}
}

func TestRegistryMoved(t *testing.T) {
	r := &resolver{}
	r.hosts.Store(&hostsFile{names: map[string][]netip.Addr{
		"stays.example": {netip.MustParseAddr("192.0.2.1")},
		"moved.example": {netip.MustParseAddr("192.0.2.2")},
	}})
	g := newRegistry(10)
	defer g.close()
	var conns []*fakeConn
	use := func(name string, release bool) {
		p, _ := g.acquire(poolKey{address: "192.0.2.1:443", name: name, kind: secure}, &call{host: name, resolver: r})
		c := new(fakeConn)
		if _, err := g.track(p, c); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		if release {
			g.release(p)
		}
	}
	use("stays.example", true)
	use("moved.example", true)
	g.sweep(time.Now())
	checkClosed(t, "at once", conns, false, false)
	g.sweep(time.Now().Add(sweepIdle))
	checkClosed(t, "after a while", conns, false, true)
	use("moved.example", false)
	g.sweep(time.Now().Add(time.Hour))
	checkClosed(t, "in use", conns, false, true, false)
}

// TestRegistryStress: a connection is never closed under a request, and in the
// end none is left.
func TestRegistryStress(t *testing.T) {
	g := newRegistry(5)
	var all sync.Map
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 3000 {
				p, _ := g.acquire(poolKey{address: fmt.Sprintf("192.0.2.%d:80", rand.IntN(20))}, nil)
				if p.retired { // a race if this may change now
					t.Error("a retired pool")
				}
				fake := new(fakeConn)
				all.Store(fake, true)
				conn, err := g.track(p, fake)
				if err != nil {
					t.Errorf("a pool in use: %v", err)
				} else if fake.closed.Load() > 0 {
					t.Error("closed in use")
				} else if rand.IntN(3) == 0 {
					_ = conn.Close()
				}
				g.release(p)
			}
		})
	}
	wg.Wait()
	if n := g.open.Load(); n > 5 {
		t.Errorf("%d connections open", n)
	}
	g.close()
	if g.open.Load() != 0 || g.pools() != 0 {
		t.Errorf("%d connections, %d keys", g.open.Load(), g.pools())
	}
	all.Range(func(c, _ any) bool {
		if n := c.(*fakeConn).closed.Load(); n == 0 {
			t.Errorf("a connection was closed %d times", n)
			return false
		}
		return true
	})
}

// TestConnectionTotal: the bound on connections holds for HTTP/2 too, and when
// the configuration ends none is left.
func TestConnectionTotal(t *testing.T) {
	const names, total = 300, 20
	for _, h2 := range []bool{true, false} {
		t.Run(fmt.Sprintf("HTTP/2 %t", h2), func(t *testing.T) {
			w := newWorld(t)
			b := newBackend(t, backendConfig{addrs: []string{"127.0.0.2"}, ca: w.ca, h2: h2, handler: http.HandlerFunc(wsHandler)})
			target := func(i int) string { return fmt.Sprintf("https://n%d.example:%s", i, b.port) }
			for i := range names {
				w.dns.has(fmt.Sprintf("n%d.example", i), "127.0.0.2")
			}
			w.run(w.proxy(fmt.Sprintf("keepalive_idle_conns %d", total)))
			var wg sync.WaitGroup
			for worker := range 6 {
				wg.Go(func() {
					for i := worker; i < names; i += 6 {
						for range 2 {
							if res, err := w.try(http.MethodGet, "/", target(i), nil); err != nil || res.StatusCode != 200 {
								t.Error(res, err)
							}
						}
					}
				})
			}
			wg.Wait()
			eventually(t, "the total", func() bool { return b.open.Load() == total })
			if n := b.opened.Load(); n < names {
				t.Errorf("only %d connections opened for %d names", n, names)
			}

			// upgraded ones count, and are not closed in use
			ws := w.webSocket(target(0))
			for i := range names / 4 {
				w.mustGet("/", target(i))
			}
			eventually(t, "the total, an upgraded one included", func() bool { return b.open.Load() == total })
			if err := ws.echo("still there"); err != nil {
				t.Error(err)
			}
			_ = ws.Close()
			eventually(t, "the upgraded one to end", func() bool { return b.open.Load() == total-1 })

			w.run(w.proxy())
			eventually(t, "the connections of the old configuration to end", func() bool { return b.open.Load() == 0 })
			for i := range 50 {
				w.mustGet("/", target(i))
			}
			ws = w.webSocket(target(0))
			if err := ws.echo("Caddy knows of it now, too"); err != nil {
				t.Error(err)
			}
			if n := b.open.Load(); n != 51 {
				t.Errorf("%d connections open, want 51", n)
			}
			if err := caddy.Stop(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the connections to end with the last configuration", func() bool { return b.open.Load() == 0 })
		})
	}
}

// TestSharedPlain: without TLS, targets on one address share its connections.
func TestSharedPlain(t *testing.T) {
	w := newWorld(t)
	b := newBackend(t, backendConfig{addrs: []string{"127.0.0.2"}})
	w.run(w.proxy())
	for i := range 50 {
		w.dns.has(fmt.Sprintf("n%d.example", i), "127.0.0.2")
		for range 2 {
			if got, want := w.mustGet("/", fmt.Sprintf("http://n%d.example:%s", i, b.port)).seen.Host, fmt.Sprintf("n%d.example:%s", i, b.port); got != want {
				t.Fatalf("Host %q, want %q", got, want)
			}
		}
	}
	if n := b.opened.Load(); n > 3 {
		t.Errorf("%d connections for one request after the other", n)
	}
}

// TestReloadInTheMiddle: requests that are on their way when the configuration
// changes are answered, and leave nothing behind.
func TestReloadInTheMiddle(t *testing.T) {
	w := newWorld(t)
	hold := make(chan struct{})
	var arrived atomic.Int64
	b := newBackend(t, backendConfig{addrs: []string{"127.0.0.2"}, ca: w.ca, h2: true, handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
		w.dns.has(fmt.Sprintf("n%d.example", i), "127.0.0.2")
		wg.Go(func() {
			path := []string{"/", "/body"}[i%2]
			res, err := w.try(http.MethodPost, path, fmt.Sprintf("https://n%d.example:%s", i, b.port), nil)
			if err != nil || res.StatusCode != 200 || res.body != "done" {
				t.Error(res, err)
			}
		})
	}
	eventually(t, "the requests arrive", func() bool { return arrived.Load() == n })
	w.run(w.proxy("header_down Run 2"))
	w.run(w.proxy("header_down Run 3"))
	if got := b.open.Load(); got != n {
		t.Errorf("%d connections open, want %d", got, n)
	}
	close(hold)
	wg.Wait()
	eventually(t, "their connections to end", func() bool { return b.open.Load() == 0 })
}

// TestReloadBeforeRetry: a request of the old configuration may have to dial
// when that has ended already.
func TestReloadBeforeRetry(t *testing.T) {
	w := newWorld(t)
	good := newBackend(t, backendConfig{addrs: []string{"127.0.0.3", "127.0.0.4"}, ca: w.ca, h2: true})
	// at one address TLS handshakes hang until they are cut
	l := listenAll(t, good.port, "127.0.0.2")[0]
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
		w.dns.has(fmt.Sprintf("n%d.example", i), "127.0.0.2", "127.0.0.3", "127.0.0.4")
		wg.Go(func() {
			res, err := w.try(http.MethodPost, "/", fmt.Sprintf("https://n%d.example:%s", i, good.port), strings.NewReader("body"))
			if err != nil || res.StatusCode != 200 || res.seen.Body != "body" {
				t.Error(res, err)
			}
			done.Add(1)
		})
	}
	eventually(t, "all are served or hang", func() bool {
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

// TestCrowded: while the connections of a pool are in use, one of them may become
// free before there is another one; over HTTP/2 none has to.
func TestCrowded(t *testing.T) {
	g := newRegistry(100)
	defer g.close()
	for _, test := range []struct {
		name  string
		conns int
		h2    bool
		want  []bool // for one request after the other
	}{
		{"no connection", 0, false, []bool{false, false}},
		{"one", 1, false, []bool{false, true, true}},
		{"two", 2, false, []bool{false, false, true}},
		{"HTTP/2", 1, true, []bool{false, false}},
	} {
		key := poolKey{address: "192.0.2.1:443", name: test.name, kind: secure}
		first, _ := g.acquire(key, nil)
		first.h2.Store(test.h2)
		for range test.conns {
			client, server := net.Pipe()
			defer server.Close()
			if _, err := g.track(first, client); err != nil {
				t.Fatal(err)
			}
		}
		g.release(first)
		for i, want := range test.want {
			p, got := g.acquire(key, nil)
			p.h2.Store(test.h2)
			defer g.release(p)
			if got != want {
				t.Errorf("%s: request %d: crowded: %t", test.name, i+1, got)
			}
		}
	}
}

// TestServedSoon: a connection is not opened if another one has become free
// meanwhile; else it is, after a moment that is the shorter the less it is to the
// point.
func TestServedSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &attempt{pool: new(pool)}
		a.got.Store(new(gotConn)) // before, which is no sign of what has come since
		soon := func(want bool, after time.Duration) {
			t.Helper()
			start := time.Now()
			if got := a.servedSoon(); got != want || time.Since(start) != after {
				t.Errorf("%t after %s, want %t after %s", got, time.Since(start), want, after)
			}
		}
		soon(false, firstCrowdTime)
		soon(false, firstCrowdTime/2)
		soon(false, leastCrowdTime)
		soon(false, leastCrowdTime)
		for range 5 {
			time.AfterFunc(crowdStep/2, func() { a.got.Store(new(gotConn)) })
			soon(true, crowdStep)
		}
		soon(false, mostCrowdTime)
	})
}
