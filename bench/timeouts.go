package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"caddytarget/internal/testlab"
)

// bidSite lets clients choose their timeouts, as examples/ads.Caddyfile does.
const bidSite = `map {header.X-Tmax} {tmax} {
		~^[1-9][0-9]{0,3}$ ${0}ms
		default 200ms
	}`

// bidder responds after 10 ms, give or take, but at one address after a multiple of it.
type bidder struct {
	slow   netip.Addr
	factor float64
	met    atomic.Int64 // requests at the slow address
}

func (b *bidder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	delay := time.Duration(float64(10*time.Millisecond) * math.Exp(.2*rand.NormFloat64()))
	if addr, err := netip.ParseAddrPort(r.Context().Value(http.LocalAddrContextKey).(fmt.Stringer).String()); err == nil && addr.Addr() == b.slow {
		b.met.Add(1)
		delay = time.Duration(float64(delay) * b.factor)
	}
	select {
	case <-time.After(delay):
		fmt.Fprint(w, "bid")
	case <-r.Context().Done():
	}
}

// timeouts sends bid requests that say how long they wait, to a name with three
// addresses of which one is silent or slow.
func timeouts(l *lab) {
	ca := testlab.NewAuthority(l)
	l.site = bidSite
	duration := time.Duration(*seconds) * 3 * time.Second
	next := 0
	for _, kind := range []struct {
		name   string
		factor float64 // 0: it accepts connections and is silent
	}{
		{"all three alike", 1},
		{"one silent before the TLS handshake", 0},
		{"one silent after the request", math.Inf(1)},
		{"one slow by 2 times", 2},
		{"one slow by 20 times", 20},
	} {
		for _, others := range []struct {
			name       string
			tmax, aSec int // of other clients; aSec 0: none
		}{
			{name: "alone"},
			{name: "beside clients with 1 s", tmax: 1000, aSec: 20},
			{name: "beside clients with 1 ms", tmax: 1, aSec: 300},
		} {
			next++
			name := fmt.Sprintf("d%d.test", next)
			addrs := []netip.Addr{loopback(3*next - 2), loopback(3*next - 1), loopback(3 * next)}
			l.names.moved.Store(name, addrs)
			handler := &bidder{slow: addrs[0], factor: min(kind.factor, 1e6)}
			b := l.newBackends(testlab.BackendConfig{CA: ca, Handler: handler})
			for i, addr := range addrs {
				if i == 0 && kind.factor == 0 {
					l.listenRaw(netip.AddrPortFrom(addr, uint16(b.port)), hang)
					continue
				}
				b.listen(addr)
			}
			port, admin := freePort(), freePort()
			l.startCaddy(l.gateway(port, admin, "tls_trust_pool file "+ca.File+"\ntimeout {tmax}\nlb_retries 1"), address(port))
			g := &gatewayRun{&conns{address: address(port), limit: floodConns}, admin}
			target := fmt.Sprintf("https://%s:%d/bid", name, b.port)
			post := func(tmax int) func(string) (int, string) {
				return func(target string) (int, string) {
					return g.do(http.MethodPost, target, fmt.Sprintf("X-Tmax: %d\r\n", tmax), "request")
				}
			}
			same := func() string { return target }
			var bids, other *result
			var wg sync.WaitGroup
			wg.Go(func() { bids = openLoopBy(post(100), 30, duration, same, never) })
			if others.aSec > 0 {
				wg.Go(func() { other = openLoopBy(post(others.tmax), others.aSec, duration, same, never) })
			}
			wg.Wait()
			fmt.Printf("%-36s POSTs at 30/s with 100 ms %-26s %3d of %d lost", kind.name+",", others.name+":", bids.Failed, bids.Sent)
			if other != nil {
				fmt.Printf("; of those %d of %d", other.Failed, other.Sent)
			}
			if kind.factor > 0 {
				fmt.Printf("; the first address met %d", handler.met.Load())
			}
			fmt.Println()
			l.stop(g)
			b.Close()
		}
	}
}
