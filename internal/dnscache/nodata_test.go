package dnscache

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// noData is a name with addresses of one family and NODATA for the other one.
type noData struct {
	has, hasNot   string // the record types
	qtype, noType uint16
	addr, other   string
}

var (
	onlyIPv4 = noData{"A", "AAAA", TypeA, TypeAAAA, a, c6}
	onlyIPv6 = noData{"AAAA", "A", TypeAAAA, TypeA, c6, a}
)

func (d noData) set(w world, ttl, noDataTTL time.Duration) {
	w.fake.set("x "+d.has, script{addrs: ips(d.addr), ttl: ttl})
	w.fake.set("x "+d.hasNot, script{err: nodata(noDataTTL)})
}

// appears adds an address of the other family.
func (d noData) appears(w world) {
	w.fake.set("x "+d.hasNot, script{addrs: ips(d.other), ttl: time.Minute})
}

// gaps returns the shortest and the longest time between two questions.
func gaps(at []time.Duration) (shortest, longest time.Duration) {
	for i := range at[1:] {
		gap := at[i+1] - at[i]
		if longest = max(longest, gap); i == 0 || gap < shortest {
			shortest = gap
		}
	}
	return shortest, longest
}

// TestNoDataHolds: names in use never expire, whatever the TTLs are. A NODATA that
// holds for longer than the addresses is asked for again when it ends, any other one
// with the addresses.
func TestNoDataHolds(t *testing.T) {
	s := time.Second
	for _, tc := range []struct {
		what          string
		cfg           Config
		soa           time.Duration // TTL of the NODATA in the reply
		holds         time.Duration // how long it holds
		first, before time.Duration // TTLs of the addresses
	}{
		{"shorter", Config{}, s, s, 1 * s, 6 * s},
		{"among them", Config{}, 3 * s, 3 * s, 1 * s, 6 * s},
		{"among them, not of whole seconds", Config{}, 4500 * time.Millisecond, 4500 * time.Millisecond, 1 * s, 6 * s},
		{"longer", Config{}, 6 * s, 6 * s, 1 * s, 6 * s},
		{"much longer", Config{}, 29 * s, 29 * s, 1 * s, 6 * s},
		{"above the default of negative_ttl", Config{}, time.Hour, 30 * s, 1 * s, 6 * s},
		{"above negative_ttl", Config{NegativeTTL: 11 * s}, time.Hour, 11 * s, 1 * s, 6 * s},
		{"above negative_ttl, which is short", Config{NegativeTTL: 2 * s}, time.Hour, 2 * s, 1 * s, 6 * s},
		{"above max_ttl", Config{MaxTTL: 12 * s}, time.Hour, 12 * s, 1 * s, 6 * s},
		{"below min_ttl", Config{MinTTL: 2 * s}, s, 2 * s, 2 * s, 6 * s},
		{"zero", Config{}, 0, s, 1 * s, 6 * s},
		{"refreshed always", Config{Refresh: Always}, 20 * s, 20 * s, 1 * s, 6 * s},
		{"preloaded", Config{Refresh: -1, Preload: []string{"x"}}, 20 * s, 20 * s, 1 * s, 6 * s},
		{"single-request", Config{Sequential: func() bool { return true }}, 20 * s, 20 * s, 1 * s, 6 * s},
		{"prefer_ipv6", Config{Family: func() Family { return PreferIPv6 }}, 20 * s, 20 * s, 1 * s, 6 * s},
		{"prefer_ipv4", Config{Family: func() Family { return PreferIPv4 }}, 20 * s, 20 * s, 1 * s, 6 * s},
	} {
		for ttl := tc.first; ttl < tc.before; ttl += s {
			for _, d := range []noData{onlyIPv4, onlyIPv6} {
				t.Run(fmt.Sprintf("%s/%s %v", tc.what, d.has, ttl), func(t *testing.T) {
					run(t, tc.cfg, func(w world) {
						d.set(w, ttl, tc.soa)
						w.Start()
						w.sleep(0)
						w.get("x")
						for range 2 * 60 * 10 {
							w.sleep(100 * time.Millisecond)
							w.want("x", "hit "+d.addr)
						}
						asked, noData := w.fake.questions("x", d.qtype), w.fake.questions("x", d.noType)
						if _, longest := gaps(asked); longest > ttl {
							t.Errorf("%v passed between two questions for %s, want at most %v", longest, d.has, ttl)
						}
						if tc.holds <= ttl {
							if !slices.Equal(noData, asked) {
								t.Errorf("%s was asked for at %v, %s at %v; want the same", d.hasNot, noData, d.has, asked)
							}
							return
						}
						shortest, longest := gaps(noData)
						if shortest < tc.holds || longest > tc.holds+2*wheelTick {
							t.Errorf("%v to %v passed between two questions for %s, want %v", shortest, longest, d.hasNot, tc.holds)
						}
					})
				})
			}
		}
	}
}

// TestNoDataEnds: a family that appears is seen when the NODATA has ended, even if the
// addresses of the other one hold for longer by now.
func TestNoDataEnds(t *testing.T) {
	const ttl, holds = 5 * time.Second, 23 * time.Second
	for name, cfg := range map[string]Config{
		"refreshed":          {},
		"refreshed always":   {Refresh: Always},
		"preloaded":          {Refresh: -1, Preload: []string{"x"}},
		"not refreshed":      {Refresh: -1},
		"never served stale": {Refresh: -1, Stale: -1},
		"single-request":     {Sequential: func() bool { return true }},
	} {
		for _, later := range []time.Duration{ttl, time.Hour} {
			for _, d := range []noData{onlyIPv4, onlyIPv6} {
				t.Run(fmt.Sprintf("%s/%s %v", name, d.has, later), func(t *testing.T) {
					run(t, cfg, func(w world) {
						d.set(w, ttl, holds)
						w.Start()
						w.sleep(0)
						w.get("x")
						w.sleep(1)
						d.set(w, later, holds)
						d.appears(w)
						for w.cfg.Now() < holds {
							if got := w.get("x"); got[len(got)-len(d.addr):] != d.addr {
								t.Errorf("at %v: got %q, want %s", w.cfg.Now(), got, d.addr)
							}
							w.sleep(100 * time.Millisecond)
						}
						if n := len(w.fake.questions("x", d.noType)); n != 1 {
							t.Errorf("%s was asked for %d times before its NODATA ended, want once", d.hasNot, n)
						}
						w.get("x")
						w.sleep(wheelTick)
						w.want("x", "hit "+c6+" "+a)
					})
				})
			}
		}
	}
}

// TestNotHeld: what is not a NODATA with a TTL is asked for at each lookup.
func TestNotHeld(t *testing.T) {
	const ttl = noSOATTL - 2*time.Second
	for name, err := range map[string]error{
		"NXDOMAIN":                    nxdomain(30 * time.Second),
		"NXDOMAIN without SOA":        nxdomain(-1),
		"NODATA without SOA":          nodata(-1),
		"neither addresses nor error": nil,
		"SERVFAIL":                    errServfail,
		"SERVFAIL with a TTL":         &failure{text: "servfail", ttl: 30 * time.Second},
		"outage":                      errOutage,
	} {
		for _, d := range []noData{onlyIPv4, onlyIPv6} {
			t.Run(name+" for "+d.hasNot, func(t *testing.T) {
				run(t, Config{Refresh: -1}, func(w world) {
					d.set(w, ttl, 0)
					w.fake.set("x "+d.hasNot, script{err: err})
					w.want("x", "miss "+d.addr)
					w.sleep(ttl)
					w.want("x", "stale "+d.addr)
					w.wantAsked("x", 2, 2)
					d.appears(w)
					w.sleep(ttl)
					w.want("x", "stale "+d.addr)
					w.want("x", "hit "+c6+" "+a)
				})
			})
		}
	}
}

// TestNoDataThenFails: while the other family fails, both are asked for.
func TestNoDataThenFails(t *testing.T) {
	const ttl = 5 * time.Second
	for _, d := range []noData{onlyIPv4, onlyIPv6} {
		for _, stale := range []time.Duration{time.Hour, -1} {
			run(t, Config{Refresh: -1, Stale: stale}, func(w world) {
				served := map[bool]string{true: "stale " + d.addr, false: "miss servfail"}[stale > 0]
				asked := map[bool][2]int{true: {1, 0}, false: {0, 1}}[d == onlyIPv4]
				d.set(w, ttl, 30*time.Second)
				w.want("x", "miss "+d.addr)
				w.wantAsked("x", 1, 1)
				w.sleep(ttl)
				w.fake.set("x "+d.has, script{err: errServfail})
				w.want("x", served)
				w.wantAsked("x", asked[0], asked[1])
				for _, backoff := range []time.Duration{time.Second, 2 * time.Second} {
					w.sleep(backoff * 5 / 4)
					w.want("x", served)
					w.wantAsked("x", 1, 1)
				}
				d.appears(w)
				w.sleep(4 * time.Second * 5 / 4)
				w.get("x")
				w.sleep(0)
				w.want("x", map[bool]string{true: "hit " + c6 + " " + a, false: "hit " + d.other}[stale > 0])
				w.wantAsked("x", 1, 1)
			})

			// a NODATA that came during the failure holds after it
			run(t, Config{Refresh: -1, Stale: stale}, func(w world) {
				d.set(w, ttl, 30*time.Second)
				w.fake.set("x "+d.has, script{err: errServfail})
				w.want("x", "miss servfail")
				d.set(w, ttl, 30*time.Second)
				w.sleep(1250 * time.Millisecond)
				w.want("x", "miss "+d.addr)
				w.wantAsked("x", 2, 2)
				w.sleep(ttl)
				w.get("x")
				w.sleep(0)
				w.want("x", "hit "+d.addr)
				if n := len(w.fake.questions("x", d.noType)); n != 0 {
					t.Errorf("%s was asked for %d times while its NODATA held, want none", d.hasNot, n)
				}
			})
		}
	}
}

// TestNameMoves: a name whose addresses are gone may have some of the family that had
// none. This is asked for before the name is taken to have no address.
func TestNameMoves(t *testing.T) {
	const ttl = 5 * time.Second
	for name, gone := range map[string]error{
		"NODATA": nodata(30 * time.Second), "NODATA without SOA": nodata(-1), "NXDOMAIN": nxdomain(30 * time.Second), "empty": nil,
	} {
		for _, d := range []noData{onlyIPv4, onlyIPv6} {
			for _, cfg := range []Config{{}, {Refresh: -1}, {Refresh: -1, Stale: -1}, {Sequential: func() bool { return true }}} {
				t.Run(name+" for "+d.has, func(t *testing.T) {
					run(t, cfg, func(w world) {
						d.set(w, ttl, 30*time.Second)
						w.Start()
						w.get("x")
						w.get("x")
						w.sleep(1)
						w.fake.set("x "+d.has, script{err: gone, delay: time.Millisecond})
						d.appears(w)
						w.sleep(ttl)
						w.get("x")
						w.sleep(time.Millisecond)
						w.want("x", "hit "+d.other)
						w.wantAsked("x", 2, 2)
					})
				})
			}
			run(t, Config{Refresh: -1}, func(w world) {
				d.set(w, ttl, 30*time.Second)
				w.get("x")
				w.sleep(ttl)
				w.fake.set("x "+d.has, script{err: gone})
				w.want("x", "stale "+d.addr)
				switch {
				case name == "NXDOMAIN":
					w.want("x", "hit nxdomain")
				case gone == nil && d == onlyIPv4:
					w.want("x", "hit no addresses")
				default:
					w.want("x", "hit nodata")
				}
				w.wantAsked("x", 2, 2)
			})
		}
	}
	// a failure shows nothing
	run(t, Config{Refresh: -1}, func(w world) {
		onlyIPv4.set(w, ttl, 30*time.Second)
		w.get("x")
		w.sleep(ttl)
		w.fake.set("x A", script{hang: true})
		w.want("x", "stale "+a)
		w.sleep(5 * time.Second)
		w.want("x", "stale "+a)
		w.wantAsked("x", 2, 1)
	})
}

// TestRenewAsksForNoData: addresses did not work; the other family may.
func TestRenewAsksForNoData(t *testing.T) {
	for _, d := range []noData{onlyIPv4, onlyIPv6} {
		run(t, Config{}, func(w world) {
			d.set(w, time.Minute, 30*time.Second)
			w.want("x", "miss "+d.addr)
			w.sleep(renewGap)
			d.appears(w)
			if got := text(w.Renew(w.Context(), "x", ips(d.addr))); got != "hit "+c6+" "+a {
				t.Errorf("renewed: got %q, want both", got)
			}
			w.wantAsked("x", 2, 2)
		})
	}
}

// TestNoDataAndFamilies: what is held for a family matters only while both are asked
// for.
func TestNoDataAndFamilies(t *testing.T) {
	const ttl = 5 * time.Second
	family := Interleaved
	run(t, Config{Refresh: -1, Family: func() Family { return family }}, func(w world) {
		next := func(f Family, want string, a, aaaa int) {
			t.Helper()
			family = f
			w.sleep(ttl)
			w.get("x")
			w.sleep(0)
			if got := w.get("x"); got != want {
				t.Errorf("family %d: got %q, want %q", f, got, want)
			}
			w.wantAsked("x", a, aaaa)
		}
		onlyIPv4.set(w, ttl, 30*time.Second)
		next(Interleaved, "hit "+a, 1, 1)
		next(Interleaved, "hit "+a, 1, 0)
		next(PreferIPv6, "hit "+a, 1, 0)
		next(IPv4, "hit "+a, 1, 0)
		w.fake.set("x A", script{err: nodata(30 * time.Second)})
		next(IPv4, "hit nodata", 1, 0)
		w.sleep(30 * time.Second)
		onlyIPv4.set(w, ttl, 30*time.Second)
		next(Interleaved, "hit "+a, 1, 1)
		w.fake.set("x A", script{err: nodata(30 * time.Second)})
		next(IPv4, "hit nodata", 1, 0)
		w.sleep(30 * time.Second)
		onlyIPv4.set(w, ttl, 30*time.Second)
		next(Interleaved, "hit "+a, 1, 1)
		onlyIPv4.appears(w)
		next(IPv6, "hit "+c6, 0, 1)
	})
}

// TestNoDataHalvesTheCost: a name with one family is refreshed for each use, where one
// with two families is for each second use.
func TestNoDataHalvesTheCost(t *testing.T) {
	const ttl, uses = 5 * time.Second, 60
	run(t, Config{NegativeTTL: time.Hour}, func(w world) {
		w.Start()
		onlyIPv4.set(w, ttl, time.Hour)
		w.get("x")
		w.sleep(ttl / 10)
		w.get("x")
		w.get("x") // the first lookup after these asks for one family already
		w.fake.forget()
		for range uses {
			w.sched.mu.Lock()
			w.sched.account.empty(w.cfg.Now())
			w.sched.mu.Unlock()
			w.sleep(ttl * 7 / 10)
			w.want("x", "hit "+a)
		}
		if n := len(w.fake.questions("x", TypeAAAA)); n > 0 {
			t.Errorf("AAAA was asked for %d times, want never", n)
		}
	})
}

// TestNoDataEndsUnpaid: if no use pays for asking when a NODATA ends, the addresses are
// refreshed in their time nevertheless.
func TestNoDataEndsUnpaid(t *testing.T) {
	const ttl, holds = 20 * time.Second, 25 * time.Second
	run(t, Config{}, func(w world) {
		w.Start()
		onlyIPv4.set(w, ttl, holds)
		w.get("x")
		w.get("x") // pays for the refresh of A, after 15 to 18 s
		w.saveNothing()
		w.sleep(holds - time.Second)
		expires := w.fake.questions("x", TypeA)[1] + ttl
		w.wantAsked("x", 2, 1)
		w.saveNothing()
		w.sleep(2 * time.Second)
		w.wantAsked("x", 0, 0)
		w.want("x", "hit "+a)
		w.want("x", "hit "+a)
		w.sleep(expires - w.cfg.Now())
		w.wantAsked("x", 1, 1)
	})
}

// saveNothing takes what names have saved, and the surplus.
func (w world) saveNothing() {
	w.sched.mu.Lock()
	defer w.sched.mu.Unlock()
	w.sched.account.empty(w.cfg.Now())
	for n := range w.nodes() {
		n.savedQueries = 0
	}
}

// TestMovingNamePays: a name that moves to the other family pays for both questions, but
// a preloaded one for none.
func TestMovingNamePays(t *testing.T) {
	const ttl = 5 * time.Second
	for _, tc := range []struct {
		preload       []string
		before, after uint16  // what the name has saved
		surplus       float64 // what was added to it
	}{
		// there is one use, since the one that waited for the first lookup does not count
		{nil, 0, 0, -1},
		{nil, 1, 0, 0},
		{nil, 3, 2, 0},
		{[]string{"x"}, 0, 0, 0},
		{[]string{"x"}, 2, 2, 0},
	} {
		run(t, Config{NegativeTTL: time.Hour, Preload: tc.preload}, func(w world) {
			onlyIPv4.set(w, ttl, time.Hour)
			w.Start()
			w.sleep(0)
			w.get("x")
			if tc.preload == nil {
				w.get("x")
			}
			var node *node
			for n := range w.nodes() {
				node = n
			}
			w.sched.mu.Lock()
			node.savedQueries = tc.before
			w.sched.account.surplus = 0
			w.sched.mu.Unlock()
			w.fake.set("x A", script{err: nodata(time.Hour)})
			w.fake.set("x AAAA", script{addrs: ips(c6), ttl: time.Hour})
			w.sleep(ttl)
			w.wantAsked("x", 2, 2)
			w.sched.mu.Lock()
			defer w.sched.mu.Unlock()
			surplus := w.sched.account.surplusAt(w.cfg.Now()) - freeRate*ttl.Seconds()
			if node.savedQueries != tc.after || surplus < tc.surplus-0.01 || surplus > tc.surplus+0.01 {
				t.Errorf("preload %v, %d saved: %d are saved and %.2f added to the surplus, want %d and %.0f",
					tc.preload, tc.before, node.savedQueries, surplus, tc.after, tc.surplus)
			}
		})
	}
}

// TestWantedNoData has the families that a lookup asks for.
func TestWantedNoData(t *testing.T) {
	const now = time.Minute
	held := state{count: [2]uint16{1, 0}, expires: [2]time.Duration{now + 8, now + 9}}
	held.refreshAfter[v4] = now
	early, failing, empty, ended := held, held, held, held
	early.refreshAfter[v4] = now + 1 // the scheduler may refresh names before they want it
	failing.failures[v4] = 1
	empty.count[v4] = 0
	ended.expires[v6] = now
	endedFirst := ended
	endedFirst.refreshAfter[v4] = now + 1
	both := []family{v6, v4}
	for name, tc := range map[string]struct {
		state         state
		want, renewal []family
	}{
		"the NODATA holds":           {held, []family{v4}, both},
		"nothing is wanted":          {early, []family{v4}, both},
		"the other one fails":        {failing, both, both},
		"there are no addresses":     {empty, both, both},
		"the NODATA has ended":       {ended, both, both},
		"the NODATA alone has ended": {endedFirst, []family{v6}, both},
	} {
		if got := tc.state.wanted(Interleaved, now, false); !slices.Equal(got, tc.want) {
			t.Errorf("%s: asks for %v, want %v", name, got, tc.want)
		}
		if got := tc.state.wanted(Interleaved, now, true); !slices.Equal(got, tc.renewal) {
			t.Errorf("%s: a renewal asks for %v, want %v", name, got, tc.renewal)
		}
		if got := tc.state.wanted(IPv6, now, false); !slices.Equal(got, []family{v6}) {
			t.Errorf("%s: with IPv6 only asks for %v, want it", name, got)
		}
	}
}
