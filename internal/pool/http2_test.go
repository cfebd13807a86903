package pool

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"weak"

	"golang.org/x/net/http2"

	"caddytarget/internal/testlab"
)

// backend2 is a server of HTTP/2 that counts its connections.
type backend2 struct {
	*httptest.Server
	order  *Order
	opened atomic.Int64
}

// newBackend2 serves HTTP/2, with TLS or not, and at most so many requests at a time
// on a connection.
func newBackend2(t testing.TB, secure bool, streams int, serve http.HandlerFunc) *backend2 {
	t.Helper()
	b := &backend2{Server: httptest.NewUnstartedServer(serve)}
	b.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: streams}
	b.Config.ErrorLog = log.New(io.Discard, "", 0)
	b.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			b.opened.Add(1)
		}
	}
	key := Key{Host: "a.example", Protocol: HTTP2}
	if secure {
		key.ServerName, key.Protocol = "a.example", TLS
		b.EnableHTTP2 = true
		b.StartTLS()
	} else {
		b.Config.Protocols = new(http.Protocols)
		b.Config.Protocols.SetUnencryptedHTTP2(true)
		b.Start()
	}
	t.Cleanup(b.Close)
	key.Addr = netip.MustParseAddrPort(b.Listener.Addr().String())
	b.order = &Order{Key: key, Target: key.Host, Last: true}
	return b
}

// anyCertificate accepts all certificates.
func anyCertificate() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}}
}

// from answers with the client's address, which shows over which connection it came.
func from(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RemoteAddr) }

// getWithin is get with a time limit.
func getWithin(p *Pool, o *Order, d time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://backend.example/", nil)
	if err != nil {
		return err
	}
	res, err := p.RoundTrip(req, o)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return err
}

// TestFewStreams: many requests at once to a backend that takes few on a connection
// all succeed. They share dials if it is known that the backend speaks HTTP/2.
func TestFewStreams(t *testing.T) {
	for _, test := range []struct {
		secure                bool
		streams, clients, max int
	}{
		{false, 1, 2, 2}, {false, 1, 8, 8}, {false, 2, 8, 8}, {false, 10, 32, 16}, {false, 100, 32, 8},
		{true, 1, 2, 2}, {true, 2, 8, 8}, {true, 10, 16, 16},
	} {
		t.Run(fmt.Sprintf("TLS %t, %d streams, %d clients", test.secure, test.streams, test.clients), func(t *testing.T) {
			b := newBackend2(t, test.secure, test.streams, func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(5 * time.Millisecond)
				from(w, r)
			})
			p := newPool(t, Config{TLS: anyCertificate()})
			var wg sync.WaitGroup
			for range test.clients {
				wg.Go(func() {
					if err := getWithin(p, b.order, 10*time.Second); err != nil {
						t.Errorf("a request: %v, want a response", err)
					}
				})
			}
			wg.Wait()
			if n := b.opened.Load(); n > int64(test.max) {
				t.Errorf("%d connections were opened, want at most %d", n, test.max)
			}
		})
	}
}

// TestOneStream: requests one after the other need one connection, and those of
// some clients not many more than there are clients.
func TestOneStream(t *testing.T) {
	for _, clients := range []int{1, 3} {
		b := newBackend2(t, false, 1, from)
		p := newPool(t, Config{})
		if err := getWithin(p, b.order, 10*time.Second); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range clients {
			wg.Go(func() {
				for range 100 {
					if err := getWithin(p, b.order, 10*time.Second); err != nil {
						t.Errorf("a request: %v, want a response", err)
					}
				}
			})
		}
		wg.Wait()
		if n := b.opened.Load(); n > int64(3*clients) {
			t.Errorf("%d clients, one request at a time: %d connections, want fewer", clients, n)
		}
	}
}

// TestNoStreams: a backend that takes no requests at all is dialled only a few times.
func TestNoStreams(t *testing.T) {
	for name, frames := range map[string]string{
		"SETTINGS: no streams": "\x00\x00\x06\x04\x00\x00\x00\x00\x00" + "\x00\x03\x00\x00\x00\x00",
		"GOAWAY":               "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\x00\x00\x08\x07\x00\x00\x00\x00\x00" + "\x00\x00\x00\x00\x00\x00\x00\x00",
	} {
		t.Run(name, func(t *testing.T) {
			b := newBackend(t, func(c net.Conn, r *bufio.Reader) {
				_, _ = io.WriteString(c, frames)
				_, _ = io.Copy(io.Discard, r)
			})
			p := newPool(t, Config{})
			o := b.order("a.example")
			o.Key.Protocol = HTTP2
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					if err := getWithin(p, o, 500*time.Millisecond); err == nil {
						t.Error("there was a response, want an error")
					}
				})
			}
			wg.Wait()
			if n := b.Opened.Load(); n > 8*(maxStale+1) {
				t.Errorf("%d dials for 8 requests, want at most %d", n, 8*(maxStale+1))
			}
		})
	}
}

// TestRetired: a connection whose backend broke the protocol gets no more requests,
// not even those that wait for it, and is closed when it is free.
func TestRetired(t *testing.T) {
	hold, held := make(chan struct{}), make(chan struct{}, 2)
	serve := func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hold":
			held <- struct{}{}
			<-hold
		case "/fields":
			held <- struct{}{}
			<-hold
			for i := range maxFields + 1 {
				w.Header().Set(fmt.Sprintf("F%d", i), "")
			}
		}
		from(w, r)
	}
	b := newBackend2(t, false, 2, serve)
	p := newPool(t, Config{MaxPerKey: 1})
	old, err := get(t, p, b.order, "/")
	if err != nil {
		t.Fatal(err)
	}
	body, next, many := make(chan string, 1), make(chan string, 1), make(chan error, 1)
	start := func(path string, to chan<- string) {
		got, err := get(t, p, b.order, path)
		if err != nil {
			t.Errorf("a request: %v, want a response", err)
		}
		to <- got
	}
	go start("/hold", body)
	<-held
	go func() {
		_, err := get(t, p, b.order, "/fields")
		many <- err
	}()
	<-held
	go start("/next", next)
	testlab.Eventually(t, "a request waits", func() bool { return p.waiting(b.order) == 1 })
	hold <- struct{}{} // either of the two
	select {
	case err := <-many:
		if !errors.Is(err, errHeaderFields) {
			t.Fatal(err)
		}
		select {
		case got := <-next:
			t.Error("a request was served although the connection is retired")
			next <- got
		case <-time.After(20 * time.Millisecond):
		}
		close(hold)
		<-body
	case <-body: // its place is given to the request that waits
		<-next
		next <- "another"
		close(hold)
		if err := <-many; !errors.Is(err, errHeaderFields) {
			t.Fatal(err)
		}
	}
	if got := <-next; got == old {
		t.Error("a request that waited was sent over the retired connection")
	}
	if got, err := get(t, p, b.order, "/"); err != nil || got == old {
		t.Errorf("%v, sent over the retired connection: %t, want it sent over another one", err, got == old)
	}
	testlab.Eventually(t, "the retired connection is closed", func() bool { return p.Open() == 1 })
	if n := b.opened.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

// TestRetiredHandOver: a retired connection is not given to a request that waits.
func TestRetiredHandOver(t *testing.T) {
	b := newBackend2(t, false, 100, from)
	p := newPool(t, Config{})
	c, _, err := p.getConn(request(t, http.MethodGet, "/", nil), b.order)
	if err != nil {
		t.Fatal(err)
	}
	p.retire(c)
	s := c.destination.shard
	w := &waiter{order: b.order, ready: make(chan answer, 1)}
	s.mu.Lock()
	c.destination.waiters = append(c.destination.waiters, w)
	s.mu.Unlock()
	p.releaseStream(c)
	a := <-w.ready
	if a.err != nil {
		t.Fatal(a.err)
	}
	if a.conn == c {
		t.Error("a request that waited got the retired connection")
	}
	p.releaseStream(a.conn)
}

// unread sends requests for large responses and returns these. They seem not to have
// been read since then.
func unread(t *testing.T, p *Pool, o *Order, n int, since time.Duration) (responses []*http.Response) {
	t.Helper()
	for range n {
		res, err := p.RoundTrip(request(t, http.MethodGet, "/large", nil), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { res.Body.Close() })
		responses = append(responses, res)
	}
	for i, res := range responses {
		age := since + time.Duration(n-i)*time.Second // the first is the oldest
		res.Body.(*streamBody).changedAt.Store(time.Now().Add(-age).UnixNano())
	}
	return responses
}

// large answers /large with more than maxConnBuffer, and others as from does.
func large(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/large" {
		from(w, r)
		return
	}
	_, _ = io.CopyN(w, zeros{}, 2*maxConnBuffer)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestCongested: a request takes another connection where as many responses are not
// read as may use up the window.
func TestCongested(t *testing.T) {
	b := newBackend2(t, false, 100, large)
	p := newPool(t, Config{})
	old, err := get(t, p, b.order, "/")
	if err != nil {
		t.Fatal(err)
	}
	responses := unread(t, p, b.order, maxUnread-1, 0)
	if got, err := get(t, p, b.order, "/"); err != nil || got != old {
		t.Errorf("%v, other connection: %t, want false with %d unread responses", err, got != old, maxUnread-1)
	}
	responses = append(responses, unread(t, p, b.order, 1, 0)...)
	if got, err := get(t, p, b.order, "/"); err != nil || got == old {
		t.Errorf("%v, other connection: %t, want true with %d unread responses", err, got != old, maxUnread)
	}
	// they are whole nevertheless, and do not count while they are read
	var wg sync.WaitGroup
	for _, res := range responses {
		wg.Go(func() {
			if n, err := io.Copy(io.Discard, res.Body); err != nil || n != 2*maxConnBuffer {
				t.Errorf("%d octets, %v, want %d", n, err, 2*maxConnBuffer)
			}
		})
	}
	wg.Wait()
	if n := b.opened.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

// TestUnblock: where responses that are not read keep another one waiting, the one that
// has not been read for longest is ended, and only that one.
func TestUnblock(t *testing.T) {
	more := make(chan struct{})
	b := newBackend2(t, false, 100, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			_ = http.NewResponseController(w).Flush()
			<-more
		}
		large(w, r)
	})
	p := newPool(t, Config{})
	starved, err := p.RoundTrip(request(t, http.MethodGet, "/wait", nil), b.order)
	if err != nil {
		t.Fatal(err)
	}
	s := starved.Body.(*streamBody)
	responses := unread(t, p, b.order, maxUnread, stallTime)
	now := time.Now()
	s.c.unblock(now) // no request waits yet
	done := make(chan error)
	go func() {
		_, err := io.Copy(io.Discard, starved.Body)
		done <- err
	}()
	testlab.Eventually(t, "a client reads", s.reading.Load)
	s.c.unblock(now) // not for long
	s.changedAt.Store(now.Add(-starveTime - time.Second).UnixNano())
	for i, res := range responses {
		if res.Body.(*streamBody).endErr.Load() != nil {
			t.Errorf("response %d was ended before a client had waited for starveTime", i)
		}
	}
	s.c.unblock(now)
	for i, res := range responses {
		if ended := res.Body.(*streamBody).endErr.Load() != nil; ended != (i == 0) {
			t.Errorf("response %d was ended: %t, want %t", i, ended, i == 0)
		}
	}
	if _, err := io.Copy(io.Discard, responses[0].Body); !errors.Is(err, errStalled) {
		t.Errorf("the response that was ended: %v, want %v", err, errStalled)
	}
	close(more)
	if err := <-done; err != nil {
		t.Errorf("the response that was starved: %v, want all of it", err)
	}
	if n, err := io.Copy(io.Discard, responses[1].Body); err != nil || n != 2*maxConnBuffer {
		t.Errorf("another response: %d octets, %v, want %d", n, err, 2*maxConnBuffer)
	}
}

// TestEarlyResponse: where a response is read to its end before the request has been sent,
// Close ends the request.
func TestEarlyResponse(t *testing.T) {
	const settings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	const response = "\x00\x00\x01\x01\x04\x00\x00\x00\x01\x88" + "\x00\x00\x02\x00\x01\x00\x00\x00\x01ok"
	b := newBackend(t, func(c net.Conn, r *bufio.Reader) {
		_, _ = io.WriteString(c, settings)
		_, _ = r.Discard(len(http2.ClientPreface))
		for fr := http2.NewFramer(nil, r); ; {
			frame, err := fr.ReadFrame()
			if err != nil {
				return
			}
			if frame.Header().Type == http2.FrameHeaders {
				_, _ = io.WriteString(c, response)
			}
		}
	})
	p := newPool(t, Config{})
	o := b.order("a.example")
	o.Key.Protocol = HTTP2
	body, more := io.Pipe()
	res, err := p.RoundTrip(request(t, http.MethodPost, "/", body), o)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(res.Body); err != nil || string(text) != "ok" {
		t.Errorf("response %q, %v, want ok", text, err)
	}
	_ = res.Body.Close()
	if _, err := io.WriteString(more, "more"); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the body of the request took more, %v, want %v", err, io.ErrClosedPipe)
	}
}

// TestFreed: the memory of a connection that was closed is free before that of a client of
// HTTP/2 that was closed earlier and is left alone. Where that takes so long that both are
// free, the test is repeated.
func TestFreed(t *testing.T) {
	b := newBackend2(t, false, 100, from)
	for name, end := range map[string]func(p *Pool){
		"this side closes":   func(p *Pool) { p.closeIdle(0) },
		"the backend closes": func(*Pool) { b.CloseClientConnections() },
	} {
		t.Run(name, func(t *testing.T) {
			for range 10 {
				p := newPool(t, Config{})
				if _, err := get(t, p, b.order, "/"); err != nil {
					t.Fatal(err)
				}
				ours, other := weak.Make(p.connections()[0].h2), weak.Make(closedClient(t, p, b))
				end(p)
				testlab.Eventually(t, "the connection is free", func() bool {
					runtime.GC()
					return ours.Value() == nil
				})
				if other.Value() != nil {
					return
				}
			}
			t.Error("each connection was kept for as long as a client that is left alone")
		})
	}
}

// connections returns those that are open.
func (p *Pool) connections() (list []*conn) {
	for i := range p.shards {
		s := &p.shards[i]
		s.mu.Lock()
		for _, d := range s.destinations {
			list = append(list, d.conns...)
		}
		s.mu.Unlock()
	}
	return list
}

// closedClient returns a client of HTTP/2 that was just closed after a request.
func closedClient(t *testing.T, p *Pool, b *backend2) *http2.ClientConn { //nolint:staticcheck // see newHTTP2
	t.Helper()
	c, err := net.Dial("tcp", b.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client, err := p.http2.NewClientConn(c) //nolint:staticcheck // see newHTTP2
	if err != nil {
		t.Fatal(err)
	}
	res, err := client.RoundTrip(request(t, http.MethodGet, "/", nil))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	_ = client.Close()
	return client
}

// TestHeaderList: a request whose header is larger than the backend allows ends no
// connection.
func TestHeaderList(t *testing.T) {
	b := newBackend2(t, false, 100, from)
	b.Config.MaxHeaderBytes = 4096
	p := newPool(t, Config{})
	old, err := get(t, p, b.order, "/") // its SETTINGS are known
	if err != nil {
		t.Fatal(err)
	}
	req := request(t, http.MethodPost, "/", nil)
	req.Header.Set("X", strings.Repeat("x", 20000))
	if _, err := p.RoundTrip(req, b.order); err == nil {
		t.Error("the request was sent, want an error")
	}
	if got, err := get(t, p, b.order, "/"); err != nil || got != old {
		t.Errorf("%v, same connection: %t, want true", err, got == old)
	}
	if n := p.health.Len(); n != 0 {
		t.Errorf("%d records of failures, want none", n)
	}
}

// TestKeepsNewWhereFull: a new connection that no request waits for is kept as long as
// it is not known that the others take requests.
func TestKeepsNewWhereFull(t *testing.T) {
	for _, unclaimed := range []bool{false, true} {
		b := newBackend2(t, true, 10, from)
		p := newPool(t, Config{TLS: anyCertificate()})
		if err := getWithin(p, b.order, 10*time.Second); err != nil {
			t.Fatal(err)
		}
		s := p.shard(&b.order.Key)
		s.mu.Lock()
		first := s.destination(p, b.order).h2Conns[0]
		if unclaimed && !first.reserveStream() {
			t.Error("no stream, want one")
		}
		s.mu.Unlock()
		p.Probe(b.order)
		want := 1
		if unclaimed {
			want = 2
		}
		for dials := 1; dials > 0; time.Sleep(time.Millisecond) {
			s.mu.Lock()
			dials = len(s.destination(p, b.order).dials)
			s.mu.Unlock()
		}
		s.mu.Lock()
		if got := len(s.destination(p, b.order).conns); got != want {
			t.Errorf("unclaimed %t: %d connections were kept, want %d", unclaimed, got, want)
		}
		s.mu.Unlock()
		if unclaimed && first.claimStream() {
			p.releaseStream(first)
		}
	}
}
