package main

import (
	"crypto/tls"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"caddytarget/internal/testlab"
)

// everywhere makes each name have an address of its own.
func (l *lab) everywhere(names int) {
	l.names.addrs = nil
	for i := range names {
		l.names.addrs = append(l.names.addrs, loopback(i+1))
	}
}

// protocolOf is a way to talk to backends.
type protocolOf struct{ scheme, protocol string }

var protocols = []protocolOf{{"http", ""}, {"https", "http/1.1"}, {"https", "h2"}}

// flag is what -schemes calls it.
func (p protocolOf) flag() string {
	if p.protocol == "h2" {
		return p.protocol
	}
	return p.scheme
}

func (p protocolOf) String() string { return strings.TrimSpace(p.scheme + " " + p.protocol) }

// backends returns the configuration of backends.
func (p protocolOf) backends(ca *testlab.Authority) testlab.BackendConfig {
	if p.scheme == "http" {
		return testlab.BackendConfig{}
	}
	return testlab.BackendConfig{CA: ca, HTTP2: p.protocol == "h2"}
}

// idle asks for each name about as often as its backend closes connections that
// are not used.
func idle(l *lab) {
	const names, timeout = 100, time.Second
	l.names.ttl = 3600
	ca := testlab.NewAuthority(l)
	l.everywhere(names)
	g := l.startGateway("tls_trust_pool file " + ca.File)
	contents := map[string]string{"GET": "", "POST of 10 bytes": "0123456789", "POST of 64 kB": strings.Repeat("x", 64<<10)}
	kinds := slices.Sorted(maps.Keys(contents))
	end := time.Now().Add(time.Duration(*seconds) * 15 * time.Second / 2)
	results := make([]map[string]*result, len(protocols))
	backends := make([]*backends, len(protocols))
	var ids atomic.Int64
	var lost sync.Map // X-Id of requests that failed
	var wg sync.WaitGroup
	for i, p := range protocols {
		config := p.backends(ca)
		config.IdleTimeout = timeout
		b := l.newBackends(config)
		b.listenEverywhere()
		backends[i], results[i] = b, make(map[string]*result)
		for kind := range contents {
			results[i][kind] = newResult()
		}
		for _, target := range targets(p.scheme, names, b.port) {
			wg.Go(func() {
				for time.Now().Before(end) {
					// about half of them come when the backend closes the connection
					pause := timeout/2 + rand.N(timeout)
					if rand.N(2) == 0 {
						pause = timeout - 3*time.Millisecond + rand.N(5*time.Millisecond)
					}
					time.Sleep(pause)
					kind := kinds[rand.N(len(kinds))]
					method, _, _ := strings.Cut(kind, " ")
					start := time.Now()
					id := fmt.Sprint(ids.Add(1))
					status, text := g.do(method, target, "X-Id: "+id+"\r\n", contents[kind])
					results[i][kind].add(status, text, time.Since(start), 0)
					if status != http.StatusOK {
						lost.Store(id, nil)
					}
				}
			})
		}
	}
	wg.Wait()
	for i, p := range protocols {
		seen := 0
		lost.Range(func(id, _ any) bool {
			if _, ok := backends[i].begun.Load(id); ok {
				seen++
			}
			return true
		})
		fmt.Printf("  %s, %d requests over %d connections; the backends had begun to serve %d of those that failed\n",
			p, backends[i].Served.Load(), backends[i].Opened.Load(), seen)
		failed, posts := 0, 0
		for _, kind := range kinds {
			r := results[i][kind]
			fmt.Printf("    %-16s %s; %s\n", kind, quantiles(r.Latencies), r.failures())
			if kind != http.MethodGet {
				failed, posts = failed+r.Failed, posts+r.Sent
			}
		}
		fmt.Printf("    %d of %d POSTs failed\n", failed, posts)
	}
	l.stop(g)
}

// shared asks for domains that have the same addresses, one of them with the
// certificate of another, and closes all connections once.
func shared(l *lab) {
	const domains, clients, wrong = 200, 32, "d200.test"
	requests := *seconds * 25_000
	l.names.ttl = 3600
	ca := testlab.NewAuthority(l)
	for _, p := range protocols[1:] {
		var shaken, resumed atomic.Int64
		config := p.backends(ca)
		config.TLS = func(c *tls.Config) {
			c.VerifyConnection = func(s tls.ConnectionState) error {
				shaken.Add(1)
				if s.DidResume {
					resumed.Add(1)
				}
				return nil
			}
		}
		l.names.addrs = nil
		b := l.startBackends(4, config)
		b.SetCertificate(wrong, wrongSubject)
		g := l.startGateway("tls_trust_pool file " + ca.File)
		list := targets(p.scheme, domains, b.port)
		fmt.Printf("  %s:\n", p)
		askWrong := func() {
			r := closedLoop(g.get, 1, 3, func(int) string { return fmt.Sprintf("https://%s:%d", wrong, b.port) })
			fmt.Printf("    the domain with a wrong certificate: %s\n", r.failures())
		}
		var anew, requestsAnew int64 // once each domain has been called
		load := func(about string, n int, target func(int) string) {
			opened, before, again := b.Opened.Load(), shaken.Load(), resumed.Load()
			start := time.Now()
			r := closedLoop(g.get, clients, n, target)
			opened = b.Opened.Load() - opened
			if n != domains {
				anew, requestsAnew = anew+opened, requestsAnew+int64(n)
			}
			fmt.Printf("    %-22s %s; %d misdirected; %d connections (%.3f %% reused), %d handshakes, %d resumed; %.0f requests/s\n",
				about, r.failures(), len(b.Misdirected()), opened, 100*(1-float64(opened)/float64(n)), shaken.Load()-before, resumed.Load()-again,
				float64(n)/time.Since(start).Seconds())
		}
		askWrong()
		inTurn := func(i int) string { return list[i%domains] }
		random := func(int) string { return list[rand.N(domains)] }
		load("each once", domains, inTurn)
		load("at random", requests/10, random)
		load("and on", requests*2/5, random)
		b.CloseIdle()
		time.Sleep(100 * time.Millisecond)
		load("all closed, each once", domains, inTurn)
		load("at random", requests/10, random)
		load("and on", requests*2/5, random)
		fmt.Printf("    once each had been called: %d of %d requests opened a connection\n", anew, requestsAnew)
		askWrong()
		l.stop(g)
	}
}

// many asks for more targets than caddy may have descriptors.
func many(l *lab) {
	const clients = 128
	l.limit = 4096
	l.names.ttl = 3600
	l.options += fmt.Sprintf("\n\t\t\tcache_size %d", *targetCount+1000)
	ca := testlab.NewAuthority(l)
	l.everywhere(*targetCount)
	for _, p := range protocols {
		b := l.newBackends(p.backends(ca))
		b.listenEverywhere()
		g := l.startGateway("tls_trust_pool file " + ca.File)
		stop, ended := make(chan struct{}), make(chan struct{})
		var goroutines, descriptors int
		go func() {
			defer close(ended)
			for {
				select {
				case <-stop:
					return
				case <-time.After(200 * time.Millisecond):
					gs, ds := l.held(g.admin)
					goroutines, descriptors = max(goroutines, gs), max(descriptors, ds)
				}
			}
		}()
		list := targets(p.scheme, *targetCount, b.port)
		start := time.Now()
		r := closedLoop(g.get, clients, len(list), func(i int) string { return list[i] })
		took := time.Since(start)
		again := closedLoop(g.get, clients, len(list)/4, func(int) string { return list[rand.N(len(list))] })
		close(stop)
		<-ended
		peak := l.status("VmHWM:")
		rss, heap := l.memory(g.admin)
		fmt.Printf("  %s, %d targets in %.0f s: %s; %s\n    again, at random: %s; %s\n", p, len(list), took.Seconds(),
			quantiles(r.Latencies), r.failures(), quantiles(again.Latencies), again.failures())
		_, now := l.held(g.admin)
		fmt.Printf("    at most %d descriptors of %d, %d at the end; %d goroutines; at most %.0f MB resident, %.0f at the end, %.1f on the heap; the backends see %d connections, %d were opened\n",
			descriptors, l.limit, now, goroutines, float64(peak)/1e6, float64(rss)/1e6, float64(heap)/1e6, b.Open.Load(), b.Opened.Load())
		l.stop(g)
		b.Close()
	}
}
