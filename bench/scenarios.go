package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"caddytarget/internal/testlab"
)

// gateway is a Caddyfile with a site that calls what X-Target names.
func (l *lab) gateway(port, admin int, more string) string {
	nameservers := l.names.addr
	if l.second != nil {
		nameservers += " " + l.second.addr
	}
	return fmt.Sprintf(`{
	admin 127.0.0.1:%d
	auto_https off
	target {
		resolver %s {
			%s
		}
	}
}
http://127.0.0.1:%d {
	target_proxy {header.X-Target} {
		allow_ips 127.0.0.0/8
		%s
	}
	%s
}
`, admin, nameservers, l.options, port, more, l.site)
}

func address(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

func targets(scheme string, n, port int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("%s://d%d.test:%d", scheme, i, port)
	}
	return list
}

// oneNameserver silences the first of two nameservers and lets it speak again,
// while all requests are for new names.
func oneNameserver(l *lab) {
	l.options = ""     // as the product has them
	l.names.ttl = 3600 // nothing but new names is asked for
	b := l.startBackends(8, testlab.BackendConfig{})
	l.addNameserver()
	port := freePort()
	l.startCaddy(l.gateway(port, freePort(), ""), address(port))
	url := "http://" + address(port) + "/"
	var next atomic.Int64
	target := func() string { return fmt.Sprintf("http://d%d.test:%d", next.Add(1), b.port) }
	show := func(about string, duration time.Duration) {
		first, second := l.names.queries.Load(), l.second.queries.Load()
		r := openLoop(url, 200, duration, target, never)
		fmt.Printf("%-32s p50 %6.1f ms  p99 %6.1f ms  max %6.1f ms  %d of %d failed  queries a second: first %.1f, second %.1f\n", about,
			r.quantile(.5).Seconds()*1e3, r.quantile(.99).Seconds()*1e3, r.quantile(1).Seconds()*1e3, r.Failed, r.Sent,
			float64(l.names.queries.Load()-first)/duration.Seconds(), float64(l.second.queries.Load()-second)/duration.Seconds())
	}
	openLoop(url, 200, 3*time.Second, target, never)
	show("both healthy", 10*time.Second)
	l.names.silent.Store(true)
	show("first silent, the first 3 s", 3*time.Second)
	show("first silent, after that", 10*time.Second)
	back := time.Now()
	l.names.silent.Store(false)
	show("it is back", 10*time.Second)
	var earliest time.Duration
	l.names.last.Range(func(_, at any) bool {
		if d := at.(time.Time).Sub(back); d > 0 && (earliest == 0 || d < earliest) {
			earliest = d
		}
		return true
	})
	fmt.Printf("it answered again %.1f s after its return\n", earliest.Seconds())
	show("after that", 5*time.Second)
}

// outage silences both nameservers and lets them speak again.
func outage(l *lab) {
	const count = 2000
	b := l.startBackends(8, testlab.BackendConfig{})
	l.addNameserver()
	port := freePort()
	l.startCaddy(l.gateway(port, freePort(), ""), address(port))
	url := "http://" + address(port) + "/"
	var next atomic.Int64
	next.Store(count)
	// one request in a hundred is for a new name
	pick := func() (string, bool) {
		if rand.N(100) == 0 {
			return fmt.Sprintf("http://d%d.test:%d", next.Add(1), b.port), true
		}
		return fmt.Sprintf("http://d%d.test:%d", rand.N(count), b.port), false
	}
	load := func(duration time.Duration) (known, others *result) {
		return clients(url, 64, 50*time.Millisecond, duration, pick)
	}
	each(url, count, func(i int) string { return fmt.Sprintf("http://d%d.test:%d", i, b.port) })
	load(12 * time.Second)

	servers := []*nameserver{l.names, l.second}
	var before, detected [2]int64
	silent := time.Now()
	for i, s := range servers {
		s.silent.Store(true)
		before[i] = s.queries.Load()
	}
	time.AfterFunc(3*time.Second, func() {
		for i, s := range servers {
			detected[i] = s.queries.Load()
		}
	})
	known, others := load(30 * time.Second)
	rest := time.Since(silent).Seconds() - 3
	fmt.Printf("30 s without nameservers, 64 clients: %d of %d requests to %d known names failed, p99 %.1f ms; of %d to new names %d, %v\n",
		known.Failed, known.Sent, count, known.quantile(.99).Seconds()*1e3, others.Sent, others.Failed, others.Errors)
	for i, s := range servers {
		fmt.Printf("queries to nameserver %d: %d in the first 3 s, %.1f a second after that\n",
			i+1, detected[i]-before[i], float64(s.queries.Load()-detected[i])/rest)
	}

	back := time.Now()
	for _, s := range servers {
		s.silent.Store(false)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 150 {
			if asked(servers, count, back) == count {
				fmt.Printf("back: all %d names fresh after %.1f s\n", count, time.Since(back).Seconds())
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		fmt.Printf("back: %d of %d names fresh after 15 s\n", asked(servers, count, back), count)
	}()
	known, others = load(10 * time.Second)
	<-done
	var peak int64
	for _, s := range servers {
		m, _ := s.since(back)
		peak = max(peak, m)
	}
	fmt.Printf("10 s after: %d of %d requests failed, of %d to new names %d; at most %d queries in a second to one nameserver\n",
		known.Failed, known.Sent, others.Sent, others.Failed, peak)
}

// asked returns how many of the first count names one of the nameservers was asked
// for since.
func asked(servers []*nameserver, count int, since time.Time) (n int) {
	for i := range count {
		name := "d" + strconv.Itoa(i) + ".test"
		for _, s := range servers {
			if t, ok := s.last.Load(name); ok && t.(time.Time).After(since) {
				n++
				break
			}
		}
	}
	return n
}

// names keeps many names fresh and counts what that takes.
func names(l *lab) {
	l.names.ttl = uint32(nameTTL.Seconds())
	l.options = fmt.Sprintf("family ipv4\n\t\t\trefresh always\n\t\t\tcache_size %d", *nameCount+1000)
	b := l.startBackends(8, testlab.BackendConfig{})
	port, admin := freePort(), freePort()
	l.startCaddy(l.gateway(port, admin, ""), address(port))
	url := "http://" + address(port) + "/"
	target := func(i int) string { return fmt.Sprintf("http://d%d.test:%d", i, b.port) }
	each(url, 64, func(int) string { return target(*nameCount) }) // connections are no matter of names
	time.Sleep(time.Second)
	rss0, heap0 := l.memory(admin)

	start := time.Now()
	failed := each(url, *nameCount, target)
	fmt.Printf("%d names with TTL %s, all asked for in %.1f s, %d failed\n", *nameCount, *nameTTL, time.Since(start).Seconds(), failed)
	time.Sleep(*nameTTL) // the first round of refreshes still has the shape of the load
	from, cpu := time.Now(), l.cpu()
	time.Sleep(max(*nameTTL, time.Minute))
	used := l.cpu() - cpu
	seconds := int64(time.Since(from).Seconds()) - 1
	var sum, peak int64
	for s := from.Unix() + 1; s <= from.Unix()+seconds; s++ {
		if c, ok := l.names.perSec.Load(s); ok {
			n := c.(*atomic.Int64).Load()
			sum, peak = sum+n, max(peak, n)
		}
	}
	mean := float64(sum) / float64(seconds)
	stale := 0
	for i := range *nameCount {
		if t, ok := l.names.last.Load("d" + strconv.Itoa(i) + ".test"); !ok || time.Since(t.(time.Time)) > *nameTTL {
			stale++
		}
	}
	fmt.Printf("in %d s without requests: %.0f queries a second, %d in the worst, ratio %.2f; %.1f %% of a CPU; %d names not fresh at the end\n",
		seconds, mean, peak, float64(peak)/mean, 100*used.Seconds()/float64(seconds+1), stale)
	rss, heap := l.memory(admin)
	fmt.Printf("memory: %.0f MB resident, before %.0f; %.1f MB on the heap, before %.1f: %.0f bytes a name\n",
		float64(rss)/1e6, float64(rss0)/1e6, float64(heap)/1e6, float64(heap0)/1e6, float64(heap-heap0)/float64(*nameCount))
}

// waiters has many clients wait for one name.
func waiters(l *lab) {
	const count, perConn = 10_000, 200
	l.options = "family prefer_ipv4"
	l.names.ttl = 3600
	b := l.startBackends(1, testlab.BackendConfig{})
	port := freePort()
	// HTTP/2, since so many connections would take so many descriptors
	config := strings.Replace(l.gateway(port, freePort(), ""), "auto_https off", "auto_https off\n\tservers {\n\t\tprotocols h1 h2c\n\t}", 1)
	l.startCaddy(config, address(port))
	url := "http://" + address(port) + "/"

	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	ask := func(ctx context.Context, c *http.Client, name string) (int, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		must(err)
		req.Header.Set("X-Target", fmt.Sprintf("http://%s:%d", name, b.port))
		res, err := c.Do(req)
		if err != nil {
			return 0, err
		}
		defer res.Body.Close()
		if _, err = io.Copy(io.Discard, res.Body); err == nil && res.StatusCode != http.StatusOK {
			err = errors.New(res.Header.Get("Proxy-Status"))
		}
		return res.StatusCode, err
	}
	conns := make([]*http.Client, count/perConn)
	for i := range conns {
		transport := &http.Transport{Protocols: protocols}
		defer transport.CloseIdleConnections()
		conns[i] = &http.Client{Transport: transport, Timeout: time.Minute}
		_, err := ask(context.Background(), conns[i], "d0.test")
		must(err)
	}

	l.names.delay.Store(int64(time.Second))
	before := l.names.queries.Load()
	var (
		wg             sync.WaitGroup
		mu             sync.Mutex
		good, left     int
		other          = make(map[string]int)
		longest, leave time.Duration
	)
	for i := range count {
		wg.Go(func() {
			ctx := context.Background()
			if i%2 == 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 300*time.Millisecond)
				defer cancel()
			}
			start := time.Now()
			status, err := ask(ctx, conns[i/perConn], "d1.test")
			took := time.Since(start)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case i%2 == 0 && ctx.Err() != nil:
				left++
				leave = max(leave, took)
			case status == http.StatusOK && err == nil:
				good++
				longest = max(longest, took)
			default:
				other[fmt.Sprint(status, " ", err)]++
			}
		})
	}
	wg.Wait()
	fmt.Printf("%d clients, an answer after 1 s: %d queries (A and AAAA); %d left after 300 ms (the last at %.0f ms), %d were served, the last after %.2f s; otherwise %v\n",
		count, l.names.queries.Load()-before, left, leave.Seconds()*1e3, good, longest.Seconds(), other)
}

// move changes the address of a name under load.
func move(l *lab) {
	b := l.startBackends(2, testlab.BackendConfig{})
	port := freePort()
	l.startCaddy(l.gateway(port, freePort(), ""), address(port))
	url := "http://" + address(port) + "/"
	target := func() string { return fmt.Sprintf("http://d0.test:%d", b.port) }
	old := l.names.addrs[0].String()
	openLoop(url, 300, 7*time.Second, target, never)

	var lastOld atomic.Int64
	moved := time.Now()
	l.names.moved.Store("d0.test", l.names.addrs[1:2])
	stop := make(chan struct{})
	go func() {
		seen := 0
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			if n := b.RequestsTo(old); n != seen {
				seen = n
				lastOld.Store(int64(time.Since(moved)))
			}
		}
	}()
	r := openLoop(url, 300, 12*time.Second, target, never)
	close(stop)
	fmt.Printf("TTL 5 s: the old address got its last request %.2f s after the move; %d of %d requests failed\n",
		time.Duration(lastOld.Load()).Seconds(), r.Failed, r.Sent)
}

// https loads 50 domains on one address over both versions of HTTP.
func https(l *lab) {
	ca := testlab.NewAuthority(l)
	for _, protocol := range []string{"http/1.1", "h2"} {
		l.names.addrs = nil
		b := l.startBackends(1, testlab.BackendConfig{CA: ca, HTTP2: protocol == "h2"})
		port := freePort()
		l.startCaddy(l.gateway(port, freePort(), "tls_trust_pool file "+ca.File), address(port))
		n, failed := l.wrk("http://"+address(port)+"/", "X-Target", targets("https", 50, b.port), *seconds)
		fmt.Printf("%-8s %d requests to 50 domains on one address: %d failed, %d misdirected, %d connections (%.3f %% reused)\n",
			protocol, n, failed, len(b.Misdirected()), b.Opened.Load(), 100*(1-float64(b.Opened.Load())/float64(n)))
		l.stopCaddy()
	}
}

// total asks for more domains than there may be connections.
func total(l *lab) {
	ca := testlab.NewAuthority(l)
	b := l.startBackends(1, testlab.BackendConfig{CA: ca, HTTP2: true})
	port, admin := freePort(), freePort()
	config := l.gateway(port, admin, "tls_trust_pool file "+ca.File+"\n\t\tkeepalive_idle_conns 20")
	l.startCaddy(config, address(port))
	var failed atomic.Int64
	ask := func() {
		var wg sync.WaitGroup
		sem := make(chan struct{}, 16)
		for _, t := range targets("https", 300, b.port) {
			sem <- struct{}{}
			wg.Go(func() {
				if status, _ := get("http://"+address(port)+"/", t); status != 200 {
					failed.Add(1)
				}
				<-sem
			})
		}
		wg.Wait()
	}
	ask()
	settle := func() int64 {
		time.Sleep(time.Second)
		return b.Open.Load()
	}
	fmt.Printf("300 https domains over HTTP/2 with keepalive_idle_conns 20: %d failed, %d connections opened, %d open after it\n", failed.Load(), b.Opened.Load(), settle())
	l.reload(config+"\n# changed\n", net.JoinHostPort("127.0.0.1", strconv.Itoa(admin)))
	l.reload(strings.Replace(config, "idle_conns 20", "idle_conns 21", 1), net.JoinHostPort("127.0.0.1", strconv.Itoa(admin)))
	fmt.Printf("after a reload: %d open\n", settle())
	ask()
	fmt.Printf("asked again: %d failed, %d open\n", failed.Load(), settle())
	l.stopCaddy()
	fmt.Printf("after a stop: %d open\n", settle())
}
