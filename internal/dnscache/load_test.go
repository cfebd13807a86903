package dnscache

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// loadCounter answers A questions at once, for very many names, and counts them.
type loadCounter struct {
	ttl   time.Duration
	delay time.Duration
	start time.Time

	mu        sync.Mutex
	down      chan struct{}
	perSecond []int
	order     []string // of the names asked for, while it is not nil
}

func (c *loadCounter) Ask(_ context.Context, name string, _ uint16, done func([]netip.Addr, time.Duration, error)) {
	go func() {
		if c.delay > 0 {
			time.Sleep(c.delay)
		}
		c.count(name)
		done([]netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, 1})}, c.ttl, nil)
	}()
}

func (c *loadCounter) count(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	second := int(time.Since(c.start) / time.Second)
	for len(c.perSecond) <= second {
		c.perSecond = append(c.perSecond, 0)
	}
	c.perSecond[second]++
	if c.order != nil {
		c.order = append(c.order, name)
	}
}

func (c *loadCounter) AskSRV(_ context.Context, _ string, done func([]net.SRV, time.Duration, error)) {
	done(nil, 0, nil)
}

func (c *loadCounter) Outage() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.down
}

// fill returns a cache of IPv4 addresses that refreshes all names, after it has learned some
// names within a time.
func (c *loadCounter) fill(t *testing.T, names []string, within time.Duration) *Cache {
	t.Helper()
	cache := New(c, Config{Refresh: Always, Family: func() Family { return IPv4 }})
	cache.Start()
	for i, name := range names {
		if _, err := cache.Lookup(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if within > 0 && i%1000 == 999 {
			time.Sleep(within / time.Duration(len(names)/1000))
		}
	}
	return cache
}

// TestLoadIsEven is TestRefreshesAreEven with all that is between the schedule
// and the nameservers.
func TestLoadIsEven(t *testing.T) {
	const n, ttl = 100_000, 300 * time.Second
	rounds, learn := 4, []time.Duration{0, 5 * time.Second, time.Minute}
	if withRace {
		rounds, learn = 1, learn[:1]
	}
	list := names(n)
	for _, learned := range learn {
		synctest.Test(t, func(t *testing.T) {
			ex := &loadCounter{ttl: ttl, start: time.Now()}
			c := ex.fill(t, list, learned)
			defer c.Close()
			warm := int(time.Since(ex.start)/time.Second) + 1 // all that comes later is refreshes
			time.Sleep(time.Duration(rounds) * ttl)
			synctest.Wait()
			for round := range rounds {
				second := warm + round*int(ttl/time.Second)
				load := ex.perSecond[second:min(second+int(ttl/time.Second), len(ex.perSecond)-1)]
				sum := 0
				for _, n := range load {
					sum += n
				}
				mean, maximum := float64(sum)/float64(len(load)), slices.Max(load)
				t.Logf("learned in %v, TTL %d after that: mean %.0f questions a second, at most %d (%.2f times)", learned, round+1, mean, maximum, float64(maximum)/mean)
				if float64(maximum) > 2*mean {
					t.Errorf("a second has %.2f times the mean, want at most 2 times", float64(maximum)/mean)
				}
			}
			for _, name := range list {
				if a, err := c.Lookup(t.Context(), name); a.State != Hit || err != nil {
					t.Fatalf("%s: got %v, %v, want a hit", name, a, err)
				}
			}
		})
	}
}

// In an outage nothing is asked and no reader waits, however many names there are
// and whichever are read. Afterwards the names are refreshed at a steady rate, the
// most recently used first.
func TestLargeOutage(t *testing.T) {
	const ttl = 300 * time.Second
	n := 100_000
	if withRace {
		n = 20_000
	}
	list := names(n)
	synctest.Test(t, func(t *testing.T) {
		ex := &loadCounter{ttl: ttl, start: time.Now()}
		c := ex.fill(t, list, time.Duration(n/1000)*100*time.Millisecond)
		defer c.Close()
		ex.mu.Lock()
		ex.down = make(chan struct{})
		ex.perSecond, ex.order = nil, []string{}
		ex.mu.Unlock()
		readInOutage(t, c, list)
		used := make(map[string]time.Duration, n)
		for node := range c.nodes() {
			used[node.name()] = node.entry.Load().lastUsed(c.cfg.Now())
		}
		if len(ex.order) != 0 || c.sched.parked.len != n {
			t.Errorf("%d questions in the outage, %d names parked; want 0 and %d", len(ex.order), c.sched.parked.len, n)
		}
		end := int(time.Since(ex.start) / time.Second)
		ex.mu.Lock()
		close(ex.down)
		ex.down = nil
		ex.mu.Unlock()
		time.Sleep(time.Duration(n)*time.Second/recoveryRate + time.Second)
		synctest.Wait()
		after := ex.perSecond[end:]
		t.Logf("questions a second afterwards: %d to %d", slices.Min(after[1:n/recoveryRate-1]), slices.Max(after))
		if n := slices.Max(after); n > recoveryRate*5/4 {
			t.Errorf("%d questions in a second, want at most %d", n, recoveryRate*5/4)
		}
		if c.sched.parked.len != 0 {
			t.Errorf("%d names parked at the end, want none", c.sched.parked.len)
		}
		again := make(map[string]bool, n)
		order := slices.DeleteFunc(ex.order, func(name string) bool {
			defer func() { again[name] = true }()
			return again[name]
		})
		if len(order) != n {
			t.Fatalf("asked for %d names", len(order))
		}
		// those that are in flight together may overtake each other
		for i, name := range order[refreshSlots:] {
			if before := order[i]; used[name] > used[before] {
				t.Fatalf("%s, used at %v, came %d after one used at %v", name, used[name], refreshSlots, used[before])
			}
		}
		if first, last := used[order[0]], used[order[n-1]]; first <= last {
			t.Errorf("from a name used at %v to one used at %v, want the most recently used first", first, last)
		}
	})
}

// readInOutage reads the names for 10 minutes. No reader may wait.
func readInOutage(t *testing.T, c *Cache, list []string) {
	const readers = 20
	var reads, stale atomic.Int64
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			for range 600 {
				for range 20 {
					switch a, err := c.Lookup(t.Context(), list[rand.N(len(list))]); {
					case err != nil || a.Waited != 0:
						t.Errorf("waited %v, error %v; want neither", a.Waited, err)
					case a.State == Stale:
						stale.Add(1)
					}
					reads.Add(1)
				}
				time.Sleep(time.Second)
			}
		})
	}
	wg.Wait()
	t.Logf("%d reads in the outage, %d of them stale", reads.Load(), stale.Load())
}

// Of very many readers of a name, none waits for longer than the lookup may take,
// nor than its own timeout.
func TestWaitersLeaveInTime(t *testing.T) {
	const n, deadline = 10_000, 3 * time.Second
	run(t, Config{Deadline: deadline}, func(w world) {
		w.fake.set("x A", script{hang: true})
		w.fake.set("x AAAA", script{hang: true})
		var left, failed atomic.Int32
		for i := range n {
			go func() {
				timeout := time.Hour
				if i%2 == 0 {
					timeout = time.Duration(i) * time.Millisecond / 10
				}
				ctx, cancel := context.WithTimeout(w.Context(), timeout)
				defer cancel()
				start := time.Now()
				answer, err := w.Lookup(ctx, "x")
				took := time.Since(start)
				if err == nil || took != min(timeout, deadline) || answer.Waited != took {
					t.Errorf("timeout %v: took %v, Waited is %v, error %v; want an error at the timeout or deadline", timeout, took, answer.Waited, err)
				}
				if ctx.Err() != nil {
					left.Add(1)
				} else {
					failed.Add(1)
				}
			}()
		}
		w.sleep(deadline)
		if left.Load() != n/2 || failed.Load() != n/2 {
			t.Errorf("%d left, %d got an error; want half each", left.Load(), failed.Load())
		}
		w.wantAsked("x", 1, 1)
	})
}

// fifo is a cache that evicts what came first.
type fifo struct {
	size  int
	in    map[string]bool
	queue []string
}

func (f *fifo) read(name string) (hit bool) {
	if f.in[name] {
		return true
	}
	if len(f.queue) == f.size {
		delete(f.in, f.queue[0])
		f.queue = f.queue[1:]
	}
	f.in[name] = true
	f.queue = append(f.queue, name)
	return false
}

// TestScan compares how many reads of a used set find their name while it is
// swept by one-off names.
func TestScan(t *testing.T) {
	const size, reads = 1000, 100_000
	shares := []int{50, 25, 75, 90}
	if withRace {
		shares = shares[:1]
	}
	for _, share := range shares {
		run(t, Config{Size: size}, func(w world) {
			w.fake.set("A", script{addrs: ips(a), ttl: time.Hour})
			r := rand.New(rand.NewPCG(1, 2))
			zipf := rand.NewZipf(r, 1.01, 10, size-1)
			list := names(size)
			f := &fifo{size: size, in: make(map[string]bool)}
			var used, hits, fifoHits int
			for i := range reads {
				name := fmt.Sprint("scan-", i)
				if scan := r.IntN(100) < share; scan {
					w.get(name)
					f.read(name)
					continue
				}
				name = list[zipf.Uint64()]
				used++
				if answer, _ := w.Lookup(w.Context(), name); answer.State == Hit {
					hits++
				}
				if f.read(name) {
					fifoHits++
				}
			}
			ratio, fifoRatio := float64(hits)/float64(used), float64(fifoHits)/float64(used)
			t.Logf("%d %% one-off names: %.1f %% of the others are hits, %.1f %% with FIFO", share, 100*ratio, 100*fifoRatio)
			if 1-ratio > 0.5*(1-fifoRatio) {
				t.Errorf("misses: %.3f, %.3f with FIFO; want half of that at most", 1-ratio, 1-fifoRatio)
			}
		})
	}
}
