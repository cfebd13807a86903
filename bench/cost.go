package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
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

// sizing measures what Go's collector and a log that nobody reads take: CPU time and memory,
// with many targets and all load that there is place for.
func sizing(l *lab) {
	const domains = 5000
	l.names.ttl = 300
	b := l.startBackends(fewAddrs, testlab.BackendConfig{})
	port, admin := freePort(), freePort()
	url := "http://" + address(port) + "/"
	called := targets("http", domains, b.port)
	gateway := l.gateway(port, admin, "")
	ways := []struct {
		about  string
		env    []string // name and value in turn
		config string
		cpu    []float64 // µs a request
		rss    []float64 // MB
	}{
		{about: "GOGC=100", config: gateway},
		{about: "GOGC=100 again", config: gateway},
		{about: "GOGC=50", env: []string{"GOGC", "50"}, config: gateway},
		{about: "GOGC=200", env: []string{"GOGC", "200"}, config: gateway},
		{about: "GOGC=400", env: []string{"GOGC", "400"}, config: gateway},
		{about: "GOGC=off GOMEMLIMIT=512MiB", env: []string{"GOGC", "off", "GOMEMLIMIT", "512MiB"}, config: gateway},
		{about: "no log of http.handlers.reverse_proxy", config: strings.Replace(gateway, "auto_https off",
			"auto_https off\n\tlog {\n\t\texclude http.handlers.reverse_proxy\n\t}", 1)},
	}
	for range *rounds {
		for _, i := range rand.Perm(len(ways)) {
			w := &ways[i]
			for variable := range slices.Chunk(w.env, 2) {
				must(os.Setenv(variable[0], variable[1]))
			}
			l.startCaddy(w.config, address(port))
			for variable := range slices.Chunk(w.env, 2) {
				must(os.Unsetenv(variable[0]))
			}
			each(url, domains, func(i int) string { return called[i] })
			l.wrk(url, "X-Target", called, 1)
			cpu := l.cpu()
			n, _ := l.wrk(url, "X-Target", called, *seconds)
			w.cpu = append(w.cpu, float64((l.cpu()-cpu).Microseconds())/float64(max(n, 1)))
			w.rss = append(w.rss, float64(l.pss())/1e6)
			l.stopCaddy()
		}
	}
	for _, w := range ways {
		fmt.Printf("  %-38s %.1f µs of CPU a request (%.2f times that of GOGC=100); %.0f MB resident\n",
			w.about, median(w.cpu), median(ratios(w.cpu, ways[0].cpu)), median(w.rss))
	}
}
