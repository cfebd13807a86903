package main

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"caddytarget/internal/testlab"
)

// failures returns what failed, and why.
func (r *result) failures() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%d of %d failed", r.Failed, r.Sent)
	if r.Lost > 0 {
		fmt.Fprintf(&text, " (%d of them without an answer of the gateway)", r.Lost)
	}
	for _, what := range slices.SortedFunc(maps.Keys(r.Errors), func(a, b string) int { return cmp.Compare(r.Errors[b], r.Errors[a]) }) {
		fmt.Fprintf(&text, "\n      %d × %s", r.Errors[what], what)
	}
	return text.String()
}

func quantiles(list []time.Duration) string {
	ms := func(q float64) float64 { return quantile(list, q).Seconds() * 1e3 }
	return fmt.Sprintf("p50 %.2f ms  p99 %.2f ms  max %.0f ms", ms(.5), ms(.99), ms(1))
}

// named picks one of n names from the first one on.
func named(scheme string, first, n, port int) func() string {
	return func() string { return fmt.Sprintf("%s://d%d.test:%d", scheme, first+rand.N(n), port) }
}

// failoverNames is how many names there are for GETs and for POSTs, with four
// addresses, and for GETs, with the good one only.
const failoverNames = 50

// failover sends requests to names of which one address in four works, and to
// others that have only that one.
func failover(l *lab) {
	ca := testlab.NewAuthority(l)
	for _, scheme := range []string{"http", "https"} {
		var config testlab.BackendConfig
		if scheme == "https" {
			config = testlab.BackendConfig{CA: ca, HTTP2: true}
		}
		b := l.newBackends(config)
		addrs := []netip.Addr{loopback(1), loopback(2), loopback(3), loopback(4)}
		on := func(i int) netip.AddrPort { return netip.AddrPortFrom(addrs[i], uint16(b.port)) }
		resetting := new(resetter)
		b.listen(addrs[3])
		if scheme == "http" {
			l.newBlackhole(on(1))
			l.listenRaw(on(2), resetting.serve)
			fmt.Printf("http: %s refuses, %s is silent, %s resets, %s works\n", addrs[0], addrs[1], addrs[2], addrs[3])
		} else {
			wrong := l.newBackends(testlab.BackendConfig{CA: ca, HTTP2: true, TLS: wrongName(ca)})
			wrong.port = b.port
			wrong.listen(addrs[0])
			l.listenRaw(on(1), hang)
			testlab.ResettingBackend(l, portOf(on(2)), addrs[2].String())
			fmt.Printf("https: %s has a wrong certificate, %s never shakes hands, %s resets, %s works\n", addrs[0], addrs[1], addrs[2], addrs[3])
		}
		for i := range 3 * failoverNames {
			has := addrs
			if i >= 2*failoverNames {
				has = addrs[3:]
			}
			l.names.moved.Store(fmt.Sprintf("d%d.test", i), has)
		}
		failoverOf(l, l.startGateway("tls_trust_pool file "+ca.File), scheme, b.port, resetting)
	}
	lostPacket(l)
}

// lostPacket has the first packet to the good address get lost, so that it takes
// a second to open a connection to it, while the three others refuse.
func lostPacket(l *lab) {
	b := l.newBackends(testlab.BackendConfig{})
	addrs := []netip.Addr{loopback(1), loopback(2), loopback(3), loopback(4)}
	for i := range failoverNames {
		l.names.moved.Store(fmt.Sprintf("d%d.test", i), addrs)
	}
	good := l.newBlackhole(netip.AddrPortFrom(addrs[3], uint16(b.port)))
	g := l.startGateway("")
	list := targets("http", failoverNames, b.port)
	time.AfterFunc(500*time.Millisecond, func() { b.Serve(good.Wake(l)) })
	r := closedLoop(g.get, len(list), len(list), func(i int) string { return list[i] })
	fmt.Printf("http, three addresses refuse, and the first packet to the good one is lost: %s; %s\n", quantiles(slices.Concat(r.Latencies, r.lostAfter)), r.failures())
	r = openLoopBy(g.get, 50, 3*time.Second, oneOf("http", failoverNames, b.port), never)
	fmt.Printf("  after that: %s; %s\n", quantiles(r.Latencies), r.failures())
	l.stop(g)
}

func failoverOf(l *lab, g *gatewayRun, scheme string, port int, resetting *resetter) {
	const gets, others, posts = 500, 200, 100 // a second
	duration := time.Duration(*seconds) * 5 * time.Second
	four, one := named(scheme, 0, failoverNames, port), named(scheme, 2*failoverNames, failoverNames, port)
	fourForPosts := named(scheme, failoverNames, failoverNames, port)

	content := strings.Repeat("x", 64<<10)
	var ids atomic.Int64
	var outcome sync.Map // id → status
	post := func(target string) (int, string) {
		id := fmt.Sprint(ids.Add(1))
		status, text := g.do(http.MethodPost, target, "X-Id: "+id+"\r\n", content)
		outcome.Store(id, status)
		return status, text
	}
	var burst, toFour, toOne, posted *result
	var wg sync.WaitGroup
	wg.Go(func() { burst = closedLoop(g.get, 200, 200, func(int) string { return four() }) })
	wg.Go(func() { toFour = openLoopBy(g.get, gets, duration, four, never) })
	wg.Go(func() { toOne = openLoopBy(g.get, others, duration, one, never) })
	wg.Go(func() { posted = openLoopBy(post, posts, duration, fourForPosts, never) })
	wg.Wait()

	fmt.Printf("  200 GETs at once, at the start: %s; %s\n", quantiles(burst.Latencies), burst.failures())
	fmt.Printf("  %d GETs at %d/s to names with four: %s\n", toFour.Sent, gets, toFour.failures())
	slow := 0
	for _, latency := range toFour.steady {
		if latency >= time.Second {
			slow++
		}
	}
	fmt.Printf("  after the first second: %s; %d took a second or more\n", quantiles(toFour.steady), slow)
	fmt.Printf("  names with the good one only:   %s; %s\n", quantiles(toOne.steady), toOne.failures())
	fmt.Printf("  ratio: p50 %.2f, p99 %.2f\n",
		quantile(toFour.steady, .5).Seconds()/quantile(toOne.steady, .5).Seconds(), quantile(toFour.steady, .99).Seconds()/quantile(toOne.steady, .99).Seconds())
	fmt.Printf("  %d POSTs of 64 kB at %d/s: %s; %s\n", posted.Sent, posts, quantiles(posted.steady), posted.failures())
	failed, repeated := make(map[received]int), make(map[received]int)
	outcome.Range(func(id, status any) bool {
		got, known := resetting.read.Load(id)
		switch {
		case !known && status != http.StatusOK:
			failed[firstByte]++
		case known && status != http.StatusOK:
			failed[got.(received)]++
		case known:
			repeated[got.(received)]++
		}
		return true
	})
	fmt.Printf("  what the resetting backend had of those that failed: %v; of those that were repeated and did not: %v\n", failed, repeated)
	l.stop(g)
}

// allDead asks for names none of whose addresses works, of three kinds at once,
// and then lets one address work.
func allDead(l *lab) {
	const names = 10
	ca := testlab.NewAuthority(l)
	addrs := []netip.Addr{loopback(1), loopback(2), loopback(3), loopback(4)}
	kinds := []struct {
		about, scheme string
		die           func(netip.AddrPort) (stop func())
	}{
		{"refusing", "http", func(netip.AddrPort) func() { return func() {} }},
		{"silent", "http", func(addr netip.AddrPort) func() { return l.newBlackhole(addr).Close }},
		{"no handshake", "https", func(addr netip.AddrPort) func() { return l.listenRaw(addr, hang) }},
	}
	for i := range names {
		l.names.moved.Store(fmt.Sprintf("d%d.test", i), addrs)
	}
	g := l.startGateway("tls_trust_pool file " + ca.File)
	reports := make([]strings.Builder, len(kinds))
	var wg sync.WaitGroup
	for i, k := range kinds {
		var config testlab.BackendConfig
		if k.scheme == "https" {
			config = testlab.BackendConfig{CA: ca, HTTP2: true}
		}
		b := l.newBackends(config)
		var first func()
		for n, a := range addrs {
			stop := k.die(netip.AddrPortFrom(a, uint16(b.port)))
			if n == 0 {
				first = stop
				continue
			}
			l.Cleanup(stop)
		}
		target := oneOf(k.scheme, names, b.port)
		show := func(about string, r *result) {
			fmt.Fprintf(&reports[i], "    %-24s %s; %s\n", about, quantiles(slices.Concat(r.Latencies, r.lostAfter)), r.failures())
		}
		wg.Go(func() {
			one := func(int) string { return target() }
			single, later := make(chan *result), make(chan *result)
			go func() { single <- closedLoop(g.get, 1, 1, one) }()
			time.Sleep(100 * time.Millisecond)
			go func() { later <- openLoopBy(g.get, 20, 3*time.Second, target, never) }()
			atOnce := closedLoop(g.get, 50, 50, one)
			show("the first", <-single)
			show("50 at once", atOnce)
			show("and 20 a second", <-later)

			first()
			b.listen(addrs[0])
			back := time.Now()
			var mu sync.Mutex
			var worked, lost time.Duration // since then
			r := openLoopBy(func(target string) (int, string) {
				began := time.Since(back)
				status, text := g.get(target)
				mu.Lock()
				defer mu.Unlock()
				if status != http.StatusOK {
					lost = max(lost, began)
				} else if ended := time.Since(back); worked == 0 || ended < worked {
					worked = ended
				}
				return status, text
			}, 20, 12*time.Second, target, never)
			fmt.Fprintf(&reports[i], "    one is back: the first success after %.2f s, the last request that was lost began after %.2f s; %s; %s\n",
				worked.Seconds(), lost.Seconds(), quantiles(r.Latencies), r.failures())
		})
	}
	wg.Wait()
	for i, k := range kinds {
		fmt.Printf("  %s:\n%s", k.about, reports[i].String())
	}
	l.stop(g)
}

// change moves names to another backend, first while the old one goes on, then
// back when the other one dies.
func change(l *lab) {
	const names, gets, posts = 10, 450, 50
	l.names.ttl = 1
	ca := testlab.NewAuthority(l)
	for _, scheme := range []string{"http", "https"} {
		var config testlab.BackendConfig
		if scheme == "https" {
			config = testlab.BackendConfig{CA: ca, HTTP2: true}
		}
		a := l.newBackends(config)
		b := l.newBackends(config)
		a.delay, b.delay = 20*time.Millisecond, 20*time.Millisecond
		b.port = a.port
		a.listen(loopback(1))
		listener := b.listen(loopback(2))
		move := func(to int) {
			for i := range names {
				l.names.moved.Store(fmt.Sprintf("d%d.test", i), []netip.Addr{loopback(to)})
			}
		}
		move(1)
		g := l.startGateway("tls_trust_pool file " + ca.File)
		target := oneOf(scheme, names, a.port)
		var inFlight, inFlightPosts atomic.Int64
		get := func(target string) (int, string) {
			inFlight.Add(1)
			defer inFlight.Add(-1)
			return g.get(target)
		}
		post := func(target string) (int, string) {
			inFlightPosts.Add(1)
			defer inFlightPosts.Add(-1)
			return g.do(http.MethodPost, target, "", "hello")
		}
		openLoopBy(g.get, gets, 2*time.Second, target, never)
		show := func(about string, then func()) {
			var got, posted *result
			var wg sync.WaitGroup
			wg.Go(func() { got = openLoopBy(get, gets, 7*time.Second, target, never) })
			wg.Go(func() { posted = openLoopBy(post, posts, 7*time.Second, target, never) })
			time.Sleep(2 * time.Second)
			then()
			n, p := inFlight.Load(), inFlightPosts.Load()
			wg.Wait()
			fmt.Printf("  %s, %s: GETs, %d in flight then: %s\n    %s\n    POSTs, %d in flight then: %s\n",
				scheme, about, n, got.failures(), quantiles(got.Latencies), p, posted.failures())
		}
		show("the old one goes on", func() { move(2) })
		show("the old one dies", func() {
			move(1)
			listener.Close()
			b.ResetConns()
		})
		l.stop(g)
	}
}
