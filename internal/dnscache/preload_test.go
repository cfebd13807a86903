package dnscache

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestPreload(t *testing.T) {
	for _, refresh := range []time.Duration{0, -1} {
		run(t, Config{Preload: []string{"x", "y", "x"}, Refresh: refresh, Size: 1}, func(w world) {
			w.fake.a("x", 10*time.Second, a)
			w.fake.a("y", 1000*time.Second, b)
			w.sleep(time.Minute)
			if len(w.fake.all()) != 0 || w.Len() != 0 {
				t.Errorf("before the start: asked %v, %d names; want none", w.fake.all(), w.Len())
			}
			w.Start()
			w.sleep(0)
			w.want("x", "hit "+a)
			w.wantAsked("x", 1, 1)
			w.wantAsked("y", 1, 1)
			for range 100 { // nor does anything evict them
				w.sleep(10 * time.Second)
				if addrs, known := w.Peek("x"); !known || !slices.Equal(addrs, ips(a)) {
					t.Fatalf("got %v, known %t; want %s", addrs, known, a)
				}
				w.get(fmt.Sprint(time.Now()))
				w.get(fmt.Sprint(time.Now()))
			}
			w.want("x", "hit "+a)
			w.want("y", "hit "+b)
			if n := len(w.fake.questions("x", TypeA)); n < 100 || n > 134 {
				t.Errorf("asked %d times in 1000 s, want 100 to 134", n)
			}
			if n := len(w.fake.questions("y", TypeA)); n != 1 {
				t.Errorf("asked %d times in 1000 s, want once", n)
			}
			if n := w.Len(); n != 3 {
				t.Errorf("%d names, want 3", n)
			}
			if err := w.check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A name that is in the cache at the start is pinned.
func TestPreloadKnown(t *testing.T) {
	run(t, Config{Preload: []string{"x", "y"}, Size: 2}, func(w world) {
		w.fake.a("x", time.Second, a)
		w.fake.set("y A", script{addrs: ips(b), ttl: time.Second, delay: time.Second})
		w.fake.set("y AAAA", script{err: nodata(-1)})
		w.want("x", "miss "+a)
		go w.wantLater("y", "miss "+b)
		w.sleep(500 * time.Millisecond)
		w.Start() // while y is looked up
		w.sleep(0)
		if w.Len() != 2 || w.preloaded != 2 || w.queues.len() != 0 {
			t.Errorf("%d names, %d preloaded, %d in the queues; want 2, 2, 0", w.Len(), w.preloaded, w.queues.len())
		}
		w.sleep(time.Hour)
		w.want("x", "hit "+a)
		if got := w.get("y"); got != "hit "+b && got != "stale "+b { // it takes as long as it holds
			t.Errorf("got %q, want %s, fresh or stale", got, b)
		}
		if err := w.check(); err != nil {
			t.Error(err)
		}
	})
}

// A name that fails is looked up again after the backoff, one that does not exist when
// its negative answer has expired, both without being used.
func TestPreloadFails(t *testing.T) {
	run(t, Config{Preload: []string{"dead", "none"}}, func(w world) {
		w.fake.fail("dead", errServfail)
		w.fake.fail("none", nxdomain(20*time.Second))
		w.Start()
		w.sleep(10 * time.Minute)
		at := w.fake.questions("dead", TypeA)
		for i, pause := range [][2]float64{{1, 1.25}, {2, 2.5}, {4, 5}, {8, 10}, {16, 20}, {22.5, 30}, {22.5, 30}} {
			if got := (at[i+1] - at[i]).Seconds(); got < pause[0] || got > pause[1]+2*wheelTick.Seconds() {
				t.Errorf("pause %d: %.2f s, want %g to %g", i, got, pause[0], pause[1])
			}
		}
		if n := len(at); n < 20 || n > 32 {
			t.Errorf("dead: asked %d times in 10 minutes, want 20 to 32", n)
		}
		if n := len(w.fake.questions("none", TypeA)); n < 29 || n > 31 {
			t.Errorf("none: asked %d times in 10 minutes, want 29 to 31", n)
		}
		w.fake.a("dead", time.Minute, a)
		w.fake.a("none", time.Minute, b)
		w.sleep(31 * time.Second)
		w.want("dead", "hit "+a)
		w.want("none", "hit "+b)
	})
}

// A lookup that was abandoned is repeated.
func TestPreloadOverload(t *testing.T) {
	run(t, Config{Preload: []string{"x"}, MaxLookups: 1, Deadline: slowAfter / 2}, func(w world) {
		w.fake.set("other A", script{hang: true, late: time.Second})
		w.fake.set("x A", script{hang: true})
		w.fake.setOutage(true)
		w.Start()
		w.sleep(time.Second + wheelTick/2)
		w.fake.mu.Lock()
		w.fake.down = nil // readers may ask, but what is parked is not due yet
		w.fake.mu.Unlock()
		go w.get("other")
		w.sleep(0)
		go w.wantLater("x", "miss "+ErrOverloaded.Error()) // takes the lookup over
		w.sleep(slowAfter / 2)
		w.fake.a("x", time.Minute, a)
		w.sleep(1200 * time.Millisecond)
		w.want("x", "hit "+a)
	})
}

// Very many names are no burst, and an outage holds them back.
func TestPreloadIsPaced(t *testing.T) {
	const n = 10_000
	for _, tc := range []struct {
		name             string
		delay            time.Duration
		outage           time.Duration
		minimum, maximum int // questions in the second second, and in any
	}{
		{"at the start", 10 * time.Millisecond, 0, recoveryRate, recoveryRate * 5 / 4},
		{"after an outage", 10 * time.Millisecond, time.Minute, recoveryRate, recoveryRate * 5 / 4},
		{"slow", time.Second, 0, slowRefreshSlots, slowRefreshSlots},
	} {
		run(t, Config{Preload: names(n), Refresh: -1}, func(w world) {
			w.fake.set("A", script{addrs: ips(a), ttl: time.Hour, delay: tc.delay})
			if tc.outage > 0 {
				w.fake.setOutage(true)
			}
			w.Start()
			if tc.outage > 0 {
				w.sleep(tc.outage)
				if parked, _ := w.counts(); len(w.fake.all()) != 0 || parked != n {
					t.Errorf("%s: %d questions in the outage, %d parked; want 0 and %d", tc.name, len(w.fake.all()), parked, n)
				}
				w.fake.setOutage(false)
			}
			maxInFlight := 0
			for range 9000 {
				w.sleep(10 * time.Millisecond)
				w.sched.mu.Lock()
				maxInFlight = max(maxInFlight, w.sched.inFlight[fastClass]+w.sched.inFlight[slowClass])
				w.sched.mu.Unlock()
			}
			perSecond := make([]int, 200)
			asked := make(map[string]bool)
			for _, q := range w.fake.all() {
				if q.qtype == TypeA {
					perSecond[(q.at-tc.outage)/time.Second]++
					asked[q.name] = true
				}
			}
			t.Logf("%s: at most %d in flight, %d questions a second", tc.name, maxInFlight, slices.Max(perSecond))
			if len(asked) != n || maxInFlight > slowRefreshSlots {
				t.Errorf("%s: asked for %d names, %d at once; want %d, at most %d", tc.name, len(asked), maxInFlight, n, slowRefreshSlots)
			}
			if n := slices.Max(perSecond); perSecond[1] < tc.minimum || n > tc.maximum {
				t.Errorf("%s: questions in each second: %v; want at least %d in the second one, at most %d in any", tc.name, perSecond, tc.minimum, tc.maximum)
			}
			if err := w.check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A few names are there at once, even if some are dead.
func TestPreloadFew(t *testing.T) {
	list := names(200)
	run(t, Config{Preload: list}, func(w world) {
		w.fake.set("A", script{addrs: ips(a), ttl: time.Hour})
		for _, name := range list[:50] {
			w.fake.set(name+" A", script{hang: true})
		}
		w.Start()
		w.sleep(0)
		for _, name := range list[50:] {
			w.want(name, "hit "+a)
		}
		w.sleep(10 * time.Second)
	})
}

// TestSetPreload checks that names which are no longer preloaded are as any other name,
// and that new ones are looked up.
func TestSetPreload(t *testing.T) {
	run(t, Config{Preload: []string{"x", "y"}, MaxPreload: 3, Size: 2, Refresh: -1}, func(w world) {
		w.fake.set("A", script{addrs: ips(a), ttl: 10 * time.Second})
		w.Start()
		w.sleep(0)
		preload := func(preloaded, others int, names ...string) {
			t.Helper()
			w.SetPreload(names)
			w.sleep(time.Second)
			if w.preloaded != preloaded || w.queues.len() != others {
				t.Errorf("%v: %d names are preloaded, %d others; want %d and %d", names, w.preloaded, w.queues.len(), preloaded, others)
			}
			if err := w.check(); err != nil {
				t.Error(err)
			}
		}
		w.wantAsked("x", 1, 1)
		preload(2, 1, "y", "z") // x can be evicted now
		w.wantAsked("x", 0, 0)
		w.want("x", "hit "+a)
		w.want("z", "hit "+a)
		preload(3, 1, "y", "z", "z2", "beyond MaxPreload")
		preload(1, 2, "v") // y, z and z2 have no room beside x
		preload(1, 2, "v", strings.Repeat("n", maxName+1))
		w.sleep(time.Minute)
		w.fake.forget()
		w.sleep(time.Minute)
		if n := len(w.fake.questions("v", TypeA)); n < 5 {
			t.Errorf("v was refreshed %d times in a minute, want each 10 s", n)
		}
		if n := len(w.fake.all()); n != 2*len(w.fake.questions("v", TypeA)) {
			t.Errorf("%d questions, want those for v alone", n)
		}
		preload(0, 2)
		w.Purge(Purge{Suffix: "."})
		preload(2, 0, "x", "y")
	})
}

// TestPreloadChanged: each change is reported once, and not each lookup.
func TestPreloadChanged(t *testing.T) {
	var mu sync.Mutex
	var got []string
	changed := func(name string, reason error) {
		mu.Lock()
		defer mu.Unlock()
		text := "again"
		if reason != nil {
			text = reason.Error()
		}
		got = append(got, name+": "+text)
	}
	want := func(what string, want ...string) {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", what, got, want)
		}
		got = nil
	}
	run(t, Config{Preload: []string{"good", "dead", "none"}, PreloadChanged: changed}, func(w world) {
		w.fake.a("good", time.Minute, a)
		w.fake.fail("dead", errServfail)
		w.fake.fail("none", nxdomain(20*time.Second))
		w.Start()
		w.sleep(0)
		want("at the start", "dead: "+errServfail.Error(), "none: "+nxdomain(20*time.Second).Error())
		w.sleep(time.Hour)
		w.Purge(Purge{Suffix: "."})
		w.sleep(time.Hour)
		_ = w.get("other")
		want("while nothing changes, after a purge too")

		w.fake.a("dead", time.Minute, a)
		w.fake.a("none", time.Minute, b)
		w.sleep(time.Minute)
		want("when they can be resolved", "dead: again", "none: again")

		w.Purge(Purge{Name: "good", AskAgain: true})
		w.sleep(0)
		w.fake.fail("good", errServfail)
		w.sleep(50 * time.Second)
		want("while the addresses hold")
		w.sleep(2 * time.Minute)
		want("when the addresses have expired", "good: "+errServfail.Error())
		w.sleep(time.Hour)
		want("while nothing changes")
		w.fake.a("good", time.Minute, b)
		w.sleep(time.Minute)
		want("in the end", "good: again")
	})
}

// TestPreloadChangedLate: a lookup that ends when its name is no longer one to preload, or
// was forgotten, changes nothing that is kept of the name.
func TestPreloadChangedLate(t *testing.T) {
	calls := 0
	run(t, Config{Preload: []string{"x"}, PreloadChanged: func(string, error) { calls++ }}, func(w world) {
		w.fake.set("x A", script{err: errServfail, delay: time.Second})
		w.fake.set("x AAAA", script{err: errServfail, delay: time.Second})
		w.Start()
		w.sleep(500 * time.Millisecond) // its lookup is in flight
		old := w.table.find(w.hash("x"), "x", 1).state.node
		w.Purge(Purge{Name: "x"})
		w.SetPreload(nil)
		w.sleep(time.Minute) // they have ended
		w.checkPreloaded(old)
		w.checkPreloaded(w.table.find(w.hash("x"), "x", 1).state.node)
		if calls > 0 || len(w.unresolved.names) > 0 {
			w.Errorf("%d changes were reported, and %v are kept; want none", calls, w.unresolved.names)
		}
		w.SetPreload([]string{"x"})
		w.sleep(time.Minute)
		if calls != 1 {
			w.Errorf("%d changes were reported of a name that is preloaded again, want 1", calls)
		}
	})
}

// TestPreloadChangedMeanwhile: a name that is unpinned while its lookup ends is not kept as
// one that cannot be resolved.
func TestPreloadChangedMeanwhile(t *testing.T) {
	c := New(newFake(), Config{PreloadChanged: func(string, error) {}})
	defer c.Close()
	for i := range 1000 {
		name := fmt.Sprintf("x%d", i)
		n := c.pin(name)
		n.entry.Load().state.err = errServfail
		var both sync.WaitGroup
		both.Go(func() { c.unresolved.add(n, name) })
		both.Go(func() { c.unpin(name) })
		both.Wait()
	}
	if n := len(c.unresolved.names); n > 0 {
		t.Errorf("%d names are kept", n)
	}
}
