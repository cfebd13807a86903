package dnscache

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// testClock is a clock for Config.Now.
type testClock struct {
	mu  sync.Mutex
	now time.Duration
}

func (c *testClock) Now() time.Duration { return c.advance(0) }

func (c *testClock) advance(d time.Duration) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now += d
	return c.now
}

// Readers, refreshes, evictions, outages and the passing of time all at once.
func TestStress(t *testing.T) {
	fake := newFake()
	fake.set("A", script{addrs: ips(a), ttl: time.Second})
	fake.set("AAAA", script{addrs: ips(c6), ttl: time.Second, delay: time.Millisecond})
	clock := new(testClock)
	c := New(fake, Config{Size: 64, MaxLookups: 8, Deadline: 20 * time.Millisecond, StaleWait: time.Millisecond, Now: clock.Now})
	list := names(200)
	for _, name := range list[:10] {
		fake.fail(name, errServfail)
	}
	fake.set(list[10]+" A", script{hang: true})
	fake.set(list[11]+" AAAA", script{hang: true})
	fake.fail(list[12], nxdomain(-1))
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
					t.Errorf("%s: got %v, %v; want addresses or an error", list[k], answer, err)
				}
				c.Peek(list[k])
			}
		})
	}
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			d := rand.N(200 * time.Millisecond)
			if i%500 == 0 {
				d += time.Hour
			}
			c.sched.tick(clock.advance(d))
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
	settle(t, c, fake, clock)
}

// settle lets all lookups end, and reports those that do not.
func settle(t *testing.T, c *Cache, fake *fake, clock *testClock) {
	if fake.down != nil {
		fake.setOutage(false)
	}
	fake.mu.Lock()
	clear(fake.scripts)
	fake.mu.Unlock()
	for range 200 { // what is due or parked has to be looked up in the end
		c.sched.dispatch(clock.advance(10 * time.Millisecond))
		time.Sleep(time.Millisecond)
	}
	if err := c.check(); err != nil {
		t.Error(err)
	}
	if s := &c.sched; s.parked.len+s.due[fastClass].len+s.due[slowClass].len != 0 || s.inFlight != [2]int{} {
		t.Errorf("at the end %d names are parked, %d and %d due, %v in flight; want none", s.parked.len, s.due[fastClass].len, s.due[slowClass].len, s.inFlight)
	}
	for n := range c.nodes() {
		if n.call.Load() != nil {
			t.Errorf("%s: a lookup does not end", n.name())
		}
	}
	c.Close()
	if n := c.pending.count(); n != 0 || len(c.slots.taken) != 0 || len(c.slowLookups) != 0 {
		t.Errorf("at the end %d lookups are pending, %d slots taken, %d lookups slow; want none", n, len(c.slots.taken), len(c.slowLookups))
	}
}
