package main

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
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
	mu        sync.Mutex
	done      map[string]*tally // by kind of request
	reloading bool              // whether a reload is under way
	reloaded  time.Time         // when the last one ended
}

// tally counts requests of one kind.
type tally struct {
	Sent, Failed int
	Planted      map[string]int // failures that the soak caused, by status and token
	Errors       map[string]int // all others
}

// kindOfRequest is one of the things that clients do.
type kindOfRequest struct {
	name    string
	rate    float64 // a second
	planted []string
	do      func() (status int, text string)
}

// The status that stands for success in do.
const fine = http.StatusOK

// lostToReload is a cause that the soak plants: Caddy closes its listener and then the
// connections over which no request came yet.
const lostToReload = "lost to a reload"

// add counts one request, which was begun at a time. Its text begins with the token of a
// failure.
func (s *soaking) add(k kindOfRequest, begun time.Time, status int, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.done[k.name]
	if t == nil {
		t = &tally{Planted: make(map[string]int), Errors: make(map[string]int)}
		s.done[k.name] = t
	}
	t.Sent++
	if status == fine {
		return
	}
	t.Failed++
	token, _, _ := strings.Cut(text, ":")
	switch {
	case status == 0 && !strings.Contains(text, cut) && (s.reloading || s.reloaded.After(begun.Add(-time.Second))):
		t.Planted[lostToReload]++
	case slices.Contains(k.planted, token):
		t.Planted[fmt.Sprintf("%d %s", status, token)]++
	default:
		t.Errors[strings.TrimSpace(fmt.Sprintf("%d %s", status, reason(text)))]++
		fmt.Printf("%s  %s failed after %s: %d %s\n", time.Now().Format(time.TimeOnly), k.name, time.Since(begun).Round(time.Millisecond), status, text)
	}
}

// reload notes that a reload begins or has ended.
func (s *soaking) reload(begins bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reloading = begins
	if !begins {
		s.reloaded = time.Now()
	}
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
				begun := time.Now()
				status, text := k.do()
				s.add(k, begun, status, text)
			})
		}
	}
}

// counts returns how many requests there were, how many of them failed, and how many of
// these for another reason than those that the soak plants.
func (s *soaking) counts() (sent, failed, unplanted int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.done {
		sent, failed = sent+t.Sent, failed+t.Failed
		for _, n := range t.Errors {
			unplanted += n
		}
	}
	return sent, failed, unplanted
}

// Soak's configuration is loaded anew once in this time, and samples are taken halfway
// between. A name moves, and a server fails and comes back, more often.
const (
	soakReload = 30 * time.Second
	soakMove   = 5 * time.Second
	soakFail   = 15 * time.Second
	soakDown   = 3 * time.Second
)

// soak runs everything at once, and writes down what caddy holds. It is long because the
// kinds of requests, the backends that fail and the samples have one gateway.
func soak(l *lab) {
	const names, moving = 100, 10
	l.names.ttl = 2
	// 16 names a second are new: the cache is full after five minutes, and has to make room
	l.options += "\n\t\t\tcache_size 5000"
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
	failing, oneOfTwo := l.newFailing(loopback(1)), l.newFailing(loopback(1))
	oneOfTwo.listen(loopback(2))
	for name, has := range map[string][]netip.Addr{"d1000.test": {loopback(1)}, "d1001.test": {loopback(1), loopback(2)}} {
		l.names.moved.Store(name, has)
	}

	l.site = "handle_errors {\n\t\trespond \"{http.target.failure}: {http.target.error}\" {err.status_code}\n\t}"
	port, admin, refusing := freePort(), freePort(), freePort()
	config := func(i int) string {
		return l.gateway(port, admin, fmt.Sprintf("header_up X-Reload %d\n\t\tstream_close_delay 1m\n\t\ttls_trust_pool file %s", i, ca.File))
	}
	l.startCaddy(config(0), address(port))
	g := &gatewayRun{&conns{address: address(port), limit: floodConns}, admin}
	s := &soaking{gatewayRun: g, done: make(map[string]*tally)}

	call := func(name string, port int) func() (int, string) {
		return func() (int, string) { return g.get(fmt.Sprintf("http://%s:%d", name, port)) }
	}
	newName := func(kind byte) func() (int, string) {
		return func() (int, string) {
			return call(fmt.Sprintf("%c%x.soak.example", kind, rand.Uint64()), list[0].port)()
		}
	}
	const unavailable = "destination_unavailable" // known to fail
	kinds := append(soakKinds(g, list, names),
		kindOfRequest{"a name never seen before", 10, nil, newName(existing)},
		kindOfRequest{"a name that does not exist", 5, []string{"destination_not_found"}, newName(missing)},
		kindOfRequest{"a name whose nameserver is silent", 1, []string{"dns_timeout"}, newName(silent)},
		kindOfRequest{"a backend that closes after 1 s", 20, nil, func() (int, string) { return g.get(named("http", 0, names, short.port)()) }},
		kindOfRequest{"a backend that resets", 5, []string{"connection_terminated", unavailable}, call("d1000.test", resetting)},
		kindOfRequest{"a port that refuses", 5, []string{"connection_refused", unavailable}, call("d1000.test", refusing)},
		kindOfRequest{"a backend that fails for 3 s in 15", 20, []string{"connection_refused", "connection_terminated", unavailable}, call("d1000.test", failing.port)},
		kindOfRequest{"two backends of which one does", 20, nil, call("d1001.test", oneOfTwo.port)},
	)

	stop := make(chan struct{})
	var wg sync.WaitGroup
	start := time.Now()
	for _, k := range kinds {
		wg.Go(func() { s.send(k, stop) })
	}
	every(&wg, stop, soakReload, func(i int) {
		s.reload(true)
		l.reload(config(i), address(admin))
		s.reload(false)
	})
	every(&wg, stop, soakMove, func(i int) {
		for n := range moving {
			l.names.moved.Store(fmt.Sprintf("d%d.test", n), []netip.Addr{loopback(names + 1 + (i+n)%50)})
		}
	})
	every(&wg, stop, soakFail, func(int) {
		failing.stop()
		oneOfTwo.stop()
		time.Sleep(soakDown)
		failing.start()
		oneOfTwo.start()
	})

	report := &soakReport{Machine: machine(), Date: time.Now().UTC().Format(time.DateOnly), Minutes: *minutes}
	for end := start.Add(time.Duration(*minutes) * time.Minute); ; {
		at := start.Add(time.Duration(len(report.Samples))*soakReload + soakReload/2)
		if at.After(end) {
			break
		}
		time.Sleep(time.Until(at))
		h := l.holds(admin)
		report.Samples = append(report.Samples, sample{
			Minute: time.Since(start).Minutes(), Resident: float64(h.rss) / 1e6, Heap: float64(h.heap) / 1e6,
			Goroutines: float64(h.goroutines), Descriptors: float64(h.descriptors),
		})
		sent, failed, unplanted := s.counts()
		fmt.Printf("%5.1f min  %d requests, %d failed, %d of them for a reason that was not planted; %s\n",
			time.Since(start).Minutes(), sent, failed, unplanted, h)
	}
	close(stop)
	wg.Wait()
	report.Kinds, report.Repeated = s.done, g.repeated.Load()
	report.print()
	record(func(m *measurements) { m.Soak = report })
	g.close()
}

// failing is a backend of which one address comes and goes.
type failing struct {
	*backends
	addr     netip.Addr
	listener net.Listener
}

func (l *lab) newFailing(addr netip.Addr) *failing {
	f := &failing{backends: l.newBackends(testlab.BackendConfig{}), addr: addr}
	f.start()
	return f
}

func (f *failing) start() { f.listener = f.listen(f.addr) }

// stop resets the connections to all addresses, and refuses new ones to one.
func (f *failing) stop() {
	f.listener.Close()
	f.ResetConns()
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
			kindOfRequest{"GET " + p.String(), 50, nil, func() (int, string) { return g.get(target()) }},
			kindOfRequest{"POST " + p.String(), 10, nil, func() (int, string) {
				return g.do(http.MethodPost, target(), "", strings.Repeat("x", 1+rand.N(64<<10)))
			}},
			kindOfRequest{"a slow client, " + p.String(), .5, nil, func() (int, string) { return slowly(g.address, target()) }},
			kindOfRequest{"a client that leaves, " + p.String(), 2, nil, func() (int, string) { return leave(g.address, target()) }},
		)
		if p.protocol != "h2" { // whose backends have no HTTP/1.1 here
			kinds = append(kinds, kindOfRequest{"a WebSocket, " + p.String(), .5, nil, func() (int, string) {
				if _, err := talk(g.address, target(), 5*time.Second); err != nil {
					return 0, err.Error()
				}
				return fine, ""
			}})
		}
	}
	return kinds
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
		return 0, "response" + cut + err.Error()
	}
	return res.StatusCode, string(text)
}
