package dnscache

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

func TestPurgeChooses(t *testing.T) {
	all := []string{"example.com", "www.example.com", "a.www.example.com", "notexample.com", "example.org", "com"}
	for _, tc := range []struct {
		purge Purge
		want  []string
	}{
		{Purge{}, nil},
		{Purge{Name: "example.com"}, []string{"example.com", "example.com SRV"}},
		{Purge{Name: "b.example.com"}, nil},
		{Purge{Suffix: "example.com"}, []string{"a.www.example.com", "example.com", "example.com SRV", "www.example.com"}},
		{Purge{Suffix: "www.example.com"}, []string{"a.www.example.com", "www.example.com"}},
		{Purge{Suffix: "ple.com"}, nil},
		{Purge{Suffix: "."}, append(slices.Clone(all), "example.com SRV")},
		{Purge{Addr: netip.MustParseAddr(b)}, []string{"example.org", "www.example.com"}},
		{Purge{Addr: netip.MustParseAddr(c6)}, nil},
		{Purge{Addr: netip.MustParseAddr(b), Suffix: "com"}, []string{"www.example.com"}},
		{Purge{Addr: netip.MustParseAddr(b), Name: "example.com"}, nil},
	} {
		for _, again := range []bool{false, true} {
			run(t, Config{Refresh: -1}, func(w world) {
				w.fake.set("A", script{addrs: ips(a), ttl: time.Hour})
				w.fake.a("example.org", time.Hour, a, b)
				w.fake.a("www.example.com", time.Hour, b)
				w.fake.srv("example.com", time.Hour, here)
				for _, name := range all {
					w.get(name)
				}
				w.getSRV("example.com")
				w.fake.forget()

				tc.purge.AskAgain = again
				if got := w.Purge(tc.purge); got != len(tc.want) {
					t.Errorf("%+v: got %d names, want %d", tc.purge, got, len(tc.want))
				}
				w.sleep(0)
				var chosen []string
				if again {
					for _, q := range w.fake.all() {
						switch q.qtype {
						case TypeA:
							chosen = append(chosen, q.name)
						case TypeSRV:
							chosen = append(chosen, q.name+" SRV")
						}
					}
				} else {
					for _, name := range all {
						if _, known := w.Peek(name); !known {
							chosen = append(chosen, name)
						}
					}
					if list := w.Name("example.com"); len(list) == 0 || !list[len(list)-1].Service {
						chosen = append(chosen, "example.com SRV")
					}
				}
				slices.Sort(chosen)
				if want := slices.Sorted(slices.Values(tc.want)); !slices.Equal(chosen, want) {
					t.Errorf("%+v: got %v, want %v", tc.purge, chosen, want)
				}
				if err := w.check(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestForget checks that the next reader of a name that was forgotten gets what is so now.
func TestForget(t *testing.T) {
	run(t, Config{Size: 10}, func(w world) {
		w.Start()
		w.fake.a("x", time.Hour, a)
		w.want("x", "miss "+a)
		w.fake.a("x", time.Hour, b)
		w.want("x", "hit "+a)
		if n := w.Purge(Purge{Name: "x"}); n != 1 {
			t.Errorf("got %d names, want 1", n)
		}
		if got := w.Len(); got != 0 {
			t.Errorf("got %d names in the cache, want none", got)
		}
		w.want("x", "miss "+b)
		w.want("x", "hit "+b)

		// nor do addresses that were forgotten serve if the lookup fails
		w.fake.fail("x", errServfail)
		w.Purge(Purge{Suffix: "."})
		w.want("x", "miss servfail")
		if n := w.Purge(Purge{Name: "y"}); n != 0 {
			t.Errorf("got %d names for one that is not known, want 0", n)
		}
	})
}

// TestForgetDuringLookup checks that a lookup that began before the purge, for a reader or
// in the background, brings nothing back.
func TestForgetDuringLookup(t *testing.T) {
	for _, preload := range [][]string{nil, {"x"}} {
		run(t, Config{Preload: preload}, func(w world) {
			w.fake.set("x A", script{addrs: ips(a), ttl: time.Hour, delay: 4 * time.Second})
			w.Start()
			go w.wantLater("x", "miss "+a) // it reads what it waited for
			w.sleep(time.Second)
			w.fake.a("x", time.Hour, b)
			if n := w.Purge(Purge{Name: "x"}); n != 1 {
				t.Errorf("preload %v: got %d names, want 1", preload, n)
			}
			if preload == nil {
				w.want("x", "miss "+b)
			}
			w.sleep(time.Minute)
			w.want("x", "hit "+b)
			if err := w.check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestForgetPreload checks that a name of Config.Preload stays one.
func TestForgetPreload(t *testing.T) {
	run(t, Config{Preload: []string{"x", "y"}, Size: 1}, func(w world) {
		w.fake.a("x", time.Hour, a)
		w.fake.a("y", time.Hour, a)
		w.Start()
		w.sleep(0)
		w.fake.a("x", 10*time.Second, b)
		w.fake.a("y", 10*time.Second, b)
		if n := w.Purge(Purge{Suffix: "."}); n != 2 {
			t.Errorf("got %d names, want 2", n)
		}
		w.sleep(wheelTick)
		w.want("x", "hit "+b) // it was asked for before a reader came
		w.want("y", "hit "+b)
		w.fake.forget()
		for range 5 {
			w.get(fmt.Sprint(time.Now()))
			w.get(fmt.Sprint(time.Now()))
			w.sleep(10 * time.Second)
		}
		if n := len(w.fake.questions("x", TypeA)); n < 5 {
			t.Errorf("asked %d times in 50 s, want at least 5", n)
		}
		if n := w.Len(); n != 3 {
			t.Errorf("got %d names, want 3", n)
		}
		if err := w.check(); err != nil {
			t.Error(err)
		}
	})
}

// TestAskAgain checks that the old answer serves until the new one has come.
func TestAskAgain(t *testing.T) {
	for _, tc := range []struct {
		name        string
		aaaa        script
		before, now string
	}{
		{"fresh", script{err: nodata(time.Hour)}, "hit " + a, "hit " + b},
		{"one family failed just now", script{err: errServfail}, "hit " + a, "hit " + b},
		{"fresh in both", script{addrs: ips(c6), ttl: time.Hour}, "hit " + c6 + " " + a, "hit " + c6 + " " + b},
	} {
		run(t, Config{}, func(w world) {
			w.fake.set("x A", script{addrs: ips(a), ttl: time.Hour})
			w.fake.set("x AAAA", tc.aaaa)
			w.get("x")
			w.wantAsked("x", 1, 1)
			w.fake.set("x A", script{addrs: ips(b), ttl: time.Hour, delay: time.Second})
			if n := w.Purge(Purge{Name: "x", AskAgain: true}); n != 1 {
				t.Errorf("%s: got %d names, want 1", tc.name, n)
			}
			w.want("x", tc.before)
			w.sleep(time.Second)
			w.want("x", tc.now)
			w.wantAsked("x", 1, 1)
			if err := w.check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAskAgainOfNames checks names without addresses.
func TestAskAgainOfNames(t *testing.T) {
	for _, failure := range []error{nxdomain(time.Hour), errServfail} {
		run(t, Config{NegativeTTL: time.Hour}, func(w world) {
			w.fake.fail("x", failure)
			w.get("x")
			w.fake.a("x", time.Hour, a)
			w.want("x", "hit "+failure.Error())
			w.Purge(Purge{Name: "x", AskAgain: true})
			w.sleep(0)
			w.want("x", "hit "+a)
		})
	}
}

// TestAskAgainDuringLookup checks that a lookup that began before is followed by another.
func TestAskAgainDuringLookup(t *testing.T) {
	run(t, Config{}, func(w world) {
		w.fake.set("x A", script{addrs: ips(a), ttl: time.Hour, delay: time.Second})
		go w.wantLater("x", "miss "+a)
		w.sleep(500 * time.Millisecond)
		w.fake.a("x", time.Hour, b)
		for range 2 {
			if n := w.Purge(Purge{Name: "x", AskAgain: true}); n != 1 {
				t.Errorf("got %d names, want 1", n)
			}
		}
		w.sleep(500 * time.Millisecond)
		w.want("x", "hit "+b)
		w.wantAsked("x", 2, 2)
		if err := w.check(); err != nil {
			t.Error(err)
		}
	})
}

// TestAskAgainIsEven checks that many names are asked for at the rate that holds after an
// outage, and in one not at all.
func TestAskAgainIsEven(t *testing.T) {
	const n = 3 * recoveryRate
	run(t, Config{Refresh: -1}, func(w world) {
		w.fake.set("A", script{addrs: ips(a), ttl: time.Hour})
		w.Start()
		for _, name := range names(n) {
			w.get(name)
		}
		w.fake.forget()
		w.fake.setOutage(true)
		if got := w.Purge(Purge{Suffix: ".", AskAgain: true}); got != n {
			t.Errorf("got %d names, want %d", got, n)
		}
		w.sleep(time.Minute)
		if got := len(w.fake.all()); got != 0 {
			t.Errorf("asked %d times in an outage, want never", got)
		}
		w.fake.setOutage(false)
		w.sleep(time.Second)
		if got := len(w.fake.all()) / 2; got < recoveryRate/2 || got > recoveryRate*3/2 {
			t.Errorf("asked for %d names in a second, want about %d", got, recoveryRate)
		}
		w.sleep(5 * time.Second)
		if got := len(w.fake.all()) / 2; got != n {
			t.Errorf("asked for %d names, want each of %d once", got, n)
		}
	})
}

// TestPurgeClosed checks that a closed cache can be purged.
func TestPurgeClosed(t *testing.T) {
	run(t, Config{Preload: []string{"p"}}, func(w world) {
		w.fake.set("A", script{addrs: ips(a), ttl: time.Hour})
		w.Start()
		w.get("x")
		w.Close()
		w.Purge(Purge{Suffix: ".", AskAgain: true})
		if n := w.Purge(Purge{Suffix: "."}); n != 2 {
			t.Errorf("got %d names, want 2", n)
		}
		w.want("x", "miss "+ErrClosed.Error())
		w.want("p", "miss "+ErrClosed.Error())
	})
}
