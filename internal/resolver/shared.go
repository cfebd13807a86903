package resolver

import (
	"cmp"
	"iter"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"time"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/snapshot"
)

// This file is what is kept of a file that other instances write, too: all that they know,
// but what was purged here.

// others is what is in a file that other resolvers have written, too.
type others struct {
	zones  []savedZone
	names  []savedName
	age    time.Duration
	purges []dnscache.Purge // that it may not know of
}

// others reads such a file, which may be nil. What cannot be read is replaced.
func (r *Resolver) others(f *snapshot.File, now time.Time) (o others) {
	if f == nil {
		return o
	}
	o.zones, o.names, _ = r.read(f)
	// in whole seconds, as it is written, and right on average: it is added each time that one
	// of several instances saves
	o.age = (f.Age(now) + rand.N(time.Second)).Truncate(time.Second)
	o.purges = r.memory.purges.since(f.SavedAt)
	o.names = slices.DeleteFunc(o.names, func(n savedName) bool {
		return slices.ContainsFunc(o.purges, func(p dnscache.Purge) bool { return forgets(p, n.name, n.found.name) })
	})
	return o
}

// of yields the names of a zone with these nameservers, most of them at most, as they are
// now.
func (o *others) of(suffix string, servers []serverHash, most int) iter.Seq[dnscache.Record] {
	return func(yield func(dnscache.Record) bool) {
		for _, z := range o.zones {
			if z.suffix != suffix || !sameServers(z.servers, servers) {
				continue
			}
			done := 0
			for record := range z.records(most) {
				if done++; done%pausedAfter == 0 {
					runtime.Gosched()
				}
				chooses := func(p dnscache.Purge) bool { return p.Chooses(&record) }
				if slices.ContainsFunc(o.purges, chooses) {
					continue
				}
				addAge(&record, o.age)
				if !yield(record) {
					return
				}
			}
		}
	}
}

// Lacks implements snapshot.Owner.
func (s saved) Lacks(f *snapshot.File) bool {
	from := s.others(f, time.Now())
	type key struct {
		name    string
		service bool
	}
	for suffix, z := range s.named() {
		there := make(map[key]bool)
		for record := range from.of(suffix, savedServers(s.serversOf(z)), s.maxNames()) {
			there[key{record.Name, record.Service}] = true
		}
		if len(there) >= s.maxNames() || f.Size() > snapshot.MaxSize-maxRecordSize {
			continue // it is full
		}
		for record := range z.cache.Records() {
			if isSavable(record.Name) && !there[key{record.Name, record.Service}] {
				return true
			}
		}
	}
	return false
}

const (
	// maxPurges is how many purges are remembered.
	maxPurges = 100

	// purgeGrace is for how long after a purge a file may have been saved that still has what
	// was purged: by another instance, on which it is purged later.
	purgeGrace = 10 * time.Minute
)

// purges are what was purged last, so that it does not come back from a file that was saved
// before.
type purges struct {
	mu   sync.Mutex
	list []purge
	n    uint64
}

// purge is a purge, once for each name that its name may be short for.
type purge struct {
	all []dnscache.Purge
	at  time.Time
}

// add remembers a purge.
func (p *purges) add(what []dnscache.Purge) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range what {
		what[i].Chosen = nil // it may hold a request
	}
	p.n++
	if p.list = append(p.list, purge{what, time.Now()}); len(p.list) > maxPurges {
		p.list = slices.Delete(p.list, 0, 1)
	}
}

// inherit remembers what was purged of another resolver, too.
func (p *purges) inherit(old *purges) {
	old.mu.Lock()
	list := slices.Clone(old.list)
	old.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.list = append(list, p.list...)
}

func (p *purges) count() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n
}

// since returns what was purged after a file was saved, or not long before.
func (p *purges) since(t time.Time) (list []dnscache.Purge) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, purge := range p.list {
		if purge.at.Add(purgeGrace).After(t) {
			list = append(list, purge.all...)
		}
	}
	return list
}

// addAge makes a record older.
func addAge(r *dnscache.Record, age time.Duration) {
	r.Used += age
	for i := range r.TTL {
		if r.TTL[i] != 0 {
			r.TTL[i] = cmp.Or(r.TTL[i]-age, -1)
		}
	}
}
