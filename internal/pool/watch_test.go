package pool

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"caddytarget/internal/testlab"
)

// TestWatch: a request ends with its context, before and after that is watched. A
// context that ends after the response does not end the connection.
func TestWatch(t *testing.T) {
	b := newBackend(t, func(c net.Conn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if req.URL.Path == "/silent" {
				_, _ = r.ReadByte()
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	p := newPool(t, Config{})
	o := b.order("backend.example")
	gone := errors.New("the client has left")
	for _, after := range []time.Duration{0, watchInterval / 4, 5 * watchInterval} {
		ctx, cancel := context.WithCancelCause(t.Context())
		if _, err := p.RoundTrip(request(t, http.MethodGet, "/", nil).WithContext(ctx), o); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(after, func() { cancel(gone) })
		if _, err := p.RoundTrip(request(t, http.MethodGet, "/silent", nil).WithContext(ctx), o); !errors.Is(err, gone) {
			t.Errorf("a request whose context ends after %v: %v, want %v", after, err, gone)
		}
	}
	deadline, cancel := context.WithTimeout(t.Context(), watchInterval/4)
	defer cancel()
	if _, err := p.RoundTrip(request(t, http.MethodGet, "/silent", nil).WithContext(deadline), o); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a request with a deadline: %v, want %v", err, context.DeadlineExceeded)
	}

	opened := b.Opened.Load()
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := p.RoundTrip(request(t, http.MethodGet, "/", nil).WithContext(ctx), o); err != nil {
			t.Fatal(err)
		}
		cancel()
	}
	if n := b.Opened.Load() - opened; n != 1 {
		t.Errorf("20 requests whose contexts ended after their responses opened %d connections, want 1", n)
	}
	testlab.Eventually(t, "no request is left to be watched", func() bool { return !p.watcher.running.Load() })
}

// TestDeferredCheck: a request over a connection that was idle is written only if no
// octets have come over it. It is written whole even if the system takes it in parts.
func TestDeferredCheck(t *testing.T) {
	surplus := make(chan struct{}, 1)
	b := newBackend(t, func(c net.Conn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			time.Sleep(time.Millisecond) // the rest of what was written has to wait
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nX-Got: "+req.Header.Get("X-Last")+"\r\nContent-Length: 0\r\n\r\n")
			if req.URL.Path == "/surplus" {
				time.Sleep(10 * time.Millisecond)
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nX-Got: evil\r\nContent-Length: 0\r\n\r\n")
				surplus <- struct{}{}
			}
		}
	})
	for _, buffer := range []int{0, 32 << 20} {
		p := newPool(t, Config{WriteBuffer: buffer})
		o := b.order("backend.example")
		send := func(path string, size int) {
			t.Helper()
			req := request(t, http.MethodGet, path, nil)
			req.Header.Set("X-Large", strings.Repeat("x", size))
			req.Header.Set("X-Last", "last")
			res, err := p.RoundTrip(req, o)
			if err != nil {
				t.Fatal(err)
			}
			if got := res.Header.Get("X-Got"); got != "last" {
				t.Errorf("%s with a header of %d octets got %q, want %q", path, size, got, "last")
			}
		}
		opened := b.Opened.Load()
		for _, size := range []int{1, 1, 5000, 1, 16 << 20, 1} {
			send("/", size)
		}
		if n := b.Opened.Load() - opened; n != 1 {
			t.Errorf("%d connections were opened, want 1", n)
		}
		for _, size := range []int{1, 5000, 16 << 20} {
			send("/surplus", 1)
			<-surplus
			send("/", size)
		}
		if n := b.Opened.Load() - opened; n != 4 {
			t.Errorf("%d connections were opened, want another one each time after something came", n)
		}
		p.Close()
	}
}
