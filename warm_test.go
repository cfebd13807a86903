package caddytarget

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"caddytarget/internal/pool"
	"caddytarget/internal/testlab"
)

// connectionsTo returns how many connections and dials there are for each host, those in
// the pools that are in use.
func (w *world) connectionsTo() map[string]int {
	w.Helper()
	counts := make(map[string]int)
	for s := range usedShared() {
		for _, p := range s.pools.All() {
			page, _, err := p.Usages(context.Background(), 0, 10000, func(*pool.Key) bool { return true }, func(*pool.Usage) bool { return true })
			if err != nil {
				w.Fatal(err)
			}
			for _, u := range page {
				counts[u.Key.Host] += u.Idle + u.InUse + u.Dialling
			}
		}
	}
	return counts
}

// awaitWarm waits until each of some hosts has so many connections.
func (w *world) awaitWarm(want int, hosts ...string) {
	w.Helper()
	testlab.Eventually(w, fmt.Sprintf("%d connections to each of %v", want, hosts), func() bool {
		counts := w.connectionsTo()
		for _, host := range hosts {
			if counts[host] != want {
				return false
			}
		}
		return true
	})
}

// hosts returns the hosts of the targets that names returns.
func hosts(n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprintf("n%d.example", i))
	}
	return list
}

// behindHandler is the site of world.proxy with two handlers.
func (w *world) behindHandler(warm string) string {
	return fmt.Sprintf(`target {header.X-Target} {
		allow_ips 127.0.0.0/8
	}
	reverse_proxy {
		dynamic target
		transport target {
			tls_trust_pool file %q
			%s
		}
	}`, w.ca.File, warm)
}

// TestWarmAfterRestart: after a restart, connections to the targets that were called most
// are open before a request comes, and requests use them.
func TestWarmAfterRestart(t *testing.T) {
	for _, test := range []struct {
		name   string
		http2  bool
		scheme string
		site   func(w *world, warm string) string
		want   int
	}{
		{"http", false, "http", func(w *world, warm string) string { return w.proxy(warm) }, 2},
		{"https", false, "https", func(w *world, warm string) string { return w.proxy(warm) }, 2},
		{"HTTP/2", true, "https", func(w *world, warm string) string { return w.proxy(warm) }, 1},
		{"reverse_proxy", false, "http", (*world).behindHandler, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			const names = 5
			w := newWorld(t)
			config := testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, HTTP2: test.http2}
			if test.scheme == "https" {
				config.CA = w.ca
			}
			b := testlab.NewBackend(t, config)
			targets := w.names(names, 60, b)
			site := test.site(w, "warm 2 100")
			w.run(site)
			for _, target := range targets {
				for range 3 {
					w.mustGet("/path?query=1", test.scheme+strings.TrimPrefix(target, "http"))
				}
			}
			w.awaitWarm(test.want, hosts(names)...) // while they are in use
			if !w.isSavedAfterStop("n4.example") {
				t.Fatal("the names are not saved")
			}
			for _, secret := range []string{"/path", "query"} {
				if w.isSaved(secret) {
					t.Errorf("%q is saved", secret)
				}
			}
			testlab.Eventually(t, "all connections are closed", func() bool { return b.Open.Load() == 0 })
			served, opened := b.Served.Load(), b.Opened.Load()

			w.run(site)
			w.awaitReady()
			if n := b.Open.Load(); n < names {
				t.Errorf("%d connections are open when the gateway is ready, want at least %d", n, names)
			}
			w.awaitWarm(test.want, hosts(names)...)
			testlab.Eventually(t, "the dials have ended", func() bool { return b.Open.Load() == int64(names*test.want) })
			if n := b.Served.Load(); n != served {
				t.Errorf("%d requests were sent, want none", n-served)
			}
			for _, target := range targets {
				w.mustGet("/", test.scheme+strings.TrimPrefix(target, "http"))
			}
			if n := b.Opened.Load() - opened; n != int64(names*test.want) {
				t.Errorf("%d connections were opened, want %d", n, names*test.want)
			}
		})
	}
}

// awaitReady waits until the gateway says that it is ready.
func (w *world) awaitReady() {
	w.Helper()
	testlab.Eventually(w, "the gateway is ready", func() bool {
		return adminAPI{newAdminAPI()}.serve(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/target/ready", nil)) == nil
	})
}

// isSavedAfterStop stops the gateway, and reports whether a name is saved then.
func (w *world) isSavedAfterStop(name string) bool {
	w.Helper()
	w.stop()
	return w.isSaved(name)
}

// TestWarmReload: a reload keeps the count of requests, and the targets warm; without the
// option nothing is opened or counted.
func TestWarmReload(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	targets := w.names(2, 60, b)
	w.run(w.proxy())
	for range 3 {
		w.mustGet("/", targets[0])
	}
	w.stop()
	w.run(w.proxy())
	if h := targetSites()[0].handler; h.warm.Load() != nil || b.Opened.Load() != 1 {
		t.Errorf("without the option, the handler has the site %v; %d connections were opened, want none and 1", h.warm.Load(), b.Opened.Load())
	}
	w.run(w.proxy("warm 2"))
	for range 3 {
		w.mustGet("/", targets[1])
	}
	w.awaitWarm(2, "n1.example")
	w.run(w.proxy("warm 3"))
	w.awaitWarm(3, "n1.example")
	w.run(w.proxy("warm 3", "dial_timeout 1s")) // which is another pool
	testlab.Eventually(t, "the new pool is warm", func() bool { return w.connectionsTo()["n1.example"] >= 3 && b.Open.Load() == 3 })
	if n := w.connectionsTo()["n0.example"]; n != 0 {
		t.Errorf("%d connections to a target that was called before the option, want none", n)
	}
}

// TestWarmRefused: no connection is opened where a request would be refused or kept away.
func TestWarmRefused(t *testing.T) {
	for _, test := range []struct {
		name   string
		option string
		failed func(s *shared, addr netip.AddrPort)
	}{
		{"name denied", "deny n0.example", nil},
		{"address denied", "deny_ips 127.0.0.3", nil},
		{"ejected", "fail_duration 1h", func(s *shared, addr netip.AddrPort) { s.health.Failed("", addr, false, nil) }},
		{"ejected for the target", "fail_duration 1h", func(s *shared, addr netip.AddrPort) { s.health.Failed("n0.example", addr, true, nil) }},
		{"needs a probe", "fail_duration 1ns", func(s *shared, addr netip.AddrPort) { s.health.Failed("", addr, false, nil) }},
		{"needs a trial", "fail_duration 1ns", func(s *shared, addr netip.AddrPort) { s.health.Failed("", addr, true, nil) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2", "127.0.0.3"}})
			targets := w.names(2, 60, b)
			w.dns.Has("n0.example", "127.0.0.3")
			shared := acquireShared()
			defer releaseShared()
			w.run(w.proxy("warm 2"))
			for range 3 {
				w.mustGet("/", targets[0]) // the busier one, which is looked at first
				w.mustGet("/", targets[0])
				w.mustGet("/", targets[1])
			}
			w.stop()
			if test.failed != nil {
				port, err := strconv.ParseUint(b.Port, 10, 16)
				if err != nil {
					t.Fatal(err)
				}
				test.failed(shared, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.3"), uint16(port)))
			}
			failures := shared.health.Len()
			w.run(w.proxy("warm 2", test.option))
			w.awaitWarm(2, "n1.example")
			if n := w.connectionsTo()["n0.example"]; n != 0 {
				t.Errorf("%d connections to what may not be called, want none", n)
			}
			if n := shared.health.Len(); n != failures {
				t.Errorf("%d records of failures, want %d as before", n, failures)
			}
			if test.failed != nil {
				w.mustGet("/", targets[0]) // as any request: a probe or a trial is not claimed
			}
		})
	}
}

// TestWarmOptions: what contradicts the option, or makes no sense, is refused.
func TestWarmOptions(t *testing.T) {
	for _, test := range []struct{ options, want string }{
		{"warm 2 100", ""},
		{"warm 100 10000", ""},
		{"warm", "wrong argument count"},
		{"warm 1 2 3", "wrong argument count"},
		{"warm 0", `"0" is not a positive number`},
		{"warm x", `"x" is not a positive number`},
		{"warm 1 -1", `"-1" is not a positive number`},
		{"warm 101", "warm: connections 101 is not a number from 1 to 100"},
		{"warm 1 10001", "warm: targets 10001 is not a number from 1 to 10000"},
		{"warm 1\nwarm 2", "already specified"},
		{"warm 1\nkeepalive off", "without keepalive"},
		{"warm 1\nproxy_protocol v2", "for one client"},
		{"warm 3\nmax_conns_per_host 2", "more than max_conns_per_host 2"},
		{"warm 3\nkeepalive_idle_conns_per_host 2", "more than keepalive_idle_conns_per_host 2"},
		{"warm 1\ntls_server_name {host}", "only known per request"},
		{"warm 1\ntls_server_name {env.HOME}", ""},
	} {
		t.Run(test.options, func(t *testing.T) {
			w := newWorld(t)
			err := w.tryRun(w.proxy(test.options))
			switch {
			case test.want == "" && err != nil:
				t.Error(err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "Caddyfile:")):
				t.Errorf("got the error %v, want one with %q and its place", err, test.want)
			}
		})
	}
}
