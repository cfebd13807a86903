package dnscache

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestRefreshAhead(t *testing.T) {
	const ttl = 1000 * time.Second
	run(t, Config{Refresh: 5 * time.Minute, Size: 10_000}, func(w world) {
		w.Start()
		w.fake.set("A", script{addrs: ips(a), ttl: ttl})
		list := names(1000)
		for _, name := range list {
			w.get(name)
		}
		w.sleep(500 * time.Second)
		for _, name := range list[:500] {
			w.get(name) // more than 5 minutes before 90 %, less before 75 %: it may be refreshed or not
		}
		w.sleep(100 * time.Second)
		for _, name := range list[:250] {
			w.get(name)
		}
		w.sleep(100 * time.Second)
		w.fake.forget()
		w.sleep(200*time.Second + wheelTick)
		var first, last time.Duration = math.MaxInt64, 0
		asked := 0
		for i, name := range list {
			at := w.fake.questions(name, TypeA)
			switch {
			case i < 250 && len(at) != 1, i >= 500 && len(at) != 0:
				t.Errorf("%s: asked %d times, want once if it was used lately", name, len(at))
			case i < 250:
				first, last = min(first, at[0]), max(last, at[0])
				asked++
			}
		}
		if first < 750*time.Second || first > 770*time.Second || last < 880*time.Second || last > 900*time.Second+wheelTick {
			t.Errorf("refreshed from %v to %v, want from 75 to 90 %% of the TTL", first, last)
		}
		w.sleep(99 * time.Second)
		w.want(list[0], "hit "+a)
		if err := w.check(); err != nil {
			t.Error(err)
		}
	})
}

// Names in use never wait and are never stale, even with the shortest TTL.
func TestUsedNamesStayFresh(t *testing.T) {
	run(t, Config{}, func(w world) {
		w.Start()
		w.fake.set("A", script{addrs: ips(a), ttl: time.Second, delay: 20 * time.Millisecond})
		list := names(1000)
		for _, name := range list {
			go w.get(name)
		}
		w.sleep(200 * time.Millisecond)
		for range 100 {
			for _, name := range list {
				if answer, err := w.Lookup(w.Context(), name); answer.State != Hit || answer.Waited != 0 || err != nil {
					t.Fatalf("after %v: %s: got %v, %v, want a hit without a wait", time.Since(w.fake.start), name, answer, err)
				}
			}
			w.sleep(99 * time.Millisecond)
		}
	})
}

func TestRefreshAlwaysAndNever(t *testing.T) {
	for refresh, asked := range map[time.Duration]int{math.MaxInt64: 5, time.Minute: 0, -1: 0} {
		run(t, Config{Refresh: refresh}, func(w world) {
			w.Start()
			w.fake.a("x", 1000*time.Second, a)
			w.get("x")
			w.fake.forget()
			w.sleep(5000 * time.Second)
			if n := len(w.fake.questions("x", TypeA)); n < asked || asked == 0 && n > 0 {
				t.Errorf("refresh %v: asked %d times, want %d", refresh, n, asked)
			}
		})
	}
}

// Even if all names are refreshed, one without addresses is not looked up until it
// is used. One that has some is tried again and again, as long as these may serve.
func TestAlwaysEnds(t *testing.T) {
	for _, gone := range []error{nxdomain(-1), nodata(-1), errServfail} {
		run(t, Config{Refresh: Always, Stale: time.Hour}, func(w world) {
			w.Start()
			w.fake.fail("cold", gone)
			w.want("cold", "miss "+gone.Error())
			w.fake.a("x", time.Minute, a)
			w.want("x", "miss "+a)
			w.fake.fail("x", gone)
			w.fake.forget()
			w.sleep(2 * time.Hour)
			w.wantAsked("cold", 0, 0)
			at := w.fake.questions("x", TypeA)
			switch n := len(at); {
			case gone != errServfail && n != 1:
				t.Errorf("%v: asked %d times, want once", gone, n)
			case gone == errServfail && (n < 3600/30 || n > 3600/22+7):
				t.Errorf("%v: asked %d times in an hour, want one in 22 to 30 s", gone, n)
			case gone == errServfail && (at[n-1] > 3660*time.Second+maxBackoff || at[n-1] < 3660*time.Second-maxBackoff):
				t.Errorf("%v: asked until %v, want about an hour", gone, at[n-1])
			}
			w.fake.a("x", time.Minute, b)
			w.fake.a("cold", time.Minute, b)
			w.want("x", "miss "+b)
			w.want("cold", "miss "+b)
			w.sleep(time.Hour)
			w.want("x", "hit "+b)
			w.want("cold", "hit "+b)
		})
	}
}

// A name that is not used is not tried again in the background for longer than
// Config.Refresh.
func TestFailingIsLeftAlone(t *testing.T) {
	run(t, Config{}, func(w world) {
		w.Start()
		w.fake.a("x", time.Minute, a)
		w.want("x", "miss "+a)
		w.fake.fail("x", errServfail)
		w.sleep(6 * time.Minute)
		w.fake.forget()
		w.sleep(time.Hour)
		w.wantAsked("x", 0, 0)
		w.want("x", "stale "+a)
	})
}

// The longest times there are, in all settings.
func TestLongestTimes(t *testing.T) {
	cfg := Config{MaxTTL: math.MaxInt64, NegativeTTL: math.MaxInt64, Stale: math.MaxInt64, StaleWait: math.MaxInt64, Refresh: math.MaxInt64, Deadline: math.MaxInt64}
	run(t, cfg, func(w world) {
		w.Start()
		w.fake.a("x", math.MaxInt64, a)
		w.fake.fail("none", nxdomain(math.MaxInt64))
		w.fake.a("short", 10*time.Second, a)
		w.want("x", "miss "+a)
		w.want("none", "miss nxdomain")
		w.want("short", "miss "+a)
		w.sleep(10 * time.Hour)
		w.want("x", "hit "+a)
		w.want("none", "hit nxdomain")
		w.want("short", "hit "+a)
		w.wantAsked("x", 1, 1)
		w.wantAsked("none", 1, 1)
		w.fake.set("short A", script{err: errServfail, delay: time.Second})
		w.sleep(time.Hour)
		for inFlight, _ := w.refreshes(); inFlight != [2]int{}; inFlight, _ = w.refreshes() {
			w.sleep(time.Second) // a reader would wait for it
		}
		w.wantAfter("short", 0, "stale "+a)
	})
	cfg.MinTTL = math.MaxInt64
	run(t, cfg, func(w world) {
		w.Start()
		w.fake.a("x", 0, a)
		w.want("x", "miss "+a)
		w.sleep(10 * time.Hour)
		w.want("x", "hit "+a)
		w.wantAsked("x", 1, 1)
	})
}

// A name whose parked refresh a reader took over is refreshed in its time again.
func TestTakenOverIsRefreshed(t *testing.T) {
	run(t, Config{Refresh: Always, Stale: time.Second}, func(w world) {
		w.Start()
		w.fake.a("x", 10*time.Second, a)
		w.want("x", "miss "+a)
		w.fake.setOutage(true)
		w.sleep(20*time.Second + wheelTick/2)
		if parked, _ := w.counts(); parked != 1 {
			t.Fatalf("%d names are parked, want 1", parked)
		}
		w.fake.setOutage(false)
		w.want("x", "miss "+a)
		if parked, wheel := w.counts(); parked != 0 || wheel != 1 {
			t.Errorf("%d parked, %d in the wheel; want 0 and 1", parked, wheel)
		}
		w.sleep(time.Minute)
		w.want("x", "hit "+a)
		if err := w.check(); err != nil {
			t.Error(err)
		}
	})
}

func TestNegativeIsNotRefreshed(t *testing.T) {
	run(t, Config{}, func(w world) {
		w.Start()
		w.fake.a("x", 10*time.Second, a)
		w.get("x")
		w.sleep(5 * time.Second)
		w.get("x")
		w.get("x")
		w.fake.fail("x", nxdomain(30*time.Second))
		w.sleep(5 * time.Second)
		w.want("x", "hit nxdomain")
		w.fake.forget()
		w.sleep(time.Hour)
		w.wantAsked("x", 0, 0)
	})
}

// Evicted names are not refreshed any more, whether they are in the wheel or due.
func TestEvictedAreNotRefreshed(t *testing.T) {
	run(t, Config{Size: 10}, func(w world) {
		w.Start()
		w.fake.set("A", script{addrs: ips(a), ttl: 10 * time.Second})
		list := names(1000)
		for _, name := range list {
			w.get(name)
		}
		synctest.Wait()
		if w.Len() != 10 || w.sched.forecast.total != 10 {
			t.Errorf("%d names, %d in the wheel; want 10 and 10", w.Len(), w.sched.forecast.total)
		}
		w.fake.forget()
		w.sleep(10 * time.Second)
		for _, name := range list[:990] {
			w.wantAsked(name, 0, 0)
		}
		w.fake.setOutage(true)
		w.sleep(staleGrace)
		if n := w.sched.parked.len; n != 10 {
			t.Errorf("%d parked, want 10", n)
		}
		for _, name := range names(1500)[1000:] {
			w.get(name)
		}
		if w.sched.parked.len != 0 {
			t.Errorf("%d parked after they were evicted, want none", w.sched.parked.len)
		}
		if err := w.check(); err != nil {
			t.Error(err)
		}
		w.fake.forget()
		w.fake.setOutage(false)
		w.sleep(10 * time.Second)
		if len(w.fake.all()) != 0 {
			t.Errorf("asked %v, want nothing", w.fake.all())
		}
	})
}

func TestOutage(t *testing.T) {
	run(t, Config{}, func(w world) {
		w.Start()
		w.fake.set("A", script{addrs: ips(a), ttl: 10 * time.Second})
		const n = 5000
		list := names(n)
		for _, name := range list {
			w.get(name)
		}
		w.sleep(time.Second)
		w.fake.setOutage(true)
		w.fake.forget()
		order := rand.Perm(n)
		for i, k := range order {
			w.get(list[k]) // the later, the more recently used
			if i%100 == 0 {
				w.sleep(time.Second)
			}
		}
		w.sleep(10 * time.Minute)
		for range 2 { // cold ones fail at once, and that is not remembered
			w.want("cold", "miss outage")
		}
		for _, name := range list[:10] {
			w.want(name, "stale "+a) // at once, though long expired
			order = append(order, slices.Index(names(n), name))
		}
		if len(w.fake.all()) != 0 || w.sched.parked.len != n {
			t.Errorf("%d questions in an outage, %d parked; want 0 and %d", len(w.fake.all()), w.sched.parked.len, n)
		}

		start := time.Since(w.fake.start)
		w.fake.setOutage(false)
		w.want("cold", "miss "+a)
		w.sleep(n*time.Second/recoveryRate + 2*wheelTick)
		if w.sched.parked.len != 0 {
			t.Errorf("%d parked at the end, want none", w.sched.parked.len)
		}
		at := make(map[string]time.Duration)
		var perSecond [10]int
		for _, q := range w.fake.all() {
			if _, again := at[q.name]; q.qtype == TypeA && !again {
				at[q.name] = q.at - start
				perSecond[(q.at-start)/time.Second]++
			}
		}
		if len(at) != n+1 {
			t.Errorf("%d names refreshed, want %d", len(at), n+1)
		}
		for i, count := range perSecond[:5] {
			if count < recoveryRate*8/10 || count > recoveryRate*5/4+1 {
				t.Errorf("second %d: %d refreshes, want about %d", i, count, recoveryRate)
			}
		}
		// from the most recently used to the others, but for those used in the same second
		last := make(map[int]int)
		for i, k := range order {
			last[k] = i
		}
		slices.SortFunc(list, func(a, b string) int { return cmp.Compare(at[a], at[b]) })
		byUse := make([]int, 0, n)
		for _, name := range list {
			var k int
			fmt.Sscanf(name, "name-%d", &k)
			byUse = append(byUse, last[k])
		}
		for i := 1; i < n; i++ {
			if at[list[i]] > at[list[i-1]] && byUse[i] > byUse[i-1]+200 {
				t.Fatalf("%s, used as number %d, came after %s, used as number %d", list[i], byUse[i], list[i-1], byUse[i-1])
			}
		}
	})
}

// In an outage readers do not wait, even if an answer expired long ago.
func TestNoWaitInOutage(t *testing.T) {
	run(t, Config{Refresh: -1}, func(w world) {
		w.fake.a("x", time.Second, a)
		w.want("x", "miss "+a)
		w.sleep(2 * time.Minute)
		w.fake.setOutage(true)
		w.want("x", "stale "+a)
	})
}

// A lookup that fails since an outage has begun is repeated after it.
func TestOutageDuringRefresh(t *testing.T) {
	run(t, Config{}, func(w world) {
		w.Start()
		w.fake.a("x", time.Second, a)
		w.want("x", "miss "+a)
		w.want("x", "hit "+a)
		w.want("x", "hit "+a)
		w.fake.set("x A", script{err: errOutage, delay: 3 * time.Second})
		w.sleep(3500 * time.Millisecond)
		w.fake.setOutage(true)
		w.fake.a("x", time.Second, b)
		w.sleep(time.Second)
		w.fake.setOutage(false)
		w.sleep(2 * wheelTick)
		w.want("x", "hit "+b)
	})
}

// A reader who has to wait does a lookup itself that is parked.
func TestReaderTakesOver(t *testing.T) {
	run(t, Config{Stale: time.Minute, Refresh: -1}, func(w world) {
		w.fake.a("x", time.Second, a)
		w.want("x", "miss "+a)
		w.sleep(2 * time.Second)
		w.fake.setOutage(true)
		w.want("x", "stale "+a)
		w.sleep(time.Minute)
		w.fake.setOutage(false)
		w.fake.forget()
		w.fake.set("x A", script{addrs: ips(b), ttl: time.Minute, delay: time.Second})
		go w.wantLater("x", "miss "+b)
		w.sleep(0)
		if w.sched.parked.len != 1 {
			t.Errorf("%d parked, want 1", w.sched.parked.len)
		}
		w.sched.dispatch(w.cfg.Now())
		w.sleep(time.Second)
		w.want("x", "hit "+b)
		w.wantAsked("x", 1, 1)
		if w.sched.parked.len != 0 || w.sched.inFlight != [2]int{} {
			t.Errorf("%d parked, %v in flight; want none", w.sched.parked.len, w.sched.inFlight)
		}
	})
}

// A node is in one list of the scheduler, and in none when it is evicted.
func TestSchedulerLists(t *testing.T) {
	run(t, Config{}, func(w world) {
		w.fake.setOutage(true)
		n := w.putNew("x").state.node
		w.sched.request(n, 0, false)
		w.sched.schedule(n, 0, time.Minute, time.Minute)
		if w.sched.parked.len != 1 || w.sched.forecast.total != 0 {
			t.Errorf("%d parked, %d in the wheel; want 1 and 0", w.sched.parked.len, w.sched.forecast.total)
		}
		w.sched.evict(n)
		n.call.Store(nil)
		w.sched.request(n, 0, false)
		w.sched.schedule(n, 0, time.Minute, time.Minute)
		if w.sched.parked.len != 0 || w.sched.forecast.total != 0 {
			t.Errorf("%d parked, %d in the wheel after the eviction, want none", w.sched.parked.len, w.sched.forecast.total)
		}
	})
}

// Parked names do not delay a name that becomes due after the outage.
func TestRecoveryHoldsNothingUp(t *testing.T) {
	run(t, Config{}, func(w world) {
		w.Start()
		w.fake.set("A", script{addrs: ips(a), ttl: 10 * time.Second})
		for _, name := range names(5000) {
			w.get(name)
		}
		w.fake.setOutage(true)
		w.sleep(10 * time.Second)
		w.fake.setOutage(false)
		w.fake.a("new", time.Second, b)
		for range 3 {
			w.get("new")
		}
		w.sleep(1100 * time.Millisecond)
		if w.sched.parked.len == 0 {
			t.Fatal("no name is parked, want some to be")
		}
		w.want("new", "hit "+b)
	})
}

// Refreshes take no more than their slots, even if the nameservers fall silent.
func TestRefreshSlots(t *testing.T) {
	run(t, Config{}, func(w world) {
		w.fake.set("A", script{addrs: ips(a), ttl: time.Second})
		list := names(2 * refreshSlots)
		for _, name := range list {
			w.get(name)
		}
		w.sleep(time.Second)
		w.fake.set("A", script{hang: true})
		for _, name := range list {
			w.get(name)
		}
		w.sleep(0)
		if inFlight, due := w.refreshes(); inFlight != [2]int{refreshSlots, 0} || due != refreshSlots {
			t.Errorf("%v slots in use, %d names due; want %d and %d", inFlight, due, refreshSlots, refreshSlots)
		}
		w.sleep(time.Minute)
		if inFlight, due := w.refreshes(); inFlight != [2]int{} || due != 0 {
			t.Errorf("at the end %v slots in use, %d names due; want none", inFlight, due)
		}
	})
}

// Refreshes of dead names take at most half of the slots.
func TestDeadNamesLeaveSlots(t *testing.T) {
	run(t, Config{}, func(w world) {
		w.fake.set("A", script{addrs: ips(a), ttl: time.Second})
		list := names(2 * refreshSlots)
		for _, name := range list {
			w.get(name)
		}
		synctest.Wait()
		w.fake.set("A", script{err: errServfail})
		w.sleep(time.Second)
		for _, name := range list { // all fail once
			w.get(name)
		}
		w.fake.a("good", time.Second, a)
		w.get("good")
		w.sleep(2 * time.Second)
		w.fake.set("A", script{hang: true})
		for _, name := range list {
			w.get(name)
		}
		synctest.Wait()
		if w.sched.inFlight != [2]int{0, slowRefreshSlots} {
			t.Errorf("slots in use: %v, want %d of slow names", w.sched.inFlight, slowRefreshSlots)
		}
		w.want("good", "stale "+a)
		w.want("good", "hit "+a)
		w.sleep(time.Minute)
		if w.sched.inFlight != [2]int{} || w.sched.due[slowClass].len != 0 {
			t.Errorf("at the end %v slots in use, %d due; want none", w.sched.inFlight, w.sched.due[slowClass].len)
		}
	})
}

// Refreshes of slow names take at most half of the slots.
func TestSlowNamesLeaveSlots(t *testing.T) {
	run(t, Config{}, func(w world) {
		w.fake.set("A", script{addrs: ips(a), ttl: time.Second, delay: 2 * slowAfter})
		list := names(2 * refreshSlots)
		for _, name := range list {
			go w.get(name)
		}
		w.fake.a("good", time.Second, a)
		w.get("good")
		w.sleep(3 * time.Second)
		for _, name := range list {
			w.get(name)
		}
		synctest.Wait()
		if w.sched.inFlight != [2]int{0, slowRefreshSlots} {
			t.Errorf("slots in use: %v, want %d of slow names", w.sched.inFlight, slowRefreshSlots)
		}
		w.want("good", "stale "+a)
		w.want("good", "hit "+a)
		w.sleep(time.Minute)
	})
}

// The wheel by itself: each node is due once, at the first tick after its time.
func TestWheel(t *testing.T) {
	const revolution = wheelSlots * wheelTick
	for _, tc := range []struct {
		name string
		due  time.Duration
		at   time.Duration // the tick
	}{
		{"past", -time.Second, wheelTick},
		{"now", 0, wheelTick},
		{"within a tick", wheelTick / 2, wheelTick},
		{"the same tick", wheelTick/2 + 1, wheelTick},
		{"a tick", wheelTick, 2 * wheelTick},
		{"just before a revolution", revolution - 1, revolution},
		{"a revolution", revolution, revolution + wheelTick},
		{"revolutions", 35*revolution + wheelTick/3, 35*revolution + wheelTick},
	} {
		t.Run(tc.name, func(t *testing.T) {
			now := time.Hour
			c := New(newFake(), Config{Now: func() time.Duration { return now }, Size: 1})
			defer c.Close()
			e := c.putNew("x")
			n := e.state.node
			c.sched.schedule(n, now, 0, now+tc.due)
			e.used.Store(usedAt(now+tc.at) | maxUses)
			for step := wheelTick; ; step += wheelTick {
				c.sched.collectDue(now+step, false)
				if c.sched.due[slowClass].len == 1 {
					if step != tc.at {
						t.Errorf("due after %v, want %v", step, tc.at)
					}
					if err := c.check(); err != nil {
						t.Error(err)
					}
					break
				}
				if step > tc.at {
					t.Fatalf("not due after %v, want it to be after %v", step, tc.at)
				}
			}
		})
	}
}

// The clock may jump ahead (a machine that slept): nothing is lost.
func TestWheelJumps(t *testing.T) {
	now := time.Duration(0)
	c := New(newFake(), Config{Now: func() time.Duration { return now }, Refresh: math.MaxInt64})
	defer c.Close()
	due := make(map[string]time.Duration)
	for _, name := range names(2000) {
		at := rand.N(4 * time.Hour)
		due[name] = at
		c.sched.schedule(c.putNew(name).state.node, now, 0, at)
	}
	for range 20 {
		now += rand.N([]time.Duration{time.Second, time.Minute, time.Hour}[rand.N(3)])
		c.sched.collectDue(now, false)
		for c.sched.due[slowClass].len > 0 {
			n := c.sched.due[slowClass].pop()
			if due[n.name()] > now {
				t.Errorf("%s came at %[3]v, want %[2]v or later", n.name(), due[n.name()], now)
			}
			delete(due, n.name())
		}
		for name, at := range due {
			if at < now-wheelTick {
				t.Errorf("%s has not come at %[3]v, want it at %[2]v", name, at, now)
			}
		}
		if err := c.check(); err != nil {
			t.Fatal(err)
		}
	}
}

// Very many names that were learned together are spread over time at once: no second
// has more than twice the mean.
func TestRefreshesAreEven(t *testing.T) {
	const n, ttl, end = 100_000, 300 * time.Second, 1800 * time.Second
	learn := []time.Duration{0, 5 * time.Second, time.Minute}
	if withRace {
		learn = learn[:1]
	}
	for _, learned := range learn {
		var now time.Duration
		c := New(newFake(), Config{Now: func() time.Duration { return now }, Refresh: math.MaxInt64})
		defer c.Close()
		nodes := make([]*node, n)
		for i := range nodes {
			nodes[i] = new(node)
			nodes[i].entry.Store(&entry{state: &state{known: true}})
		}
		perSecond := make([]int, end/time.Second+1)
		known := 0
		for ; now <= end; now += wheelTick {
			for ; known < n && (learned == 0 || time.Duration(known)*learned/n <= now); known++ {
				c.sched.schedule(nodes[known], now, ttl, now+ttl)
			}
			c.sched.collectDue(now, false)
			for c.sched.due[fastClass].len > 0 {
				n := c.sched.due[fastClass].pop()
				n.call.Store(nil)
				perSecond[now/time.Second]++
				c.sched.schedule(n, now, ttl, now+ttl)
			}
		}
		sum := 0
		for _, n := range perSecond {
			sum += n
		}
		mean := sum / len(perSecond)
		maximum := slices.Max(perSecond)
		t.Logf("learned in %v: mean %d a second, at most %d", learned, mean, maximum)
		if maximum > 2*mean || mean > n*100/75/int(ttl.Seconds()) {
			t.Errorf("learned in %v: mean %d a second, at most %d; want at most twice the mean", learned, mean, maximum)
		}
	}
}
