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

	"caddytarget/internal/testlab"
	"caddytarget/internal/testlab/leaktest"
)

// TestSearchPastFailures: external names resolve though a search domain, as a pod of
// Kubernetes has them, fails.
func TestSearchPastFailures(t *testing.T) {
	leaktest.Check(t)
	for _, fails := range []testlab.Reply{{Rcode: 2}, {Rcode: 4}, {Rcode: 5}, {Silent: true}, {Broken: true}} {
		s := testlab.NewNameserver(t)
		s.Set("api.partner.example.corp.example", fails)
		s.Has("api.partner.example", "192.0.2.1")
		r, _ := searching(t, Config{Nameservers: []string{s.Addr}, Tries: 1, Timeout: 100 * time.Millisecond},
			"search a.test b.test c.test corp.example\noptions ndots:5\n")
		for _, how := range []string{"miss", "hit"} {
			if got := mustLookup(t, r, "api.partner.example"); got != how+" [192.0.2.1]" && got != "stale [192.0.2.1]" {
				t.Errorf("%+v: got %s, want %s [192.0.2.1] or stale [192.0.2.1]", fails, got, how)
			}
		}
	}
}

// TestSearchStaysWhereItWas: a name that was found in one domain is not taken to be
// another host, in a domain that comes later, because asking for it fails.
func TestSearchStaysWhereItWas(t *testing.T) {
	leaktest.Check(t)
	for _, fails := range []testlab.Reply{{Rcode: 2}, {Rcode: 5}, {Silent: true}, {Broken: true}} {
		s := testlab.NewNameserver(t)
		clock := newSkippingClock()
		r, _ := searching(t, Config{
			Nameservers: []string{s.Addr}, Tries: 1, Timeout: 100 * time.Millisecond, Stale: time.Hour, Now: clock.now,
		}, "search a.test b.test\n")
		s.Set("web.a.test", testlab.Reply{Addrs: []string{"192.0.2.1"}, TTL: 1})
		s.Has("web.b.test", "192.0.2.66")
		wantLookup(t, r, "web", "miss [192.0.2.1]")
		s.Set("web.a.test", fails)
		clock.skip(2 * time.Second)
		if got := mustLookup(t, r, "web"); got != "stale [192.0.2.1]" {
			t.Errorf("%+v: got %s, want the address of web.a.test, stale", fails, got)
		}

		// nor once its addresses may no longer serve
		r.search.Load().remember("other", "other.a.test")
		s.Set("other.a.test", fails)
		s.Has("other.b.test", "192.0.2.66")
		if got := mustLookup(t, r, "other"); !strings.Contains(got, "looking up other.a.test (A): ") {
			t.Errorf("%+v: other: got %s, want the failure of other.a.test", fails, got)
		}

		// but once it no longer exists, it is looked for
		s.Set("web.a.test", testlab.Reply{Rcode: 3})
		clock.skip(time.Minute)
		testlab.Eventually(t, "the name is another host", func() bool { return strings.HasSuffix(mustLookup(t, r, "web"), " [192.0.2.66]") })
	}
}

// TestSearchSilentDomain: a domain for which nothing comes takes its part of the
// time from a new name.
func TestSearchSilentDomain(t *testing.T) {
	leaktest.Check(t)
	s := testlab.NewNameserver(t)
	s.Set("web.example.a.test", testlab.Reply{Silent: true})
	s.Has("web.example", "192.0.2.1")
	r, _ := searching(t, Config{Nameservers: []string{s.Addr}, Deadline: 2 * time.Second, Tries: 1},
		"search a.test\noptions ndots:5\n")
	a, err := r.Lookup(t.Context(), "web.example")
	if err != nil || a.Found != "web.example" || a.Waited < time.Second-10*time.Millisecond {
		t.Errorf("got %+v, %v, want that of web.example after 1s", a, err)
	}
}

// TestSearchDeadDomain: a name that was found before does not wait for a domain that
// failed the last time.
func TestSearchDeadDomain(t *testing.T) {
	leaktest.Check(t)
	s := testlab.NewNameserver(t)
	s.Set("web.example.a.test", testlab.Reply{Rcode: 2})
	s.Set("web.example", testlab.Reply{Addrs: []string{"192.0.2.1"}, TTL: 3600})
	clock := newSkippingClock()
	r, _ := searching(t, Config{
		Nameservers: []string{s.Addr}, Deadline: testlab.Timeout, Timeout: testlab.Timeout, StaleWait: testlab.Timeout, Tries: 1, Now: clock.now,
	},
		"search a.test\noptions ndots:5\n")
	wantLookup(t, r, "web.example", "miss [192.0.2.1]")
	if !r.cache.Failing("web.example.a.test") || r.cache.Failing("web.example") {
		t.Error("want web.example.a.test, and not web.example, to be known to fail")
	}
	s.Set("web.example.a.test", testlab.Reply{Silent: true})
	clock.skip(5 * time.Second)
	a, err := r.Lookup(t.Context(), "web.example")
	if err != nil || a.From != "stale" || a.Waited > testlab.Timeout/4 { // its part is a half
		t.Errorf("got %+v, %v, want a stale answer after 15s at most", a, err)
	}
	testlab.Eventually(t, "it is asked for again", func() bool { return s.Asked("web.example.a.test") == 2 })
	if addrs, ok := r.peek("web.example"); !ok || !slices.Equal(addrs, parseAddrs("192.0.2.1")) {
		t.Errorf("known: got %v, %t, want [192.0.2.1]", addrs, ok)
	}
}

// TestSearchWaitsAtTheEnd: a domain that is only slow is still waited for when there
// is nothing in the others.
func TestSearchWaitsAtTheEnd(t *testing.T) {
	leaktest.Check(t)
	s := testlab.NewNameserver(t)
	hold := make(chan struct{})
	s.Set("web.a.test", testlab.Reply{Addrs: []string{"192.0.2.1"}, TTL: 60, Hold: hold})
	r, _ := searching(t, Config{
		Nameservers: []string{s.Addr}, Deadline: testlab.Timeout, Timeout: testlab.Timeout, Tries: 1,
	}, "search a.test b.test\n")
	list := r.search.Load()
	// its part of the time is over at once
	sr := &search{Context: t.Context(), request: t.Context(), r: r, list: list, name: "web", remaining: 1 << 30}
	if _, err := sr.find("web.a.test"); err == nil || !strings.Contains(err.Error(), "searching for web: web.a.test: no answer in time") {
		t.Errorf("got %v, want that no answer came in time", err)
	}
	close(hold)
	sr.remaining = 1
	if a, err := sr.find("web.a.test"); err != nil || a.Found != "web.a.test" {
		t.Errorf("got %+v, %v, want that of web.a.test", a, err)
	}
}

// TestSearchFailuresAreLogged, once for each domain.
func TestSearchFailuresAreLogged(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	log := zap.New(core)
	s := testlab.NewNameserver(t)
	r, _ := searching(t, Config{Nameservers: []string{s.Addr}, Tries: 1, Logger: func() *zap.Logger { return log }}, "search a.test b.test\n")
	for i := range 5 {
		name := fmt.Sprintf("n%d", i)
		s.Set(name+".a.test", testlab.Reply{Rcode: 2})
		s.Has(name+".b.test", "192.0.2.1")
		wantLookup(t, r, name, "miss [192.0.2.1]")
	}
	got := logs.FilterMessage("a search domain fails: names are looked for in the next one").All()
	if len(got) != 1 || got[0].ContextMap()["domain"] != "a.test" || !strings.Contains(fmt.Sprint(got[0].ContextMap()["error"]), "SERVFAIL") {
		t.Errorf("got %v logged, want one warning, of a.test and SERVFAIL", got)
	}
}

// skippingClock is the clock of a cache, which can be put forward.
type skippingClock struct {
	start   time.Time
	skipped atomic.Int64
}

func newSkippingClock() *skippingClock { return &skippingClock{start: time.Now()} }

func (c *skippingClock) now() time.Duration {
	return time.Since(c.start) + time.Duration(c.skipped.Load())
}

func (c *skippingClock) skip(d time.Duration) { c.skipped.Add(int64(d)) }
