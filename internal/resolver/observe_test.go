package resolver

import (
	"slices"
	"sync"
	"testing"

	"caddytarget/internal/dnsclient"
)

// TestObserve: observers see each lookup of nameservers while they want to, and no others.
func TestObserve(t *testing.T) {
	r, s := withZones(t, Config{})
	s.Has("www.a.test", "192.0.2.1")
	var mu sync.Mutex
	var seen []string
	add := func(who string) func(*dnsclient.Trace) {
		return func(lookup *dnsclient.Trace) {
			mu.Lock()
			defer mu.Unlock()
			if len(lookup.Tries) != 1 || lookup.Tries[0].Server.String() != s.Addr {
				t.Errorf("%s: got the tries %+v, want one at %s", lookup.Name, lookup.Tries, s.Addr)
			}
			seen = append(seen, who+" "+lookup.Name)
		}
	}
	mustLookup(t, r, "before.test")
	stopFirst := r.Observe(add("first"))
	stopSecond := r.Observe(add("second"))
	mustLookup(t, r, "www.a.test")
	mustLookup(t, r, "www.a.test") // which is known
	stopFirst()
	mustLookup(t, r, "none.b.test")
	stopSecond()
	stopSecond()
	mustLookup(t, r, "after.test")
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(seen)
	if want := []string{"first www.a.test", "second none.b.test", "second www.a.test"}; !slices.Equal(seen, want) {
		t.Errorf("observed %v, want %v", seen, want)
	}
	if r.traces() {
		t.Error("lookups are traced without observers and without a log")
	}
}

// TestPlaces: where names are looked up.
func TestPlaces(t *testing.T) {
	r, _ := withZones(t, Config{})
	for name, want := range map[string][]Place{
		"www.example": {{"www.example", "."}}, "a.test": {{"a.test", "a.test"}}, "x.y.b.test": {{"x.y.b.test", "b.test"}},
		"localhost": nil, "x.onion": nil, "x.invalid": nil,
	} {
		if got := r.Places(name); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
	r.search.Store(newSearchList(parseResolvConf("search b.test corp.test\n")))
	if got, want := r.Places("www"), []Place{{"www.b.test", "b.test"}, {"www.corp.test", "."}, {"www", "."}}; !slices.Equal(got, want) {
		t.Errorf("www: got %v, want %v", got, want)
	}
}
