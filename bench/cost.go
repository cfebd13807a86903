package main

import (
	"fmt"
	"math/rand/v2"
	"time"

	"caddytarget/internal/testlab"
)

// holding is what a caddy has at a moment.
type holding struct {
	rss, heap               int64
	goroutines, descriptors int
}

// holds collects garbage, twice because of pools, and counts.
func (p *process) holds(admin int) (h holding) {
	p.memory(admin)
	h.rss, h.heap = p.memory(admin)
	h.goroutines, h.descriptors = p.held(admin)
	return h
}

func (h holding) String() string {
	return fmt.Sprintf("%.1f MB on the heap, %.0f MB resident, %d goroutines, %d descriptors",
		float64(h.heap)/1e6, float64(h.rss)/1e6, h.goroutines, h.descriptors)
}

// fewAddrs is how many addresses there are where it does not matter.
const fewAddrs = 8

// idleCost compares what a caddy has when each of many backends holds a
// connection with what it has when they have closed them.
func idleCost(l *lab) {
	const count = 2000
	for _, p := range protocols {
		fmt.Printf("%s:\n", p)
		rest := 2 * time.Second
		if p.protocol == "h2" {
			rest = 25 * time.Second // Go's client keeps closed ones for up to 20 s
		}
		for _, name := range []string{static, ours} {
			c := &comparison{setting: setting{p.flag(), count, 0, healthy}, TTL: time.Hour}
			r := l.start(c, &row{Contestant: name})
			r.backends.tell("close")
			time.Sleep(rest)
			before := r.holds(r.w.Admin)
			open := r.backends.count().Open
			r.call(count)
			time.Sleep(2 * time.Second)
			n, after := float64(r.backends.count().Open-open), r.holds(r.w.Admin)
			fmt.Printf("  %-12s %.0f connections: %.1f kB on the heap and %.2f goroutines each; %.1f kB resident; without them %s\n", name, n,
				float64(after.heap-before.heap)/1e3/n, float64(after.goroutines-before.goroutines)/n, float64(after.rss-before.rss)/1e3/n, before)
		}
		l.restart()
	}
}

// closing sends many requests to backends that close each connection, and to ports
// that refuse them.
func closing(l *lab) {
	const names, clients = 500, 32
	l.names.ttl = 3600
	b := l.startBackends(fewAddrs, testlab.BackendConfig{})
	b.closing = true
	answered := oneOf("http", names, b.port)
	// where no server listens, but for what listens on all addresses
	refused := func(ports int) func() string {
		return func() string { return fmt.Sprintf("http://127.9.%d.1:%d", rand.N(4), 1024+rand.N(ports)) }
	}
	for _, kind := range []struct {
		about  string
		target func() string
	}{{"Connection: close", answered}, {"refused, 4 addresses, 10 ports", refused(10)}, {"refused, 4 addresses, 64 000 ports", refused(64_000)}} {
		g := l.startGateway("")
		send := func(n int) *result {
			r := closedLoop(g.get, clients, n, func(int) string { return kind.target() })
			g.close()
			time.Sleep(time.Second)
			return r
		}
		send(*requestCount / 10)
		before := l.holds(g.admin)
		start := time.Now()
		r := send(*requestCount)
		took := time.Since(start)
		after := l.holds(g.admin)
		time.Sleep(15 * time.Second) // an address is left out for 10 s
		fmt.Printf("  %s, %d clients, %.0f requests/s: %s\n    after a tenth as many before: %s\n    right after:                  %s\n    15 s later:                   %s\n",
			kind.about, clients, float64(r.Sent)/took.Seconds(), r.failures(), before, after, l.holds(g.admin))
		l.stop(g)
	}
}
