package dnscache

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

// count returns how many lookups are pending, or -1 if the counts of the domains do
// not add up to that.
func (a *admission) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	sum := 0
	for _, n := range a.domains {
		sum += n
		if n <= 0 {
			return -1
		}
	}
	if sum != a.pending {
		return -1
	}
	return sum
}

func TestDomainOf(t *testing.T) {
	for name, want := range map[string]string{
		"example.com":               "example.com",
		"a.example.com":             "example.com",
		"a.b.c.example.com":         "example.com",
		"_http._tcp.example.com":    "example.com",
		"a.example.co.uk":           "example.co.uk",
		"co.uk":                     "co.uk",
		"com":                       "com",
		"a.b.github.io":             "b.github.io",
		"a.www.ck":                  "www.ck", // an exception in the list
		"a.b.c.ck":                  "b.c.ck", // a wildcard
		"web.default.svc.local":     "svc.local",
		"web.example":               "web.example",
		"localhost":                 "localhost",
		"":                          "",
		".":                         ".",
		".com":                      ".com",
		"com.":                      "com.",
		"a..com":                    ".com",
		"192.0.2.1":                 "192.0.2.1",
		"xn--85x722f.xn--55qx5d.cn": "xn--85x722f.xn--55qx5d.cn",
	} {
		if got := DomainOf(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

// A domain gets a quarter of what the others leave free.
func TestAdmission(t *testing.T) {
	const limit = 2048
	a := newAdmission(limit)
	fill := func(domain uint64) (n int) {
		for a.admit(domain, false) {
			n++
		}
		return n
	}
	var got []int
	for domain := range uint64(8) {
		got = append(got, fill(domain))
	}
	if want := "[409 328 262 210 168 134 107 86]"; fmt.Sprint(got) != want {
		t.Errorf("the domains have %v, want %s", got, want)
	}
	if fill(0) != 0 || !a.admit(0, true) {
		t.Error("got a lookup refused that is exempt, or one admitted that is not; want only the exempt one admitted")
	}
	a.release(0)
	for domain := range uint64(limit) { // the last ones have one each
		fill(domain)
	}
	if n := a.count(); n != limit || a.admit(limit, true) {
		t.Errorf("%d pending, want %d and no other one admitted", n, limit)
	}
	for domain, n := range a.domains {
		for range n {
			a.release(domain)
		}
	}
	if n := a.count(); n != 0 || len(a.domains) != 0 {
		t.Errorf("at the end %d lookups of %d domains are pending, want none", n, len(a.domains))
	}
	if n := fill(0); n != got[0] {
		t.Errorf("at the end the first domain has %d, want %d as before", n, got[0])
	}
}

// below returns names below one domain.
func below(domain string, n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("%d.%s", i, domain)
	}
	return list
}

// A flood of names below a silent domain leaves room for the others, and what is
// refused is not remembered.
func TestDomainShare(t *testing.T) {
	run(t, Config{MaxLookups: 100}, func(w world) {
		w.fake.set("A", script{hang: true})
		w.fake.set("AAAA", script{hang: true})
		w.fake.set("_http._tcp.silent.com SRV", script{hang: true})
		flood := below("silent.com", 200)
		go w.getSRV("_http._tcp.silent.com")
		w.sleep(0)
		for _, name := range flood {
			go w.get(name)
		}
		w.sleep(0)
		if n := w.pending.count(); n != 40 || w.Len() != n {
			t.Errorf("%d lookups of one domain pending, %d names; want 40 and as many", n, w.Len())
		}
		w.want("more.silent.com", "miss "+ErrOverloaded.Error())
		w.wantSRV("_https._tcp.silent.com", 0, "miss "+ErrOverloaded.Error())
		if n := w.Len(); n != 40 {
			t.Errorf("%d names, want none of those that were refused", n)
		}
		w.fake.a("www.example.com", time.Minute, a)
		w.want("www.example.com", "miss "+a)
		for range 100 { // they wait for what is in flight
			go func() {
				if got := w.getSRV("_http._tcp.silent.com"); got != "miss context deadline exceeded" {
					t.Errorf("got %q, want the end of the lookup's time", got)
				}
			}()
		}
		w.sleep(5 * time.Second)
		if n := w.pending.count(); n != 0 {
			t.Errorf("at the end %d lookups are pending, want none", n)
		}
		w.fake.a("more.silent.com", time.Minute, a)
		w.want("more.silent.com", "miss "+a)
	})
}

// The share bounds lookups of known names too, but not those of names of
// Config.Preload, nor refreshes.
func TestDomainShareOfKnownNames(t *testing.T) {
	cfg := Config{MaxLookups: 10, Preload: []string{"pinned.silent.com"}, Stale: time.Hour, Refresh: -1}
	run(t, cfg, func(w world) {
		w.fake.fail("expired.silent.com", nxdomain(time.Second))
		w.fake.a("stale.silent.com", time.Second, a)
		w.fake.fail("pinned.silent.com", nxdomain(time.Second))
		w.want("expired.silent.com", "miss nxdomain")
		w.want("stale.silent.com", "miss "+a)
		w.Start()
		w.sleep(time.Second - wheelTick)
		w.fake.setOutage(true)
		w.sleep(wheelTick)
		w.fake.mu.Lock()
		w.fake.down = nil // readers may ask, but what is parked is not due yet
		w.fake.mu.Unlock()
		w.fake.set("A", script{hang: true})
		for _, name := range below("silent.com", 4) {
			go w.get(name)
		}
		w.sleep(0)
		w.want("expired.silent.com", "miss "+ErrOverloaded.Error())
		w.fake.a("stale.silent.com", time.Minute, b)
		w.want("stale.silent.com", "stale "+a)
		w.want("stale.silent.com", "hit "+b)
		w.fake.a("pinned.silent.com", time.Minute, a)
		w.want("pinned.silent.com", "miss "+a)
		w.sleep(5 * time.Second)
		w.want("expired.silent.com", "miss nxdomain")
		if n := w.pending.count(); n != 0 {
			t.Errorf("at the end %d lookups are pending, want none", n)
		}
	})
}

// Of the readers of one new name at the same time one does the lookup, and is
// counted. The others wait for it, however little room there is.
func TestNewNameAtOnce(t *testing.T) {
	run(t, Config{MaxLookups: 1, NewNames: 1}, func(w world) {
		w.fake.set("A", script{addrs: ips(a), ttl: time.Minute, delay: time.Second})
		const name = "www.example.com"
		first, cl, err := w.insert(w.hash(name), name, uint16(len(name)))
		if cl == nil || err != nil {
			t.Fatalf("got lookup %v, error %v; want a lookup", cl, err)
		}
		for range 3 {
			if again, cl, err := w.insert(w.hash(name), name, uint16(len(name))); again != first || cl != nil || err != nil {
				t.Errorf("got entry %v, lookup %v, error %v; want the first entry and no lookup", again, cl, err)
			}
		}
		go w.wantLater(name, "miss "+a)
		w.sleep(0)
		w.wantAsked(name, 0, 0)
		w.startLookup(first.state.node, cl)
		w.sleep(time.Second)
		w.want(name, "hit "+a)
		w.wantAsked(name, 1, 1)
	})
}

func TestNewNames(t *testing.T) {
	cfg := Config{NewNames: 10, MaxLookups: 100, Preload: []string{"pinned"}, Refresh: -1}
	run(t, cfg, func(w world) {
		w.fake.set("A", script{addrs: ips(a), ttl: time.Second})
		w.fake.fail("none", nxdomain(time.Second))
		w.fake.fail("dead", errServfail)
		w.fake.set("slow A", script{addrs: ips(a), ttl: time.Hour, delay: time.Minute / 60})
		w.Start()
		w.sleep(0)
		w.want("none", "miss nxdomain")
		w.want("dead", "miss servfail")
		w.want("known", "miss "+a)
		w.wantSRV("_http._tcp.example.com", 0, "miss nodata")
		go w.wantLater("slow", "miss "+a)
		w.sleep(0)
		for i := range 5 {
			w.want(fmt.Sprint("new-", i), "miss "+a)
		}
		refused := "miss " + ErrTooManyNewNames.Error()
		w.want("more", refused)
		w.wantSRV("_http._tcp.example.net", 0, refused)
		if n := w.Len(); n != 11 {
			t.Errorf("%d names, want none of those that were refused", n)
		}
		w.wantAsked("more", 0, 0)
		go w.wantLater("slow", "miss "+a)
		w.want("known", "hit "+a)
		w.want("none", "hit nxdomain")
		w.want("dead", "hit servfail")
		w.want("pinned", "hit "+a)

		w.sleep(100 * time.Millisecond) // for one
		w.want("more", "miss "+a)
		w.want("still more", refused)

		w.sleep(2 * time.Second) // for ten, not twenty
		w.want("known", "stale "+a)
		for i := range 10 {
			w.want(fmt.Sprint("newer-", i), "miss "+a)
		}
		w.want("still more", refused)
		w.want("none", "miss nxdomain")
		w.want("dead", "miss servfail")
	})
}

// What is refused for another reason is not counted as a new name.
func TestRefusedAreNotNewNames(t *testing.T) {
	run(t, Config{NewNames: 6, MaxLookups: 10}, func(w world) {
		w.fake.set("A", script{hang: true})
		for _, name := range below("silent.com", 20) {
			go w.get(name)
		}
		w.sleep(0)
		w.fake.set("A", script{addrs: ips(a), ttl: time.Hour})
		w.want("one", "miss "+a)
		w.want("two", "miss "+a)
		w.want("three", "miss "+ErrTooManyNewNames.Error())
		w.sleep(5 * time.Second)
		if n := w.pending.count(); n != 0 {
			t.Errorf("at the end %d lookups are pending, want none", n)
		}
	})
}

func TestOneNewName(t *testing.T) {
	run(t, Config{NewNames: 1}, func(w world) {
		for range 3 {
			w.want(fmt.Sprint(time.Now()), "miss nodata")
			w.want("more", "miss "+ErrTooManyNewNames.Error())
			w.sleep(time.Second)
		}
	})
}

// However many names are silent, those that are answered get a slot.
func TestSilentNamesArePreempted(t *testing.T) {
	run(t, Config{MaxLookups: 100}, func(w world) {
		list := names(2100)
		silent, living := list[:2000], list[2000:]
		for _, name := range silent {
			w.fake.set(name+" A", script{hang: true})
			w.fake.set(name+" AAAA", script{hang: true})
		}
		var preempted, kept atomic.Int32
		for i, name := range living {
			for _, name := range silent[20*i : 20*i+20] { // 200 a second
				go func() {
					switch got := w.get(name); got {
					case "miss " + ErrOverloaded.Error():
						preempted.Add(1)
					case "miss context deadline exceeded":
						kept.Add(1)
					default:
						t.Errorf("%s: got %q, want an overload or the end of the lookup's time", name, got)
					}
				}()
			}
			w.fake.a(name, time.Minute, a)
			start := w.cfg.Now()
			if got := w.get(name); got != "miss "+a {
				t.Errorf("%s: got %q, want %q", name, got, "miss "+a)
			}
			if waited := w.cfg.Now() - start; waited > preemptAfter {
				t.Errorf("%s waited %v, want at most %v", name, waited, preemptAfter)
			}
			w.sleep(100*time.Millisecond - (w.cfg.Now() - start))
		}
		w.sleep(6 * time.Second)
		if preempted.Load() < 1000 || preempted.Load()+kept.Load() != 2000 {
			t.Errorf("%d lookups of silent names were preempted, %d were not; want at least 1000 of 2000", preempted.Load(), kept.Load())
		}
		if n := w.pending.count(); n != 0 || len(w.slots.taken) != 0 || w.slots.waiting != 0 || w.slots.preempting != 0 {
			t.Errorf("at the end %d lookups are pending, %d slots taken, %d lookups waiting, %d preempted; want none", n, len(w.slots.taken), w.slots.waiting, w.slots.preempting)
		}
	})
}

// No lookup is preempted while others get a slot without that.
func TestNoneIsPreempted(t *testing.T) {
	run(t, Config{MaxLookups: 10}, func(w world) {
		w.fake.a("known", time.Minute, a)
		w.want("known", "miss "+a)
		w.fake.set("A", script{addrs: ips(b), ttl: time.Minute, delay: time.Second})
		for _, name := range names(20) {
			go w.wantLater(name, "miss "+b)
		}
		w.sleep(0)
		w.want("more", "miss "+ErrOverloaded.Error())
		w.sleep(2 * time.Second)
		w.fake.set("A", script{addrs: ips(b), ttl: time.Minute, delay: 4 * time.Second})
		for i := range 10 {
			go w.wantLater(fmt.Sprintf("slow%d", i), "miss "+b)
		}
		w.sleep(6 * time.Second)
	})
}

// A slot that comes together with the end of the time is given back, whether it
// was free or waited for.
func TestSlotAtTheEnd(t *testing.T) {
	run(t, Config{MaxLookups: 1}, func(w world) {
		ended, cancel := context.WithCancel(w.Context())
		cancel()
		if w.slots.take(ended) || len(w.slots.taken) != 0 {
			t.Errorf("%d slots are taken after the end, want 0", len(w.slots.taken))
		}
		if !w.slots.take(w.Context()) || w.slots.take(ended) || len(w.slots.taken) != 1 || w.slots.waiting != 0 {
			t.Errorf("%d slots are taken, %d lookups wait; want 1 and 0", len(w.slots.taken), w.slots.waiting)
		}
	})
}
