package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"caddytarget/internal/testlab"
)

// reload changes the configuration again and again under load, with targets and
// with a static upstream.
func reload(l *lab) {
	l.names.ttl = 3600
	b := l.startBackends(fewAddrs, testlab.BackendConfig{})
	run := reloading{lab: l, backends: b, protocolOf: protocols[0], domains: 500, times: 100, pause: 200 * time.Millisecond}
	run.under("target", func(port, admin, i int) string {
		return l.gateway(port, admin, fmt.Sprintf("ports %d %d", b.port, 1+i))
	})
	run.under("static", run.static("", true))
}

// reloadsTLS does so with connections that cost a handshake to open again, while a
// WebSocket and an upload are under way.
func reloadsTLS(l *lab) {
	const stay = "stream_close_delay 1m"
	for _, p := range protocols[1:] {
		ca := testlab.NewAuthority(l)
		l.names.ttl = 3600
		b := l.startBackends(fewAddrs, p.backends(ca)) // WebSockets take HTTP/1.1
		run := reloading{lab: l, backends: b, protocolOf: p, domains: 50, times: 20, pause: 500 * time.Millisecond, long: true, ca: ca.File}
		for _, changed := range []bool{true, false} {
			about := "unchanged settings"
			if changed {
				about = "changed settings"
			}
			run.under("target, "+about, func(port, admin, i int) string {
				config := l.gateway(port, admin, "tls_trust_pool file "+ca.File+"\n\t\t"+stay+fmt.Sprintf("\n\t\tports %d %d", b.port, 1+either(changed, i)))
				return withOther(config, i)
			})
			run.under("static, "+about, run.static("header_up X-I %d\n\t\t"+stay, changed))
		}
		l.restart()
	}
}

// either is i, or always the same.
func either(changed bool, i int) int {
	if changed {
		return i
	}
	return 0
}

// withOther adds a site that no request is for, so that the configuration differs:
// Caddy does not load one that is the same.
func withOther(config string, i int) string {
	return config + fmt.Sprintf("http://other.test:%d {\n\trespond %d\n}\n", otherPort, 200+i)
}

var otherPort = freePort()

// reloading is a load and what is reloaded under it.
type reloading struct {
	*lab
	*backends
	protocolOf
	domains int
	times   int           // that the configuration is loaded
	pause   time.Duration // after each
	long    bool          // with a WebSocket and an upload
	ca      string        // file with the authority of backends with TLS
}

// under runs the load and prints its result.
func (run reloading) under(name string, config func(port, admin, i int) string) {
	const rate, clients = 500, 64
	l, b := run.lab, run.backends
	port, adminPort := freePort(), freePort()
	l.startCaddy(config(port, adminPort, 0), address(port))
	defer l.stopCaddy()
	c := waitingConns(address(port), clients)
	list := targets(run.scheme, run.domains, b.port)
	closedLoop(c.get, 8, len(list), func(i int) string { return list[i] })
	duration := time.Duration(run.times) * (run.pause + 50*time.Millisecond)
	openLoopBy(c.get, rate, 2*time.Second, oneOf(run.scheme, run.domains, b.port), never)
	settle := func() (goroutines, descriptors int) {
		c.close()
		client.CloseIdleConnections()
		time.Sleep(3 * time.Second)
		return l.held(adminPort)
	}
	g0, d0 := settle()
	// A connection that is opened where none was closed is one more than there were:
	// after a pause many requests come at once.
	load := func() (r *result, conns string) {
		opened, open := b.Opened.Load(), b.Open.Load()
		r = openLoopBy(c.get, rate, duration, oneOf(run.scheme, run.domains, b.port), never)
		opened, open = b.Opened.Load()-opened, b.Open.Load()-open
		return r, fmt.Sprintf("%d opened and %d closed", opened, opened-open)
	}
	_, without := load()
	var socket, uploaded chan string
	if run.long {
		socket, uploaded = make(chan string, 1), make(chan string, 1)
		go func() { socket <- keepTalking(address(port), list[0], duration) }()
		go func() { uploaded <- upload(address(port), list[1], 100<<20, duration) }()
		time.Sleep(200 * time.Millisecond)
	}
	asked := l.names.queries.Load()
	mixed := len(b.Misdirected())
	done := make(chan struct{})
	var r *result
	var conns string
	go func() {
		r, conns = load()
		close(done)
	}()
	for i := range run.times {
		l.reload(config(port, adminPort, i+1), address(adminPort))
		time.Sleep(run.pause)
	}
	<-done
	fmt.Printf("%s, %s: connections: %s in %d reloads, %s in as long before them; %d DNS queries; %d misdirected; %s\n",
		run.protocolOf, name, conns, run.times, without, l.names.queries.Load()-asked, len(b.Misdirected())-mixed, r.failures())
	if n := c.repeated.Load(); n > 0 {
		fmt.Printf("  %d requests met a connection that the gateway had closed, and were sent again\n", n)
	}
	fmt.Printf("  %s; begun late for want of CPU: p99 %.0f ms\n", quantiles(r.Latencies), quantile(r.Late, .99).Seconds()*1e3)
	if run.long {
		fmt.Printf("  WebSocket: %s; upload of 100 MB: %s\n", <-socket, <-uploaded)
	}
	g1, d1 := settle()
	fmt.Printf("  goroutines %d before, %d after; descriptors %d before, %d after\n", g0, g1, d0, d1)
}

// static returns configurations with static upstreams; more may have a number in
// it that changes if changed.
func (run reloading) static(more string, changed bool) func(port, admin, i int) string {
	if more == "" {
		more = "header_up X-I %d"
	}
	var upstreams []string
	for _, a := range run.lab.names.addrs {
		upstreams = append(upstreams, netip.AddrPortFrom(a, uint16(run.backends.port)).String())
	}
	return func(port, admin, i int) string {
		return withOther(stock(port, admin, run.ca, fmt.Sprintf(more, either(changed, i)), upstreams...), i)
	}
}

// stock is a Caddyfile with a site that has a reverse_proxy without targets, over
// TLS if there is a file with an authority.
func stock(port, admin int, ca, more string, upstreams ...string) string {
	tls := ""
	if ca != "" {
		tls = "\n\t\t\ttls\n\t\t\ttls_server_name static.test\n\t\t\ttls_trust_pool file " + ca
		more = "header_up Host static.test:1\n\t\t" + more
	}
	return fmt.Sprintf(`{
	admin 127.0.0.1:%d
	auto_https off
}
http://127.0.0.1:%d {
	reverse_proxy %s {
		transport http {
			keepalive 10m
			keepalive_idle_conns_per_host 512%s
		}
		%s
	}
}
`, admin, port, strings.Join(upstreams, " "), tls, more)
}

// dialGateway sends a request and leaves the rest to the caller.
func dialGateway(address, method, target, fields string) (net.Conn, *bufio.Reader, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil, nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
	_, err = fmt.Fprintf(conn, "%s / HTTP/1.1\r\nHost: %s\r\nX-Target: %s\r\n%s\r\n", method, address, target, fields)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn, bufio.NewReader(conn), nil
}

// webSocket are the fields that ask for one.
const webSocket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"

// talk opens a WebSocket and hears its own words ten times a second.
func talk(address, target string, duration time.Duration) (heard int, err error) {
	conn, r, err := dialGateway(address, http.MethodGet, target, webSocket)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		return 0, err
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		res.Body.Close()
		return 0, fmt.Errorf("status %d", res.StatusCode)
	}
	word := make([]byte, 8)
	for end := time.Now().Add(duration); time.Now().Before(end); heard++ {
		if _, err := fmt.Fprintf(conn, "%08d", heard); err != nil {
			return heard, fmt.Errorf("WebSocket%s%w", cut, err)
		}
		if _, err := io.ReadFull(r, word); err != nil {
			return heard, fmt.Errorf("WebSocket%s%w", cut, err)
		}
		if string(word) != fmt.Sprintf("%08d", heard) {
			return heard, fmt.Errorf("%08d became %q", heard, word)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return heard, nil
}

func keepTalking(address, target string, duration time.Duration) string {
	heard, err := talk(address, target, duration)
	if err != nil {
		return fmt.Sprintf("ended after %d messages: %s", heard, reason(err.Error()))
	}
	return fmt.Sprintf("all %d messages came back", heard)
}

// upload sends a body of so many bytes in so much time.
func upload(address, target string, size int, duration time.Duration) string {
	conn, r, err := dialGateway(address, http.MethodPost, target, fmt.Sprintf("Content-Length: %d\r\n", size))
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	const parts = 100
	part := strings.Repeat("x", size/parts)
	start := time.Now()
	for i := range parts {
		if i == parts-1 {
			part = strings.Repeat("x", size-i*(size/parts))
		}
		if _, err := io.WriteString(conn, part); err != nil {
			return fmt.Sprintf("ended after %d %%: %s", i, reason(err.Error()))
		}
		time.Sleep(time.Until(start.Add(duration * time.Duration(i+1) / parts)))
	}
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		return reason(err.Error())
	}
	defer res.Body.Close()
	return fmt.Sprintf("status %d after %.0f s", res.StatusCode, time.Since(start).Seconds())
}
