package pool

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"caddytarget/internal/health"
	"caddytarget/internal/testlab"
)

// waiting returns how many requests wait for a connection for an order's key.
func (p *Pool) waiting(o *Order) int {
	s := p.shard(&o.Key)
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.destinations[o.Key]
	if d == nil {
		return 0
	}
	return len(d.waiters)
}

// TestWaiterWithoutDial: a request that may not dial, since MaxPerKey allows one dial,
// is assigned a dial when that one has failed.
func TestWaiterWithoutDial(t *testing.T) {
	b := newBackend(t, echo)
	p := newPool(t, Config{MaxPerKey: 1})
	refused := errors.New("refused")
	var dials atomic.Int64
	fail := make(chan struct{})
	dial := p.Dial
	p.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if dials.Add(1) == 1 {
			<-fail
			return nil, refused
		}
		return dial(ctx, network, address)
	}
	o := b.order("a.example")
	first, second := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := get(t, p, o, "/1")
		first <- err
	}()
	testlab.Eventually(t, "one request dials", func() bool { return dials.Load() == 1 })
	go func() {
		_, err := get(t, p, o, "/2")
		second <- err
	}()
	testlab.Eventually(t, "two requests wait", func() bool { return p.waiting(o) == 2 })
	close(fail)
	if err := <-first; !errors.Is(err, refused) {
		t.Errorf("the request whose dial failed: %v, want %v", err, refused)
	}
	select {
	case err := <-second:
		if err != nil || dials.Load() != 2 {
			t.Errorf("%v after %d dials, want a response after 2", err, dials.Load())
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the other request has no dial, want one of its own")
	}
}

// TestHandOver: a connection that is delivered from one request to the next was never
// idle, so IdleTimeout does not end it.
func TestHandOver(t *testing.T) {
	b := newBackend(t, func(c net.Conn, r *bufio.Reader) {
		for {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			time.Sleep(5 * time.Millisecond)
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	p := newPool(t, Config{MaxPerKey: 1, IdleTimeout: time.Minute})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := get(t, p, b.order("a.example"), "/"); err != nil {
				t.Errorf("a request: %v, want a response", err)
			}
		})
	}
	wg.Wait()
	if n := b.Opened.Load(); n != 1 {
		t.Errorf("%d connections were opened, want 1", n)
	}
}

// TestLateRelease: a request that reads its answer late does not remove the destination
// that other requests have begun meanwhile.
func TestLateRelease(t *testing.T) {
	b := newBackend(t, echo)
	p := newPool(t, Config{IdleTimeout: time.Minute})
	dial := p.Dial
	refused := errors.New("refused")
	var refuse atomic.Bool
	p.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if refuse.Load() {
			return nil, refused
		}
		return dial(ctx, network, address)
	}
	o := b.order("a.example")
	s := p.shard(&o.Key)

	// what get does, up to wait
	refuse.Store(true)
	s.mu.Lock()
	d := s.destination(p, o)
	w := &waiter{order: o, ready: make(chan answer, 1)}
	d.waiters = append(d.waiters, w)
	p.assignDial(d, w)
	s.mu.Unlock()
	testlab.Eventually(t, "its dial has failed", func() bool { return len(w.ready) == 1 && p.destinations() == 0 })

	refuse.Store(false)
	if _, err := get(t, p, o, "/1"); err != nil {
		t.Fatal(err)
	}
	// its context ends at the same time as its dial
	_, _, err := p.giveUp(d, w, &Error{Phase: Connect, Err: context.Canceled})
	if !errors.Is(err, refused) {
		t.Errorf("the answer is %v, want %v", err, refused)
	}
	if p.destinations() != 1 {
		t.Errorf("%d destinations, want that of the idle connection", p.destinations())
	}
	if _, err := get(t, p, o, "/2"); err != nil || b.Opened.Load() != 1 {
		t.Errorf("%v, %d connections were opened, want 1", err, b.Opened.Load())
	}
	p.sweep(time.Now().Add(2 * time.Minute))
	if p.Open() != 0 || p.destinations() != 0 {
		t.Errorf("%d connections and %d destinations after a sweep, want none", p.Open(), p.destinations())
	}
}

// TestShare: idle connections count as free for the share of a domain, but a domain that
// has its share closes no idle connections of others.
func TestShare(t *testing.T) {
	hold := make(chan struct{})
	slow := newBackend(t, func(_ net.Conn, r *bufio.Reader) {
		_, _ = http.ReadRequest(r)
		<-hold
	})
	b := newBackend(t, echo)
	limits := NewLimits(100, nil)
	p := New(Config{}, health.New(), limits)
	defer p.Close()
	const others = 20
	for i := range others {
		if _, err := get(t, p, b.order(fmt.Sprintf("good%d.example", i)), "/"); err != nil {
			t.Fatal(err)
		}
		if _, err := get(t, p, b.order(fmt.Sprintf("n%d.test", i)), "/"); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var limited atomic.Int64
	for range 40 {
		req := request(t, http.MethodGet, "/", nil).WithContext(ctx)
		wg.Go(func() {
			if _, err := p.RoundTrip(req, slow.order("greedy.com")); errors.Is(err, ErrLimit) {
				limited.Add(1)
			}
		})
	}
	inUse := func() int {
		limits.mu.Lock()
		defer limits.mu.Unlock()
		if g := limits.groups["greedy.com"]; g != nil {
			return g.open
		}
		return 0
	}
	testlab.Eventually(t, "each request has a connection or is refused", func() bool { return inUse()+int(limited.Load()) == 40 })
	if n := inUse(); n != 20 { // a quarter of what it has left
		t.Errorf("one domain has %d of 100 connections, want 20", n)
	}
	if n := int(b.Open.Load()); n != 2*others {
		t.Errorf("%d idle connections of others are left, want %d", n, 2*others)
	}
	opened := b.Opened.Load()
	for i := range others {
		if _, err := get(t, p, b.order(fmt.Sprintf("good%d.example", i)), "/"); err != nil {
			t.Errorf("a request: %v, want a response", err)
		}
	}
	if n := b.Opened.Load() - opened; n != 0 {
		t.Errorf("%d connections of others were opened again, want none", n)
	}
	cancel()
	close(hold)
	wg.Wait()
}

// TestGivenUpDial: a connection that is opened after its request has gone is checked
// before it is used, as each idle one is. If the backend has closed it meanwhile, a
// request that cannot be sent again does not fail.
func TestGivenUpDial(t *testing.T) {
	b := newBackend(t, echo)
	p := newPool(t, Config{})
	gate := make(chan struct{})
	dial := p.Dial
	p.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		<-gate
		return dial(ctx, network, address)
	}
	o := b.order("a.example")
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := p.RoundTrip(request(t, http.MethodGet, "/", nil).WithContext(ctx), o)
		first <- err
	}()
	testlab.Eventually(t, "a request waits", func() bool { return p.waiting(o) == 1 })
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the request that gave up its dial: %v, want %v", err, context.Canceled)
	}
	close(gate)
	testlab.Eventually(t, "the connection is there", func() bool { return p.Open() == 1 })
	testlab.Eventually(t, "the backend has it, too", func() bool { return b.Open.Load() == 1 })
	b.CloseConns()
	for range 2 {
		if err := post(t, p, o, http.NoBody); err != nil {
			t.Errorf("a POST after the backend closed the connection: %v, want a response", err)
		}
	}
	if n := b.Opened.Load(); n != 2 {
		t.Errorf("%d connections were opened, want 2: for the request that went and for those after it", n)
	}
}

// A request that waited without a dial, since MaxPerKey allowed none, gives up the dial
// that it is assigned in the end after FailoverTimeout, as any other does.
func TestLateDial(t *testing.T) {
	proceed := make(chan struct{})
	b := newBackend(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		<-proceed
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
	})
	p := newPool(t, Config{MaxPerKey: 1, DialTimeout: 3 * time.Second})
	var dials atomic.Int64
	dial := p.Dial
	p.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if dials.Add(1) == 1 {
			return dial(ctx, network, address)
		}
		<-ctx.Done() // silent
		return nil, ctx.Err()
	}
	o := b.order("a.example")
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { _, err := get(t, p, o, "/1"); first <- err }()
	testlab.Eventually(t, "one dials", func() bool { return dials.Load() == 1 && p.Open() == 1 })
	next := *o
	next.Last = false
	go func() { _, err := get(t, p, &next, "/2"); second <- err }()
	testlab.Eventually(t, "one waits", func() bool { return p.waiting(o) == 1 })
	time.Sleep(2 * FailoverTimeout(Connect))
	close(proceed)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	err := <-second
	e, _ := err.(*Error)
	if e == nil || e.Pending == nil {
		t.Errorf("%+v, want an Error with a Pending after %s", err, FailoverTimeout(Connect))
	}
}
