package outgoing

import (
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"caddytarget/internal/pool"
	"caddytarget/internal/replay"
)

// TestSet checks what is sent of a request.
func TestSet(t *testing.T) {
	req := httptest.NewRequest(http.MethodPost, "http://client.example/a?b=c", strings.NewReader("body"))
	for name, value := range map[string]string{
		"X-Target": "http://a.example", "Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "Http2-Settings": "x", "X-Fine": "1", LoopHeader: "other",
	} {
		req.Header.Set(name, value)
	}
	body := replay.New(req.Body, 0)
	var r Request
	var err error
	if r.Body, err = body.Open(true); err != nil {
		t.Fatal(err)
	}
	r.Set(req, body, Changes{Scheme: "https", Address: "192.0.2.1:443", Strip: "X-Target"})
	if got := r.URL.String(); got != "https://192.0.2.1:443/a?b=c" || req.URL.Host != "client.example" {
		t.Errorf("URL %s, and %s of the request", got, req.URL)
	}
	if got, want := strings.Join(slices.Sorted(maps.Keys(r.Header)), " "), "Cdn-Loop X-Fine"; got != want {
		t.Errorf("header %s, want %s", got, want)
	}
	if text, _ := io.ReadAll(r.Body); string(text) != "body" {
		t.Errorf("body %q, want that of the request", text)
	}
	if !HasLoopID(r.Header) || len(r.Header[LoopHeader]) != 2 {
		t.Errorf("%s %q, want another value", LoopHeader, r.Header[LoopHeader])
	}
	r.Set(req, body, Changes{})
	if len(r.Header[LoopHeader]) != 2 {
		t.Errorf("%s %q after the second attempt, want the same", LoopHeader, r.Header[LoopHeader])
	}
	if HasLoopID(http.Header{LoopHeader: {"caddytarget; id=00"}}) {
		t.Error("the mark of another process is taken for that of this one")
	}
}

// TestTrailers: what is not sent on is taken out at once, and when the body has been read.
func TestTrailers(t *testing.T) {
	req := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("body"))
	req.Trailer = http.Header{"X-Fine": nil, "X-Strip": nil, "X-Forwarded-For": nil, "X-Set-1": nil, "X-Any": nil}
	body := replay.New(req.Body, 0)
	var r Request
	r.Body, _ = body.Open(true)
	r.Set(req, body, Changes{Strip: "X-Strip", Operations: []string{"x-set-*", "X-Any"}})
	names := func() string { return strings.Join(slices.Sorted(maps.Keys(r.Trailer)), " ") }
	if got := names(); got != "X-Fine" {
		t.Errorf("announced: %s, want X-Fine", got)
	}
	req.Trailer.Set("X-Late", "1")
	req.Trailer.Set("X-Strip", "1")
	req.Trailer.Set("X-Set-2", "1")
	if _, err := io.ReadAll(r.Body); err != nil {
		t.Fatal(err)
	}
	if got := names(); got != "X-Fine X-Late" {
		t.Errorf("with the body read: %s, want X-Fine X-Late", got)
	}
}

// TestSetKey checks where a connection leads, and what is spoken over it.
func TestSetKey(t *testing.T) {
	upgrade := http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}}
	for _, test := range []struct {
		network, address, scheme string
		header                   http.Header
		want                     pool.Key
	}{
		{"tcp", "192.0.2.1:80", "http", nil, pool.Key{Addr: netip.MustParseAddrPort("192.0.2.1:80")}},
		{"tcp", "[2001:db8::1]:80", "http", upgrade, pool.Key{Addr: netip.MustParseAddrPort("[2001:db8::1]:80")}},
		{"tcp", "192.0.2.1:443", "https", nil, pool.Key{Addr: netip.MustParseAddrPort("192.0.2.1:443"), Protocol: pool.TLS}},
		{"tcp", "192.0.2.1:443", "https", upgrade, pool.Key{Addr: netip.MustParseAddrPort("192.0.2.1:443"), Protocol: pool.TLSHTTP1}},
		{"tcp", "192.0.2.1:80", "h2c", nil, pool.Key{Addr: netip.MustParseAddrPort("192.0.2.1:80"), Protocol: pool.HTTP2}},
		{"tcp", "192.0.2.1:80", "h2c", upgrade, pool.Key{Addr: netip.MustParseAddrPort("192.0.2.1:80")}},
		{"tcp", "a.example:80", "http", nil, pool.Key{Dial: "tcp a.example:80"}},
		{"unix", "/run/a.sock", "http", nil, pool.Key{Dial: "unix /run/a.sock"}},
		{"udp", "192.0.2.1:80", "http", nil, pool.Key{Dial: "udp 192.0.2.1:80"}},
	} {
		var got pool.Key
		if SetKey(&got, test.network, test.address, test.scheme, test.header); got != test.want {
			t.Errorf("%s %s, %s: got %+v, want %+v", test.network, test.address, test.scheme, got, test.want)
		}
	}
}
