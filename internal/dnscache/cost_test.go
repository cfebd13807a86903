package dnscache

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var allLoads = flag.Bool("loads", false, "measure queries a request for all numbers of names, TTLs and loads")

// counting answers each question after a millisecond, for each name with the same
// address, and counts the questions.
type counting struct {
	ttl     time.Duration
	aaaa    bool // names have AAAA records too
	queries atomic.Int64
}

func (*counting) Outage() <-chan struct{} { return nil }

func (*counting) AskSRV(_ context.Context, _ string, done func([]net.SRV, time.Duration, error)) {
	done(nil, 0, errServfail)
}

func (c *counting) Ask(_ context.Context, _ string, qtype uint16, done func([]netip.Addr, time.Duration, error)) {
	c.queries.Add(1)
	addrs, err := []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, 1})}, error(nil)
	switch {
	case qtype == TypeAAAA && c.aaaa:
		addrs[0] = netip.MustParseAddr("2001:db8::1")
	case qtype == TypeAAAA:
		addrs, err = nil, nodata(time.Hour)
	}
	time.AfterFunc(time.Millisecond, func() { done(addrs, c.ttl, err) })
}

// workload is a steady load of requests to names.
type workload struct {
	names int
	ttl   time.Duration
	rate  int  // requests a second
	zipf  bool // the name of rank k is requested in proportion to 1/k; else each in turn
}

func (l workload) String() string {
	kind := "even"
	if l.zipf {
		kind = "zipf"
	}
	return fmt.Sprintf("names=%d/ttl=%v/rate=%d/%s", l.names, l.ttl, l.rate, kind)
}

// costs are what a workload leads to, a request.
type costs struct{ queries, stale, waits float64 }

// measure runs a workload in virtual time until it is steady, and counts then.
func (l workload) measure(t *testing.T, cfg Config) (got costs) {
	synctest.Test(t, func(t *testing.T) {
		ex := &counting{ttl: l.ttl, aaaa: true}
		c := New(ex, cfg)
		defer c.Close()
		c.Start()
		list := names(l.names)
		random := rand.New(rand.NewPCG(1, 2))
		next, turn := func(i int) string { return list[i%len(list)] }, 0
		if l.zipf {
			// of an exponent of just over 1, as rand.Zipf has it
			z := rand.NewZipf(random, 1.0001, 1, uint64(l.names-1))
			next = func(int) string { return list[z.Uint64()] }
		}
		const step = 10 * time.Millisecond
		var requests, stale, waits atomic.Int64
		request := func(name string) {
			a, err := c.Lookup(t.Context(), name)
			if err != nil {
				t.Error(err)
			}
			if a.State == Stale {
				stale.Add(1)
			}
			if a.Waited > 0 {
				waits.Add(1)
			}
			requests.Add(1)
		}
		due := 0.0
		load := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(step) {
				for due += float64(l.rate) * step.Seconds(); due >= 1; due-- {
					name := next(turn)
					turn++
					if e := c.table.find(c.hash(name), name, uint16(len(name))); e != nil &&
						c.cfg.Now() < max(e.expires, e.staleUntil(&c.cfg)) && c.cfg.Now() < e.expires+staleGrace {
						request(name)
					} else {
						go request(name) // it may have to wait
					}
				}
			}
		}
		gap := time.Duration(float64(l.names) / float64(l.rate) * float64(time.Second))
		load(max(gap, l.ttl) + l.ttl + 2*staleGrace)
		requests.Store(0)
		stale.Store(0)
		waits.Store(0)
		before := ex.queries.Load()
		span := 2 * gap // names may be asked for at each second use, all of them at the same
		for span < max(2*l.ttl, 2*staleGrace) {
			span += 2 * gap
		}
		load(span)
		n := float64(requests.Load())
		got = costs{float64(ex.queries.Load()-before) / n, float64(stale.Load()) / n, float64(waits.Load()) / n}
	})
	return got
}

// A request costs about one query at most, at any number of names, though a
// lookup takes two; and those to names that are used within their TTL do not
// wait.
func TestQueriesARequest(t *testing.T) {
	var loads []workload
	for _, zipf := range []bool{false, true} {
		if *allLoads {
			for _, n := range []int{20, 500, 10_000, 100_000} {
				for _, ttl := range []time.Duration{5 * time.Second, time.Minute, 5 * time.Minute} {
					loads = append(loads, workload{n, ttl, 4000, zipf})
				}
			}
			continue
		}
		// the same, with a hundredth of the names and of the requests
		for _, n := range []int{5, 100, 1000} {
			for _, ttl := range []time.Duration{5 * time.Second, time.Minute, 5 * time.Minute} {
				loads = append(loads, workload{n, ttl, 40, zipf})
			}
		}
	}
	for _, l := range loads {
		t.Run(l.String(), func(t *testing.T) {
			got := l.measure(t, Config{})
			t.Logf("%.2f queries a request, %.1f %% of requests are served stale, %.2f %% wait", got.queries, 100*got.stale, 100*got.waits)
		})
	}
}
