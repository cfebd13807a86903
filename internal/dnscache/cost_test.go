package dnscache

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
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
	zipf  bool // the name of rank k is requested in proportion to 1/k; else one after the other
	ipv4  bool // names have no AAAA records
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
		ex := &counting{ttl: l.ttl, aaaa: !l.ipv4}
		c := New(ex, cfg)
		defer c.Close()
		c.Start()
		list := names(l.names)
		random := rand.New(rand.NewPCG(1, 2))
		next, sent := func(i int) string { return list[i%len(list)] }, 0
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
					name := next(sent)
					sent++
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
					loads = append(loads, workload{n, ttl, 4000, zipf, false})
				}
			}
			continue
		}
		// the same, with a hundredth of the names and of the requests
		for _, n := range []int{5, 100, 1000} {
			for _, ttl := range []time.Duration{5 * time.Second, time.Minute, 5 * time.Minute} {
				loads = append(loads, workload{n, ttl, 40, zipf, false})
			}
		}
	}
	for _, l := range loads {
		t.Run(l.String(), func(t *testing.T) {
			// a name in use needs no more than its own uses pay for
			got := l.measure(t, Config{Size: max(1000, l.names)})
			t.Logf("%.2f queries a request, %.1f %% of requests are served stale, %.2f %% wait", got.queries, 100*got.stale, 100*got.waits)
			if got.queries > 1.05+freeRate/float64(l.rate) {
				t.Errorf("%.2f queries a request, want about one at most", got.queries)
			}
			if !l.zipf && got.waits > 0 {
				t.Errorf("%.2f %% of the requests wait, want none", 100*got.waits)
			}
			if got.waits > 0.1 {
				t.Errorf("%.2f %% of the requests wait, want at most 10", 100*got.waits)
			}
		})
	}
}

// TestQueriesOfOneFamily: names without AAAA records take little more than half of the
// queries, since their NODATA holds for longer than their addresses.
func TestQueriesOfOneFamily(t *testing.T) {
	l := workload{names: 44, ttl: 5 * time.Second, rate: 40}
	both := l.measure(t, Config{}).queries
	l.ipv4 = true
	one := l.measure(t, Config{}).queries
	t.Logf("%.2f queries a request with A and AAAA, %.2f with A alone", both, one)
	if one > 0.6*both {
		t.Errorf("%.2f queries a request with A alone, %.2f with A and AAAA; want at most 0.6 of that", one, both)
	}
}

// empty empties the surplus.
func (a *account) empty(now time.Duration) {
	a.surplusAt(now)
	a.surplus = -a.maxSurplus
}

// A name that is used within its TTL does not wait, nor does one that is used
// within the minute after that, even if there is no surplus. Each use costs little
// more than the query that it pays for.
func TestUsedWithinTTL(t *testing.T) {
	for _, ttl := range []time.Duration{time.Second, 5 * time.Second, time.Minute, 5 * time.Minute} {
		for _, part := range []float64{0.1, 0.3, 0.45, 0.6, 0.8, 0.95, 1} {
			for _, over := range []time.Duration{-1, 0, staleGrace/2 - time.Second, staleGrace - finalCheckFirst - time.Second} {
				gap := time.Duration(part*float64(ttl)) + over
				cfg := Config{Refresh: 24 * time.Hour}
				if over < 0 {
					// expired answers are not served
					if gap > ttl-4*finalCheckLead {
						continue
					}
					cfg.Stale, gap = -1, gap-over
				}
				t.Run(fmt.Sprintf("ttl=%v/gap=%v/stale=%v", ttl, gap, cfg.Stale), func(t *testing.T) {
					run(t, cfg, func(w world) {
						w.Start()
						w.fake.set("x A", script{addrs: ips(a), ttl: ttl, delay: 5 * time.Millisecond})
						w.fake.set("x AAAA", script{addrs: ips(c6), ttl: ttl, delay: 5 * time.Millisecond})
						w.get("x")
						w.fake.forget()
						const uses = 16
						for i := range uses {
							w.sched.mu.Lock()
							w.sched.account.empty(w.cfg.Now())
							w.sched.mu.Unlock()
							w.sleep(gap)
							if answer, err := w.Lookup(w.Context(), "x"); answer.Waited > 0 || err != nil {
								t.Fatalf("use %d: got %v, %v, want an answer without a wait", i, answer, err)
							}
						}
						cost := float64(len(w.fake.all())) / uses
						if cost > 2 || ttl <= 5*time.Second && over == 0 && cost > 1.1 {
							t.Errorf("%.2f queries a use, want about one at most", cost)
						}
					})
				})
			}
		}
	}
}

// A name that is not used any more is refreshed once or twice after that, and one
// that was used once not at all, if there is no surplus for such names.
func TestRefreshesOfUnusedNames(t *testing.T) {
	run(t, Config{Size: 2000}, func(w world) {
		w.Start()
		w.fake.set("A", script{addrs: ips(a), ttl: time.Second})
		list := names(1200)
		used, twice, once := list[:100], list[100:200], list[200:]
		for _, name := range list {
			w.get(name)
		}
		for range 50 {
			for _, name := range twice {
				w.get(name)
			}
			w.sleep(100 * time.Millisecond)
		}
		w.sched.mu.Lock()
		w.sched.account.empty(w.cfg.Now())
		w.sched.mu.Unlock()
		w.fake.forget()
		uses := 0
		for range 120 {
			for _, name := range used {
				if answer, err := w.Lookup(w.Context(), name); answer.Waited > 0 || err != nil {
					t.Fatalf("%s: got %v, %v, want an answer without a wait", name, answer, err)
				}
				uses++
			}
			w.sleep(5 * time.Second)
		}
		count := make(map[string]int)
		for _, q := range w.fake.all() {
			count[q.name]++
		}
		sum := func(names []string) (n int) {
			for _, name := range names {
				n += count[name]
			}
			return n
		}
		if n := sum(used); n < uses*9/10 || n > uses*11/10+freeRate*600 {
			t.Errorf("names that were used %d times were asked for with %d queries, want about as many", uses, n)
		}
		if n := sum(twice); n > 100*(4+2) {
			t.Errorf("%d queries for names that are not used any more, want at most %d", n, 100*(4+2))
		}
		// what need not be paid for
		if n := sum(once); n > freeRate*600+10 {
			t.Errorf("%d queries for names that were used once, want at most %d", n, freeRate*600+10)
		}
	})
}

// Retries of a name that fails cost little if it is not used. If one family of it
// has addresses that hold, only the surplus pays for them. If its answer has expired
// they are free, but few.
func TestRetriesOfUnusedNames(t *testing.T) {
	run(t, Config{Refresh: 24 * time.Hour}, func(w world) {
		w.Start()
		w.sched.mu.Lock()
		w.sched.account.empty(w.cfg.Now())
		w.sched.mu.Unlock()
		w.fake.set("half A", script{addrs: ips(a), ttl: time.Hour})
		w.fake.set("half AAAA", script{err: errServfail})
		w.get("half")
		w.fake.a("dead", time.Second, a)
		w.get("dead")
		w.fake.fail("dead", errServfail)
		w.sleep(500 * time.Millisecond)
		w.get("dead") // its refresh is paid for, and fails
		w.sleep(10 * time.Minute)
		w.wantAsked("half", 1, 1)
		if n := len(w.fake.questions("dead", TypeA)); n < 3 || n > 2+maxUnusedRefreshes {
			t.Errorf("a name that fails was asked for %d times, want 3 to %d", n, 2+maxUnusedRefreshes)
		}
	})
}

// However much a flood costs that its uses do not pay for, the surplus is there
// again soon after it.
func TestSurplusRecovers(t *testing.T) {
	run(t, Config{Size: 1000}, func(w world) {
		w.Start()
		w.fake.set("A", script{addrs: ips(a), ttl: time.Second})
		for range 20 {
			for _, name := range names(1000) {
				w.get(name)
			}
			w.sleep(2 * staleGrace)
		}
		limit := w.sched.account.maxSurplus
		w.sleep(time.Duration(2*limit/freeRate+1) * time.Second)
		w.sched.mu.Lock()
		defer w.sched.mu.Unlock()
		// a name may have been refreshed just now, for which it paid
		if got := w.sched.account.surplusAt(w.cfg.Now()); got < limit-2 {
			t.Errorf("the surplus is %g, want %g but for one lookup", got, limit)
		}
	})
}

// While few names are known, and requests are few, names that are seldom used do
// not wait: freeRate pays for them.
func TestFewNamesDoNotWait(t *testing.T) {
	run(t, Config{}, func(w world) {
		w.Start()
		w.fake.set("A", script{addrs: ips(a), ttl: 5 * time.Second, delay: time.Millisecond})
		list := names(50)
		for _, name := range list {
			w.get(name)
		}
		w.sched.mu.Lock()
		w.sched.account.surplus = 0
		w.sched.mu.Unlock()
		// until the surplus is large enough
		w.sleep(5 * time.Second)
		for range 20 {
			for _, name := range list {
				w.get(name)
			}
			w.sleep(staleGrace)
		}
		waits := 0
		for range 20 {
			for _, name := range list {
				if answer, err := w.Lookup(w.Context(), name); err != nil {
					t.Error(err)
				} else if answer.Waited > 0 {
					waits++
				}
			}
			w.sleep(3 * staleGrace)
		}
		if waits > 20*len(list)/20 {
			t.Errorf("%d of %d readers waited, want at most a twentieth", waits, 20*len(list))
		}
	})
}

// A name that is used too seldom to be refreshed is followed when it moves: its
// second use after that, a lookup of two queries, finds where it went.
func TestMovedNameIsFollowed(t *testing.T) {
	for queries, maxOld := range map[int]int{1: 2, 2: 1, 100: 0} {
		run(t, Config{RefreshQueries: queries}, func(w world) {
			w.Start()
			w.fake.set("x A", script{addrs: ips(a), ttl: 5 * time.Second})
			w.fake.set("x AAAA", script{addrs: ips(c6), ttl: 5 * time.Second})
			w.get("x")
			use := func() string {
				w.sched.mu.Lock()
				w.sched.account.empty(w.cfg.Now())
				w.sched.mu.Unlock()
				w.sleep(25 * time.Second)
				return w.get("x")
			}
			for range 5 {
				use()
			}
			for round := range 10 {
				addr := fmt.Sprintf("192.0.2.%d", 100+round)
				w.fake.set("x A", script{addrs: ips(addr), ttl: 5 * time.Second})
				old := 0
				for strings.Fields(use())[2] != addr {
					old++
				}
				if old > maxOld {
					t.Errorf("%d queries a use: %d uses after it moved got the old address, want at most %d", queries, old, maxOld)
				}
			}
		})
	}
}

// When an entry was last used is known for a year, and is right for what is used
// now, however long the cache has lived.
func TestLastUsed(t *testing.T) {
	const day = 24 * time.Hour
	for _, now := range []time.Duration{0, day, 800 * day, 834 * day, 100_000 * day} {
		for _, ago := range []time.Duration{0, time.Minute, 400 * day} {
			if ago > now {
				continue
			}
			var e entry
			e.used.Store(usedAt(now-ago) | maxUses | maxReads)
			if got := now - e.lastUsed(now); got < ago-usedUnit || got > ago+usedUnit {
				t.Errorf("at %v: last used %v ago, want %v", now, got, ago)
			}
			e.touch(now)
			if got := now - e.lastUsed(now); got < 0 || got > usedUnit || e.uses() != 15 || e.reads() != maxReads {
				t.Errorf("at %v: last used %v ago, %d uses, %d reads", now, got, e.uses(), e.reads())
			}
		}
	}
}

// TestQueriesOfLookup: what a lookup is taken to cost is how many families it asks for.
func TestQueriesOfLookup(t *testing.T) {
	const now = time.Minute
	for name, s := range map[string]state{
		"both hold":             {count: [2]uint16{1, 1}, refreshAfter: [2]time.Duration{now + 1, now + 1}},
		"one holds":             {count: [2]uint16{1, 1}, refreshAfter: [2]time.Duration{now + 1, now}},
		"one has none":          {count: [2]uint16{1, 0}, refreshAfter: [2]time.Duration{now + 1, 0}},
		"one holds, one failed": {count: [2]uint16{1, 0}, refreshAfter: [2]time.Duration{now + 1, 0}, retryAfter: [2]time.Duration{0, now + 1}},
		"NODATA holds":          {count: [2]uint16{1, 0}, expires: [2]time.Duration{now, now + 1}, refreshAfter: [2]time.Duration{now, 0}},
		"NODATA holds for A":    {count: [2]uint16{0, 1}, expires: [2]time.Duration{now + 1, now}, refreshAfter: [2]time.Duration{0, now}},
		"NODATA holds too":      {count: [2]uint16{1, 0}, expires: [2]time.Duration{now + 2, now + 1}, refreshAfter: [2]time.Duration{now + 1, 0}},
		"NODATA alone holds":    {expires: [2]time.Duration{0, now + 1}},
		"NODATA for both":       {expires: [2]time.Duration{now + 1, now + 1}},
		"NODATA has ended":      {count: [2]uint16{1, 0}, expires: [2]time.Duration{now + 2, now}, refreshAfter: [2]time.Duration{now + 1, 0}},
		"NODATA, one failed":    {count: [2]uint16{1, 0}, expires: [2]time.Duration{now, now + 1}, failures: [2]uint8{1, 0}},
		"IPv4 only":             {order: IPv4, count: [2]uint16{1, 0}, expires: [2]time.Duration{now, now + 1}},
		"one of IPv6 only":      {order: IPv6, count: [2]uint16{0, 1}, expires: [2]time.Duration{now + 1, now}},
	} {
		for _, renewal := range []bool{false, true} {
			if got, want := s.queryCost(now, renewal), len(s.wanted(s.order, now, renewal)); got != want {
				t.Errorf("%s, renewal %t: %d queries, want %d", name, renewal, got, want)
			}
		}
	}
}
