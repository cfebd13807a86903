package resolver

import (
	"strings"
	"testing"
	"time"

	"caddytarget/internal/testlab"
	"caddytarget/internal/testlab/leaktest"
)

// TestStorageKey: resolvers of one configuration with the same nameservers are saved apart,
// all others by their nameservers alone. It is the same for a lookup that comes before Start.
func TestStorageKey(t *testing.T) {
	leaktest.Check(t)
	server := testlab.NewNameserver(t)
	server.Set("a.example", testlab.Reply{Addrs: []string{"192.0.2.1"}, TTL: 600})
	var g Generation
	early := make(map[*Resolver]string)
	add := func(config Config) *Resolver {
		config.Predecessor = func(r *Resolver) *Resolver {
			early[r] = g.StorageKey(r)
			return nil
		}
		r := newResolver(t, config)
		g.Add(r)
		return r
	}
	first := add(Config{Nameservers: []string{server.Addr}})
	a := add(Config{Nameservers: []string{server.Addr}, Timeout: time.Second})
	b := add(Config{Nameservers: []string{server.Addr}, Timeout: 2 * time.Second})
	alone := add(Config{Nameservers: []string{server.Addr}, Zones: map[string][]string{"corp.example": {server.Addr}}})
	g.Add(a) // two sites share it
	mustLookup(t, a, "a.example")
	if early[a] == "" {
		t.Fatal("the first lookup does not ask for the predecessor")
	}
	for _, r := range []*Resolver{first, a, b, alone} {
		r.Start()
		if early[r] != g.StorageKey(r) {
			t.Errorf("got the key %s before the start and %s after it", early[r], g.StorageKey(r))
		}
	}
	base := "caddytarget/dns/" + first.identity()
	if got := g.StorageKey(first); got != base {
		t.Errorf("the default one: got %s, want %s", got, base)
	}
	if a, b := g.StorageKey(a), g.StorageKey(b); a == b || !strings.HasPrefix(a, base+"-") || !strings.HasPrefix(b, base+"-") {
		t.Errorf("two of sites: got %s and %s, want others that begin with %s-", a, b, base)
	}
	if got, want := g.StorageKey(alone), "caddytarget/dns/"+alone.identity(); got != want {
		t.Errorf("one with other zones: got %s, want %s", got, want)
	}
	if got := new(Generation).StorageKey(a); got != base {
		t.Errorf("without others: got %s, want %s", got, base)
	}
	for key, want := range map[string]bool{
		base: true, g.StorageKey(a): true, StoragePrefix + "/1234567890": true,
		base + "/a": false, "other/" + base: false, StoragePrefix: false, base + ".txt": false, StoragePrefix + "/../" + first.identity(): false,
	} {
		if IsStorageKey(key) != want {
			t.Errorf("%s: got %v, want %v", key, !want, want)
		}
	}
}

// TestLineage: a resolver replaces the one that is most like it, and the default one the
// default one.
func TestLineage(t *testing.T) {
	leaktest.Check(t)
	server := testlab.NewNameserver(t)
	of := func(timeout, deadline time.Duration) *Resolver {
		return newResolver(t, Config{Nameservers: []string{server.Addr}, Timeout: timeout, Deadline: deadline})
	}
	storeOf := make(map[*Resolver]*Generation) // whose it is that a resolver uses
	generation := func(all ...*Resolver) *Generation {
		g := new(Generation)
		g.UseStore = func(r *Resolver) { storeOf[r] = g }
		for _, r := range all {
			g.Add(r)
		}
		return g
	}
	oldDefault, a, b := of(1e9, 5e9), of(2e9, 6e9), of(3e9, 7e9)
	newDefault, likeA, likeB := of(1e9, 8e9), of(2e9, 9e9), of(4e9, 7e9)
	var l Lineage
	old := generation(oldDefault, a, b)
	if got := l.Predecessor(old, oldDefault); got != nil {
		t.Error("got a predecessor in the first configuration")
	}
	l.Started(old)
	if !l.IsLast(old) || l.Predecessor(old, a) != nil {
		t.Error("the first configuration is not the last one, or has a predecessor")
	}
	next := generation(newDefault, likeA, likeB)
	for _, tc := range []struct {
		g       *Generation
		r, want *Resolver
	}{
		{next, newDefault, oldDefault},
		{next, likeA, a},
		{next, likeB, b},
		{generation(oldDefault), oldDefault, nil},                     // it stays
		{generation(newDefault, a, likeA), likeA, b},                  // a is still used
		{generation(newDefault, oldDefault, a, b, likeA), likeA, nil}, // all are
		{generation(newDefault), oldDefault, a},                       // it becomes that of a site: any of sites
	} {
		if got := l.Predecessor(tc.g, tc.r); got != tc.want {
			t.Errorf("got the predecessor %p, want %p", got, tc.want)
		}
	}
	next.Add(a)
	l.Started(next)
	if l.IsLast(old) || l.IsLast(next) || storeOf[a] != next || storeOf[b] != old {
		t.Error("one of two configurations is the last one, or a resolver does not use the store of the last one that has it")
	}
	l.Ended(next) // it did not start after all
	if !l.IsLast(old) || storeOf[a] != old {
		t.Error("the configuration that runs again is not the last one, or its store is not used")
	}
	l.Started(next)
	l.Ended(old)
	if !l.IsLast(next) || storeOf[a] != next {
		t.Error("the configuration that runs is not the last one, or its store is not used")
	}
	l.Ended(next)
	if l.IsLast(next) || l.Predecessor(next, likeA) != nil {
		t.Error("a configuration runs in the end")
	}
}

// TestSaveOnce: a resolver that many sites share is saved once at the end, so that the end
// takes no longer where other processes save to the same storage.
func TestSaveOnce(t *testing.T) {
	leaktest.Check(t)
	server := testlab.NewNameserver(t)
	server.Has("a.example", "192.0.2.1")
	server.Has("b.example", "192.0.2.2")
	config := Config{Nameservers: []string{server.Addr}, Persist: time.Hour}
	store := new(memoryStore)
	r, other := savedResolver(t, config, store), savedResolver(t, config, store)
	mustLookup(t, r, "a.example")
	mustLookup(t, other, "b.example")
	other.save(t.Context())
	var g Generation
	for range 10 {
		g.Add(r)
	}
	store.looked = 0
	g.Save(t.Context())
	if most := 3; store.looked > most {
		t.Errorf("it was looked %d times at what others have saved, want %d at most", store.looked, most)
	}
	for name := range strings.FieldsSeq("a.example b.example") {
		asked := server.Asked(name)
		if mustLookup(t, savedResolver(t, config, store), name); server.Asked(name) != asked {
			t.Errorf("%s is not in the file", name)
		}
	}
}
