package caddytarget

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

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
		r, _ := searching(t, Resolver{Nameservers: []string{s.addr}, Tries: 1, Timeout: caddy.Duration(100 * time.Millisecond)},
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
		r, _ := searching(t, Resolver{
			Nameservers: []string{s.addr}, Tries: 1, Timeout: caddy.Duration(100 * time.Millisecond), Stale: caddy.Duration(time.Hour),
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
	r, _ := searching(t, Resolver{Nameservers: []string{s.addr}, Deadline: caddy.Duration(2 * time.Second), Tries: 1},
		"search a.test\noptions ndots:5\n")
	a, err := r.lookup(t.Context(), "web.example")
	if err != nil || a.found != "web.example" || a.waited < time.Second-10*time.Millisecond {
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
	wait := caddy.Duration(patience)
	r, _ := searching(t, Resolver{Nameservers: []string{s.addr}, Deadline: wait, Timeout: wait, StaleWait: wait, Tries: 1},
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
	a, err := r.lookup(t.Context(), "web.example")
	if err != nil || a.lookup != "stale" || a.waited > patience/4 { // its part is a half
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
	r, _ := searching(t, Resolver{
		Nameservers: []string{s.addr}, Deadline: caddy.Duration(patience), Timeout: caddy.Duration(patience), Tries: 1,
	}, "search a.test b.test\n")
	list := r.search.Load()
	// its part of the time is over at once
	sr := &search{Context: t.Context(), request: t.Context(), r: r, list: list, name: "web", left: 1 << 30}
	if _, err := sr.find("web.a.test"); err == nil || !strings.Contains(err.Error(), "searching for web: web.a.test: no answer in time") {
		t.Error(err)
	}
	close(hold)
	sr.left = 1
	if a, err := sr.find("web.a.test"); err != nil || a.found != "web.a.test" {
		t.Errorf("%+v, %v", a, err)
	}
}

// TestSearchFailuresAreLogged, once for each domain.
func TestSearchFailuresAreLogged(t *testing.T) {
	w := newWorld(t)
	lines := w.logTo("INFO", "target.resolver", "a search domain fails: names are looked for in the next one")
	w.run(w.proxy())
	s := newDNSServer(t)
	r, _ := searching(t, Resolver{Nameservers: []string{s.addr}, Tries: 1}, "search a.test b.test\n")
	for i := range 5 {
		name := fmt.Sprintf("n%d", i)
		s.set(name+".a.test", dnsName{rcode: 2})
		s.has(name+".b.test", "192.0.2.1")
		if got := mustLookup(t, r, name); got != "miss [192.0.2.1]" {
			t.Error(got)
		}
	}
	eventually(t, "a failure is logged", func() bool { return len(lines()) > 0 })
	if got := lines(); len(got) != 1 || got[0]["domain"] != "a.test" || !strings.Contains(fmt.Sprint(got[0]["error"]), "SERVFAIL") {
		t.Errorf("logged: %v", got)
	}
}

// TestRenewSearched: the first renewal of a name that was searched for asks, and says
// that there are other addresses only if there are.
func TestRenewSearched(t *testing.T) {
	checkLeaks(t)
	s := newDNSServer(t)
	s.has("web.b.test", "192.0.2.1")
	r, _ := searching(t, Resolver{Nameservers: []string{s.addr}, StaleWait: caddy.Duration(patience)}, "search a.test b.test\n")
	c := &call{resolver: r}
	c.Host, c.Port = "web", 80
	if err := c.resolve(t.Context(), netip.Addr{}); err != nil {
		t.Fatal(err)
	}
	if c.renew(t.Context()) || s.asked("web.b.test") != 2 {
		t.Errorf("the same addresses, and %d queries", s.asked("web.b.test"))
	}
	s.has("web.b.test", "192.0.2.2")
	eventually(t, "it is renewed", func() bool { return c.renew(t.Context()) })
	if !slices.Equal(c.Addrs, parseAddrs("192.0.2.2")) || c.answer.found != "web.b.test" {
		t.Errorf("%v of %s", c.Addrs, c.answer.found)
	}
}

// skippingClock is the clock of a resolver's cache, which can be put forward.
type skippingClock struct {
	start   time.Time
	skipped atomic.Int64
}

func newSkippingClock(r *resolver) *skippingClock {
	c := &skippingClock{start: time.Now()}
	replaceCache(r, func(config *dnscache.Config) {
		config.Now = func() time.Duration { return time.Since(c.start) + time.Duration(c.skipped.Load()) }
	})
	return c
}

func (c *skippingClock) skip(d time.Duration) { c.skipped.Add(int64(d)) }

// replaceCache gives a resolver that was not started another cache.
func replaceCache(r *resolver, change func(*dnscache.Config)) {
	config := r.cacheConfig(nil)
	change(&config)
	r.zone.cache.Close()
	r.zone.cache = dnscache.New(r.client, config)
}
