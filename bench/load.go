package main

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// median returns the middle one of some values, or the mean of the two in the middle.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// ratios divides each of a by its counterpart.
func ratios(a, b []float64) []float64 {
	list := make([]float64, len(a))
	for i := range a {
		list[i] = a[i] / b[i]
	}
	return list
}

// wrk loads url for so many seconds, each request with one of the values in a header
// field, and returns how many requests were answered and failed.
func (l *lab) wrk(url, header string, values []string, seconds int) (requests, failed int64) {
	script, pick := filepath.Join(l.dir, "targets.lua"), "math.random(#reqs)"
	if *zipf {
		pick = "math.floor((#reqs) ^ math.random())"
	}
	var lua bytes.Buffer
	lua.WriteString("local t = {\n")
	for _, value := range values {
		fmt.Fprintf(&lua, "%q,\n", value)
	}
	fmt.Fprintf(&lua, `}
local reqs = {}
init = function(args)
  math.randomseed(os.time())
  for i, value in ipairs(t) do reqs[i] = wrk.format("GET", "/path?q=1", {[%q] = value}) end
end
request = function() return reqs[%s] end
`, header, pick)
	must(os.WriteFile(script, lua.Bytes(), 0o600))
	cmd := exec.Command("wrk", "-c"+strconv.Itoa(*wrkConns), "-t2", "-d"+strconv.Itoa(seconds)+"s", "-s", script, url)
	out, err := cmd.CombinedOutput()
	if err != nil {
		log.Fatalf("wrk: %v\n%s", err, out)
	}
	number := func(pattern string) int64 {
		m := regexp.MustCompile(pattern).FindSubmatch(out)
		if m == nil {
			return 0
		}
		n, _ := strconv.ParseInt(string(m[1]), 10, 64)
		return n
	}
	errors := number(`connect (\d+)`) + number(`read (\d+)`) + number(`write (\d+)`) + number(`timeout (\d+)`)
	return number(`(\d+) requests in`), errors + number(`Non-2xx or 3xx responses: (\d+)`)
}

// result is what an open-loop load found.
type result struct {
	Sent, Failed int
	Lost         int             // those of them that got no response at all
	Latencies    []time.Duration // of those that did not fail
	Late         []time.Duration // how long after it was due each was begun, for want of CPU
	Errors       map[string]int  // statuses, with what was said, and why there was none

	mu        sync.Mutex
	lostAfter []time.Duration // latencies of those that failed
	steady    []time.Duration // and of those that did not and were due after the first second
}

func newResult() *result { return &result{Errors: make(map[string]int)} }

// add counts a request, which began when it was due or later.
func (r *result) add(status int, text string, latency, late time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Sent++
	r.Late = append(r.Late, late)
	switch status {
	case http.StatusOK:
		r.Latencies = append(r.Latencies, latency)
		return
	case 0:
		r.Lost++
		r.Errors[reason(text)]++
	default:
		r.Errors[strings.TrimSpace(strconv.Itoa(status)+" "+reason(text))]++
	}
	r.Failed++
	r.lostAfter = append(r.lostAfter, latency)
}

// What differs from one error to the next.
var (
	anyName = regexp.MustCompile(`\bd\d+\.test\b`)
	anyAddr = regexp.MustCompile(`\b127(\.\d+){3}(:\d+)?`)
)

// reason makes errors that have the same reason the same.
func reason(text string) string {
	text, _, _ = strings.Cut(text, "<") // which begins a page
	return anyAddr.ReplaceAllLiteralString(anyName.ReplaceAllLiteralString(text, "NAME"), "ADDR")
}

func (r *result) quantile(q float64) time.Duration { return quantile(r.Latencies, q) }

func quantile(list []time.Duration, q float64) time.Duration {
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return list[min(int(float64(len(list))*q), len(list)-1)]
}

var client = &http.Client{
	Transport: &http.Transport{MaxIdleConnsPerHost: 2000, MaxIdleConns: 2000},
	Timeout:   20 * time.Second,
}

// get asks for a target.
func get(url, target string) (status int, body string) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	must(err)
	req.Header.Set("X-Target", target)
	res, err := client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	data, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(data)
}

// conns are connections to a server over which requests cost much less than over
// client, for loads of which most of the work should be the server's.
type conns struct {
	address  string
	limit    int           // of connections
	wait     bool          // for one, instead of failing
	timeout  time.Duration // of a request; default: clientTimeout
	repeated atomic.Int64

	mu   sync.Mutex
	free sync.Cond // something is idle or not open any more; only with wait
	idle []*conn   // that used last comes last
	open int
}

// waitingConns returns connections of which there are never more than limit, as in
// a client that a slow server does not make open more and more.
func waitingConns(address string, limit int) *conns {
	c := &conns{address: address, limit: limit, wait: true}
	c.free.L = &c.mu
	return c
}

type conn struct {
	net.Conn
	r    *bufio.Reader
	used bool
}

// get asks for a target, at once or not at all.
func (c *conns) get(target string) (status int, body string) {
	return c.do(http.MethodGet, target, "", "")
}

// do sends a request with more header fields, at once or not at all. If the
// connection was used before and is closed without an answer, as a server may do
// when no request is under way, the request is sent once more.
func (c *conns) do(method, target, fields, content string) (status int, body string) {
	if content != "" {
		fields += "Content-Length: " + strconv.Itoa(len(content)) + "\r\n"
	}
	request := method + " / HTTP/1.1\r\nHost: " + c.address + "\r\n" + "X-Target: " + target + "\r\n" + fields + "\r\n" + content
	conn, err := c.take(false)
	if err != nil {
		return 0, err.Error()
	}
	status, body, err = c.exchange(conn, method, request)
	if err != nil && conn.used {
		c.repeated.Add(1)
		if conn, err = c.take(true); err == nil {
			status, body, err = c.exchange(conn, method, request)
		}
	}
	if err != nil {
		return 0, err.Error()
	}
	return status, body
}

// exchange sends a request and puts the connection back. There is an error only
// if there was no complete response.
func (c *conns) exchange(conn *conn, method, request string) (status int, body string, err error) {
	_ = conn.SetDeadline(time.Now().Add(cmp.Or(c.timeout, clientTimeout)))
	defer c.free.Signal()
	_, failed := io.WriteString(conn, request)
	status, body, keep, err := conn.read(method) // even then: an answer may have come before the request was sent
	if err == nil && failed == nil && keep {
		conn.used = true
		c.mu.Lock()
		defer c.mu.Unlock()
		c.idle = append(c.idle, conn)
		return status, body, nil
	}
	conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	return status, body, err
}

// clientTimeout is more than it takes to find four addresses dead.
const clientTimeout = 40 * time.Second

var errAllBusy = errors.New("not sent, all connections are busy")

// take returns a connection that is not in use, or a fresh one.
func (c *conns) take(fresh bool) (*conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		last := len(c.idle) - 1
		if last >= 0 && !fresh {
			conn := c.idle[last]
			c.idle = c.idle[:last]
			return conn, nil
		}
		switch {
		case c.open < c.limit:
		case !c.wait:
			return nil, errAllBusy
		case last < 0:
			c.free.Wait()
			continue
		default:
			c.idle[0].Close()
			c.idle = c.idle[1:]
			c.open--
		}
		nc, err := net.Dial("tcp", c.address) // on loopback, that is at once
		if err != nil {
			c.free.Signal()
			return nil, err
		}
		c.open++
		return &conn{Conn: nc, r: bufio.NewReader(nc)}, nil
	}
}

// cut is in the texts of errors that end a response, and not in those without one.
const cut = " cut: "

// read reads the response to a request of a method and reports whether the
// connection can be used again.
func (c *conn) read(method string) (status int, body string, keep bool, err error) {
	res, err := http.ReadResponse(c.r, &http.Request{Method: method})
	for err == nil && res.StatusCode < 200 {
		res, err = http.ReadResponse(c.r, &http.Request{Method: method})
	}
	if err != nil {
		return 0, "", false, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil { // not to be sent again
		return 0, "response" + cut + err.Error(), false, nil
	}
	return res.StatusCode, string(data), !res.Close, nil
}

// close closes the connections, of which none is in use.
func (c *conns) close() {
	for _, conn := range c.idle {
		conn.Close()
	}
	c.idle, c.open = nil, 0
}

// openLoop sends requests to url by get.
func openLoop(url string, rate int, duration time.Duration, target func() string, other func() (string, bool)) *result {
	return openLoopBy(func(target string) (int, string) { return get(url, target) }, rate, duration, target, other)
}

// openLoopBy sends requests at a constant rate, whether they succeed or not,
// and measures each from the moment it was due. Those to other come on top.
func openLoopBy(get func(target string) (int, string), rate int, duration time.Duration, target func() string, other func() (string, bool)) *result {
	r := newResult()
	var wg sync.WaitGroup
	start := time.Now()
	interval := time.Second / time.Duration(rate)
	for due := start; due.Sub(start) < duration; due = due.Add(interval) {
		time.Sleep(time.Until(due))
		wg.Go(func() {
			late := time.Since(due)
			status, body := get(target())
			latency := time.Since(due)
			r.add(status, body, latency, late)
			if status == http.StatusOK && due.Sub(start) >= time.Second {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.steady = append(r.steady, latency)
			}
		})
		if t, ok := other(); ok {
			wg.Go(func() { get(t) })
		}
	}
	wg.Wait()
	return r
}

// clients sends requests from so many clients, each after a pause when its last
// one has been answered. Those to a target whose other is set are counted apart.
func clients(url string, n int, pause, duration time.Duration, target func() (target string, other bool)) (known, others *result) {
	known, others = newResult(), newResult()
	var wg sync.WaitGroup
	end := time.Now().Add(duration)
	for range n {
		wg.Go(func() {
			for time.Now().Before(end) {
				t, other := target()
				start := time.Now()
				status, body := get(url, t)
				latency := time.Since(start)
				if other {
					others.add(status, body, latency, 0)
				} else {
					known.add(status, body, latency, 0)
				}
				time.Sleep(pause)
			}
		})
	}
	wg.Wait()
	return known, others
}

// each asks for n targets once, from 64 clients, and returns how many failed.
func each(url string, n int, target func(int) string) (failed int) {
	return closedLoop(func(target string) (int, string) { return get(url, target) }, 64, n, target).Failed
}

// closedLoop sends n requests from some clients, each as soon as it has the
// answer to its last one.
func closedLoop(get func(target string) (int, string), clients, n int, target func(int) string) *result {
	r := newResult()
	var wg sync.WaitGroup
	var next atomic.Int64
	for range clients {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				start := time.Now()
				status, body := get(target(int(i)))
				r.add(status, body, time.Since(start), 0)
			}
		})
	}
	wg.Wait()
	return r
}

func never() (string, bool) { return "", false }

// oneOf picks one of n targets on a port.
func oneOf(scheme string, n, port int) func() string {
	return func() string { return fmt.Sprintf("%s://d%d.test:%d", scheme, rand.N(n), port) }
}
