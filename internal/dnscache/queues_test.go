package dnscache

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

func TestEviction(t *testing.T) {
	for _, size := range []int{1, 2, 3, 10, 1000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			run(t, Config{Size: size}, func(w world) {
				w.fake.set("A", script{addrs: ips(a), ttl: time.Hour})
				used := names(size * 8 / 10)
				for range 3 {
					for _, name := range used {
						w.get(name)
					}
				}
				for i := range 20 * size { // one-off names, and the used ones now and then
					w.get(fmt.Sprint("scan-", i))
					if i%10 == 0 && len(used) > 0 {
						w.get(used[rand.N(len(used))])
					}
					if w.Len() > size {
						t.Fatalf("%d names", w.Len())
					}
				}
				for _, name := range used {
					if got := w.get(name); got != "hit "+a {
						t.Errorf("%s: %s", name, got)
					}
				}
				w.sleep(0)
				if err := w.check(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// The read that a name came in by is one of the two that it takes to stay.
func TestReadTwice(t *testing.T) {
	run(t, Config{Size: 10}, func(w world) {
		w.fake.set("A", script{addrs: ips(a), ttl: time.Hour})
		w.fake.srv(srv, time.Hour, here)
		w.get("once")
		w.getSRV(srv)
		for range 2 {
			w.get("twice")
		}
		w.getSRV(srv)
		for i := range 100 {
			w.get(fmt.Sprint("scan-", i))
		}
		w.want("twice", "hit "+a)
		w.wantSRV(srv, 0, "hit here:80")
		w.want("once", "miss "+a)
	})
}

// What was used once and is not any more makes room.
func TestEvictionForgets(t *testing.T) {
	run(t, Config{Size: 100}, func(w world) {
		w.fake.set("A", script{addrs: ips(a), ttl: time.Hour})
		for range 5 {
			for _, name := range names(100) {
				w.get(name)
			}
		}
		for range 20 {
			for i := range 100 {
				w.get(fmt.Sprint("new-", i))
			}
		}
		hits := 0
		for i := range 100 {
			if _, known := w.Peek(fmt.Sprint("new-", i)); known {
				hits++
			}
		}
		if hits < 70 { // ghosts that share a place cost some
			t.Errorf("%d of 100 names that are in use are known", hits)
		}
	})
}

// A name that comes back soon after it was evicted is taken for one that is
// used, and survives the scan that evicted it.
func TestGhosts(t *testing.T) {
	run(t, Config{Size: 100}, func(w world) {
		w.fake.set("A", script{addrs: ips(a), ttl: time.Hour})
		scan := 0
		next := func(n int) {
			for range n {
				w.get(fmt.Sprint("scan-", scan))
				scan++
			}
		}
		next(200)
		back := names(20)
		read := func() {
			for _, name := range back {
				w.get(name)
			}
		}
		known := func() (n int) {
			for _, name := range back {
				if _, known := w.Peek(name); known {
					n++
				}
			}
			return n
		}
		read()
		next(100)
		if n := known(); n != 0 {
			t.Fatalf("%d names were read once, and not evicted", n)
		}
		read()
		next(1000)
		if n := known(); n < 12 { // some may share the place of a ghost
			t.Errorf("%d of 20 names survived", n)
		}
	})
}

// Readers, refreshes, evictions, outages and the passing of time all at once.
func TestStress(t *testing.T) {
	fake := newFake()
	fake.set("A", script{addrs: ips(a), ttl: time.Second})
	fake.set("AAAA", script{addrs: ips(c6), ttl: time.Second, delay: time.Millisecond})
	var clock struct {
		sync.Mutex
		now time.Duration
	}
	c := New(fake, Config{Size: 64, MaxLookups: 8, Deadline: 20 * time.Millisecond, StaleWait: time.Millisecond, Now: func() time.Duration {
		clock.Lock()
		defer clock.Unlock()
		return clock.now
	}})
	list := names(200)
	for _, name := range list[:10] {
		fake.fail(name, errServfail)
		fake.set(list[10]+" A", script{hang: true})
		fake.set(list[11]+" AAAA", script{hang: true})
		fake.fail(list[12], nxdomain(-1))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for ctx.Err() == nil {
				k := rand.N(len(list))
				if rand.N(2) == 0 {
					k = rand.N(40) // some are used more
				}
				ctx, cancel := context.WithTimeout(ctx, rand.N(5*time.Millisecond))
				answer, err := c.Lookup(ctx, list[k])
				cancel()
				if (err == nil) == (len(answer.Addrs) == 0) {
					t.Errorf("%s: %v, %v", list[k], answer, err)
				}
				c.Peek(list[k])
			}
		})
	}
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			clock.Lock()
			clock.now += rand.N(200 * time.Millisecond)
			if i%500 == 0 {
				clock.now += time.Hour
			}
			now := clock.now
			clock.Unlock()
			c.sched.tick(now)
			if i%100 == 50 {
				fake.setOutage(true)
			} else if i%100 == 60 {
				fake.setOutage(false)
			}
			if err := c.check(); err != nil {
				t.Error(err)
				return
			}
			time.Sleep(100 * time.Microsecond)
		}
	})
	wg.Wait()
	if fake.down != nil {
		fake.setOutage(false)
	}
	fake.mu.Lock()
	clear(fake.scripts)
	fake.mu.Unlock()
	for range 200 { // what is due or parked has to go out in the end
		clock.Lock()
		clock.now += 10 * time.Millisecond
		now := clock.now
		clock.Unlock()
		c.sched.dispatch(now)
		time.Sleep(time.Millisecond)
	}
	if err := c.check(); err != nil {
		t.Error(err)
	}
	if c.sched.parked.len+c.sched.due[0].len+c.sched.due[1].len != 0 || c.sched.inFlight != [2]int{} {
		t.Errorf("%d parked, %d and %d due, %v busy at the end", c.sched.parked.len, c.sched.due[0].len, c.sched.due[1].len, c.sched.inFlight)
	}
	for n := range c.nodes() {
		if n.call.Load() != nil {
			t.Errorf("%s: a lookup that never ends", n.name())
		}
	}
	c.Close()
	if n := c.pending.count(); n != 0 || len(c.slots.taken) != 0 || len(c.slowLookups) != 0 {
		t.Errorf("%d pending, %d slots taken, %d slow at the end", n, len(c.slots.taken), len(c.slowLookups))
	}
}

// Names that are in use all the time stay, though others are read often enough
// for a while to come into the main queue.
func TestUsedOutliveFashions(t *testing.T) {
	run(t, Config{Size: 100}, func(w world) {
		w.fake.set("A", script{addrs: ips(a), ttl: time.Hour})
		used := names(20)
		for i := range 1000 {
			for range 3 {
				w.get(fmt.Sprint("fashion-", i))
			}
			if i%5 > 0 {
				continue
			}
			for _, name := range used {
				if got := w.get(name); i > 0 && got != "hit "+a {
					t.Fatalf("after %d others: %s", i, got)
				}
			}
		}
	})
}
