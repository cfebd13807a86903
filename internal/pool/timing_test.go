package pool

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"caddytarget/internal/testlab"
)

// phasesOf returns the phases that happened, in their order, or what is wrong with them.
func phasesOf(t *Timing, begun time.Time) string {
	var phases []string
	last := begun
	for ph, name := range []string{"connect", "tls", "send", "response"} {
		s := t.Steps[ph]
		if !s.Happened() {
			continue
		}
		if s.Begin.Before(last) || s.End.Before(s.Begin) || time.Now().Before(s.End) {
			return fmt.Sprintf("%s is from %s to %s, the step before it to %s", name, s.Begin, s.End, last)
		}
		last = s.End
		phases = append(phases, name)
	}
	return strings.Join(phases, " ")
}

// TestTiming checks which steps are taken down, and that they follow each other.
// It is long because its table is.
func TestTiming(t *testing.T) {
	hung := make(chan struct{})
	plain := newBackend(t, func(c net.Conn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			switch {
			case err != nil:
				return
			case req.URL.Path == "/close":
				_, _ = io.Copy(io.Discard, req.Body)
				return
			case req.URL.Path == "/hang":
				<-hung
				return
			case req.URL.Path != "/early":
				_, _ = io.Copy(io.Discard, req.Body)
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	defer close(hung)
	silent := testlab.NewRawBackend(t, "", "127.0.0.1", nil, func(c net.Conn) { <-hung })
	p := newPool(t, Config{})
	do := func(o *Order, method, path string, body io.Reader, limit time.Duration) (*Timing, string, error) {
		t.Helper()
		o.Timing = new(Timing)
		begun := time.Now()
		req := request(t, method, path, body)
		if limit > 0 {
			ctx, cancel := context.WithTimeout(req.Context(), limit)
			defer cancel()
			req = req.WithContext(ctx)
		}
		res, err := p.RoundTrip(req, o)
		if err == nil {
			_, _ = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
		}
		return o.Timing, phasesOf(o.Timing, begun), err
	}
	tls := plain.order("tls.example")
	tls.Key.ServerName, tls.Key.Protocol = "tls.example", TLS
	quiet := *tls
	quiet.Key.Addr = netip.MustParseAddrPort("127.0.0.1:" + silent.Port)
	refused := plain.order("refused.example")
	refused.Key.Addr = netip.MustParseAddrPort("127.0.0.1:" + testlab.FreePort(t))
	a := plain.order("a.example")
	for _, tc := range []struct {
		name         string
		order        *Order
		method, path string
		body         io.Reader
		limit        time.Duration
		want         string
		phase        Phase // of the error
		failed       bool
	}{
		{"a new connection", a, "GET", "/", nil, 0, "connect send response", 0, false},
		{"the same one", a, "GET", "/", nil, 0, "send response", 0, false},
		{"with a body", a, "POST", "/", strings.NewReader("body"), 0, "send response", 0, false},
		{"closed without a response", a, "POST", "/close", strings.NewReader("body"), 0, "send response", Response, true},
		{"nothing listens", refused, "GET", "/", nil, 0, "connect", Connect, true},
		{"no TLS", tls, "GET", "/", nil, 0, "connect tls", Handshake, true},
		{"silent in the handshake", &quiet, "GET", "/", nil, time.Second, "connect tls", Handshake, true},
		{"no response", plain.order("b.example"), "GET", "/hang", nil, time.Second, "connect send response", Response, true},
	} {
		_, got, err := do(tc.order, tc.method, tc.path, tc.body, tc.limit)
		// the end of the connection may be seen before the goroutine of the upload has said that all is sent
		if early := tc.failed && tc.body != nil && got == "send"; got != tc.want && !early {
			t.Errorf("%s: got the steps %s, want %s", tc.name, got, tc.want)
		}
		if e, ok := errors.AsType[*Error](err); ok != tc.failed || ok && e.Phase != tc.phase {
			t.Errorf("%s: got the error %v, want one %t, phase %d", tc.name, err, tc.failed, tc.phase)
		}
	}
	// a body that ends after the response
	body, more := io.Pipe()
	go func() { _, _ = io.WriteString(more, "begun") }()
	timing, got, err := do(plain.order("c.example"), "POST", "/early", body, 0)
	_ = more.Close()
	if err != nil || got != "connect send response" || timing.Steps[Response].Duration() != 0 {
		t.Errorf("an early response: got %s, %v and %s, want all steps and no time after the body", got, err, timing.Steps[Response].Duration())
	}
}

// TestTimingHTTP2 is TestTiming over HTTP/2.
func TestTimingHTTP2(t *testing.T) {
	b := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	b.Config.Protocols = new(http.Protocols)
	b.Config.Protocols.SetUnencryptedHTTP2(true)
	b.Start()
	defer b.Close()
	p := newPool(t, Config{})
	for i, want := range []string{"connect send response", "send response"} {
		o := &Order{Key: Key{Addr: netip.MustParseAddrPort(b.Listener.Addr().String()), Host: "a.example", Protocol: HTTP2}, Last: true, Timing: new(Timing)}
		begun := time.Now()
		if _, err := get(t, p, o, "/"); err != nil {
			t.Fatal(err)
		}
		if got := phasesOf(o.Timing, begun); got != want || !o.Timing.HTTP2 {
			t.Errorf("request %d: got the steps %s, HTTP/2 %t, want %s", i, got, o.Timing.HTTP2, want)
		}
	}
}

// TestTimingIsFree: nothing is allocated for what is not wanted.
func TestTimingIsFree(t *testing.T) {
	var none *Timing
	if n := testing.AllocsPerRun(100, func() {
		none.reset()
		none.dialled(nil, time.Time{}, time.Time{})
		s := none.beginExchange(true)
		s.setSent()
		s.setAnswered()
		none.endExchange(s)
	}); n != 0 {
		t.Errorf("got %g allocations, want none", n)
	}
}
