package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
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
	sent, failed int
	latencies    []time.Duration // of those that did not fail
	errors       map[string]int  // statuses, and why there was none
}

func (r *result) quantile(q float64) time.Duration {
	if len(r.latencies) == 0 {
		return 0
	}
	slices.Sort(r.latencies)
	return r.latencies[min(int(float64(len(r.latencies))*q), len(r.latencies)-1)]
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

// openLoop sends requests at a constant rate, whatever becomes of them, and
// measures each from the moment it was due. Those to other come on top.
func openLoop(url string, rate int, duration time.Duration, target func() string, other func() (string, bool)) *result {
	r := &result{errors: make(map[string]int)}
	var mu sync.Mutex
	var wg sync.WaitGroup
	start := time.Now()
	interval := time.Second / time.Duration(rate)
	for due := start; due.Sub(start) < duration; due = due.Add(interval) {
		time.Sleep(time.Until(due))
		wg.Go(func() {
			status, body := get(url, target())
			latency := time.Since(due)
			mu.Lock()
			defer mu.Unlock()
			r.sent++
			switch status {
			case http.StatusOK:
				r.latencies = append(r.latencies, latency)
				return
			case 0:
				r.errors[body]++
			default:
				r.errors[strconv.Itoa(status)]++
			}
			r.failed++
		})
		if t, ok := other(); ok {
			wg.Go(func() { get(url, t) })
		}
	}
	wg.Wait()
	return r
}

// clients sends requests from so many clients, each after a pause when its last
// one has been answered. Those to a target whose other is set are counted apart.
func clients(url string, n int, pause, duration time.Duration, target func() (target string, other bool)) (known, others *result) {
	known, others = &result{errors: make(map[string]int)}, &result{errors: make(map[string]int)}
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
				r.sent++
				switch status {
				case http.StatusOK:
					r.latencies = append(r.latencies, latency)
				case 0:
					r.failed++
					r.errors[body]++
				default:
					r.failed++
					r.errors[strconv.Itoa(status)]++
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
