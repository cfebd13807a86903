package pool

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"caddytarget/internal/health"
	"caddytarget/internal/testlab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// backend is a server of HTTP/1.1 that counts its connections.
type backend struct {
	*testlab.RawBackend
	addr netip.AddrPort
}

// newBackend serves each connection with serve, until the end of the test.
func newBackend(t testing.TB, serve func(c net.Conn, r *bufio.Reader)) *backend {
	t.Helper()
	b := testlab.NewRawBackend(t, "", "127.0.0.1", nil, func(c net.Conn) { serve(c, bufio.NewReader(c)) })
	return &backend{b, netip.MustParseAddrPort("127.0.0.1:" + b.Port)}
}

// echo answers each request with its path.
func echo(c net.Conn, r *bufio.Reader) {
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, req.Body)
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(req.URL.Path), req.URL.Path)
	}
}

func newPool(t testing.TB, config Config) *Pool {
	p := New(config, health.New(), NewLimits(0, nil))
	t.Cleanup(p.Close)
	return p
}

// order is one for a target at the backend.
func (b *backend) order(host string) *Order {
	return &Order{Key: Key{Addr: b.addr, Host: host}, Target: host, Last: true}
}

func request(t testing.TB, method, path string, body io.Reader) *http.Request {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, "http://backend.example"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// get sends a GET request and reads the response.
func get(t testing.TB, p *Pool, o *Order, path string) (string, error) {
	t.Helper()
	res, err := p.RoundTrip(request(t, http.MethodGet, path, nil), o)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return string(body), err
}

// destinations returns how many keys are in use.
func (p *Pool) destinations() (n int) {
	for i := range p.shards {
		s := &p.shards[i]
		s.mu.Lock()
		n += len(s.destinations)
		s.mu.Unlock()
	}
	return n
}

func TestReuse(t *testing.T) {
	b := newBackend(t, echo)
	p := newPool(t, Config{})
	for i := range 20 {
		for _, host := range []string{"a.example", "b.example"} {
			path := fmt.Sprintf("/%s/%d", host, i)
			if got, err := get(t, p, b.order(host), path); err != nil || got != path {
				t.Fatalf("%q, %v, want %q", got, err, path)
			}
		}
	}
	if n := b.Opened.Load(); n != 2 {
		t.Errorf("%d connections were opened for two targets, want 2", n)
	}
	b.CloseConns()
	testlab.Eventually(t, "connections that the backend closed are gone", func() bool { return p.Open() == 0 && p.destinations() == 0 })
}

// TestTotal: idle connections beyond the bound are closed, those that were idle
// longest first.
func TestTotal(t *testing.T) {
	b := newBackend(t, echo)
	p := newPool(t, Config{MaxIdle: 2})
	for i := range 5 {
		if _, err := get(t, p, b.order(fmt.Sprintf("n%d.example", i)), "/"); err != nil {
			t.Fatal(err)
		}
		if n := p.Open(); n > 2 {
			t.Errorf("%d connections are open, want at most 2", n)
		}
	}
	testlab.Eventually(t, "two are left", func() bool { return b.Open.Load() <= 2 })
	if n, m := p.Open(), b.Open.Load(); n != 2 || m != 2 {
		t.Errorf("%d connections are open, %d at the backend, want 2", n, m)
	}
	opened := b.Opened.Load()
	for i := 3; i < 5; i++ {
		if _, err := get(t, p, b.order(fmt.Sprintf("n%d.example", i)), "/"); err != nil {
			t.Fatal(err)
		}
	}
	if b.Opened.Load() != opened {
		t.Error("a connection was opened, want the two kept that were used last")
	}
}

// TestClosing: a backend that closes each connection leaves nothing behind.
func TestClosing(t *testing.T) {
	b := newBackend(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	p := newPool(t, Config{})
	for range 50 {
		if got, err := get(t, p, b.order("a.example"), "/"); err != nil || got != "ok" {
			t.Fatalf("got %q, %v, want ok", got, err)
		}
	}
	if p.Open() != 0 || p.destinations() != 0 || len(p.limits.groups) != 0 {
		t.Errorf("%d connections, %d destinations, %v are left, want none", p.Open(), p.destinations(), p.limits.groups)
	}
}

// TestStale: a request over a connection that the backend has closed is sent over
// another one; one that may have been acted on is not sent again.
func TestStale(t *testing.T) {
	var cut atomic.Bool // connections end after the next request was read
	b := newBackend(t, func(c net.Conn, r *bufio.Reader) {
		for served := 0; ; served++ {
			if _, err := http.ReadRequest(r); err != nil || served > 0 && cut.Load() {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
		}
	})
	p := newPool(t, Config{})
	o := b.order("a.example")
	for _, test := range []struct {
		method string
		key    bool
		ok     bool
	}{
		{http.MethodGet, false, true}, {http.MethodHead, false, true}, {http.MethodPost, false, false},
		{http.MethodDelete, false, false}, {http.MethodPost, true, true},
	} {
		cut.Store(false)
		if _, err := get(t, p, o, "/"); err != nil {
			t.Fatal(err)
		}
		cut.Store(true)
		req := request(t, test.method, "/", nil)
		if test.key {
			req.Header.Set("Idempotency-Key", "1")
		}
		_, err := p.RoundTrip(req, o)
		if (err == nil) != test.ok {
			t.Errorf("%s, key %t: %v, want success: %t", test.method, test.key, err, test.ok)
		}
		if e, ok := errors.AsType[*Error](err); ok && (e.Sent != All || !e.Reused || e.Phase != Response) {
			t.Errorf("%s: sent %d, reused %t, phase %d, want %d, true, %d", test.method, e.Sent, e.Reused, e.Phase, All, Response)
		}
	}
}

// TestOctetsLeftOver: no client gets what a backend sends beyond a response.
func TestOctetsLeftOver(t *testing.T) {
	for name, extra := range map[string]string{
		"a second response": "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
		"one octet":         "x",
		"a body after 204":  "evil",
	} {
		for _, later := range []time.Duration{0, 5 * time.Millisecond} {
			t.Run(fmt.Sprint(name, " ", later), func(t *testing.T) {
				sent := make(chan struct{}, 1)
				b := newBackend(t, func(c net.Conn, r *bufio.Reader) {
					for {
						req, err := http.ReadRequest(r)
						if err != nil {
							return
						}
						head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(req.URL.Path), req.URL.Path)
						if strings.Contains(name, "204") {
							head = "HTTP/1.1 204 No Content\r\n\r\n"
						}
						if later > 0 {
							_, _ = io.WriteString(c, head)
							time.Sleep(later)
							head = ""
						}
						_, _ = io.WriteString(c, head+extra)
						sent <- struct{}{}
					}
				})
				p := newPool(t, Config{})
				for i := range 20 {
					path := fmt.Sprintf("/%d", i)
					got, err := get(t, p, b.order("a.example"), path)
					if want := path; err != nil || got != want && got != "" {
						t.Fatalf("%q, %v, want %q", got, err, want)
					}
					<-sent // the octets are there before the next request
				}
			})
		}
	}
}

// TestWaiting: a request takes the first connection that becomes free. The one that was
// dialled for it serves a later request.
func TestWaiting(t *testing.T) {
	b := newBackend(t, echo)
	p := newPool(t, Config{})
	dial := p.Dial
	slow := make(chan struct{})
	first := true
	p.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if !first {
			<-slow
		}
		first = false
		return dial(ctx, network, address)
	}
	o := b.order("a.example")
	res, err := p.RoundTrip(request(t, http.MethodGet, "/1", nil), o)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		_, err := get(t, p, o, "/2")
		done <- err
	}()
	testlab.Eventually(t, "a dial is under way", func() bool {
		s := p.shard(&o.Key)
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.destinations[o.Key].dials) == 1
	})
	_, _ = io.Copy(io.Discard, res.Body) // its connection becomes free
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := b.Opened.Load(); n != 1 {
		t.Errorf("%d connections were opened, want 1", n)
	}
	close(slow)
	testlab.Eventually(t, "the other connection is idle", func() bool { return p.Open() == 2 })
	res, err = p.RoundTrip(request(t, http.MethodGet, "/3", nil), o)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := get(t, p, o, "/4"); err != nil || b.Opened.Load() != 2 {
		t.Errorf("%v, %d connections were opened, want 2", err, b.Opened.Load())
	}
}

// TestMaxPerKey: a request waits for a connection where no more may be opened.
func TestMaxPerKey(t *testing.T) {
	var inFlight, highest atomic.Int64
	b := newBackend(t, func(c net.Conn, r *bufio.Reader) {
		for {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			if n := inFlight.Add(1); n > highest.Load() {
				highest.Store(n)
			}
			time.Sleep(time.Millisecond)
			inFlight.Add(-1)
			_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
		}
	})
	p := newPool(t, Config{MaxPerKey: 3})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 5 {
				if _, err := get(t, p, b.order("a.example"), "/"); err != nil {
					t.Errorf("a request: %v, want a response", err)
				}
			}
		})
	}
	wg.Wait()
	if highest.Load() > 3 || b.Opened.Load() > 3 {
		t.Errorf("%d requests at a time, %d connections, want at most 3", highest.Load(), b.Opened.Load())
	}
}

// TestNegativeMaxPerKey: as in net/http, a negative MaxPerKey is no limit.
func TestNegativeMaxPerKey(t *testing.T) {
	b := newBackend(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
		}
	})
	p := newPool(t, Config{MaxPerKey: -1})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	res, err := p.RoundTrip(request(t, http.MethodGet, "/", nil).WithContext(ctx), b.order("a.example"))
	if err != nil {
		t.Fatalf("got %v, want a response", err)
	}
	_ = res.Body.Close()
}

// TestLimits: one domain may have a quarter of the connections that are free, and all
// together no more than the limit. Idle connections are closed for new ones.
func TestLimits(t *testing.T) {
	hold := make(chan struct{})
	b := newBackend(t, holdOn(hold))
	p := New(Config{}, health.New(), NewLimits(20, lastTwo))
	defer p.Close()
	var wg sync.WaitGroup
	var limited atomic.Int64
	start := func(host string) {
		wg.Go(func() {
			if _, err := get(t, p, b.order(host), "/hold"); errors.Is(err, ErrLimit) {
				limited.Add(1)
			} else if err != nil {
				t.Errorf("a request: %v, want a response", err)
			}
		})
	}
	for i := range 10 {
		start(fmt.Sprintf("n%d.greedy.example", i))
	}
	testlab.Eventually(t, "the rest is refused", func() bool { return p.Open()+int(limited.Load()) == 10 })
	if n := p.Open(); n != 4 { // a quarter of 16
		t.Errorf("one domain has %d of 20 connections, want 4", n)
	}
	for i := range 8 {
		if _, err := get(t, p, b.order(fmt.Sprintf("a.other%d", i)), "/"); err != nil {
			t.Errorf("another domain: %v, want a response", err)
		}
	}
	for i := range 40 {
		if _, err := get(t, p, b.order(fmt.Sprintf("many%d.test", i)), "/"); err != nil {
			t.Errorf("%v, want an idle connection closed for this one", err)
		}
		if n := p.Open(); n > 20 {
			t.Fatalf("%d connections are open, want at most 20", n)
		}
	}
	close(hold)
	wg.Wait()
}

// TestLimitsWait: where Limits allow no other connection, as many requests as there are
// connections wait for one to become free.
func TestLimitsWait(t *testing.T) {
	hold := make(chan struct{})
	b := newBackend(t, func(c net.Conn, r *bufio.Reader) {
		for {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			<-hold
			_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
		}
	})
	limits := NewLimits(10, nil)
	limits.wait = time.Hour
	p := New(Config{}, health.New(), limits)
	defer p.Close()
	var wg sync.WaitGroup
	var limited, served atomic.Int64
	start := func() {
		wg.Go(func() {
			switch _, err := get(t, p, b.order("a.example"), "/"); {
			case errors.Is(err, ErrLimit):
				limited.Add(1)
			case err != nil:
				t.Errorf("a request: %v, want a response", err)
			default:
				served.Add(1)
			}
		})
	}
	for range 2 { // a quarter of 10
		start()
	}
	testlab.Eventually(t, "two connections are open", func() bool { return b.Opened.Load() == 2 })
	for range 5 {
		start()
	}
	testlab.Eventually(t, "three of five are refused", func() bool { return limited.Load() == 3 })
	close(hold)
	wg.Wait()
	if n, opened := served.Load(), b.Opened.Load(); n != 4 || opened != 2 {
		t.Errorf("%d requests were served over %d connections, want 4 over 2", n, opened)
	}
}

// TestLimitsWaitEnds: a request does not wait for ever for a connection to become free.
func TestLimitsWaitEnds(t *testing.T) {
	hold := make(chan struct{})
	b := newBackend(t, func(c net.Conn, r *bufio.Reader) {
		_, _ = http.ReadRequest(r)
		<-hold
		_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
	})
	limits := NewLimits(4, nil)
	limits.wait = time.Millisecond
	p := New(Config{}, health.New(), limits)
	defer p.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := get(t, p, b.order("a.example"), "/"); err != nil {
			t.Errorf("the first request: %v, want a response", err)
		}
	})
	testlab.Eventually(t, "a connection is open", func() bool { return p.Open() == 1 })
	if _, err := get(t, p, b.order("a.example"), "/"); !errors.Is(err, ErrLimit) {
		t.Errorf("a request beside it: %v, want %v", err, ErrLimit)
	}
	close(hold)
	wg.Wait()
}

// TestLimitsOfIdle: a domain that has its share of the connections gets another one in place
// of one that it does not use, and not in place of those of others.
func TestLimitsOfIdle(t *testing.T) {
	b := newBackend(t, echo)
	p := New(Config{}, health.New(), NewLimits(20, lastTwo))
	defer p.Close()
	call := func(host string) {
		t.Helper()
		if _, err := get(t, p, b.order(host), "/"); err != nil {
			t.Errorf("%s: %v, want a response", host, err)
		}
	}
	for i := range 3 {
		call(fmt.Sprintf("a.other%d", i))
	}
	for i := range 40 {
		call(fmt.Sprintf("n%d.large.example", i))
	}
	if n := p.Open(); n != 3+5 { // a quarter of 20
		t.Errorf("%d connections are open, want 3 and 5", n)
	}
	opened := b.Opened.Load()
	for i := range 3 {
		call(fmt.Sprintf("a.other%d", i))
	}
	if n := b.Opened.Load() - opened; n != 0 {
		t.Errorf("%d connections of others were opened again, want none", n)
	}
}

// TestLimitsOfBusy: a domain that would have more than its share without its idle connections,
// too, keeps these.
func TestLimitsOfBusy(t *testing.T) {
	hold := make(chan struct{})
	b := newBackend(t, holdOn(hold))
	p := New(Config{}, health.New(), NewLimits(24, lastTwo))
	defer p.Close()
	var wg sync.WaitGroup
	start := func(host, path string) {
		open := p.Open()
		wg.Go(func() {
			if _, err := get(t, p, b.order(host), path); err != nil {
				t.Errorf("%s: %v, want a response", host, err)
			}
		})
		testlab.Eventually(t, "a connection is open", func() bool { return p.Open() == open+1 })
	}
	for i := range 3 {
		start(fmt.Sprintf("busy%d.large.example", i), "/hold")
	}
	for i := range 2 {
		if _, err := get(t, p, b.order(fmt.Sprintf("idle%d.large.example", i)), "/"); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 9 { // a quarter of what is free or idle is 3 then
		start(fmt.Sprintf("a.other%d", i), "/hold")
	}
	if _, err := get(t, p, b.order("new.large.example"), "/"); !errors.Is(err, ErrLimit) {
		t.Errorf("another host: %v, want %v", err, ErrLimit)
	}
	if n := p.Open(); n != 14 {
		t.Errorf("%d connections are open, want 14: none closed in vain", n)
	}
	close(hold)
	wg.Wait()
}

// TestLimitsWaitElsewhere: a request that waits since Limits allow no other connection gets one
// when there is room because connections to others have ended.
func TestLimitsWaitElsewhere(t *testing.T) {
	hold, holdOther := make(chan struct{}), make(chan struct{})
	b, other := newBackend(t, holdOn(hold)), newBackend(t, func(_ net.Conn, r *bufio.Reader) {
		_, _ = http.ReadRequest(r)
		<-holdOther
	})
	limits := NewLimits(12, lastTwo) // of which one domain may have two
	limits.wait = time.Hour
	p := New(Config{}, health.New(), limits)
	defer p.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := get(t, p, b.order("a.large.example"), "/hold"); err != nil {
			t.Errorf("the first request: %v, want a response", err)
		}
	})
	testlab.Eventually(t, "its connection is open", func() bool { return p.Open() == 1 })
	wg.Go(func() {
		if _, err := get(t, p, other.order("b.large.example"), "/"); err == nil {
			t.Error("a response of a backend that sends none")
		}
	})
	testlab.Eventually(t, "another host of the domain has the other one", func() bool { return p.Open() == 2 })
	served := make(chan error, 1)
	wg.Go(func() {
		_, err := get(t, p, b.order("a.large.example"), "/")
		served <- err
	})
	testlab.Eventually(t, "the next request waits", func() bool { return p.limitedWaiters() == 1 })
	close(holdOther)
	if err := <-served; err != nil {
		t.Errorf("the next request: %v, want a response", err)
	}
	close(hold)
	wg.Wait()
}

// holdOn serves requests, those for /hold when hold is closed.
func holdOn(hold <-chan struct{}) func(net.Conn, *bufio.Reader) {
	return func(c net.Conn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if req.URL.Path == "/hold" {
				<-hold
			}
			_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
		}
	}
}

// limitedWaiters returns how many requests wait since Limits allow no other connection.
func (p *Pool) limitedWaiters() (n int) {
	for i := range p.shards {
		s := &p.shards[i]
		s.mu.Lock()
		for _, d := range s.destinations {
			n += d.limited
		}
		s.mu.Unlock()
	}
	return n
}

// TestDescriptors: where few descriptors are left, connections that are idle are closed, those
// that were idle longest first.
func TestDescriptors(t *testing.T) {
	b := newBackend(t, echo)
	var others atomic.Int64
	limits := NewLimits(0, nil)
	p := New(Config{}, health.New(), limits)
	defer p.Close()
	limits.descriptors = func() (used, limit int) { return p.Open() + int(others.Load()), 80 }
	call := func(i int) {
		t.Helper()
		if _, err := get(t, p, b.order(fmt.Sprintf("n%d.test", i)), "/"); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 20 {
		call(i)
	}
	for _, step := range []struct {
		others int64
		want   int
	}{{50, 20}, {51, 9}, {61, 9}, {62, 0}} {
		others.Store(step.others)
		p.sweep(time.Now())
		if n := p.Open(); n != step.want {
			t.Errorf("with %d descriptors of others, %d connections are open, want %d", step.others, n, step.want)
		}
		if step.want == 9 {
			opened := b.Opened.Load()
			for i := range 9 {
				call(19 - i)
			}
			if n := b.Opened.Load() - opened; n != 0 {
				t.Errorf("%d of the connections that were used last were closed, want none", n)
			}
		}
	}
}

// TestLimitsAtOnce: idle connections are closed for all that are opened at a time.
func TestLimitsAtOnce(t *testing.T) {
	b := newBackend(t, echo)
	p := New(Config{}, health.New(), NewLimits(40, nil))
	defer p.Close()
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for n := range 200 {
				if _, err := get(t, p, b.order(fmt.Sprintf("n%d-%d.test", i, n)), "/"); err != nil {
					t.Errorf("with at most 16 of 40 connections in use: %v, want a response", err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := p.Open(); n > 40 {
		t.Errorf("%d connections are open, want at most 40", n)
	}
}

// TestStress: requests that end in all ways leave nothing behind, and each gets
// its own response.
func TestStress(t *testing.T) {
	b := newBackend(t, func(c net.Conn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			body, _ := io.ReadAll(req.Body)
			switch rand.IntN(12) {
			case 0:
				return
			case 1:
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n%s", req.URL.Path)
				return
			case 2:
				_ = c.(*net.TCPConn).SetLinger(0)
				return
			case 3:
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n%s%s", req.URL.Path, body)
				return
			case 4:
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s%s\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", len(req.URL.Path)+len(body), req.URL.Path, body)
			default:
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s%s", len(req.URL.Path)+len(body), req.URL.Path, body)
			}
		}
	})
	p := New(Config{MaxIdle: 10, MaxIdlePerKey: 3}, health.New(), NewLimits(100, nil))
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			for i := range 300 {
				ctx, cancel := context.WithCancel(context.Background())
				path := fmt.Sprintf("/%d/%d", worker, i)
				var body io.Reader
				want := path
				method := http.MethodGet
				if i%3 == 0 {
					method, body, want = http.MethodPost, io.MultiReader(strings.NewReader("some"), strings.NewReader("body")), path+"somebody"
				}
				req, _ := http.NewRequestWithContext(ctx, method, "http://backend.example"+path, body)
				if i%7 == 0 {
					time.AfterFunc(time.Duration(rand.IntN(500))*time.Microsecond, cancel)
				}
				res, err := p.RoundTrip(req, b.order(fmt.Sprintf("n%d.example", rand.IntN(5))))
				if err == nil {
					if i%11 == 0 {
						_ = res.Body.Close()
					}
					got, err := io.ReadAll(res.Body)
					if err == nil && string(got) != want || !strings.HasPrefix(want, string(got)) {
						t.Errorf("%q, want %q", got, want)
					}
					_ = res.Body.Close()
				}
				cancel()
			}
		})
	}
	wg.Wait()
	p.Close()
	testlab.Eventually(t, "nothing is left", func() bool {
		return p.Open() == 0 && p.destinations() == 0 && len(p.limits.groups) == 0
	})
}

// TestKeys: requests with different keys share no connection.
func TestKeys(t *testing.T) {
	b := newBackend(t, echo)
	p := newPool(t, Config{ProxyProtocol: 0, TLS: new(tls.Config)})
	base := b.order("a.example")
	other := *base
	other.Key.Client = netip.MustParseAddrPort("192.0.2.1:0")
	third := *base
	third.Key.Host = ""
	for _, o := range []*Order{base, &other, &third, base, &other, &third} {
		if _, err := get(t, p, o, "/"); err != nil {
			t.Fatal(err)
		}
	}
	if n := b.Opened.Load(); n != 3 {
		t.Errorf("%d connections for three keys, want 3", n)
	}
}

// lastTwo returns the last two labels of a host.
func lastTwo(host string) string {
	labels := strings.Split(host, ".")
	return strings.Join(labels[max(0, len(labels)-2):], ".")
}
