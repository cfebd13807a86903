package caddytarget

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"caddytarget/internal/testlab"
)

// TestTargets has what the backend sees for a target.
func TestTargets(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2", "::1"}})
	s := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca, HTTP2: true})
	for _, name := range []string{"a.example", "xn--bcher-kva.example", "_x.a.example"} {
		w.dns.Has(name, "127.0.0.2")
	}
	w.run(w.proxy())

	const path = "/orig%2Final/~?q=1&%7e"
	for _, test := range []struct{ name, target, host, uri string }{
		{"no path", "http://a.example:PORT", "a.example:PORT", path},
		{"host and port", "a.example:PORT", "a.example:PORT", path},
		{"root", "http://a.example:PORT/", "a.example:PORT", "/"},
		{"path and query", "http://a.example:PORT/b/c?d=e", "a.example:PORT", "/b/c?d=e"},
		{"query alone", "http://a.example:PORT?d=e", "a.example:PORT", "/?d=e"},
		{"empty query", "http://a.example:PORT/b?", "a.example:PORT", "/b?"},
		{"encoded path", "http://a.example:PORT/a%2Fb%7ec%7E%20", "a.example:PORT", "/a%2Fb%7ec%7E%20"},
		{"sub-delimiters", "http://a.example:PORT/!'()*[];:@$&+,=", "a.example:PORT", "/!'()*[];:@$&+,="},
		{"bare percent", "http://a.example:PORT/100%?100%", "a.example:PORT", "/100%25?100%"},
		{"illegal octets", "http://a.example:PORT/\"<ü>?\"ü", "a.example:PORT", "/%22%3C%C3%BC%3E?%22%C3%BC"},
		{"dots and slashes", "http://a.example:PORT//x/../y/./", "a.example:PORT", "//x/../y/./"},
		{"semicolon and plus in a query", "http://a.example:PORT/?a;b+c", "a.example:PORT", "/?a;b+c"},
		{"fragment", "http://a.example:PORT/b#c", "a.example:PORT", "/b"},
		{"upper case", "HTTP://A.Example:PORT/B", "a.example:PORT", "/B"},
		{"trailing dot", "http://a.example.:PORT/b", "a.example:PORT", "/b"},
		{"IDN", "http://bücher.example:PORT/b", "xn--bcher-kva.example:PORT", "/b"},
		{"underscore", "http://_x.a.example:PORT/b", "_x.a.example:PORT", "/b"},
		{"IPv4 literal", "http://127.0.0.2:PORT/b", "127.0.0.2:PORT", "/b"},
		{"IPv6 literal", "http://[0:0::1]:PORT/b", "[::1]:PORT", "/b"},
		{"mapped IPv4", "http://[::ffff:127.0.0.2]:PORT/b", "127.0.0.2:PORT", "/b"},
		{"https", "https://a.example:TLS/b", "a.example:TLS", "/b"},
		{"https without path", "https://A.Example.:TLS", "a.example:TLS", path},
		{"https, IDN", "https://bücher.example:TLS/b", "xn--bcher-kva.example:TLS", "/b"},
		{"https, IPv4 literal", "https://127.0.0.2:TLS/b", "127.0.0.2:TLS", "/b"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ports := strings.NewReplacer("PORT", b.Port, "TLS", s.Port)
			res := w.mustGet(path, ports.Replace(test.target), header("Host", "client.example"))
			if want := ports.Replace(test.host); res.seen.Host != want {
				t.Errorf("Host %q, want %q", res.seen.Host, want)
			}
			if res.seen.URI != test.uri {
				t.Errorf("request URI %q, want %q", res.seen.URI, test.uri)
			}
			if got := res.seen.Header.Get("X-Forwarded-Host"); got != "client.example" {
				t.Errorf("X-Forwarded-Host %q, want client.example", got)
			}
			if got := res.seen.Header["X-Target"]; got != nil {
				t.Errorf("X-Target %q was sent on", got)
			}
		})
	}
}

// TestStatuses has the status and the reason for what cannot be called.
func TestStatuses(t *testing.T) {
	w := newWorld(t)
	w.resolver = "timeout 150ms\ntries 1\ndeadline 300ms"
	w.dns.Has("a.example", "127.0.0.2")
	w.dns.Has("private.example", "10.0.0.1")
	w.dns.Has("metadata.example", "169.254.169.254")
	w.dns.Has("six.example", "2001:db8::1") // family ipv4
	w.dns.Set("none.example", testlab.Reply{})
	w.dns.Set("failing.example", testlab.Reply{Rcode: 2})
	w.dns.Set("refused.example", testlab.Reply{Rcode: 5})
	w.dns.Set("broken.example", testlab.Reply{Addrs: []string{"127.0.0.2"}, TTL: 60, Broken: true})
	w.dns.Set("silent.example", testlab.Reply{Silent: true})
	dead := testlab.FreePort(t)
	w.run(w.proxy())
	for _, test := range []struct {
		name, target string
		status       int
		reason       string
	}{
		{"no target", "", 400, "no target"},
		{"nonsense", "foo bar", 400, "space"},
		{"backslash", `http://a.example\b`, 400, "backslash"},
		{"userinfo", "http://joe:secret@a.example/", 400, "userinfo"},
		{"zone", "http://[fe80::1%25eth0]/", 400, "zone"},
		{"number for an address", "http://2130706433/", 400, "IPv4"},
		{"hexadecimal address", "http://0x7f.1/", 400, "IPv4"},
		{"empty port", "http://a.example:/", 400, "port"},
		{"port 0", "http://a.example:0/", 400, "port"},
		{"port 65536", "http://a.example:65536/", 400, "port"},
		{"very long", "http://a.example/" + strings.Repeat("x", 9000), 400, "too long"},
		{"not UTF-8", "http://a.example/\xff", 400, "UTF-8"},

		{"scheme", "ftp://a.example/", 403, "scheme"},
		{"h2c by default", "h2c://a.example/", 403, "scheme"},
		{"private address", "http://private.example/", 403, "10.0.0.1"},
		{"private literal", "http://192.168.0.1/", 403, "192.168.0.1"},
		{"metadata", "http://metadata.example/", 403, "169.254.169.254"},
		{"mapped metadata", "http://[::ffff:169.254.169.254]/", 403, "169.254.169.254"},
		{"unspecified", "http://0.0.0.0/", 403, "0.0.0.0"},

		{"no such name", "http://unknown.example/", 502, "unknown.example: DNS lookup (A): " + w.dns.Addr + " replied NXDOMAIN"},
		{"no address", "http://none.example/", 502, "none.example: DNS lookup (A): " + w.dns.Addr + " replied that there is none"},
		{"no address of the family", "http://six.example/", 502, "six.example: DNS lookup (A): " + w.dns.Addr + " replied that there is none"},
		{"nameserver fails", "http://failing.example/", 502, "failing.example: DNS lookup (A): " + w.dns.Addr + " replied SERVFAIL"},
		{"nameserver refuses", "http://refused.example/", 502, "refused.example: DNS lookup (A): " + w.dns.Addr + " replied REFUSED"},
		{"malformed reply", "http://broken.example/", 502, "broken.example: DNS lookup (A): " + w.dns.Addr + ": malformed"},
		{"onion", "http://abc.onion/", 502, "abc.onion"},
		{"no listener", "http://a.example:" + dead + "/", 502, "connection refused"},
		{"no listener, https", "https://a.example:" + dead + "/", 502, "connection refused"},
		{"nameserver silent", "http://silent.example/", 504, "silent.example: DNS lookup (A): no nameserver replied in time (" + w.dns.Addr + ")"},
	} {
		t.Run(test.name, func(t *testing.T) {
			res := w.get("/", test.target)
			if res.StatusCode != test.status {
				t.Errorf("status %d, want %d", res.StatusCode, test.status)
			}
			if want := fmt.Sprint(test.status, " "); !strings.HasPrefix(res.body, want) || !strings.Contains(res.body, test.reason) {
				t.Errorf("body %q, want the status and %q", res.body, test.reason)
			}
			if strings.Contains(res.body, "secret") {
				t.Errorf("body %q has the password", res.body)
			}
		})
	}
}

// TestNoErrorRoute: without handle_errors the client learns the status alone.
func TestNoErrorRoute(t *testing.T) {
	w := newWorld(t)
	w.run("target_proxy {header.X-Target}")
	res := w.get("/", "http://127.0.0.1:"+testlab.FreePort(t))
	if res.StatusCode != http.StatusForbidden || res.body != "" {
		t.Errorf("status %d, body %q: loopback has to be refused by default", res.StatusCode, res.body)
	}
}

// TestOptions has the options of the handler. It is long because its table is.
func TestOptions(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2", "127.0.0.3"}})
	s := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca, HTTP2: true})
	h := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, HTTP2: true, HTTP2Only: true})
	w.dns.Has("a.example", "127.0.0.2")
	w.dns.Has("b.a.example", "127.0.0.2")
	w.dns.Has("b.example", "127.0.0.2")
	w.dns.Has("both.example", "127.0.0.2", "127.0.0.3")
	ports := strings.NewReplacer("PORT", b.Port, "TLS", s.Port, "H2C", h.Port)

	const open = "allow_ips 127.0.0.0/8"
	for _, test := range []struct {
		name, url, options, target string
		status                     int
		host, uri, reason          string
	}{
		{name: "template", url: "http://{header.X-Target}.example:PORT/x{uri}", options: open, target: "a", status: 200, host: "a.example:PORT", uri: "/x/client?q=1"},
		{name: "constant", url: "http://a.example:PORT/x", options: open, status: 200, host: "a.example:PORT", uri: "/x"},
		{name: "path", options: "path /p?x={query.q}\n" + open, target: "http://a.example:PORT/ignored?y", status: 200, host: "a.example:PORT", uri: "/p?x=1"},
		{name: "path without slash", options: "path p/{path}\n" + open, target: "a.example:PORT", status: 200, host: "a.example:PORT", uri: "/p//client"},
		{name: "path, a question mark first", options: "path ?x\n" + open, target: "a.example:PORT", status: 200, host: "a.example:PORT", uri: "/?x"},
		{name: "path with escapes", options: "path /%2F%zz#f\n" + open, target: "a.example:PORT", status: 200, host: "a.example:PORT", uri: "/%2F%25zz"},
		{name: "path with a space", options: "path /{header.X-Bad}\n" + open, target: "a.example:PORT", status: 400, reason: "space"},
		{name: "host", options: "host other.example:1\n" + open, target: "http://a.example:PORT", status: 200, host: "other.example:1", uri: "/client?q=1"},
		{name: "host of the client", options: "host {http.request.hostport}\n" + open, target: "https://a.example:TLS", status: 200, host: "client.example", uri: "/client?q=1"},
		{name: "host that is none", options: "host {header.X-Bad}\n" + open, target: "a.example:PORT", status: 400, reason: "Host header"},
		{name: "host that is empty", options: "host {header.X-None}\n" + open, target: "a.example:PORT", status: 400, reason: "Host header"},

		{name: "allowed name", options: "allow a.example *.a.example\n" + open, target: "a.example:PORT", status: 200, host: "a.example:PORT", uri: "/client?q=1"},
		{name: "allowed below", options: "allow *.a.example\n" + open, target: "b.a.example:PORT", status: 200, host: "b.a.example:PORT", uri: "/client?q=1"},
		{name: "not below", options: "allow *.a.example\n" + open, target: "a.example:PORT", status: 403, reason: "a.example"},
		{name: "another name", options: "allow a.example\n" + open, target: "b.example:PORT", status: 403, reason: "b.example"},
		{name: "another spelling", options: "allow a.example\n" + open, target: "A.EXAMPLE.:PORT", status: 200, host: "a.example:PORT", uri: "/client?q=1"},
		{name: "literal among names", options: "allow a.example\n" + open, target: "127.0.0.2:PORT", status: 403, reason: "127.0.0.2"},
		{name: "denied", options: "allow *.example\ndeny a.example\n" + open, target: "a.example:PORT", status: 403, reason: "a.example"},
		{name: "denied, another spelling", options: "deny a.example\n" + open, target: "A.example.:PORT", status: 403, reason: "a.example"},

		{name: "one address open", options: "allow_ips 127.0.0.2", target: "a.example:PORT", status: 200, host: "a.example:PORT", uri: "/client?q=1"},
		{name: "another address open", options: "allow_ips 127.0.0.3", target: "a.example:PORT", status: 403, reason: "127.0.0.2"},
		{name: "private ranges", options: "allow_ips private_ranges", target: "a.example:PORT", status: 200, host: "a.example:PORT", uri: "/client?q=1"},
		{name: "any", options: "allow_ips any", target: "a.example:PORT", status: 200, host: "a.example:PORT", uri: "/client?q=1"},
		{name: "denied address", options: "allow_ips any\ndeny_ips 127.0.0.0/30", target: "a.example:PORT", status: 403, reason: "127.0.0.2"},

		{name: "port", options: "ports PORT\n" + open, target: "a.example:PORT", status: 200, host: "a.example:PORT", uri: "/client?q=1"},
		{name: "another port", options: "ports 80 443\n" + open, target: "a.example:PORT", status: 403, reason: "port"},
		{name: "port by default refused", options: "ports PORT\n" + open, target: "http://a.example", status: 403, reason: "port 80"},
		{name: "https alone", options: "schemes https\n" + open, target: "http://a.example:PORT", status: 403, reason: "http"},
		{name: "https alone, https", options: "schemes https\n" + open, target: "https://a.example:TLS", status: 200, host: "a.example:TLS", uri: "/client?q=1"},
		{name: "h2c", options: "schemes h2c\n" + open, target: "h2c://a.example:H2C/x", status: 200, host: "a.example:H2C", uri: "/x"},
		{name: "versions h2c", options: "versions h2c\n" + open, target: "http://a.example:H2C/x", status: 200, host: "a.example:H2C", uri: "/x"},

		{name: "timeout malformed", options: "timeout {header.X-Bad}\n" + open, target: "a.example:PORT", status: 400, reason: "timeout"},
		{name: "timeout zero", options: "timeout {query.q}ns\n" + open, target: "a.example:PORT", status: 504, reason: "no answer within the timeout of 1ns"},
		{name: "timeout absent", options: "timeout {header.X-None}\n" + open, target: "a.example:PORT", status: 200, host: "a.example:PORT", uri: "/client?q=1"},
		{name: "max_requests", options: "max_requests 1\n" + open, target: "a.example:PORT", status: 200, host: "a.example:PORT", uri: "/client?q=1"},

		{name: "own resolver", options: "resolver " + w.dns.Addr + " {\nhosts off\nfamily ipv4\n}\n" + open, target: "a.example:PORT", status: 200, host: "a.example:PORT", uri: "/client?q=1"},
		{name: "header_up Host wins", options: "header_up Host mine.example\n" + open, target: "a.example:PORT", status: 200, host: "mine.example", uri: "/client?q=1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.url == "" {
				test.url = "{header.X-Target}"
			}
			w.run(ports.Replace(fmt.Sprintf(`target_proxy %s {
				tls_trust_pool file %q
				%s
			}
			handle_errors {
				respond "{err.status_code} {http.target.error}"
			}`, test.url, w.ca.File, test.options)))
			res := w.get("/client?q=1", ports.Replace(test.target), header("Host", "client.example"), header("X-Bad", "a b"))
			if res.StatusCode != test.status {
				t.Fatalf("status %d, want %d: %s", res.StatusCode, test.status, res.body)
			}
			if want := ports.Replace(test.host); res.seen.Host != want {
				t.Errorf("Host %q, want %q", res.seen.Host, want)
			}
			if res.seen.URI != test.uri {
				t.Errorf("request URI %q, want %q", res.seen.URI, test.uri)
			}
			if test.status != 200 && !strings.Contains(res.body, test.reason) {
				t.Errorf("body %q, want %q", res.body, test.reason)
			}
		})
	}

	t.Run("an address of several is refused", func(t *testing.T) {
		w.run(w.proxy("deny_ips 127.0.0.2", "header_down Addresses {http.target.addresses}"))
		before := b.RequestsTo("127.0.0.2")
		for range 20 {
			res := w.mustGet("/", "http://both.example:"+b.Port)
			if got := res.Header.Get("Addresses"); got != "127.0.0.3" {
				t.Fatalf("addresses %q, want 127.0.0.3", got)
			}
		}
		if after := b.RequestsTo("127.0.0.2"); after != before {
			t.Errorf("%d requests to the address that is refused", after-before)
		}
	})
}

// TestTimeout: the timeout is for the lookup and for the exchange.
func TestTimeout(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
	})})
	w.dns.Has("a.example", "127.0.0.2")
	w.dns.Set("silent.example", testlab.Reply{Silent: true})
	w.resolver = "timeout 50s\ndeadline 50s"
	w.run(w.proxy("timeout {header.X-Timeout}"))
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		for _, name := range []string{"a.example", "silent.example"} {
			start := time.Now()
			res, err := w.try(method, "/", "http://"+name+":"+b.Port, nil, header("X-Timeout", "100ms"))
			if err != nil {
				t.Fatal(err)
			}
			if res.StatusCode != http.StatusGatewayTimeout || !strings.Contains(res.body, "no answer within the timeout of 100ms") {
				t.Errorf("%s %s: status %d, want 504 and that its time is over: %s", method, name, res.StatusCode, res.body)
			}
			if took := time.Since(start); took < 100*time.Millisecond {
				t.Errorf("%s %s: after %s already, want 100ms at least", method, name, took)
			}
		}
	}
}

// newHolding returns a backend that answers requests for /hold when hold is closed, and how
// many of them have arrived.
func newHolding(t *testing.T) (b *testlab.Backend, arrived *atomic.Int64, hold chan struct{}) {
	t.Helper()
	hold, arrived = make(chan struct{}), new(atomic.Int64)
	return testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			arrived.Add(1)
			<-hold
		}
	})}), arrived, hold
}

// TestMaxRequests: so many requests to one target, and no more.
func TestMaxRequests(t *testing.T) {
	w := newWorld(t)
	b, arrived, hold := newHolding(t)
	w.dns.Has("a.example", "127.0.0.2")
	w.dns.Has("b.example", "127.0.0.2")
	w.run(w.proxy("max_requests 2"))
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if res, err := w.try(http.MethodGet, "/hold", "http://a.example:"+b.Port, nil); err != nil || res.StatusCode != 200 {
				t.Errorf("got %v, %v, want status 200", res, err)
			}
		})
	}
	testlab.Eventually(t, "two requests arrive", func() bool { return arrived.Load() == 2 })
	res := w.get("/", "http://A.example.:"+b.Port+"/other")
	if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" {
		t.Errorf("third request: status %d, Retry-After %q: %s", res.StatusCode, res.Header.Get("Retry-After"), res.body)
	}
	w.mustGet("/", "http://b.example:"+b.Port) // another target
	close(hold)
	wg.Wait()
	w.mustGet("/", "http://a.example:"+b.Port)
}

// TestTooManyLookups: one in flight, one waiting, and no more.
func TestTooManyLookups(t *testing.T) {
	w := newWorld(t)
	w.resolver = "max_lookups 1\ntimeout 50s\ndeadline 50s"
	hold := make(chan struct{})
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	const names = 6
	for i := range names {
		w.dns.Set(fmt.Sprintf("n%d.example", i), testlab.Reply{Addrs: []string{"127.0.0.2"}, TTL: 60, Hold: hold})
	}
	w.run(w.proxy())
	var wg sync.WaitGroup
	var refused, served atomic.Int64
	for i := range names {
		wg.Go(func() {
			res, err := w.try(http.MethodGet, "/", fmt.Sprintf("http://n%d.example:%s", i, b.Port), nil)
			switch {
			case err != nil:
				t.Error(err)
			case res.StatusCode == http.StatusServiceUnavailable && res.Header.Get("Retry-After") != "":
				if want := fmt.Sprintf("503 n%d.example: DNS lookup: too many lookups in flight", i); res.body != want {
					t.Errorf("body %q, want %q", res.body, want)
				}
				refused.Add(1)
			case res.StatusCode == http.StatusOK:
				served.Add(1)
			default:
				t.Errorf("status %d, Retry-After %q: %s", res.StatusCode, res.Header.Get("Retry-After"), res.body)
			}
		})
	}
	testlab.Eventually(t, "all but two are refused", func() bool { return refused.Load() == names-2 })
	close(hold)
	wg.Wait()
	if served.Load() != 2 {
		t.Errorf("%d served, want 2", served.Load())
	}
}

// TestLoop: a request that comes back is recognized; one that errors lead
// through a second handler is not.
func TestLoop(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	w.dns.Has("self.example", "127.0.0.1")
	w.dns.Has("fallback.example", "127.0.0.2")
	w.run(w.proxy())
	for _, change := range []func(*http.Request){
		func(*http.Request) {},
		header("Cdn-Loop", "other.example; id=1"),
	} {
		res := w.get("/", "http://self.example:"+w.port, change, func(r *http.Request) {
			r.Header.Set("X-Target", "http://self.example:"+w.port)
		})
		// the inner request has no X-Target; but what is recognized comes first
		if res.StatusCode != http.StatusLoopDetected || !strings.Contains(res.body, "already") {
			t.Errorf("status %d, want 508 and already: %s", res.StatusCode, res.body)
		}
	}

	res := w.mustGet("/", "http://fallback.example:"+b.Port, header("Cdn-Loop", "other.example; id=1"))
	if got := strings.Join(res.seen.Header["Cdn-Loop"], ", "); !strings.HasPrefix(got, "other.example; id=1, caddytarget; id=") {
		t.Errorf("Cdn-Loop of the backend: %q", got)
	}

	w.run(fmt.Sprintf(`target_proxy {header.X-Target} {
		allow_ips 127.0.0.0/8
	}
	handle_errors {
		target_proxy http://fallback.example:%s/fallback {
			allow_ips 127.0.0.0/8
		}
	}`, b.Port))
	for _, target := range []string{"http://unknown.example", "http://fallback.example:" + testlab.FreePort(t), "http://10.0.0.1", "nonsense /"} {
		res := w.mustGet("/first", target, header("Host", "client.example"))
		if res.seen.URI != "/fallback" || res.seen.Host != "fallback.example:"+b.Port {
			t.Errorf("%s: the fallback saw %q %q", target, res.seen.Host, res.seen.URI)
		}
		if got := res.seen.Header.Get("X-Forwarded-Host"); got != "client.example" {
			t.Errorf("%s: X-Forwarded-Host %q, want client.example", target, got)
		}
	}
}

// TestPlaceholders: for the access log, response headers and error routes. They
// see the client's Host.
func TestPlaceholders(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"}})
	s := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca, HTTP2: true})
	w.dns.Has("a.example", "127.0.0.2", "127.0.0.3")
	logFile := filepath.Join(t.TempDir(), "access.log")
	w.run(fmt.Sprintf(`log {
		output file %q
	}
	log_append url {http.target.url}
	log_append error {http.target.error}
	header >X-Url {http.target.url}
	header >X-Parts "{http.target.scheme} {http.target.host} {http.target.port} {http.target.hostport}"
	header >X-Addresses {http.target.addresses}
	header >X-Lookup {http.target.lookup}
	header >X-Ms {http.target.lookup_ms}
	header >X-Orig {http.request.orig_uri}
	header >X-Host {http.request.host}
	target_proxy {header.X-Target} {
		allow_ips 127.0.0.0/8
		tls_trust_pool file %q
	}
	handle_errors {
		header X-Error-Host {http.request.host}
		header X-Error-Url {http.target.url}
		respond "{err.status_code} {http.target.error}"
	}`, logFile, w.ca.File))

	for _, test := range []struct{ name, target, url, parts, addresses, lookup string }{
		{"miss", "http://A.example:PORT/x?y", "http://a.example:PORT/x?y", "http a.example PORT a.example:PORT", "127.0.0.2,127.0.0.3", "miss"},
		{"hit", "http://a.example:PORT", "http://a.example:PORT/client?q", "http a.example PORT a.example:PORT", "127.0.0.2,127.0.0.3", "hit"},
		{"literal", "https://127.0.0.2:TLS", "https://127.0.0.2:TLS/client?q", "https 127.0.0.2 TLS 127.0.0.2:TLS", "127.0.0.2", "literal"},
		{"hosts", "http://localhost:PORT", "http://localhost:PORT/client?q", "http localhost PORT localhost:PORT", "127.0.0.1", "hosts"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ports := strings.NewReplacer("PORT", b.Port, "TLS", s.Port)
			res := w.mustGet("/client?q", ports.Replace(test.target), header("Host", "client.example"))
			for name, want := range map[string]string{
				"X-Url": test.url, "X-Parts": test.parts, "X-Addresses": test.addresses, "X-Lookup": test.lookup,
				"X-Orig": "/client?q", "X-Host": "client.example",
			} {
				got := res.Header.Get(name)
				if name == "X-Addresses" { // in some order
					list := strings.Split(got, ",")
					slices.Sort(list)
					got = strings.Join(list, ",")
				}
				if got != ports.Replace(want) {
					t.Errorf("%s %q, want %q", name, got, ports.Replace(want))
				}
			}
			if ms := res.Header.Get("X-Ms"); ms == "" || ms == "0" && test.lookup == "miss" {
				t.Errorf("lookup_ms %q, want a number, above 0 for a miss", ms)
			}
		})
	}

	t.Run("error", func(t *testing.T) {
		res := w.get("/client?q", "http://unknown.example/x", header("Host", "client.example"))
		if res.StatusCode != 502 || !strings.Contains(res.body, "unknown.example") {
			t.Errorf("status %d, want 502 and the name: %s", res.StatusCode, res.body)
		}
		if got := res.Header.Get("X-Error-Host"); got != "client.example" {
			t.Errorf("the error route sees the host %q", got)
		}
		if got := res.Header.Get("X-Error-Url"); !strings.HasPrefix(got, "http://unknown.example") {
			t.Errorf("the error route sees the target %q", got)
		}
	})

	w.run(`respond "closes the log"`)
	urls, errs := readAccessLog(t, logFile)
	if len(urls) != 5 || urls[0] != "http://a.example:"+b.Port+"/x?y" || errs[0] != "" {
		t.Errorf("access log has targets %q, errors %q", urls, errs)
	} else if !strings.HasPrefix(urls[4], "http://unknown.example") || !strings.Contains(errs[4], "unknown.example") {
		t.Errorf("access log has target %q, error %q", urls[4], errs[4])
	}
}

// readAccessLog returns the targets and errors of the requests in a log.
func readAccessLog(t *testing.T, name string) (urls, errs []string) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.SplitSeq(bytes.TrimSpace(data), []byte("\n")) {
		var entry struct {
			Request struct{ Host, URI string }
			URL     string
			Error   string
		}
		if err := json.Unmarshal(line, &entry); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if entry.Request.Host != "client.example" || entry.Request.URI != "/client?q" {
			t.Errorf("access log has host %q and URI %q, want client.example and /client?q", entry.Request.Host, entry.Request.URI)
		}
		urls, errs = append(urls, entry.URL), append(errs, entry.Error)
	}
	return urls, errs
}

// randomBody returns 64 kB and more.
func randomBody(t testing.TB) string {
	t.Helper()
	body := make([]byte, 64<<10+7)
	if _, err := rand.Read(body); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", body)
}

// TestFailover: as long as one address works, no request fails.
func TestFailover(t *testing.T) {
	w := newWorld(t)
	w.dns.Has("two.example", "127.0.0.2", "127.0.0.3")
	w.dns.Has("four.example", "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5")
	other := testlab.NewAuthority(t)
	body := randomBody(t)

	refusing := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}})
	refusingTLS := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}, CA: w.ca, HTTP2: true})
	untrusted := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: other, HTTP2: true})
	trusted := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}, CA: w.ca, HTTP2: true, Port: untrusted.Port})
	noTLS := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	withTLS := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}, CA: w.ca, Port: noTLS.Port})
	silent := testlab.SilentBackend(t, "", "127.0.0.2").Port
	notSilent := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}, CA: w.ca, HTTP2: true, Port: silent})
	hole := testlab.NewBlackhole(t, "", "127.0.0.2").Port
	noHole := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}, Port: hole})
	reset := testlab.ResettingBackend(t, "", "127.0.0.2").Port
	noReset := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}, Port: reset})
	last := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.5"}})

	for _, test := range []struct {
		name    string
		target  string
		good    *testlab.Backend
		n       int // requests without ejection
		getOnly bool
	}{
		{"refused", "http://two.example:" + refusing.Port, refusing, 30, false},
		{"refused, https", "https://two.example:" + refusingTLS.Port, refusingTLS, 30, false},
		{"certificate", "https://two.example:" + untrusted.Port, trusted, 30, false},
		{"no TLS", "https://two.example:" + noTLS.Port, withTLS, 30, false},
		{"silent in the handshake", "https://two.example:" + silent, notSilent, 6, false},
		{"silent", "http://two.example:" + hole, noHole, 6, false},
		{"reset", "http://two.example:" + reset, noReset, 30, true},
		{"three of four refused", "http://four.example:" + last.Port, last, 30, false},
	} {
		for _, eject := range []string{"0", "1h"} {
			t.Run(test.name+", fail_duration "+eject, func(t *testing.T) {
				w.run(w.proxy("fail_duration "+eject, "tls_timeout 300ms"))
				for i := range test.n {
					res := w.mustGet("/", test.target)
					if res.seen.Host == "" {
						t.Fatalf("request %d: got %q, want the backend's answer", i, res.body)
					}
					if test.getOnly {
						continue
					}
					for _, method := range []string{http.MethodPost, http.MethodPut} {
						var reader io.Reader = strings.NewReader(body)
						if method == http.MethodPut { // whose length is unknown
							reader = io.MultiReader(reader)
						}
						res, err := w.try(method, "/", test.target, reader)
						if err != nil {
							t.Fatal(err)
						}
						if res.StatusCode != 200 || res.seen.Body != body {
							t.Fatalf("%s %d: status %d, body of %d octets, not %d: %.200s", method, i, res.StatusCode, len(res.seen.Body), len(body), res.body)
						}
					}
				}
			})
		}
	}
}

// TestPostIsNotRepeated: a POST that a backend may have seen is not sent to another.
func TestPostIsNotRepeated(t *testing.T) {
	w := newWorld(t)
	w.dns.Has("two.example", "127.0.0.2", "127.0.0.3")
	reset := testlab.ResettingBackend(t, "", "127.0.0.2").Port
	good := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}, Port: reset})
	w.run(w.proxy("fail_duration 0"))
	before := good.Served.Load()
	failed := 0
	for range 20 {
		res, err := w.try(http.MethodPost, "/", "http://two.example:"+reset, strings.NewReader(randomBody(t)))
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode == http.StatusBadGateway {
			failed++
		}
	}
	if served := int(good.Served.Load() - before); served+failed != 20 || failed == 0 {
		t.Errorf("%d of 20 requests served, %d failed, want 20 together, some of them failed", served, failed)
	}
}

// TestEjection: an address that failed is left alone for a while.
func TestEjection(t *testing.T) {
	w := newWorld(t)
	w.dns.Has("two.example", "127.0.0.2", "127.0.0.3")
	w.dns.Has("other.example", "127.0.0.2", "127.0.0.3")

	t.Run("TCP", func(t *testing.T) {
		good := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}})
		target := "http://two.example:" + good.Port
		w.run(w.proxy("fail_duration 1h"))
		for range 20 { // at least one of them met the other address, but for one in a million
			w.mustGet("/", target)
		}
		back := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, Port: good.Port})
		for range 20 {
			w.mustGet("/", target)
			w.mustGet("/", "http://other.example:"+good.Port) // for all targets
		}
		if n := back.Opened.Load(); n != 0 {
			t.Errorf("%d connections to the address that was ejected", n)
		}
		w.run(w.proxy("fail_duration 10ms"))
		testlab.Eventually(t, "the address comes back", func() bool {
			w.mustGet("/", target)
			return back.Served.Load() > 0
		})
	})

	t.Run("TLS", func(t *testing.T) {
		bad := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca, HTTP2: true})
		bad.SetCertificate("two.example", "wrong.example")
		good := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}, CA: w.ca, HTTP2: true, Port: bad.Port})
		target := "https://two.example:" + good.Port
		w.run(w.proxy("fail_duration 1h"))
		for range 20 {
			w.mustGet("/", target)
		}
		opened := bad.Opened.Load()
		if opened == 0 {
			t.Fatal("no connection to the bad address at all")
		}
		for range 20 {
			w.mustGet("/", target)
		}
		if n := bad.Opened.Load(); n != opened {
			t.Errorf("%d connections to the address that was ejected", n-opened)
		}
		// for this target alone
		testlab.Eventually(t, "another target uses the address", func() bool {
			w.mustGet("/", "https://other.example:"+good.Port)
			return bad.Served.Load() > 0
		})
		bad.SetCertificate("two.example", "two.example")
		before := bad.Served.Load()
		w.run(w.proxy("fail_duration 10ms"))
		testlab.Eventually(t, "the address comes back", func() bool {
			w.mustGet("/", target)
			return bad.Served.Load() > before
		})
	})
}

// TestEjectionOfAll: if all addresses of a target fail, none is left out.
func TestEjectionOfAll(t *testing.T) {
	w := newWorld(t)
	w.dns.Has("two.example", "127.0.0.2", "127.0.0.3")

	t.Run("all dead", func(t *testing.T) {
		w.run(w.proxy("fail_duration 1h"))
		dead := testlab.FreePort(t)
		for range 5 {
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				res, err := w.try(method, "/", "http://two.example:"+dead, strings.NewReader("body"))
				if err != nil {
					t.Fatal(err)
				}
				if res.StatusCode != http.StatusBadGateway || !strings.Contains(res.body, "connection refused") {
					t.Fatalf("%s: got status %d, %s, want 502, connection refused", method, res.StatusCode, res.body)
				}
			}
		}
		// never all: when they work again, they are used at once
		testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2", "127.0.0.3"}, Port: dead})
		w.mustGet("/", "http://two.example:"+dead)
	})

	t.Run("all silent", func(t *testing.T) {
		w.dns.Has("hole.example", "127.0.0.6")
		hole := testlab.NewBlackhole(t, "", "127.0.0.6").Port
		w.run(w.proxy("dial_timeout 200ms", "tls_timeout 200ms"))
		silent := testlab.SilentBackend(t, "", "127.0.0.6").Port
		for _, target := range []string{"http://hole.example:" + hole, "https://hole.example:" + hole, "https://hole.example:" + silent} {
			if res := w.get("/", target); res.StatusCode != http.StatusGatewayTimeout {
				t.Errorf("%s: got %v, want status 504", target, res)
			}
		}
	})
}

// TestMove: a name that moves is followed, also while connections are warm.
func TestMove(t *testing.T) {
	w := newWorld(t)
	w.resolver = "min_ttl 50ms"
	old := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca, HTTP2: true})
	now := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}, CA: w.ca, HTTP2: true, Port: old.Port})
	w.dns.Set("a.example", testlab.Reply{Addrs: []string{"127.0.0.2"}})
	w.run(w.proxy())
	target := "https://a.example:" + old.Port
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				res, err := w.try(http.MethodGet, "/", target, nil)
				if err != nil || res.StatusCode != 200 {
					t.Errorf("got %v, %v, want status 200", res, err)
					return
				}
			}
		})
	}
	testlab.Eventually(t, "requests to the old address", func() bool { return old.Served.Load() > 20 })
	w.dns.Set("a.example", testlab.Reply{Addrs: []string{"127.0.0.3"}})
	testlab.Eventually(t, "requests to the new address", func() bool { return now.Served.Load() > 20 })
	testlab.Eventually(t, "no more requests to the old address", func() bool {
		before := old.Served.Load()
		served := now.Served.Load()
		for now.Served.Load() < served+20 {
			time.Sleep(time.Millisecond)
		}
		return old.Served.Load() == before
	})
	close(stop)
	wg.Wait()
}

// TestDynamicTarget: the source with a name of its own, without the handler. It is
// long because its table is.
func TestDynamicTarget(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2", "127.0.0.3"}})
	s := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2", "127.0.0.3"}, CA: w.ca, HTTP2: true})
	w.dns.Has("a.example", "127.0.0.2")
	w.dns.Has("b.example", "127.0.0.3")
	w.dns.Has("dead.example", "127.0.0.9")
	w.dns.Has("private.example", "10.0.0.1")
	ports := strings.NewReplacer("PORT", b.Port, "TLS", s.Port, "CA", w.ca.File)
	for _, test := range []struct {
		name, proxy, header string
		status              int
		host, sni, proto    string
	}{
		{
			name: "plain", proxy: "dynamic target A.example. PORT\ntransport target",
			status: 200, host: "client.example", proto: "HTTP/1.1",
		},
		{
			name: "literal name is not checked", proxy: "dynamic target 127.0.0.2 PORT\ntransport target",
			status: 200, host: "client.example", proto: "HTTP/1.1",
		},
		{
			name: "Caddy's own transport", proxy: "dynamic target a.example PORT",
			status: 200, host: "client.example", proto: "HTTP/1.1",
		},
		{
			name: "TLS", proxy: "dynamic target a.example TLS\ntransport target {\ntls\ntls_trust_pool file CA\n}",
			status: 200, host: "a.example:TLS", sni: "a.example", proto: "HTTP/2.0",
		},
		{
			name: "TLS, server name", proxy: "dynamic target a.example TLS\ntransport target {\ntls\ntls_trust_pool file CA\ntls_server_name b.example\n}",
			status: 200, host: "a.example:TLS", sni: "b.example", proto: "HTTP/2.0",
		},
		{
			name: "TLS, header_up Host", proxy: "dynamic target a.example TLS\nheader_up Host mine.example\ntransport target {\ntls\ntls_trust_pool file CA\n}",
			status: 200, host: "mine.example", sni: "a.example", proto: "HTTP/2.0",
		},
		{
			name: "plain, header_up Host that changes nothing", proxy: "dynamic target a.example PORT\nheader_up Host nothing else\ntransport target",
			status: 200, host: "client.example", proto: "HTTP/1.1",
		},
		{
			name: "TLS, header_up Host that changes nothing", proxy: "dynamic target a.example TLS\nheader_up Host nothing else\ntransport target {\ntls\ntls_trust_pool file CA\n}",
			status: 200, host: "a.example:TLS", sni: "a.example", proto: "HTTP/2.0",
		},
		{
			name: "placeholder", proxy: "dynamic target {header.X-Name} PORT {\nallow *.example\nallow_ips 127.0.0.0/8\n}\ntransport target",
			header: "a.example", status: 200, host: "client.example", proto: "HTTP/1.1",
		},
		{
			name: "placeholder, TLS", proxy: "dynamic target {header.X-Name} TLS {\nallow *.example\nallow_ips 127.0.0.0/8\n}\ntransport target {\ntls\ntls_trust_pool file CA\n}",
			header: "b.example", status: 200, host: "b.example:TLS", sni: "b.example", proto: "HTTP/2.0",
		},
		{
			name: "placeholder, name refused", proxy: "dynamic target {header.X-Name} PORT {\nallow a.example\nallow_ips 127.0.0.0/8\n}\ntransport target",
			header: "b.example", status: 503,
		},
		{
			name: "placeholder, address refused", proxy: "dynamic target {header.X-Name} PORT {\nallow *.example\n}\ntransport target",
			header: "private.example", status: 503,
		},
		{
			name: "placeholder, empty", proxy: "dynamic target {header.X-Name} PORT {\nallow *.example\n}\ntransport target",
			status: 503,
		},
		{
			name: "port by placeholder", proxy: "dynamic target a.example {header.X-Name}\ntransport target",
			header: "PORT", status: 200, host: "client.example", proto: "HTTP/1.1",
		},
		{
			name: "unknown name", proxy: "dynamic target unknown.example PORT\ntransport target",
			status: 503,
		},
		{
			name: "no listener", proxy: "dynamic target dead.example PORT\ntransport target",
			status: 502,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.run("reverse_proxy {\n" + ports.Replace(test.proxy) + "\n}")
			for range 3 {
				res := w.get("/x?y", "", header("Host", "client.example"), header("X-Name", ports.Replace(test.header)))
				if res.StatusCode != test.status {
					t.Fatalf("status %d, want %d: %s", res.StatusCode, test.status, res.body)
				}
				if test.status != 200 {
					continue
				}
				if want := ports.Replace(test.host); res.seen.Host != want || res.seen.SNI != test.sni || res.seen.Proto != test.proto || res.seen.URI != "/x?y" {
					t.Errorf("the backend saw Host %q, SNI %q, %s, %s", res.seen.Host, res.seen.SNI, res.seen.Proto, res.seen.URI)
				}
			}
		})
	}
}

// TestDynamicMulti: two sources of dynamic multi with the same port.
func TestDynamicMulti(t *testing.T) {
	w := newWorld(t)
	w.dns.Has("a.example", "127.0.0.2")
	w.dns.Has("c.example", "127.0.0.4")
	s := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca, HTTP2: true})
	c := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.4"}, CA: w.ca, HTTP2: true, Port: s.Port})
	ports := strings.NewReplacer("TLS", s.Port, "CA", w.ca.File)
	w.run(ports.Replace(`reverse_proxy {
		dynamic multi {
			target a.example TLS
			target c.example TLS
			target unknown.example TLS
		}
		lb_retries 3
		transport target {
			tls
			tls_trust_pool file CA
		}
	}`))
	for try := 0; s.Served.Load() < 5 || c.Served.Load() < 5; try++ {
		res := w.mustGet("/", "")
		if want := map[string]string{"127.0.0.2": "a.example", "127.0.0.4": "c.example"}[res.seen.Address]; res.seen.SNI != want || res.seen.Host != want+":"+s.Port {
			t.Fatalf("at %s the SNI is %q, Host %q", res.seen.Address, res.seen.SNI, res.seen.Host)
		}
		if try > 500 {
			t.Fatal("not all sources are used")
		}
	}
	for _, shared := range append(s.Misdirected(), c.Misdirected()...) {
		t.Errorf("a connection served more than one name: %s", shared)
	}
}

// TestHandlerMissing: a source without a name needs the handler.
func TestHandlerMissing(t *testing.T) {
	w := newWorld(t)
	w.run("reverse_proxy {\ndynamic target\ntransport target\n}")
	if res := w.get("/", ""); res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("got status %d, want 503", res.StatusCode)
	}
}

// TestOutage: nameservers that go silent do not take known names away.
func TestOutage(t *testing.T) {
	w := newWorld(t)
	w.resolver = "min_ttl 20ms\ntimeout 50ms\ntries 2\ndeadline 200ms"
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2", "127.0.0.3"}})
	const names = 20
	target := func(i int) string { return fmt.Sprintf("http://n%d.example:%s", i, b.Port) }
	for i := range names {
		w.dns.Set(fmt.Sprintf("n%d.example", i), testlab.Reply{Addrs: []string{"127.0.0.2"}})
	}
	w.dns.Has("new.example", "127.0.0.2")
	w.run(w.proxy("header_down Lookup {http.target.lookup}"))
	for i := range names {
		w.mustGet("/", target(i))
	}
	w.dns.SetSilent(true)
	stale := 0
	for start := time.Now(); time.Since(start) < time.Second; {
		for i := range names {
			if w.mustGet("/", target(i)).Header.Get("Lookup") == "stale" {
				stale++
			}
		}
	}
	if stale == 0 {
		t.Error("no answer was stale: there was no outage")
	}
	n := 0
	testlab.Eventually(t, "the outage is known", func() bool {
		n++
		res := w.get("/", fmt.Sprintf("http://unknown%d.example:%s", n, b.Port))
		return res.body == fmt.Sprintf("502 unknown%d.example: DNS lookup (A): all nameservers are down (%s: no reply)", n, w.dns.Addr)
	})
	for _, name := range []string{"new.example", "unknown.example"} {
		res := w.get("/", "http://"+name+":"+b.Port)
		if res.StatusCode != 502 && res.StatusCode != 504 {
			t.Errorf("%s: status %d, want 502 or 504: %s", name, res.StatusCode, res.body)
		}
	}
	for i := range names {
		w.dns.Set(fmt.Sprintf("n%d.example", i), testlab.Reply{Addrs: []string{"127.0.0.3"}})
	}
	w.dns.SetSilent(false)
	for i := range names {
		testlab.Eventually(t, "fresh answers", func() bool { return w.mustGet("/", target(i)).seen.Address == "127.0.0.3" })
	}
	testlab.Eventually(t, "a name that was unknown", func() bool { return w.get("/", "http://new.example:"+b.Port).StatusCode == 200 })
}

// TestLeave: a client that leaves does not cancel what others wait for.
func TestLeave(t *testing.T) {
	w := newWorld(t)
	w.resolver = "timeout 50s\ndeadline 50s"
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	hold := make(chan struct{})
	w.dns.Set("a.example", testlab.Reply{Addrs: []string{"127.0.0.2"}, TTL: 60, Hold: hold})
	logFile := filepath.Join(t.TempDir(), "access.log")
	w.run(w.proxy() + fmt.Sprintf("\nlog {\noutput file %q\n}", logFile))
	target := "http://a.example:" + b.Port

	ctx, leave := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := w.try(http.MethodGet, "/left", target, nil, func(r *http.Request) { *r = *r.WithContext(ctx) }); !errors.Is(err, context.Canceled) {
			t.Errorf("the client that left: %v", err)
		}
	})
	testlab.Eventually(t, "the query", func() bool { return w.dns.Asked("a.example") == 1 })
	for range 5 {
		wg.Go(func() {
			res, err := w.try(http.MethodGet, "/", target, nil)
			if err != nil || res.StatusCode != 200 {
				t.Errorf("got %v, %v, want status 200", res, err)
			}
		})
	}
	leave()
	testlab.Eventually(t, "Caddy notices", func() bool {
		data, _ := os.ReadFile(logFile)
		return bytes.Contains(data, []byte(`"status":499`))
	})
	close(hold)
	wg.Wait()
	if n := w.dns.Asked("a.example"); n != 1 {
		t.Errorf("%d queries, want 1", n)
	}
}

// TestLeaveDial: a client that leaves says nothing about the address it waited for.
func TestLeaveDial(t *testing.T) {
	w := newWorld(t)
	hole := testlab.NewBlackhole(t, "", "127.0.0.6").Port
	w.dns.Has("hole.example", "127.0.0.6")
	w.run(w.proxy("dial_timeout 50s"))
	shared := acquireShared()
	defer releaseShared()
	h := shared.health
	ctx, leave := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer leave()
	_, err := w.try(http.MethodGet, "/", "http://hole.example:"+hole, nil, func(r *http.Request) { *r = *r.WithContext(ctx) })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the client that left: %v", err)
	}
	w.run(w.proxy())
	for range 30 {
		if n := h.Len(); n != 0 {
			t.Fatalf("%d failures are remembered", n)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestReload: what a reload keeps and what it changes.
func TestReload(t *testing.T) {
	w := newWorld(t)
	w.resolver = "timeout 50s\ndeadline 50s"
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2", "127.0.0.3"}})
	w.dns.Set("a.example", testlab.Reply{Addrs: []string{"127.0.0.2"}, TTL: 3600})
	target := "http://a.example:" + b.Port

	t.Run("cache", func(t *testing.T) {
		w.run(w.proxy())
		w.mustGet("/", target)
		for i := range 10 {
			w.run(w.proxy(fmt.Sprintf("header_down Run %d", i)))
			if got := w.mustGet("/", target).Header.Get("Run"); got != fmt.Sprint(i) {
				t.Fatalf("run %s, want %d", got, i)
			}
		}
		if n := w.dns.Total(); n != 1 {
			t.Errorf("%d queries, want 1", n)
		}
	})

	t.Run("nameservers", func(t *testing.T) {
		before := w.dns
		defer func() { w.dns = before }()
		w.dns = testlab.NewNameserver(t)
		w.dns.Set("a.example", testlab.Reply{Addrs: []string{"127.0.0.3"}, TTL: 3600})
		w.run(w.proxy())
		if got := w.mustGet("/", target).seen.Address; got != "127.0.0.3" {
			t.Errorf("the old address %s", got)
		}
		if n := before.Total(); n != 1 {
			t.Errorf("%d queries to the old nameserver", n)
		}
		w.dns = before
		w.run(w.proxy()) // while the new one is there still
	})

	t.Run("a lookup in the middle", func(t *testing.T) {
		before := w.dns
		defer func() { w.dns = before }()
		hold := make(chan struct{})
		before.Set("held.example", testlab.Reply{Addrs: []string{"127.0.0.2"}, TTL: 60, Hold: hold})
		w.run(w.proxy())
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				res, err := w.try(http.MethodGet, "/", "http://held.example:"+b.Port, nil)
				if err != nil || res.StatusCode != 200 {
					t.Errorf("got %v, %v, want status 200", res, err)
				}
			})
		}
		testlab.Eventually(t, "the query", func() bool { return before.Asked("held.example") > 0 })
		w.dns = testlab.NewNameserver(t)
		w.run(w.proxy())
		close(hold)
		wg.Wait()
		w.dns = before
		w.run(w.proxy())
	})

	t.Run("rules", func(t *testing.T) {
		w.run(w.proxy())
		w.mustGet("/", target)
		w.run(w.proxy("deny a.example"))
		if res := w.get("/", target); res.StatusCode != http.StatusForbidden {
			t.Errorf("status %d, want 403", res.StatusCode)
		}
	})

	t.Run("a configuration that is refused", func(t *testing.T) {
		w.run(w.proxy("header_down Run good"))
		if err := w.tryRun("reverse_proxy {\ndynamic target\ntransport target {\nversions 3\n}\n}"); err == nil {
			t.Error("it is accepted")
		}
		if got := w.mustGet("/", target).Header.Get("Run"); got != "good" {
			t.Errorf("run %q, want good", got)
		}
	})
}

// TestReloadUnderLoad: no request fails while the configuration changes.
func TestReloadUnderLoad(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2", "127.0.0.3"}})
	s := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2", "127.0.0.3"}, CA: w.ca, HTTP2: true})
	for i := range 8 {
		w.dns.Has(fmt.Sprintf("n%d.example", i), "127.0.0.2", "127.0.0.3")
	}
	second := testlab.NewNameserver(t)
	for i := range 8 {
		second.Has(fmt.Sprintf("n%d.example", i), "127.0.0.3", "127.0.0.2")
	}
	first := w.dns
	defer func() { w.dns = first }()
	w.run(w.proxy())
	stop := make(chan struct{})
	var served atomic.Int64
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			target := fmt.Sprintf("http://n%d.example:%s", i, b.Port)
			if i%2 == 1 {
				target = fmt.Sprintf("https://n%d.example:%s", i, s.Port)
			}
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				method, body := http.MethodGet, ""
				if n%2 == 1 {
					method, body = http.MethodPost, strings.Repeat("body", 1000)
				}
				res, err := w.try(method, "/", target, strings.NewReader(body))
				if err != nil && res.Response == nil {
					continue // the listener that is shut down has turned the client away
				}
				if err != nil || res.StatusCode != 200 || res.seen.Body != body {
					t.Errorf("%s %s: got %v, %v, want status 200 and the body that was sent", method, target, res, err)
					return
				}
				served.Add(1)
			}
		})
	}
	for i := range 20 {
		n := served.Load()
		testlab.Eventually(t, "requests", func() bool { return served.Load() > n+20 || t.Failed() })
		w.dns = first
		if i%4 == 3 {
			w.dns = second
		}
		w.run(w.proxy(fmt.Sprintf("header_down Run %d", i)))
	}
	close(stop)
	wg.Wait()
	for _, shared := range s.Misdirected() {
		t.Errorf("a connection served more than one name: %s", shared)
	}
}

// TestOpaqueRequestTarget checks that a request line cannot replace what is
// called.
func TestOpaqueRequestTarget(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{})
	w.run(w.proxy())
	for _, line := range []string{"x:http://evil.example/secret", "x:secret"} {
		conn, err := net.Dial("tcp", "127.0.0.1:"+w.port)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\nX-Target: http://127.0.0.1:%s/only/this\r\nConnection: close\r\n\r\n", line, b.Port)
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		conn.Close()
		if res.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: status %d, want 400", line, res.StatusCode)
		}
	}
	if n := b.Served.Load(); n != 0 {
		t.Errorf("the backend got %d requests", n)
	}
}

// TestHTTPSLiteral checks that an IPv6 literal, colons and all, makes a key that
// HTTP/2 connections are found by.
func TestHTTPSLiteral(t *testing.T) {
	w := newWorld(t)
	for _, addr := range []string{"127.0.0.1", "::1"} {
		b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{addr}, CA: w.ca, HTTP2: true})
		w.run(w.proxy("tls_insecure_skip_verify")) // the certificates are for names
		for range 3 {
			res := w.mustGet("/", "https://"+net.JoinHostPort(addr, b.Port))
			if res.StatusCode != http.StatusOK {
				t.Errorf("%s: status %d, want 200: %s", addr, res.StatusCode, res.body)
			}
		}
		if n := b.Opened.Load(); n != 1 {
			t.Errorf("%s: %d connections, want 1", addr, n)
		}
	}
}
