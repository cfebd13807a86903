package main

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"caddytarget/internal/testlab"
)

// restart stops a gateway under load and starts it again, with requests from the first
// moment on, and once more with requests that begin when it says that it is ready. It does
// so without the option warm and with it.
func restart(l *lab) {
	const (
		domains = 100
		rate    = 500 // requests a second
		known   = 10 * time.Second
	)
	for _, when := range []string{"at once", "when ready"} {
		for _, warm := range []string{"", "warm 2 100"} {
			l.restart()
			l.names.ttl = 3600
			ca := testlab.NewAuthority(l)
			b := l.startBackends(fewAddrs, testlab.BackendConfig{CA: ca})
			target := oneOf("https", domains, b.port)
			port, admin := freePort(), freePort()
			config := strings.Replace(l.gateway(port, admin, "tls_trust_pool file "+ca.File+"\n\t\t"+warm),
				"auto_https off", "auto_https off\n\tstorage file_system "+l.TempDir(), 1)
			url := "http://" + address(port) + "/"
			start := func() { l.startCaddy(config, address(port)) }

			start()
			openLoop(url, rate, known, target, never)
			steady := openLoop(url, rate, known, target, never)
			l.stopCaddy()
			time.Sleep(100 * time.Millisecond)

			before, most := b.Opened.Load(), int64(0)
			stop, ended := make(chan struct{}), make(chan struct{})
			start()
			go func() {
				defer close(ended)
				for last := before; ; {
					select {
					case <-stop:
						return
					case <-time.After(time.Second):
						n := b.Opened.Load()
						most, last = max(most, n-last), n
					}
				}
			}()
			began := time.Now()
			if when == "when ready" {
				l.awaitReady(admin)
			}
			later := time.Since(began)
			dials := b.Opened.Load() - before
			first := openLoop(url, rate, time.Second, target, never)
			next := openLoop(url, rate, known, target, never)
			close(stop)
			<-ended
			l.stopCaddy()
			if warm == "" {
				warm = "without warm"
			}
			p99 := func(r *result) float64 { return r.quantile(.99).Seconds() * 1e3 }
			fmt.Printf("  %-12s requests %s, %.2f s after the start: p99 steady %.2f ms; first second %.2f ms (%.1f times), after that %.2f ms; %d of %d failed; %d connections before the first request, %d at most in one second\n",
				warm, when, later.Seconds(), p99(steady), p99(first), p99(first)/p99(steady), p99(next), first.Failed+next.Failed, first.Sent+next.Sent, dials, most)
		}
	}
}

// awaitReady waits until a gateway is ready for requests.
func (l *lab) awaitReady(admin int) {
	for {
		res, err := http.Get("http://" + address(admin) + "/target/ready")
		must(err)
		res.Body.Close()
		if res.StatusCode == http.StatusOK {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}
