package caddytarget

import (
	"context"
	"path"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/certmagic"

	"caddytarget/internal/resolver"
	"caddytarget/internal/snapshot"
)

// This file is how what a resolver knows outlives it: in Caddy's storage, and in the
// resolver of the next configuration.

// storagePrefix is below which key of the storage all of it is.
const storagePrefix = "caddytarget/dns"

// storageKey returns where in the storage it is saved what a resolver of the app knows. All
// instances whose resolver has the same nameservers and zones share it. If there are several
// of these in one configuration, as a site for strangers may have one of its own, the names
// of one do not get to the others: then the options of those of sites are a part of it.
func (a *App) storageKey(r *resolver.Resolver) string {
	key := storagePrefix + "/" + r.Identity()
	for _, other := range a.acquired {
		if r != a.resolver && other.Resolver != r && other.Identity() == r.Identity() {
			return key + "-" + r.ID()
		}
	}
	return key
}

// finalSave is how long saving may take at the end of the process.
const finalSave = 5 * time.Second

// storage is one key of Caddy's storage.
type storage struct {
	certmagic.Storage
	key string
}

// useStorage makes a resolver save what it knows in Caddy's storage, and which targets of the
// sites that use it are called most.
func (a *App) useStorage(r *resolver.Resolver) {
	if r.UsePart(nil); a.warms {
		r.UsePart(a.shared.warm.Part(r))
	}
	r.UseStore(&storage{a.storage, a.storageKey(r)})
}

// Stat implements snapshot.Store.
func (s *storage) Stat(ctx context.Context) (snapshot.Stamp, error) {
	info, err := s.Storage.Stat(ctx, s.key)
	return snapshot.Stamp{Size: info.Size, Modified: info.Modified}, err
}

// Load implements snapshot.Store.
func (s *storage) Load(ctx context.Context) ([]byte, error) { return s.Storage.Load(ctx, s.key) }

// Save implements snapshot.Store. No lock is taken: the storage replaces the value as a
// whole.
func (s *storage) Save(ctx context.Context, data []byte) error {
	return s.Store(ctx, s.key, data)
}

// savedKey matches the names of keys below storagePrefix: those of storageKey, and of files
// that Caddy's file storage was writing when its process was killed.
var savedKey = regexp.MustCompile("^(?:[0-9a-f]{32}(?:-[0-9a-f]+)?|[0-9]{1,10})$")

// DeleteOld implements snapshot.Store. The storage's own times are compared with each other,
// so that it does not matter if the clock of this machine is wrong.
func (s *storage) DeleteOld(ctx context.Context, age time.Duration) (n int, err error) {
	own, err := s.Storage.Stat(ctx, s.key)
	if err != nil {
		return 0, err
	}
	keys, err := s.List(ctx, storagePrefix, false)
	if err != nil {
		return 0, err
	}
	for _, key := range keys {
		if key == s.key || path.Dir(key) != storagePrefix || !savedKey.MatchString(path.Base(key)) {
			continue
		}
		info, err := s.Storage.Stat(ctx, key)
		if err != nil || !info.IsTerminal || own.Modified.Sub(info.Modified) < age {
			continue // another instance may have deleted it
		}
		if err := s.Delete(ctx, key); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// lineage knows which resolvers the configuration that runs has, so that those of the next
// one can take over what they know.
type lineage struct {
	mu             sync.Mutex
	running, older *generation
}

// generation is the resolvers of a configuration, the default one first.
type generation struct {
	app       *App
	resolvers []*sharedResolver
}

// started makes a configuration the one that runs.
func (l *lineage) started(a *App) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running, l.older = &generation{a, slices.Clone(a.acquired)}, l.running
}

// isLast reports whether a configuration runs that no other one replaces or was replaced
// by.
func (l *lineage) isLast(a *App) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.running != nil && l.running.app == a && l.older == nil
}

// ended forgets a configuration.
func (l *lineage) ended(a *App) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running != nil && l.running.app == a {
		l.running, l.older = l.older, nil // it did not start after all, or nothing runs now
	}
	if l.older != nil && l.older.app == a {
		l.older = nil
	}
}

// predecessor returns the resolver that a new one of a configuration replaces: for the
// default one the default one before. For one of a site it is, of those of sites that are
// no longer used, the one with the most settings in common. It returns nil if there is
// none.
func (l *lineage) predecessor(a *App, r *resolver.Resolver) *resolver.Resolver {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running == nil || l.running.app == a {
		return nil
	}
	before := l.running.resolvers
	if a.resolver == r {
		if before[0].Resolver == r {
			return nil
		}
		return before[0].Resolver
	}
	var best *resolver.Resolver
	most := 0
	for _, old := range before[1:] {
		if n := r.Likeness(old.Resolver); n > most && !slices.Contains(a.acquired, old) {
			best, most = old.Resolver, n
		}
	}
	return best
}

// persistBy completes the configuration of a resolver of an app.
func (a *App) persistBy(config *resolver.Config) {
	lineage := &a.shared.lineage
	config.PersistByDefault = config.Persist == 0 && a.storage == caddy.DefaultStorage
	config.Predecessor = func(r *resolver.Resolver) *resolver.Resolver {
		a.useStorage(r) // this is before the first lookup, which may be before Start
		return lineage.predecessor(a, r)
	}
}

// saveAll saves what the resolvers know at the end of the process.
func (a *App) saveAll() {
	ctx, cancel := context.WithTimeout(context.Background(), finalSave)
	defer cancel()
	var saving sync.WaitGroup
	defer saving.Wait()
	for _, r := range a.acquired {
		saving.Go(func() { r.Save(ctx) })
	}
}

// Interface guards
var _ snapshot.Store = (*storage)(nil)
