package resolver

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"caddytarget/internal/dnscache"
)

// TestSearchPastFailures: external names resolve though a search domain, as a pod of
// Kubernetes has them, fails.
func TestSearchPastFailures(t *testing.T) {
	checkLeaks(t)
	for _, fails := range []dnsName{{rcode: 2}, {rcode: 4}, {rcode: 5}, {silent: true}, {broken: true}} {
		s := newDNSServer(t)
		s.set("api.partner.example.corp.example", fails)
		s.has("api.partner.example", "192.0.2.1")
		r, _ := searching(t, Config{Nameservers: []string{s.addr}, Tries: 1, Timeout: 100 * time.Millisecond},
			"search a.test b.test c.test corp.example\noptions ndots:5\n")
		for _, how := range []string{"miss", "hit"} {
			if got := mustLookup(t, r, "api.partner.example"); got != how+" [192.0.2.1]" && got != "stale [192.0.2.1]" {
				t.Errorf("%+v: %s", fails, got)
			}
		}
	}
}

// TestSearchStaysWhereItWas: a name that was found in one domain is not taken to be
// another host, in a domain that comes later, because asking for it fails.
func TestSearchStaysWhereItWas(t *testing.T) {
	checkLeaks(t)
	for _, fails := range []dnsName{{rcode: 2}, {rcode: 5}, {silent: true}, {broken: true}} {
		s := newDNSServer(t)
		r, _ := searching(t, Config{
			Nameservers: []string{s.addr}, Tries: 1, Timeout: 100 * time.Millisecond, Stale: time.Hour,
		}, "search a.test b.test\n")
		clock := newSkippingClock(r)
		s.set("web.a.test", dnsName{addrs: []string{"192.0.2.1"}, ttl: 1})
		s.has("web.b.test", "192.0.2.66")
		if got := mustLookup(t, r, "web"); got != "miss [192.0.2.1]" {
			t.Fatal(got)
		}
		s.set("web.a.test", fails)
		clock.skip(2 * time.Second)
		if got := mustLookup(t, r, "web"); got != "stale [192.0.2.1]" {
			t.Errorf("%+v: %s", fails, got)
		}

		// nor where its addresses may not serve any more
		r.search.Load().remember("other", "other.a.test")
		s.set("other.a.test", fails)
		s.has("other.b.test", "192.0.2.66")
		if got := mustLookup(t, r, "other"); !strings.Contains(got, "looking up other.a.test (A): ") {
			t.Errorf("%+v: other is %s", fails, got)
		}

		// but once it does not exist any more it is looked for
		s.set("web.a.test", dnsName{rcode: 3})
		clock.skip(time.Minute)
		eventually(t, "the name is another host", func() bool { return strings.HasSuffix(mustLookup(t, r, "web"), " [192.0.2.66]") })
	}
}

// TestSearchSilentDomain: a domain for which nothing comes takes its part of the
// time from a new name.
func TestSearchSilentDomain(t *testing.T) {
	checkLeaks(t)
	s := newDNSServer(t)
	s.set("web.example.a.test", dnsName{silent: true})
	s.has("web.example", "192.0.2.1")
	r, _ := searching(t, Config{Nameservers: []string{s.addr}, Deadline: 2 * time.Second, Tries: 1},
		"search a.test\noptions ndots:5\n")
	a, err := r.Lookup(t.Context(), "web.example")
	if err != nil || a.Found != "web.example" || a.Waited < time.Second-10*time.Millisecond {
		t.Errorf("%+v, %v", a, err)
	}
}

// TestSearchDeadDomain: a name that was found before does not wait for a domain that
// failed the last time.
func TestSearchDeadDomain(t *testing.T) {
	checkLeaks(t)
	s := newDNSServer(t)
	s.set("web.example.a.test", dnsName{rcode: 2})
	s.set("web.example", dnsName{addrs: []string{"192.0.2.1"}, ttl: 3600})
	wait := patience
	r, _ := searching(t, Config{Nameservers: []string{s.addr}, Deadline: wait, Timeout: wait, StaleWait: wait, Tries: 1},
		"search a.test\noptions ndots:5\n")
	clock := newSkippingClock(r)
	if got := mustLookup(t, r, "web.example"); got != "miss [192.0.2.1]" {
		t.Error(got)
	}
	if !r.cache.Failing("web.example.a.test") || r.cache.Failing("web.example") {
		t.Error("it is not known which of the names fails")
	}
	s.set("web.example.a.test", dnsName{silent: true})
	clock.skip(5 * time.Second)
	a, err := r.Lookup(t.Context(), "web.example")
	if err != nil || a.From != "stale" || a.Waited > patience/4 { // its part is a half
		t.Errorf("%+v, %v", a, err)
	}
	eventually(t, "it is asked for again", func() bool { return s.asked("web.example.a.test") == 2 })
	if addrs, ok := r.peek("web.example"); !ok || !slices.Equal(addrs, parseAddrs("192.0.2.1")) {
		t.Errorf("known: %v, %t", addrs, ok)
	}
}

// TestSearchWaitsAtTheEnd: a domain that is only slow is still waited for when there
// is nothing in the others.
func TestSearchWaitsAtTheEnd(t *testing.T) {
	checkLeaks(t)
	s := newDNSServer(t)
	hold := make(chan struct{})
	s.set("web.a.test", dnsName{addrs: []string{"192.0.2.1"}, ttl: 60, hold: hold})
	r, _ := searching(t, Config{
		Nameservers: []string{s.addr}, Deadline: patience, Timeout: patience, Tries: 1,
	}, "search a.test b.test\n")
	list := r.search.Load()
	// its part of the time is over at once
	sr := &search{Context: t.Context(), request: t.Context(), r: r, list: list, name: "web", remaining: 1 << 30}
	if _, err := sr.find("web.a.test"); err == nil || !strings.Contains(err.Error(), "searching for web: web.a.test: no answer in time") {
		t.Error(err)
	}
	close(hold)
	sr.remaining = 1
	if a, err := sr.find("web.a.test"); err != nil || a.Found != "web.a.test" {
		t.Errorf("%+v, %v", a, err)
	}
}

// TestSearchFailuresAreLogged, once for each domain.
func TestSearchFailuresAreLogged(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	log := zap.New(core)
	s := newDNSServer(t)
	r, _ := searching(t, Config{Nameservers: []string{s.addr}, Tries: 1, Logger: func() *zap.Logger { return log }}, "search a.test b.test\n")
	for i := range 5 {
		name := fmt.Sprintf("n%d", i)
		s.set(name+".a.test", dnsName{rcode: 2})
		s.has(name+".b.test", "192.0.2.1")
		if got := mustLookup(t, r, name); got != "miss [192.0.2.1]" {
			t.Errorf("got %s, want miss [192.0.2.1]", got)
		}
	}
	got := logs.FilterMessage("a search domain fails: names are looked for in the next one").All()
	if len(got) != 1 || got[0].ContextMap()["domain"] != "a.test" || !strings.Contains(fmt.Sprint(got[0].ContextMap()["error"]), "SERVFAIL") {
		t.Errorf("logged: %v", got)
	}
}

// skippingClock is the clock of a resolver's cache, which can be put forward.
type skippingClock struct {
	start   time.Time
	skipped atomic.Int64
}

func newSkippingClock(r *Resolver) *skippingClock {
	c := &skippingClock{start: time.Now()}
	replaceCache(r, func(config *dnscache.Config) {
		config.Now = func() time.Duration { return time.Since(c.start) + time.Duration(c.skipped.Load()) }
	})
	return c
}

func (c *skippingClock) skip(d time.Duration) { c.skipped.Add(int64(d)) }

// replaceCache gives a resolver that was not started another cache.
func replaceCache(r *Resolver, change func(*dnscache.Config)) {
	config := r.cacheConfig(&r.zone, nil)
	change(&config)
	r.zone.cache.Close()
	r.zone.cache = dnscache.New(r.client, config)
}
