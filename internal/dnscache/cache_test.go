package dnscache

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
)

const a, b, c6, d6 = "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"

func TestTTL(t *testing.T) {
	cfg := Config{MinTTL: 2 * time.Second, MaxTTL: time.Minute, Stale: -1}
	for _, tc := range []struct {
		name  string
		ttl   time.Duration
		holds time.Duration
	}{
		{"zero", 0, 2 * time.Second},
		{"below the minimum", time.Second, 2 * time.Second},
		{"between", 30 * time.Second, 30 * time.Second},
		{"above the maximum", time.Hour, time.Minute},
		{"longer than a clock can hold", 1<<63 - 1, time.Minute},
	} {
		t.Run(tc.name, func(t *testing.T) {
			run(t, cfg, func(w world) {
				w.fake.a("x", tc.ttl, a)
				w.want("x", "miss "+a)
				w.sleep(tc.holds - 1)
				w.want("x", "hit "+a)
				w.wantAsked("x", 1, 1)
				w.sleep(1)
				w.want("x", "miss "+a)
				w.wantAsked("x", 1, 1)
			})
		})
	}
}

func TestTTLCountsFromTheReply(t *testing.T) {
	run(t, Config{Stale: -1, Refresh: -1}, func(w world) {
		w.fake.set("x A", script{addrs: ips(a), ttl: 10 * time.Second})
		w.fake.set("x AAAA", script{delay: 3 * time.Second, err: nodata(-1)})
		w.wantAfter("x", familyGrace, "miss "+a)
		w.sleep(10*time.Second - familyGrace - 1)
		w.want("x", "hit "+a)
		w.sleep(1)
		if got := w.get("x"); got != "miss "+a {
			t.Errorf("after its time: got %q, want a miss", got)
		}
	})
}

func TestStale(t *testing.T) {
	const ttl = 10 * time.Second
	ms := time.Millisecond
	good := func(delay time.Duration) script { return script{addrs: ips(b), ttl: ttl, delay: delay} }
	for _, tc := range []struct {
		name  string
		after time.Duration // how long after its end it is read
		then  script        // what the refresh gets for A
		wait  time.Duration // how long the first reader waits
		got   string        // what it gets
		next  string        // what a reader gets 700 ms later
	}{
		{"just expired", 0, good(500 * ms), 0, "stale " + a, "hit " + b},
		{"within the minute", time.Minute, good(500 * ms), 0, "stale " + a, "hit " + b},
		{"within the minute, failing", time.Minute, script{err: errServfail}, 0, "stale " + a, "stale " + a},
		{"later", time.Minute + 1, good(400 * ms), 400 * ms, "miss " + b, "hit " + b},
		{"later, slow", time.Minute + 1, good(600 * ms), 500 * ms, "stale " + a, "hit " + b},
		{"later, silent", time.Minute + 1, script{hang: true}, 500 * ms, "stale " + a, "stale " + a},
		{"later, failing", time.Minute + 1, script{err: errServfail, delay: 100 * ms}, 100 * ms, "stale " + a, "stale " + a},
		{"later, not existing", time.Minute + 1, script{err: nxdomain(-1), delay: 100 * ms}, 100 * ms, "miss nxdomain", "hit nxdomain"},
		{"not existing", 0, script{err: nxdomain(-1), delay: ms}, 0, "stale " + a, "hit nxdomain"},
		{"empty", 0, script{err: nodata(-1), delay: ms}, 0, "stale " + a, "hit nodata"},
		{"silent", 0, script{hang: true}, 0, "stale " + a, "stale " + a},
		{"malformed", 0, script{err: errors.New("malformed")}, 0, "stale " + a, "stale " + a},
		{"too late", time.Hour, script{err: errServfail}, 0, "miss servfail", "hit servfail"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			run(t, Config{Stale: time.Hour, Refresh: -1}, func(w world) {
				w.fake.a("x", ttl, a)
				w.want("x", "miss "+a)
				w.sleep(ttl + tc.after)
				w.fake.forget()
				w.fake.set("x A", tc.then)
				w.wantAfter("x", tc.wait, tc.got)
				w.sleep(700 * ms)
				w.wantAfter("x", 0, tc.next)
				w.wantAsked("x", 1, 1)
			})
		})
	}
}

func TestStaleEnds(t *testing.T) {
	run(t, Config{Stale: time.Hour, Refresh: -1}, func(w world) {
		w.fake.a("x", time.Second, a)
		w.want("x", "miss "+a)
		w.sleep(time.Second)
		w.fake.fail("x", errServfail)
		for range 3599 {
			if got := w.get("x"); got != "stale "+a {
				t.Fatalf("after %v: got %q, want %q", time.Since(w.fake.start), got, "stale "+a)
			}
			w.sleep(time.Second)
		}
		w.sleep(time.Second)
		if got := w.get("x"); !strings.HasSuffix(got, "servfail") {
			t.Errorf("after an hour: got %q, want servfail", got)
		}
	})
}

func TestStaleOff(t *testing.T) {
	run(t, Config{Stale: -1, Refresh: -1}, func(w world) {
		w.fake.a("x", time.Second, a)
		w.want("x", "miss "+a)
		w.sleep(time.Second)
		w.fake.fail("x", errServfail)
		w.want("x", "miss servfail")
	})
}

// The end of an answer is exact, also between ticks.
func TestEndBetweenTicks(t *testing.T) {
	run(t, Config{Refresh: -1}, func(w world) {
		w.Start()
		w.fake.a("x", 2050*time.Millisecond, a)
		w.want("x", "miss "+a)
		w.sleep(2050*time.Millisecond - 1)
		w.want("x", "hit "+a)
		w.sleep(1)
		w.want("x", "stale "+a)
	})
}

// One refresh, however many read a stale name meanwhile; and none while the
// last failure is remembered.
func TestStaleRefreshesOnce(t *testing.T) {
	for _, after := range []time.Duration{0, 2 * time.Minute} {
		run(t, Config{Refresh: -1}, func(w world) {
			w.fake.a("x", time.Second, a)
			w.want("x", "miss "+a)
			w.sleep(time.Second + after)
			w.fake.forget()
			w.fake.set("x A", script{hang: true})
			w.fake.set("x AAAA", script{hang: true})
			for range 3 {
				for range 100 {
					go w.get("x")
				}
				w.sleep(time.Second)
			}
			w.sleep(2 * time.Second) // the deadline
			for range 100 {
				w.want("x", "stale "+a)
			}
			w.wantAsked("x", 1, 1)
			w.sleep(1250 * time.Millisecond)
			w.get("x")
			w.sleep(0)
			w.wantAsked("x", 1, 1)
		})
	}
}

func TestNegative(t *testing.T) {
	for _, tc := range []struct {
		name    string
		a, aaaa error
		holds   time.Duration
		want    string
	}{
		{"with SOA", nxdomain(20 * time.Second), nxdomain(20 * time.Second), 20 * time.Second, "nxdomain"},
		{"without SOA", nxdomain(-1), nxdomain(-1), 5 * time.Second, "nxdomain"},
		{"capped", nxdomain(time.Hour), nxdomain(time.Hour), 30 * time.Second, "nxdomain"},
		{"TTL 0", nxdomain(0), nxdomain(0), time.Second, "nxdomain"},
		{"the shorter one", nodata(20 * time.Second), nodata(10 * time.Second), 10 * time.Second, "nodata"},
		{"NXDOMAIN is the stronger one", nodata(20 * time.Second), nxdomain(20 * time.Second), 20 * time.Second, "nxdomain"},
		{"NXDOMAIN is for one", nxdomain(20 * time.Second), errServfail, 0, "servfail"},
		{"NODATA is for one", nodata(20 * time.Second), errServfail, 0, "servfail"},
		{"neither address nor error", nil, nil, 5 * time.Second, "no addresses"},
		{"wrapped", errors.Join(errors.New("more:"), nodata(-1)), nodata(-1), 5 * time.Second, "more:\nnodata"},
		{"the text is of A", nodata(-1), errors.Join(errors.New("more:"), nodata(-1)), 5 * time.Second, "nodata"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			run(t, Config{}, func(w world) {
				w.fake.set("x A", script{err: tc.a})
				w.fake.set("x AAAA", script{err: tc.aaaa})
				w.want("x", "miss "+tc.want)
				w.want("x", "hit "+tc.want)
				w.wantAsked("x", 1, 1)
				if tc.holds == 0 { // the backoff
					w.sleep(time.Second - 1)
					w.want("x", "hit "+tc.want)
					w.sleep(250*time.Millisecond + 1)
				} else {
					w.sleep(tc.holds - 1)
					w.want("x", "hit "+tc.want)
					w.sleep(1)
				}
				w.wantAsked("x", 0, 0)
				w.want("x", "miss "+tc.want)
				w.wantAsked("x", 1, 1)
			})
		})
	}
}

// An empty reply without error must not end the wait for the other family.
func TestEmptyFirst(t *testing.T) {
	for _, first := range []error{nil, nodata(-1), errServfail} {
		run(t, Config{}, func(w world) {
			w.fake.set("x AAAA", script{err: first})
			w.fake.set("x A", script{addrs: ips(a), ttl: time.Minute, delay: time.Second})
			w.wantAfter("x", time.Second, "miss "+a)
		})
	}
}

func TestOneFamilyFails(t *testing.T) {
	const ttl = 100 * time.Second
	run(t, Config{Refresh: -1}, func(w world) {
		w.fake.set("x A", script{addrs: ips(a), ttl: ttl})
		w.fake.set("x AAAA", script{addrs: ips(c6), ttl: ttl})
		w.want("x", "miss "+c6+" "+a)
		w.sleep(ttl)
		w.fake.set("x A", script{addrs: ips(b), ttl: ttl})
		w.fake.set("x AAAA", script{err: errServfail})
		w.want("x", "stale "+c6+" "+a)
		w.want("x", "hit "+c6+" "+b) // and the failed one keeps what it had
		w.wantAsked("x", 2, 2)
		w.sleep(ttl - 1)
		w.want("x", "hit "+c6+" "+b)
		w.fake.set("x AAAA", script{err: nodata(-1)})
		w.sleep(1)
		w.want("x", "stale "+c6+" "+b)
		w.want("x", "hit "+b) // until it is known to have none
	})
}

// The family that failed is asked for again by itself, while names are
// refreshed; the other one's time is not cut short.
func TestFailedFamilyIsRetriedAlone(t *testing.T) {
	run(t, Config{}, func(w world) {
		w.Start()
		w.fake.set("x A", script{addrs: ips(a), ttl: time.Hour})
		w.fake.set("x AAAA", script{err: errServfail})
		w.want("x", "miss "+a)
		w.sleep(10 * time.Second)
		w.wantAsked("x", 1, 4) // at 0, 1, 3, 7 seconds and a little
		w.fake.set("x AAAA", script{addrs: ips(c6), ttl: time.Hour})
		w.sleep(20 * time.Second)
		w.want("x", "hit "+c6+" "+a)
		w.wantAsked("x", 0, 1)
	})
}

// A family that never answers does not keep the other one from being refreshed
// in its time.
func TestDeadFamily(t *testing.T) {
	run(t, Config{}, func(w world) {
		w.Start()
		w.fake.set("x A", script{addrs: ips(a), ttl: time.Second})
		w.fake.set("x AAAA", script{hang: true})
		w.wantAfter("x", familyGrace, "miss "+a)
		for range 600 {
			w.want("x", "hit "+a)
			w.sleep(100 * time.Millisecond)
		}
		if w.fake.maxInFlight != 1 {
			t.Errorf("%d lookups of one family at once, want 1", w.fake.maxInFlight)
		}
		if n := len(w.fake.questions("x", TypeAAAA)); n > 10 {
			t.Errorf("asked for a dead family %d times in a minute, want at most 10", n)
		}
	})
}

// A family that is not asked for, since it failed just now, is not taken to be empty.
func TestBackoffIsNotEmpty(t *testing.T) {
	run(t, Config{Refresh: -1, Stale: -1}, func(w world) {
		w.fake.set("x A", script{addrs: ips(a), ttl: time.Second})
		w.fake.set("x AAAA", script{err: errServfail})
		w.want("x", "miss "+a)
		w.sleep(time.Second)
		w.fake.set("x A", script{err: nodata(time.Minute)})
		w.fake.set("x AAAA", script{addrs: ips(c6), ttl: time.Minute})
		w.want("x", "miss servfail")
		w.sleep(250 * time.Millisecond)
		w.want("x", "miss "+c6)
	})
}

func TestLateFamily(t *testing.T) {
	for _, tc := range []struct {
		name  string
		late  script
		wait  time.Duration
		got   string
		later string
	}{
		{"in time", script{addrs: ips(c6), ttl: time.Minute, delay: 49 * time.Millisecond}, 49 * time.Millisecond, c6 + " " + a, c6 + " " + a},
		{"late", script{addrs: ips(c6), ttl: time.Minute, delay: time.Second}, familyGrace, a, c6 + " " + a},
		{"late and empty", script{err: nodata(-1), delay: time.Second}, familyGrace, a, a},
		{"late and failing", script{err: errServfail, delay: time.Second}, familyGrace, a, a},
		{"never", script{hang: true}, familyGrace, a, a},
	} {
		t.Run(tc.name, func(t *testing.T) {
			run(t, Config{}, func(w world) {
				w.fake.set("x A", script{addrs: ips(a), ttl: time.Minute})
				w.fake.set("x AAAA", tc.late)
				w.wantAfter("x", tc.wait, "miss "+tc.got)
				w.want("x", "hit "+tc.got)
				w.sleep(6 * time.Second)
				w.want("x", "hit "+tc.later)
				w.wantAsked("x", 1, 1)
			})
		})
	}
}

func TestFamilies(t *testing.T) {
	for _, tc := range []struct {
		family    Family
		a, aaaa   []string
		want      []string
		preferred int
	}{
		{Interleaved, []string{a, b}, []string{c6, d6}, []string{"6", "4", "6", "4"}, 4},
		{Interleaved, []string{a, b}, []string{c6}, []string{"6", "4", "4"}, 3},
		{Interleaved, []string{a}, []string{c6, d6}, []string{"6", "4", "6"}, 3},
		{PreferIPv4, []string{a, b}, []string{c6, d6}, []string{"4", "4", "6", "6"}, 2},
		{PreferIPv6, []string{a, b}, []string{c6}, []string{"6", "4", "4"}, 1},
		{PreferIPv6, []string{a, b}, nil, []string{"4", "4"}, 2},
		{IPv4, []string{a}, []string{c6}, []string{"4"}, 1},
		{IPv6, []string{a}, []string{c6}, []string{"6"}, 1},
	} {
		run(t, Config{Family: func() Family { return tc.family }}, func(w world) {
			w.fake.set("x A", script{addrs: ips(tc.a...), ttl: time.Minute})
			w.fake.set("x AAAA", script{addrs: ips(tc.aaaa...), ttl: time.Minute})
			for _, state := range []State{Miss, Hit} {
				answer, err := w.Lookup(w.Context(), "x")
				var got []string
				for _, addr := range answer.Addrs {
					got = append(got, map[bool]string{true: "4", false: "6"}[addr.Is4()])
				}
				if err != nil || !slices.Equal(got, tc.want) || answer.Preferred != tc.preferred || answer.State != state {
					t.Errorf("%d: got %v, %d preferred, state %v, error %v; want %v, %d", tc.family, got, answer.Preferred, answer.State, err, tc.want, tc.preferred)
				}
			}
			asked := map[Family][2]int{IPv4: {1, 0}, IPv6: {0, 1}}[tc.family]
			if asked == [2]int{} {
				asked = [2]int{1, 1}
			}
			w.wantAsked("x", asked[0], asked[1])
		})
	}
}

func TestBackoff(t *testing.T) {
	run(t, Config{}, func(w world) {
		w.fake.set("x A", script{hang: true})
		w.fake.set("x AAAA", script{hang: true})
		for range 2000 { // 200 s of a client each tenth of a second
			go w.get("x")
			w.sleep(100 * time.Millisecond)
		}
		if w.fake.maxInFlight != 1 {
			t.Errorf("%d lookups at once, want 1", w.fake.maxInFlight)
		}
		at := w.fake.questions("x", TypeA)
		for i, pause := range [][2]float64{{1, 1.25}, {2, 2.5}, {4, 5}, {8, 10}, {16, 20}, {22.5, 30}, {22.5, 30}} {
			got := (at[i+1] - at[i] - 5*time.Second).Seconds()
			if got < pause[0] || got > pause[1]+0.1 { // the clients come each tenth of a second
				t.Errorf("pause %d: %.2f s, want %g to %g", i, got, pause[0], pause[1])
			}
		}
	})
}

func TestBackoffJitter(t *testing.T) {
	run(t, Config{}, func(w world) {
		retry := make(map[time.Duration]bool)
		for _, name := range names(100) {
			w.fake.fail(name, errServfail)
			w.get(name)
			synctest.Wait()
			for n := range w.nodes() {
				retry[n.entry.Load().expires] = true
			}
		}
		if len(retry) < 90 {
			t.Errorf("100 names are tried again at %d different times, want at least 90", len(retry))
		}
	})
}

func TestCoalescing(t *testing.T) {
	run(t, Config{MaxLookups: 1}, func(w world) {
		w.fake.set("x A", script{addrs: ips(a), ttl: time.Minute, delay: time.Second})
		ctx, cancel := context.WithCancelCause(w.Context())
		gone := errors.New("gone")
		var served, left atomic.Int32
		for i := range 10_000 {
			go func() {
				ctx := ctx
				if i%2 == 1 {
					ctx = w.Context()
				}
				switch _, err := w.Lookup(ctx, "x"); err {
				case nil:
					served.Add(1)
				case gone:
					left.Add(1)
				default:
					t.Errorf("got %v, want an answer or %v", err, gone)
				}
			}()
		}
		w.sleep(500 * time.Millisecond)
		cancel(gone)
		w.sleep(0)
		if served.Load() != 0 || left.Load() != 5000 {
			t.Errorf("%d served, %d left; want 0 and 5000", served.Load(), left.Load())
		}
		w.sleep(500 * time.Millisecond)
		if served.Load() != 5000 {
			t.Errorf("%d served, want 5000", served.Load())
		}
		w.wantAsked("x", 1, 1)
	})
}

func TestAllClientsLeave(t *testing.T) {
	run(t, Config{}, func(w world) {
		w.fake.set("x A", script{addrs: ips(a), ttl: time.Minute, delay: time.Second})
		ctx, cancel := context.WithTimeout(w.Context(), time.Millisecond)
		defer cancel()
		if _, err := w.Lookup(ctx, "x"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
		}
		w.sleep(time.Second)
		w.want("x", "hit "+a)
		w.wantAsked("x", 1, 1)
	})
}

func TestDeadline(t *testing.T) {
	run(t, Config{Deadline: slowAfter / 2, MaxLookups: 1}, func(w world) {
		w.fake.set("first A", script{hang: true, late: time.Second})
		go w.get("first")
		w.sleep(0)
		w.wantAfter("second", slowAfter/2, "miss "+ErrOverloaded.Error()) // it got no slot, which does not count as a failure of the name
		w.fake.a("second", time.Minute, a)
		w.sleep(time.Second)
		w.want("second", "miss "+a)
	})
}

func TestOverload(t *testing.T) {
	run(t, Config{MaxLookups: 10, Refresh: -1}, func(w world) {
		w.fake.a("known", time.Second, a)
		w.want("known", "miss "+a)
		w.sleep(time.Second)
		w.fake.set("A", script{addrs: ips(b), ttl: time.Minute, delay: time.Second})
		list := names(30)
		for _, name := range list[:20] {
			go w.wantLater(name, "miss "+b)
		}
		w.sleep(0)
		w.want(list[20], "miss "+ErrOverloaded.Error())
		if n := w.Len(); n != 21 {
			t.Errorf("%d names, want none of those that were refused", n)
		}
		for range 1000 { // they wait for what is in flight
			go w.wantLater(list[0], "miss "+b)
		}
		w.fake.a("known", time.Minute, b)
		w.want("known", "stale "+a) // has slots of its own
		w.want("known", "hit "+b)
		w.sleep(time.Second)
		w.wantAfter(list[20], 2*time.Second, "miss "+b) // a second of it for a slot
		w.sleep(2 * time.Second)
		if n := w.pending.count(); n != 0 || len(w.slots.taken) != 0 {
			t.Errorf("at the end %d lookups are pending, %d slots taken; want none", n, len(w.slots.taken))
		}
	})
}

// The order is the same whatever the nameserver shuffles, differs between names,
// and nothing is in it twice.
func TestOrder(t *testing.T) {
	var all []string
	for i := range 100 {
		all = append(all, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}).String())
	}
	few := all[:8]
	run(t, Config{Refresh: -1}, func(w world) {
		first := make(map[string]int)
		for _, name := range names(400) {
			w.fake.a(name, time.Second, few...)
			before := w.get(name)
			first[strings.Fields(before)[1]]++
			w.sleep(time.Second)
			shuffled := append(slices.Clone(few), few[0], few[3])
			rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
			w.fake.a(name, time.Second, shuffled...)
			w.get(name)
			synctest.Wait()
			if after := w.get(name); after[len("hit"):] != before[len("miss"):] {
				t.Fatalf("%s: first %q, then %q, want a hit with the same addresses in the same order", name, before, after)
			}
		}
		for _, addr := range few {
			if n := first[addr]; n < 20 || n > 100 {
				t.Errorf("%s is the first for %d of 400 names, want 20 to 100", addr, n)
			}
		}
		for next := netip.MustParseAddr("198.18.0.0"); len(all) < maxAddrs+100; next = next.Next() {
			all = append(all, next.String())
		}
		w.fake.a("large", time.Minute, all...)
		if n := len(strings.Fields(w.get("large"))); n != 1+maxAddrs {
			t.Errorf("%d addresses, want %d", n-1, maxAddrs)
		}
	})
}

// A name that does not exist, by the reply for one family, keeps the addresses of
// the other one, which failed. It is gone when the other reply is the same.
func TestNotExistingEndsOne(t *testing.T) {
	run(t, Config{Refresh: -1}, func(w world) {
		w.fake.set("x A", script{addrs: ips(a), ttl: time.Second})
		w.fake.set("x AAAA", script{addrs: ips(c6), ttl: time.Second})
		w.want("x", "miss "+c6+" "+a)
		w.sleep(time.Second)
		w.fake.set("x A", script{err: nxdomain(-1)})
		w.fake.set("x AAAA", script{err: errServfail})
		w.want("x", "stale "+c6+" "+a)
		w.want("x", "stale "+c6)
		w.fake.set("x AAAA", script{err: nxdomain(-1)})
		w.sleep(time.Second * 5 / 4)
		w.want("x", "stale "+c6)
		w.want("x", "hit nxdomain")
	})
}

// failAndHang makes lookups of names fail once, and then last until their deadline.
func (w world) failAndHang(list []string) {
	for _, name := range list {
		w.fake.fail(name, errServfail)
		w.get(name)
		w.fake.set(name+" A", script{hang: true})
		w.fake.set(name+" AAAA", script{hang: true})
	}
	w.sleep(2 * time.Second)
}

// wantPending checks how many lookups are pending, how many have slots, and how many are slow.
func (w world) wantPending(pending, slots, slow int) {
	w.Helper()
	if n := w.pending.count(); n != pending || len(w.slots.taken) != slots || len(w.slowLookups) != slow {
		w.Errorf("%d lookups are pending, %d slots taken, %d lookups slow; want %d, %d, %d", n, len(w.slots.taken), len(w.slowLookups), pending, slots, slow)
	}
}

// Lookups of names that failed before release their slots after slowAfter.
func TestSlowNamesReleaseSlots(t *testing.T) {
	run(t, Config{MaxLookups: 10}, func(w world) {
		list := names(10)
		w.failAndHang(list)
		for _, name := range list {
			go w.get(name)
		}
		w.sleep(0)
		w.fake.a("new", time.Minute, a)
		w.wantAfter("new", slowAfter, "miss "+a)
		w.sleep(5 * time.Second)
		w.wantPending(0, 0, 0)
	})
}

// A lookup that goes on for the late family, when the readers are gone, has released
// its slot.
func TestLateFamilyReleasesSlot(t *testing.T) {
	run(t, Config{MaxLookups: 1}, func(w world) {
		w.fake.set("x A", script{addrs: ips(a), ttl: time.Minute})
		w.fake.set("x AAAA", script{hang: true})
		w.fake.a("other", time.Minute, b)
		w.wantAfter("x", familyGrace, "miss "+a)
		w.want("other", "miss "+b)
		w.sleep(5 * time.Second)
		w.wantPending(0, 0, 0)
	})
}

// As many lookups as there are slots may go on without one. The others keep theirs.
func TestSlowLookupsAreBounded(t *testing.T) {
	const slots = 10
	run(t, Config{MaxLookups: slots}, func(w world) {
		list := names(4 * slots)
		w.failAndHang(list)
		for len(list) > 0 {
			for _, name := range list[:slots] {
				go w.get(name)
			}
			list = list[slots:]
			w.sleep(slowAfter)
		}
		w.wantPending(2*slots, slots, slots)
		w.sleep(10 * time.Second)
	})
}

func TestClose(t *testing.T) {
	run(t, Config{}, func(w world) {
		w.Start()
		w.fake.a("known", time.Minute, a)
		w.want("known", "miss "+a)
		w.fake.set("A", script{hang: true})
		w.fake.set("late AAAA", script{addrs: ips(c6), ttl: time.Minute})
		go w.wantLater("cold", "miss "+ErrClosed.Error())
		go w.wantLater("late", "miss "+c6)
		w.sleep(time.Second)
		w.Close()
		w.want("known", "hit "+a)
		w.want("cold", "miss "+ErrClosed.Error())
		w.want("new", "miss "+ErrClosed.Error())
		w.sleep(2 * time.Minute)
		w.want("known", "stale "+a)
		w.Close()
	})
}

func TestPeek(t *testing.T) {
	run(t, Config{}, func(w world) {
		if _, known := w.Peek("x"); known {
			t.Error("a new name is known, want it not to be")
		}
		w.fake.a("x", time.Minute, a)
		w.get("x")
		used := func() (u uint32) {
			for n := range w.nodes() {
				u = n.entry.Load().used.Load()
			}
			return u
		}
		before := used()
		w.sleep(10 * time.Second)
		if addrs, known := w.Peek("x"); !known || !slices.Equal(addrs, ips(a)) {
			t.Errorf("got %v, known %t; want %s", addrs, known, a)
		}
		if used() != before {
			t.Error("Peek counts as a use, want it not to")
		}
	})
}

// A name may be a part of something large, which the cache must not hold on to.
func TestNameIsCopied(t *testing.T) {
	run(t, Config{}, func(w world) {
		name := "x.example.com and more"[:13]
		w.get(name)
		for n := range w.nodes() {
			if n.name() != name || unsafe.StringData(n.name()) == unsafe.StringData(name) {
				t.Errorf("got %q, or not a copy; want a copy of %q", n.name(), name)
			}
		}
	})
}
