package main

import (
	"bufio"
	"bytes"
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
	"sync"
	"sync/atomic"
	"time"
)

// median returns the middle one of some values.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// ratios divides each of a by its counterpart.
func ratios(a, b []float64) []float64 {
	list := make([]float64, len(a))
	for i := range a {
		list[i] = a[i] / b[i]
	}
	return list
}

// wrk loads url with 32 connections, each request with one of the targets in
// X-Target, and returns how many requests were answered and failed.
func (l *lab) wrk(url string, targets []string) (requests, failed int64) {
	script := filepath.Join(l.dir, "targets.lua")
	var lua bytes.Buffer
	lua.WriteString("local t = {\n")
	for _, t := range targets {
		fmt.Fprintf(&lua, "%q,\n", t)
	}
	lua.WriteString(`}
local reqs = {}
init = function(args)
  math.randomseed(os.time())
  for i, target in ipairs(t) do reqs[i] = wrk.format("GET", "/path?q=1", {["X-Target"] = target}) end
end
request = function() return reqs[math.random(#reqs)] end
`)
	must(os.WriteFile(script, lua.Bytes(), 0o600))
	cmd := exec.Command("wrk", "-c32", "-t2", "-d"+strconv.Itoa(*seconds)+"s", "-s", script, url)
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
	Latencies    []time.Duration // of those that did not fail
	Late         []time.Duration // how long after it was due each was begun, for want of CPU
	Errors       map[string]int  // statuses, and why there was none
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
	address string
	limit   int // of connections

	mu   sync.Mutex
	idle []*conn // that used last comes last
	open int
}

type conn struct {
	net.Conn
	r *bufio.Reader
}

// get asks for a target, at once or not at all.
func (c *conns) get(target string) (status int, body string) {
	conn, err := c.take()
	if err != nil {
		return 0, err.Error()
	}
	_ = conn.SetDeadline(time.Now().Add(client.Timeout))
	_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+c.address+"\r\nX-Target: "+target+"\r\n\r\n")
	if err == nil {
		status, body, err = conn.read()
	}
	if err != nil {
		conn.Close()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.open--
		return 0, err.Error()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = append(c.idle, conn)
	return status, body
}

var errAllBusy = errors.New("not sent, all connections are busy")

// take returns a connection that is not in use.
func (c *conns) take() (*conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if last := len(c.idle) - 1; last >= 0 {
		conn := c.idle[last]
		c.idle = c.idle[:last]
		return conn, nil
	}
	if c.open == c.limit {
		return nil, errAllBusy
	}
	nc, err := net.Dial("tcp", c.address) // on loopback, that is at once
	if err != nil {
		return nil, err
	}
	c.open++
	return &conn{nc, bufio.NewReader(nc)}, nil
}

func (c *conn) read() (status int, body string, err error) {
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	return res.StatusCode, string(data), err
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

// openLoopBy sends requests at a constant rate, whatever becomes of them, and
// measures each from the moment it was due. Those to other come on top.
func openLoopBy(get func(target string) (int, string), rate int, duration time.Duration, target func() string, other func() (string, bool)) *result {
	r := &result{Errors: make(map[string]int)}
	var mu sync.Mutex
	var wg sync.WaitGroup
	start := time.Now()
	interval := time.Second / time.Duration(rate)
	for due := start; due.Sub(start) < duration; due = due.Add(interval) {
		time.Sleep(time.Until(due))
		wg.Go(func() {
			late := time.Since(due)
			status, body := get(target())
			latency := time.Since(due)
			mu.Lock()
			defer mu.Unlock()
			r.Sent++
			r.Late = append(r.Late, late)
			switch status {
			case http.StatusOK:
				r.Latencies = append(r.Latencies, latency)
				return
			case 0:
				r.Errors[body]++
			default:
				r.Errors[strconv.Itoa(status)]++
			}
			r.Failed++
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
	known, others = &result{Errors: make(map[string]int)}, &result{Errors: make(map[string]int)}
	var mu sync.Mutex
	var wg sync.WaitGroup
	end := time.Now().Add(duration)
	for range n {
		wg.Go(func() {
			for time.Now().Before(end) {
				t, other := target()
				start := time.Now()
				status, body := get(url, t)
				latency := time.Since(start)
				mu.Lock()
				r := known
				if other {
					r = others
				}
				r.Sent++
				switch status {
				case http.StatusOK:
					r.Latencies = append(r.Latencies, latency)
				case 0:
					r.Failed++
					r.Errors[body]++
				default:
					r.Failed++
					r.Errors[strconv.Itoa(status)]++
				}
				mu.Unlock()
				time.Sleep(pause)
			}
		})
	}
	wg.Wait()
	return known, others
}

// each asks for n targets once, from 64 clients, and returns how many failed.
func each(url string, n int, target func(int) string) (failed int64) {
	var wg sync.WaitGroup
	var next, bad atomic.Int64
	for range 64 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				if status, _ := get(url, target(int(i))); status != http.StatusOK {
					bad.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return bad.Load()
}

func never() (string, bool) { return "", false }

// oneOf picks one of n targets on a port.
func oneOf(scheme string, n, port int) func() string {
	return func() string { return fmt.Sprintf("%s://d%d.test:%d", scheme, rand.N(n), port) }
}
