package resolver

import (
	"context"
	"path"
	"regexp"
	"slices"
	"sync"
)

// Generation is the resolvers of a configuration, the default one first. It may be asked
// before all of them are added, and after the end of the configuration: lookups that are
// under way may be the first of their resolver.
type Generation struct {
	// UseStore makes a resolver save what it knows where the configuration says; see
	// Resolver.UseStore.
	UseStore func(*Resolver)

	mu   sync.Mutex
	list []*Resolver
}

// Add adds a resolver.
func (g *Generation) Add(r *Resolver) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.list = append(g.list, r)
}

// resolvers returns the resolvers, in their order.
func (g *Generation) resolvers() []*Resolver {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.list)
}

// StoragePrefix is the folder of Caddy's storage in which all keys are.
const StoragePrefix = "caddytarget/dns"

// StorageKey returns where it is saved what a resolver of the configuration knows. All
// instances whose resolver has the same nameservers and zones share it. If there are several
// of these in one configuration, as a site for strangers may have one of its own, the names
// of one do not get to the others: then the options of those of sites are a part of it.
func (g *Generation) StorageKey(r *Resolver) string {
	key := StoragePrefix + "/" + r.identity()
	all := g.resolvers()
	if len(all) > 0 && all[0] == r {
		return key
	}
	for _, other := range all {
		if other != r && other.identity() == r.identity() {
			return key + "-" + r.ID()
		}
	}
	return key
}

// storageName matches what StorageKey returns below StoragePrefix, and the names of files that
// Caddy's file storage was writing there when its process was killed.
var storageName = regexp.MustCompile("^(?:[0-9a-f]{32}(?:-[0-9a-f]+)?|[0-9]{1,10})$")

// IsStorageKey reports whether a key of Caddy's storage is that of a resolver, or was left
// behind while one was saved: it may be deleted if nothing has saved it for long.
func IsStorageKey(key string) bool {
	return path.Dir(key) == StoragePrefix && storageName.MatchString(path.Base(key))
}

// Save saves what the resolvers know, at the end of the process. It waits until ctx ends at
// most.
func (g *Generation) Save(ctx context.Context) {
	var saving sync.WaitGroup
	defer saving.Wait()
	begun := make(map[*Resolver]bool) // several sites may share one
	for _, r := range g.resolvers() {
		if !begun[r] {
			begun[r] = true
			saving.Go(func() { r.save(ctx) })
		}
	}
}

// useStores calls UseStore for each resolver.
func (g *Generation) useStores() {
	for _, r := range g.resolvers() {
		g.UseStore(r)
	}
}

// Lineage knows which resolvers the configuration that runs has, so that those of the next
// one can take over what they know. Those that several configurations share save where the
// one that runs says.
type Lineage struct {
	mu             sync.Mutex
	running, older *Generation
}

// Started makes a configuration the one that runs.
func (l *Lineage) Started(g *Generation) {
	l.mu.Lock()
	l.running, l.older = g, l.running
	l.mu.Unlock()
	g.useStores() // those of the configuration before may be gone soon
}

// IsLast reports whether a configuration runs that no other one replaces or was replaced
// by.
func (l *Lineage) IsLast(g *Generation) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.running == g && l.older == nil
}

// Ended forgets a configuration.
func (l *Lineage) Ended(g *Generation) {
	if again := l.forget(g); again != nil {
		again.useStores()
	}
}

// forget forgets a configuration. It returns the one that runs again, if this one did not
// start after all.
func (l *Lineage) forget(g *Generation) (again *Generation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running == g {
		l.running, l.older = l.older, nil
		return l.running
	}
	if l.older == g {
		l.older = nil
	}
	return nil
}

// Predecessor returns the resolver that a new one of a configuration replaces: for the
// default one the default one before. For one of a site it is, of those of sites that are
// no longer used, the one with the most settings in common. It returns nil if there is
// none.
func (l *Lineage) Predecessor(g *Generation, r *Resolver) *Resolver {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running == nil || l.running == g {
		return nil
	}
	before, now := l.running.resolvers(), g.resolvers()
	if len(before) == 0 {
		return nil
	}
	if len(now) > 0 && now[0] == r {
		if before[0] == r {
			return nil
		}
		return before[0]
	}
	var best *Resolver
	most := 0
	for _, old := range before[1:] {
		if n := r.likeness(old); n > most && !slices.Contains(now, old) {
			best, most = old, n
		}
	}
	return best
}
