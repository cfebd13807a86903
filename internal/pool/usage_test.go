package pool

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"caddytarget/internal/testlab"
)

func anyKey(*Key) bool     { return true }
func anyUsage(*Usage) bool { return true }

// look returns what there is for a key, and reports whether there is anything.
func (p *Pool) look(key *Key) (Usage, bool) {
	s := p.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.destinations[*key]
	if d == nil {
		return Usage{}, false
	}
	return d.usage(time.Now()), true
}

// checkCounts checks that Counts and the slots agree with the destinations.
func (p *Pool) checkCounts(t testing.TB) {
	t.Helper()
	for i := range p.shards {
		s := &p.shards[i]
		s.mu.Lock()
		var want connCount
		slots := 0
		for _, d := range s.slots.list {
			if d == nil {
				continue
			}
			slots++
			if s.destinations[d.key] != d {
				t.Errorf("%+v is in a slot and is no destination", d.key)
			}
			for _, c := range d.conns {
				want.open[c.protocol()]++
				if c.idle {
					want.idle[c.protocol()]++
				}
			}
			for _, n := range d.dials {
				want.dials[n.phase]++
			}
		}
		want.upgraded = s.count.upgraded
		if s.count != want || slots != len(s.destinations) {
			t.Errorf("got the counts %+v and %d slots, want %+v and %d", s.count, slots, want, len(s.destinations))
		}
		s.mu.Unlock()
	}
}

// slowly answers each request with its path when it may go on.
func slowly(hold <-chan struct{}) func(net.Conn, *bufio.Reader) {
	return func(c net.Conn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if req.URL.Path == "/slow" {
				<-hold
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	}
}

// TestUsage follows the connections of one key.
func TestUsage(t *testing.T) {
	hold := make(chan struct{})
	b := newBackend(t, slowly(hold))
	p := newPool(t, Config{MaxPerKey: 2})
	o := b.order("a.example")
	look := func(what string, is func(u *Usage) bool) {
		t.Helper()
		var u Usage
		testlab.Eventually(t, what, func() bool {
			var ok bool
			u, ok = p.look(&o.Key)
			return ok && is(&u)
		})
		p.checkCounts(t)
	}
	if u, ok := p.look(&o.Key); ok {
		t.Errorf("got %+v before the first request, want nothing", u)
	}
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			if _, err := get(t, p, o, "/slow"); err != nil {
				t.Error(err)
			}
		})
	}
	look("two in use, one waits", func(u *Usage) bool {
		return u.Key == o.Key && !u.HTTP2 && u.InUse == 2 && u.Requests == 2 && u.Waiting == 1 && u.Idle == 0 && u.Dialling == 0 &&
			u.Oldest >= u.Newest && u.Newest > 0 && u.Unused == 0
	})
	if got, want := p.Counts(), (Counts{InUse: [2]int{2, 0}}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	close(hold)
	all.Wait()
	look("two idle", func(u *Usage) bool { return u.InUse == 0 && u.Idle == 2 && u.Waiting == 0 && u.Unused > 0 })
	if got, want := p.Counts(), (Counts{Idle: [2]int{2, 0}}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if n := p.CloseIdle(func(k *Key) bool { return k.Host == "b.example" }); n != 0 {
		t.Errorf("%d connections of another target were closed, want none", n)
	}
	if n := p.CloseIdle(func(k *Key) bool { return k.Host == "a.example" }); n != 2 || p.Open() != 0 {
		t.Errorf("%d connections were closed and %d are open, want 2 and 0", n, p.Open())
	}
	testlab.Eventually(t, "they are closed", func() bool { return b.Open.Load() == 0 })
	p.checkCounts(t)
}

// TestUsageDialling follows a dial, in both phases.
func TestUsageDialling(t *testing.T) {
	b := newBackend(t, func(c net.Conn, _ *bufio.Reader) { _, _ = io.Copy(io.Discard, c) })
	p := newPool(t, Config{})
	hold := make(chan struct{})
	dial := p.Dial
	p.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		<-hold
		return dial(ctx, network, address)
	}
	o := b.order("a.example")
	o.Key.Protocol, o.Key.ServerName = TLS, "a.example"
	if !p.Probe(o) {
		t.Fatal("no probe was started")
	}
	for _, phase := range []Phase{Connect, Handshake} {
		testlab.Eventually(t, "the phase", func() bool {
			u, ok := p.look(&o.Key)
			var want Counts
			want.Dialling[phase] = 1
			return ok && u.Dialling == 1 && u.Phase == phase && u.DialPast > 0 && u.InUse == 0 && p.Counts() == want
		})
		p.checkCounts(t)
		if phase == Connect {
			close(hold)
		}
	}
	testlab.Eventually(t, "the dial has failed", func() bool {
		b.CloseConns() // the backend may take the connection late
		return p.Counts() == Counts{} && p.destinations() == 0
	})
	p.checkCounts(t)
}

// TestUsageUpgraded: a connection whose protocol was switched is counted until it is
// closed.
func TestUsageUpgraded(t *testing.T) {
	b := newBackend(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		}
		_, _ = io.Copy(io.Discard, r)
	})
	p := newPool(t, Config{})
	req := request(t, http.MethodGet, "/", nil)
	req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"echo"}}
	res, err := p.RoundTrip(req, b.order("a.example"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := p.Counts(), (Counts{Upgraded: 1}); got != want || p.Open() != 1 {
		t.Errorf("got %+v and %d open connections, want %+v and 1", got, p.Open(), want)
	}
	_ = res.Body.Close()
	if got := p.Counts(); got != (Counts{}) || p.Open() != 0 {
		t.Errorf("got %+v and %d open connections, want none", got, p.Open())
	}
}

// TestUsageHTTP2: requests share a connection of HTTP/2, which is idle without any.
func TestUsageHTTP2(t *testing.T) {
	hold := make(chan struct{})
	b := newBackend2(t, true, 100, func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			rw.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(rw).Flush()
			<-hold
		}
	})
	p := newPool(t, Config{TLS: anyCertificate()})
	if _, err := get(t, p, b.order, "/"); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			if _, err := get(t, p, b.order, "/slow"); err != nil {
				t.Error(err)
			}
		})
	}
	testlab.Eventually(t, "three requests over one connection", func() bool {
		u, ok := p.look(&b.order.Key)
		return ok && u.HTTP2 && u.InUse == 1 && u.Requests == 3 && u.Idle == 0
	})
	if got, want := p.Counts(), (Counts{InUse: [2]int{0, 1}}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if n := p.CloseIdle(anyKey); n != 0 {
		t.Errorf("%d connections in use were closed, want none", n)
	}
	close(hold)
	all.Wait()
	testlab.Eventually(t, "it is idle", func() bool {
		u, ok := p.look(&b.order.Key)
		return ok && u.Idle == 1 && u.InUse == 0 && u.Requests == 0
	})
	p.checkCounts(t)
	if n := p.CloseIdle(anyKey); n != 1 || p.Open() != 0 {
		t.Errorf("%d connections were closed and %d are open, want 1 and 0", n, p.Open())
	}
	p.checkCounts(t)
}

// fill makes n destinations without connections.
func (p *Pool) fill(prefix string, n int) (keys map[string]bool) {
	keys = make(map[string]bool, n)
	for i := range n {
		o := &Order{Key: Key{Addr: netip.MustParseAddrPort("192.0.2.1:80"), Host: fmt.Sprintf("%s%d.example", prefix, i)}}
		s := p.shard(&o.Key)
		s.mu.Lock()
		s.destination(p, o)
		s.mu.Unlock()
		keys[o.Key.Host] = true
	}
	return keys
}

// drop removes the destinations of some keys.
func (p *Pool) drop(keys map[string]bool) {
	for i := range p.shards {
		s := &p.shards[i]
		s.mu.Lock()
		for _, d := range s.destinations {
			if keys[d.key.Host] {
				s.dropUnused(d)
			}
		}
		s.mu.Unlock()
	}
}

// TestUsagePages pages through keys while others come and go.
func TestUsagePages(t *testing.T) {
	p := newPool(t, Config{})
	early := p.fill("early", 2000)
	want := p.fill("n", 10000)
	p.drop(early)
	for _, limit := range []int{97, 1000, 20000} {
		got := make(map[string]bool)
		from, pages := uint64(0), 0
		for {
			page, next, err := p.Usages(t.Context(), from, limit, func(k *Key) bool { return k.Host[0] == 'n' }, anyUsage)
			if err != nil {
				t.Fatal(err)
			}
			for _, u := range page {
				if got[u.Key.Host] {
					t.Fatalf("limit %d: got %s twice", limit, u.Key.Host)
				}
				got[u.Key.Host] = true
			}
			if pages++; next == 0 {
				break
			}
			if len(page) != limit || next <= from {
				t.Fatalf("limit %d: got %d keys on a page and the position %d after %d, want more", limit, len(page), next, from)
			}
			from = next
			others := p.fill(fmt.Sprint("x", pages), 5)
			p.drop(others)
		}
		if !maps.Equal(got, want) {
			t.Errorf("limit %d: got %d keys, want %d", limit, len(got), len(want))
		}
	}
	p.checkCounts(t)
	held := 0
	for _, d := range p.scan(0) {
		if held++; d == nil {
			held = 0
		}
		if held > scanned {
			t.Fatalf("got %d keys under one lock, want at most %d", held, scanned)
		}
	}
	p.drop(want)
	for i := range p.shards {
		if s := &p.shards[i]; s.slots.list != nil || len(s.destinations) != 0 {
			t.Errorf("got %d slots and %d destinations without a key, want none", len(s.slots.list), len(s.destinations))
		}
	}
	if page, next, err := p.Usages(t.Context(), 1<<slotBits|99, 1, anyKey, anyUsage); len(page) != 0 || next != 0 || err != nil {
		t.Errorf("got %v, %d, %v of an empty pool, want nothing", page, next, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := p.Usages(ctx, 0, 1, anyKey, anyUsage); err == nil {
		t.Error("got no error of a context that has ended, want one")
	}
}

// TestUsageRace lists and closes connections while requests use them.
func TestUsageRace(t *testing.T) {
	b := newBackend(t, echo)
	p := newPool(t, Config{})
	done := make(chan struct{})
	var requests, others sync.WaitGroup
	for i := range 4 {
		requests.Go(func() {
			for n := range 150 {
				if _, err := get(t, p, b.order(fmt.Sprintf("n%d.example", (i+n)%20)), "/"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	others.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			_, _, _ = p.Usages(t.Context(), 0, 5, anyKey, anyUsage)
			p.Counts()
			p.CloseIdle(func(k *Key) bool { return strings.HasPrefix(k.Host, "n1") })
			time.Sleep(time.Millisecond)
		}
	})
	requests.Wait()
	close(done)
	others.Wait()
	testlab.Eventually(t, "no dial is under way that a request did not wait for", func() bool {
		return p.Counts().Dialling == [dialPhaseCount]int{}
	})
	p.checkIdle(t)
}

// BenchmarkUsages reads a page of 100 from 100 000 keys of which few match.
func BenchmarkUsages(b *testing.B) {
	p := newPool(b, Config{})
	p.fill("n", 100000)
	for b.Loop() {
		page, _, _ := p.Usages(b.Context(), 0, 100, func(k *Key) bool { return strings.HasPrefix(k.Host, "n9999") }, anyUsage)
		if len(page) != 11 {
			b.Fatalf("got %d keys, want 11", len(page))
		}
	}
}

// TestUsagesOfFullPage: a page that is full before the first key of a pool goes on there,
// wherever the key is.
func TestUsagesOfFullPage(t *testing.T) {
	p := newPool(t, Config{})
	o := &Order{Key: Key{Host: "a.example"}}
	for i := 0; p.shard(&o.Key) != &p.shards[0]; i++ {
		o.Key.Host = fmt.Sprintf("%d.example", i)
	}
	s := &p.shards[0]
	s.mu.Lock()
	s.destination(p, o)
	s.mu.Unlock()
	key, rest := func(*Key) bool { return true }, func(*Usage) bool { return true }
	page, next, err := p.Usages(t.Context(), 0, 0, key, rest)
	if len(page) != 0 || next == 0 || err != nil {
		t.Fatalf("got %+v, %d, %v with no room on the page, want a position to go on from", page, next, err)
	}
	page, next, err = p.Usages(t.Context(), next, 1, key, rest)
	if len(page) != 1 || page[0].Key != o.Key || next != 0 || err != nil {
		t.Errorf("got %+v, %d, %v, want the key on the next page", page, next, err)
	}
}

// checkIdle checks the state of a pool while no request is under way.
func (p *Pool) checkIdle(t *testing.T) {
	p.checkCounts(t)
	open := 0
	for i := range p.shards {
		s := &p.shards[i]
		s.mu.Lock()
		listed := 0
		for c := s.oldest; c != nil; c = c.next {
			listed++
		}
		for _, d := range s.destinations {
			if len(d.waiters)+len(d.dials) > 0 {
				t.Errorf("%d requests wait and %d dials are under way, want none", len(d.waiters), len(d.dials))
			}
			for _, c := range d.conns {
				if !c.idle && !c.retired || c.active != 0 {
					t.Errorf("a connection that no request uses: idle %t, active %d, retired %t, want it idle or retired, and not active", c.idle, c.active, c.retired)
				}
			}
			open += len(d.conns)
			listed -= len(d.conns)
		}
		s.mu.Unlock()
		if listed != 0 {
			t.Errorf("%d connections more are in the list of idle ones than are open, want none", listed)
		}
	}
	if p.Open() != open {
		t.Errorf("Open returns %d, want %d, the connections of all destinations", p.Open(), open)
	}
}
