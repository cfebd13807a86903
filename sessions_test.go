package caddytarget

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"

	"caddytarget/internal/testlab"
)

// TestSessionsOutliveReload: a reload does not cost full handshakes, unless it
// changes whom the gateway trusts or what it shows of itself.
func TestSessionsOutliveReload(t *testing.T) {
	w := newWorld(t)
	var resumed atomic.Int64
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca, HTTP2: true, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.TLS.DidResume {
			resumed.Add(1)
		}
	})})
	w.dns.Has("name.example", "127.0.0.2")
	other := testlab.NewAuthority(t)
	cert, key := w.ca.Files(t, "client.example")
	get := func(status int) bool {
		t.Helper()
		before := resumed.Load()
		if res := w.get("/", "https://name.example:"+b.Port); res.StatusCode != status {
			t.Errorf("got %v, want status %d", res, status)
		}
		return resumed.Load() > before
	}
	site := func(file string, options ...string) string {
		defer func(own string) { w.ca.File = own }(w.ca.File)
		w.ca.File = file
		return w.proxy(options...)
	}
	for _, test := range []struct {
		about   string
		options []string
		status  int
		resumed bool
	}{
		{"at first", []string{}, 200, false},
		{"the same", []string{"header_down Run 2"}, 200, true},
		{"another number", []string{"tls_session_cache 10"}, 200, false},
		{"none", []string{"tls_session_cache off"}, 200, false},
		{"other roots", nil, 502, false},
		{"no verification", []string{"tls_insecure_skip_verify"}, 200, false},
		{"verification after none", []string{}, 200, false},
		{"a client certificate", []string{fmt.Sprintf("tls_client_auth %s %s", cert, key)}, 200, false},
		{"the same client certificate", []string{fmt.Sprintf("tls_client_auth %s %s", cert, key), "header_down Run 3"}, 200, true},
	} {
		file := w.ca.File
		if test.about == "other roots" {
			file = other.File
		}
		// a new connection for each request, which otherwise would outlive a reload, too
		w.run(site(file, append(test.options, "keepalive off")...))
		if got := get(test.status); got != test.resumed {
			t.Errorf("%s: resumed: got %t, want %t", test.about, got, test.resumed)
		}
	}
}
