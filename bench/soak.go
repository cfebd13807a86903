package main

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"caddytarget/internal/testlab"
)

// soaking is a mixed load for long.
type soaking struct {
	*gatewayRun
	mu      sync.Mutex
	done    map[string]*tally // by kind of request
	planted map[string]bool   // kinds that are to fail
}

// tally counts requests of one kind.
type tally struct {
	sent, failed int
	errors       map[string]int
}

// kindOfRequest is one of the things that clients do.
type kindOfRequest struct {
	name string
	rate float64 // a second
	do   func() (status int, text string)
}

// The status that stands for success in do.
const fine = http.StatusOK

// add counts one request.
func (s *soaking) add(kind string, status int, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.done[kind]
	if t == nil {
		t = &tally{errors: make(map[string]int)}
		s.done[kind] = t
	}
	t.sent++
	if status != fine {
		t.failed++
		t.errors[strings.TrimSpace(fmt.Sprintf("%d %s", status, reason(text)))]++
	}
}

// take returns what was counted since the last call.
func (s *soaking) take() map[string]*tally {
	s.mu.Lock()
	defer s.mu.Unlock()
	done := s.done
	s.done = make(map[string]*tally)
	return done
}

// send does a kind of request at its rate, on average, until stop.
func (s *soaking) send(k kindOfRequest, stop <-chan struct{}) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(rand.ExpFloat64() / k.rate * float64(time.Second))):
			wg.Go(func() {
				status, text := k.do()
				s.add(k.name, status, text)
			})
		}
	}
}

// soak runs everything at once, and prints each minute what caddy holds.
func soak(l *lab) {
	const names, moving = 100, 10
	l.names.ttl = 2
	ca := testlab.NewAuthority(l)
	l.everywhere(names)
	newBackends := func(p protocolOf, idle time.Duration) *backends {
		config := p.backends(ca)
		config.IdleTimeout = idle
		b := l.newBackends(config)
		b.listenEverywhere()
		return b
	}
	var list []*backends
	for _, p := range protocols {
		list = append(list, newBackends(p, 0))
	}
	short := newBackends(protocols[0], time.Second)
	resetting := freePort()
	testlab.ResettingBackend(l, strconv.Itoa(resetting), loopback(1).String())
	for _, name := range []string{"d1000.test", "d1001.test"} {
		l.names.moved.Store(name, []netip.Addr{loopback(1)})
	}

	l.site = "handle_errors {\n\t\trespond \"{http.target.error}\" {err.status_code}\n\t}"
	port, admin, refusing := freePort(), freePort(), freePort()
	config := func(i int) string {
		return l.gateway(port, admin, fmt.Sprintf("header_up X-Reload %d\n\t\tstream_close_delay 1m\n\t\ttls_trust_pool file %s", i, ca.File))
	}
	l.startCaddy(config(0), address(port))
	g := &gatewayRun{&conns{address: address(port), limit: floodConns}, admin}
	s := &soaking{gatewayRun: g, done: make(map[string]*tally), planted: map[string]bool{"a backend that resets": true, "a port that refuses": true}}

	kinds := soakKinds(g, list, names)
	kinds = append(kinds,
		kindOfRequest{"a backend that closes after 1 s", 20, func() (int, string) { return g.get(named("http", 0, names, short.port)()) }},
		kindOfRequest{"a backend that resets", 5, func() (int, string) { return g.get(fmt.Sprintf("http://d1000.test:%d", resetting)) }},
		kindOfRequest{"a port that refuses", 5, func() (int, string) { return g.get(fmt.Sprintf("http://d1001.test:%d", refusing)) }},
	)

	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, k := range kinds {
		wg.Go(func() { s.send(k, stop) })
	}
	every(&wg, stop, 30*time.Second, func(i int) { l.reload(config(i), address(admin)) })
	every(&wg, stop, 5*time.Second, func(i int) {
		for n := range moving {
			l.names.moved.Store(fmt.Sprintf("d%d.test", n), []netip.Addr{loopback(names + 1 + (i+n)%50)})
		}
	})

	// The lines come between the reloads.
	time.Sleep(15 * time.Second)
	s.line("start", l.holds(admin))
	var held []holding
	for minute := range *minutes {
		time.Sleep(time.Minute)
		h := l.holds(admin)
		held = append(held, h)
		s.line(fmt.Sprintf("%d min", minute+1), h)
	}
	close(stop)
	wg.Wait()
	g.close()
	time.Sleep(5 * time.Second)
	s.line("end", l.holds(admin))
	if n := g.repeated.Load(); n > 0 {
		fmt.Printf("%d requests met a connection that the gateway had closed, and were sent again\n", n)
	}
	fmt.Printf("slope an hour: heap %+.2f MB, resident %+.2f MB, goroutines %+.0f, descriptors %+.0f\n",
		slope(held, func(h holding) int64 { return h.heap })/1e6, slope(held, func(h holding) int64 { return h.rss })/1e6,
		slope(held, func(h holding) int64 { return int64(h.goroutines) }), slope(held, func(h holding) int64 { return int64(h.descriptors) }))
}

// every calls do with 1, 2 and so on, once in an interval, until stop.
func every(wg *sync.WaitGroup, stop <-chan struct{}, interval time.Duration, do func(i int)) {
	wg.Go(func() {
		for i := 1; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(interval):
				do(i)
			}
		}
	})
}

// soakKinds returns the kinds of requests to backends that work, of which there is
// one for each protocol. It calls them by that many names.
func soakKinds(g *gatewayRun, working []*backends, names int) (kinds []kindOfRequest) {
	for i, p := range protocols {
		target := named(p.scheme, 0, names, working[i].port)
		kinds = append(kinds,
			kindOfRequest{"GET " + p.String(), 50, func() (int, string) { return g.get(target()) }},
			kindOfRequest{"POST " + p.String(), 10, func() (int, string) {
				return g.do(http.MethodPost, target(), "", strings.Repeat("x", 1+rand.N(64<<10)))
			}},
			kindOfRequest{"a slow client", .5, func() (int, string) { return slowly(g.address, target()) }},
			kindOfRequest{"a client that leaves", 2, func() (int, string) { return leave(g.address, target()) }},
		)
		if p.protocol != "h2" { // whose backends have no HTTP/1.1 here
			kinds = append(kinds, kindOfRequest{"a WebSocket", .5, func() (int, string) {
				if _, err := talk(g.address, target(), 5*time.Second); err != nil {
					return 0, err.Error()
				}
				return fine, ""
			}})
		}
	}
	return kinds
}

// line prints how many requests failed since the last line. Those that are to fail
// are counted separately.
func (s *soaking) line(when string, h holding) {
	sent, failed, asPlanted, planted := 0, 0, 0, 0
	causes := make(map[string]int)
	for kind, t := range s.take() {
		if s.planted[kind] {
			planted, asPlanted = planted+t.sent, asPlanted+t.failed
			continue
		}
		sent, failed = sent+t.sent, failed+t.failed
		for what, n := range t.errors {
			causes[kind+": "+what] += n
		}
	}
	fmt.Printf("%-7s %d of %d failed; of the planted %d of %d; %s\n", when, failed, sent, asPlanted, planted, h)
	for _, what := range slices.SortedFunc(maps.Keys(causes), func(a, b string) int { return cmp.Compare(causes[b], causes[a]) }) {
		fmt.Printf("        %d × %s\n", causes[what], what)
	}
}

// slope is by how much something rises an hour, by least squares over what was
// held each minute, the first one apart.
func slope(held []holding, of func(holding) int64) float64 {
	held = held[min(1, len(held)):]
	var n, x, y, xx, xy float64
	for i, h := range held {
		minute, value := float64(i), float64(of(h))
		n, x, y, xx, xy = n+1, x+minute, y+value, xx+minute*minute, xy+minute*value
	}
	if n < 2 {
		return 0
	}
	return (n*xy - x*y) / (n*xx - x*x) * 60
}

// slowly sends a body bit by bit, and takes its time to read the response.
func slowly(address, target string) (int, string) {
	const parts, size = 20, 512
	conn, r, err := dialGateway(address, http.MethodPost, target, fmt.Sprintf("Content-Length: %d\r\nConnection: close\r\n", parts*size))
	if err != nil {
		return 0, err.Error()
	}
	defer conn.Close()
	for range parts {
		time.Sleep(100 * time.Millisecond)
		if _, err := io.WriteString(conn, strings.Repeat("x", size)); err != nil {
			return 0, err.Error()
		}
	}
	time.Sleep(time.Second)
	return statusOf(r)
}

// leave sends a request, or a part of it, and goes.
func leave(address, target string) (int, string) {
	conn, _, err := dialGateway(address, http.MethodPost, target, "Content-Length: 1000\r\n")
	if err != nil {
		return 0, err.Error()
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, strings.Repeat("x", rand.N(1001)))
	time.Sleep(rand.N(5 * time.Millisecond))
	return fine, ""
}

func statusOf(r *bufio.Reader) (int, string) {
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(text)
}
