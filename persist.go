package caddytarget

import (
	"context"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/certmagic"

	"caddytarget/internal/resolver"
	"caddytarget/internal/snapshot"
)

// This file is how what a resolver knows outlives it: in Caddy's storage, and in the
// resolver of the next configuration.

// finalSave is how long saving may take at the end of the process.
const finalSave = 5 * time.Second

// storage is one key of Caddy's storage.
type storage struct {
	certmagic.Storage
	key string
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

// DeleteOld implements snapshot.Store. The storage's own times are compared with each other,
// so that it does not matter if the clock of this machine is wrong.
func (s *storage) DeleteOld(ctx context.Context, age time.Duration) (n int, err error) {
	own, err := s.Storage.Stat(ctx, s.key)
	if err != nil {
		return 0, err
	}
	keys, err := s.List(ctx, resolver.StoragePrefix, false)
	if err != nil {
		return 0, err
	}
	for _, key := range keys {
		if key == s.key || !resolver.IsStorageKey(key) {
			continue
		}
		if ctx.Err() != nil { // the storage may not look at it
			return n, ctx.Err()
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

// useStorage returns a function that makes a resolver save what it knows in Caddy's storage,
// and which targets of the sites that use it are called most. The app may have been cleaned
// up when it is called.
func (a *App) useStorage(shared *shared) func(*resolver.Resolver) {
	return func(r *resolver.Resolver) {
		if r.UsePart(nil); a.warms {
			r.UsePart(shared.warm.Part(r))
		}
		r.UseStore(&storage{a.storage, a.resolvers.StorageKey(r)})
	}
}

// persistBy completes the configuration of a resolver of an app.
func (a *App) persistBy(config *resolver.Config) {
	lineage := &a.shared.lineage // the app may have been cleaned up by the time of the first lookup
	config.PersistByDefault = config.Persist == 0 && a.storage == caddy.DefaultStorage
	config.Predecessor = func(r *resolver.Resolver) *resolver.Resolver {
		a.resolvers.UseStore(r) // this is before the first lookup, which may be before Start
		return lineage.Predecessor(&a.resolvers, r)
	}
}

// saveAll saves what the resolvers know at the end of the process.
func (a *App) saveAll() {
	ctx, cancel := context.WithTimeout(context.Background(), finalSave)
	defer cancel()
	a.resolvers.Save(ctx)
}

// Interface guards
var _ snapshot.Store = (*storage)(nil)
