package dnscache

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"
)

// TestLookupCounts checks that each lookup is counted once, as what the reader got.
// It is long because its table is.
func TestLookupCounts(t *testing.T) {
	const ttl = 10 * time.Second
	for _, tc := range []struct {
		name   string
		config Config
		lookUp func(w world)
		want   map[Result]uint64
	}{
		{
			name:   "miss and hits",
			lookUp: func(w world) { w.fake.a("x", ttl, a); w.get("x"); w.get("x"); w.get("x") },
			want:   map[Result]uint64{ResultMiss: 1, ResultHit: 2},
		},
		{
			name:   "of a service",
			lookUp: func(w world) { w.fake.srv("x", ttl, here); w.getSRV("x"); w.getSRV("x") },
			want:   map[Result]uint64{ResultMiss: 1, ResultHit: 1},
		},
		{
			name: "stale",
			lookUp: func(w world) {
				w.fake.a("x", ttl, a)
				w.get("x")
				w.sleep(2 * ttl)
				w.get("x")
			},
			want: map[Result]uint64{ResultMiss: 1, ResultStale: 1},
		},
		{
			name: "negative, asked for, cached and stale",
			lookUp: func(w world) {
				w.fake.fail("x", nxdomain(ttl))
				w.fake.fail("_s.x", nodata(ttl))
				for range 2 {
					w.get("x")
					w.get("x")
					w.getSRV("_s.x")
					w.sleep(2 * ttl)
				}
				w.fake.set("y A", script{})
				w.fake.set("y AAAA", script{})
				w.get("y") // a reply without addresses and without error
			},
			want: map[Result]uint64{ResultNegative: 7},
		},
		{
			name:   "failed, asked for and cached",
			lookUp: func(w world) { w.fake.fail("x", errServfail); w.get("x"); w.get("x") },
			want:   map[Result]uint64{ResultFailed: 2},
		},
		{
			name:   "outage",
			lookUp: func(w world) { w.fake.fail("x", errOutage); w.get("x"); w.get("x") },
			want:   map[Result]uint64{ResultFailed: 2},
		},
		{
			name:   "too many lookups",
			config: Config{MaxLookups: 1},
			lookUp: func(w world) {
				w.fake.set("A", script{hang: true})
				w.fake.set("AAAA", script{hang: true})
				go w.get("x.a")
				w.sleep(0)
				go w.get("y.b") // waits for the slot, which x.a has to give up
				w.sleep(0)
				w.get("z.c")
				w.sleep(time.Minute)
			},
			want: map[Result]uint64{ResultFailed: 1, ResultOverloaded: 2},
		},
		{
			name:   "too many new names",
			config: Config{NewNames: 1},
			lookUp: func(w world) { w.fake.a("x", ttl, a); w.get("x"); w.get("y") },
			want:   map[Result]uint64{ResultMiss: 1, ResultNewName: 1},
		},
		{
			name: "canceled",
			lookUp: func(w world) {
				w.fake.set("A", script{hang: true})
				ctx, cancel := context.WithTimeout(w.Context(), time.Second)
				defer cancel()
				w.Lookup(ctx, "x")
				w.sleep(time.Minute)
			},
			want: map[Result]uint64{ResultCanceled: 1},
		},
		{
			name:   "closed",
			lookUp: func(w world) { w.Close(); w.get("x") },
			want:   map[Result]uint64{ResultCanceled: 1},
		},
		{
			name:   "a look without a use",
			lookUp: func(w world) { w.fake.a("x", ttl, a); w.Peek("x"); w.Name("x") },
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.config.Refresh = -1
			run(t, tc.config, func(w world) {
				tc.lookUp(w)
				var want [resultCount]uint64
				for r, n := range tc.want {
					want[r] = n
				}
				if got := w.Stats().Lookups; got != want {
					t.Errorf("got %v, want %v", got, want)
				}
			})
		})
	}
}

// TestCountsAreExact counts on many goroutines at once.
func TestCountsAreExact(t *testing.T) {
	const readers, reads = 100, 1000
	c := filled(t, []string{"x"}, fixedAnswers{a: 1})
	defer c.Close()
	var running sync.WaitGroup
	start := make(chan struct{}) // so that each has a stack of its own
	for range readers {
		running.Go(func() {
			<-start
			for range reads {
				c.Lookup(context.Background(), "x")
			}
		})
	}
	close(start)
	for range 10 {
		c.Stats()
	}
	running.Wait()
	if got := c.Stats().Lookups[ResultHit]; got != readers*reads {
		t.Errorf("got %d hits, want %d", got, readers*reads)
	}
	used := 0
	for i := range c.counters {
		if c.counters[i].lookups[ResultHit].Load() > 0 {
			used++
		}
	}
	if used < counterShards/8 {
		t.Errorf("%d readers have used %d shards of %d, want at least %d", readers, used, counterShards, counterShards/8)
	}
}

func TestRefreshAndEvictionCounts(t *testing.T) {
	run(t, Config{Size: 10}, func(w world) {
		w.Start()
		w.fake.set("A", script{addrs: ips(a), ttl: time.Minute})
		w.get("x")
		w.get("x")
		w.get("x")
		w.sleep(time.Minute)
		if s := w.Stats(); s.Refreshes != 1 || s.Evictions != 0 {
			t.Errorf("got %d refreshes and %d evictions, want 1 and 0", s.Refreshes, s.Evictions)
		}
		for i := range 12 {
			w.get(fmt.Sprint(i))
		}
		if s := w.Stats(); s.Evictions != 3 {
			t.Errorf("got %d evictions, want 3", s.Evictions)
		}
	})
}

func TestResultNames(t *testing.T) {
	seen := make(map[string]bool)
	for r := range resultCount {
		if s := r.String(); s == "" || seen[s] {
			t.Errorf("result %d is %q, want a name of its own", r, s)
		}
		seen[r.String()] = true
	}
}
