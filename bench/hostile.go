package main

import (
	"bufio"
	"cmp"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"caddytarget/internal/testlab"
)

// poison is what no client but those of the poisoning backend may get.
const poison = "POISON"

// extra are responses that no request asked for.
const extra = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n" + poison

// poisons are what a poisoning backend answers, by method and path.
var poisons = map[string]string{
	"GET /two":       "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n" + extra,
	"GET /three":     "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n" + extra + extra,
	"HEAD /body":     "HTTP/1.1 200 OK\r\nContent-Length: 55\r\n\r\n" + extra,
	"GET /204":       "HTTP/1.1 204 No Content\r\n\r\n" + extra,
	"GET /304":       "HTTP/1.1 304 Not Modified\r\n\r\n" + extra,
	"GET /more":      "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n" + poison,
	"GET /chunked":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nok\n\r\n0\r\n\r\n" + extra,
	"GET /102":       "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n" + extra,
	"GET /two/later": "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n",
	"GET /204/later": "HTTP/1.1 204 No Content\r\n\r\n",
}

// hosting is a listener that serves good hosts, which say who they are and to what
// they answer, and bad ones.
type hosting struct {
	good   atomic.Int64 // requests to good hosts
	spoilt atomic.Int64 // those of them over a connection that a bad one has answered on
	opened atomic.Int64
}

func (h *hosting) serve(conn net.Conn) {
	h.opened.Add(1)
	defer conn.Close()
	var mu sync.Mutex // of what is written
	write := func(text string) {
		mu.Lock()
		defer mu.Unlock()
		_, _ = io.WriteString(conn, text)
	}
	bad := false
	for r := bufio.NewReader(conn); ; {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, req.Body)
		if !strings.HasPrefix(req.Host, "d0.") {
			h.good.Add(1)
			if bad {
				h.spoilt.Add(1)
			}
			body := mine(req.Host, req.Header.Get("X-Id"))
			write(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
			continue
		}
		bad = true
		what := req.Method + " " + req.URL.Path
		write(poisons[what])
		if strings.HasSuffix(what, "/later") { // when the next request may have come, or not
			time.AfterFunc(rand.N(5*time.Millisecond), func() { write(extra) })
		}
	}
}

// mine is what the good host answers to a request.
func mine(host, id string) string { return host + " " + id }

// whose returns whose answer a client got in place of its own.
func whose(status int, body, own string) string {
	switch {
	case strings.Contains(body, poison):
		return "poison"
	case status == http.StatusNoContent || status == http.StatusNotModified:
		return "what the bad host answered to another"
	case status != http.StatusOK || body == own:
		return "" // an error, which is counted as that
	case body == "ok\n" || body == "":
		return "what the bad host answered to another"
	}
	return "what was another request's"
}

// hostile has clients ask a host that poisons the connections to it, while others
// ask good hosts on the same address and port.
func hostile(l *lab) {
	const good, victims, attackers = 8, 16, 8
	l.names.ttl = 3600
	l.everywhere(1) // which all names have
	ca := testlab.NewAuthority(l)
	requests := slices.Sorted(maps.Keys(poisons))
	for _, p := range protocols[:2] {
		for _, more := range []string{"", "share_connections"} {
			h, port := new(hosting), freePort()
			serve := h.serve
			if p.scheme == "https" {
				config := ca.Config(p.protocol)
				serve = func(conn net.Conn) { h.serve(tls.Server(conn, config)) }
			}
			stop := l.listenRaw(netip.AddrPortFrom(l.names.addrs[0], uint16(port)), serve)
			options := "tls_trust_pool file " + ca.File + "\n\t\t" + more
			if more != "" && !l.adapts(l.gateway(port, freePort(), options)) {
				fmt.Println("this caddy does not know share_connections")
				stop()
				continue
			}
			g := l.startGateway(options)
			var stolen, ids atomic.Int64
			var mu sync.Mutex
			kinds := make(map[string]int)
			got, attacks := newResult(), newResult()
			end := time.Now().Add(time.Duration(*seconds) * 5 * time.Second / 2)
			var wg sync.WaitGroup
			for range victims {
				wg.Go(func() {
					for time.Now().Before(end) {
						host := fmt.Sprintf("d%d.test:%d", 1+rand.N(good), port)
						id := fmt.Sprint(ids.Add(1))
						start := time.Now()
						status, body := g.do(http.MethodGet, p.scheme+"://"+host, "X-Id: "+id+"\r\n", "")
						got.add(status, body, time.Since(start), 0)
						if of := whose(status, body, mine(host, id)); of != "" {
							stolen.Add(1)
							mu.Lock()
							kinds[of]++
							mu.Unlock()
						}
						time.Sleep(rand.N(2 * time.Millisecond))
					}
				})
			}
			for range attackers {
				wg.Go(func() {
					for time.Now().Before(end) {
						method, path, _ := strings.Cut(requests[rand.N(len(requests))], " ")
						start := time.Now()
						status, body := g.do(method, fmt.Sprintf("%s://d0.test:%d%s", p.scheme, port, path), "", "")
						attacks.add(status, body, time.Since(start), 0)
						time.Sleep(rand.N(2 * time.Millisecond))
					}
				})
			}
			wg.Wait()
			fmt.Printf("%s, %s: %d requests to good hosts got octets that are not theirs %v; %s\n", p, cmp.Or(more, "by default"), stolen.Load(), kinds, got.failures())
			fmt.Printf("  %d requests to good hosts, %d of them over a connection that the bad one had answered on; %d connections; %d attacks, of which %d got a status other than 200\n",
				h.good.Load(), h.spoilt.Load(), h.opened.Load(), attacks.Sent, attacks.Failed)
			l.stop(g)
			stop()
		}
	}
}

// adapts reports whether caddy knows all that a Caddyfile says.
func (l *lab) adapts(config string) bool {
	path := filepath.Join(l.dir, "Caddyfile.try")
	must(os.WriteFile(path, []byte(config), 0o600))
	return exec.Command(*caddyPath, "adapt", "--adapter", "caddyfile", "--config", path).Run() == nil
}
