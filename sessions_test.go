package caddytarget

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
)

// TestSessionsOutliveReload: a reload does not cost full handshakes, unless it
// changes whom the gateway trusts or what it shows of itself.
func TestSessionsOutliveReload(t *testing.T) {
	w := newWorld(t)
	var resumed atomic.Int64
	b := newBackend(t, backendConfig{addrs: []string{"127.0.0.2"}, ca: w.ca, h2: true, handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.TLS.DidResume {
			resumed.Add(1)
		}
	})})
	w.dns.has("name.example", "127.0.0.2")
	other := newAuthority(t)
	cert, key := w.ca.files(t, "client.example")
	get := func(status int) bool {
		t.Helper()
		before := resumed.Load()
		if res := w.get("/", "https://name.example:"+b.port); res.StatusCode != status {
			t.Error(res)
		}
		return resumed.Load() > before
	}
	site := func(file string, options ...string) string {
		defer func(own string) { w.ca.file = own }(w.ca.file)
		w.ca.file = file
		return w.proxy(options...)
	}
	for _, test := range []struct {
		about   string
		config  string
		status  int
		resumed bool
	}{
		{"at first", w.proxy(), 200, false},
		{"the same", w.proxy("header_down Run 2"), 200, true},
		{"another number", w.proxy("tls_session_cache 10"), 200, false},
		{"none", w.proxy("tls_session_cache off"), 200, false},
		{"other roots", site(other.file), 502, false},
		{"no verification", w.proxy("tls_insecure_skip_verify"), 200, false},
		{"verification after none", w.proxy(), 200, false},
		{"a client certificate", w.proxy(fmt.Sprintf("tls_client_auth %s %s", cert, key)), 200, false},
		{"the same client certificate", w.proxy(fmt.Sprintf("tls_client_auth %s %s", cert, key), "header_down Run 3"), 200, true},
	} {
		w.run(test.config)
		if got := get(test.status); got != test.resumed {
			t.Errorf("%s: resumed: %t", test.about, got)
		}
	}
}

// TestSessionCaches: transports share sessions only if they trust the same.
func TestSessionCaches(t *testing.T) {
	var s sessions
	acquire := func(n int, roots *x509.CertPool) *sessionCache {
		c, err := s.acquire(n, nil, &tls.Config{RootCAs: roots})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	ca := newAuthority(t)
	first := acquire(10, ca.pool())
	if acquire(10, ca.pool()) != first {
		t.Error("not shared")
	}
	for name, other := range map[string]*sessionCache{
		"number": acquire(20, ca.pool()), "roots": acquire(10, newAuthority(t).pool()), "roots of the system": acquire(10, nil),
	} {
		if other == first {
			t.Errorf("shared with another %s", name)
		}
	}
	s.release(first)
	if acquire(10, ca.pool()) != first {
		t.Error("released too early")
	}
	s.release(first)
	s.release(first)
	if acquire(10, ca.pool()) == first {
		t.Error("kept for ever")
	}
}
