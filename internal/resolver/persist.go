package resolver

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/dnsclient"
	"caddytarget/internal/snapshot"
)

// memory is what a resolver takes over: from the one that it replaces, and from what was
// saved.
type memory struct {
	rootsDigest string // of the certificate authorities
	id          string
	size        int // about that of the next file
	identity    string
	saver       *snapshot.Saver

	part   atomic.Pointer[Part]
	begin  sync.Once
	ending atomic.Bool // it is saved for the last time
	purges purges
}

// Part is a section of the file in which what the resolver knows is saved. Its owner knows
// what is in it.
type Part interface {
	Section() string

	// Changes returns a number that changes when there is something new to be saved.
	Changes() uint64

	// Write writes the section, or nothing.
	Write(w *snapshot.Writer)

	// Read takes over a section that was saved so long ago. After an error, nothing of it
	// has been taken over, and the whole file is ignored.
	Read(s *snapshot.Section, age time.Duration) error
}

func newMemory(r *Resolver, c *Compiled) *memory {
	return &memory{rootsDigest: c.digest, id: c.id(), saver: snapshot.NewSaver(saved{r}, max(c.config.Persist, 0))}
}

// ID returns a short text that is the same for as long as the configuration.
func (r *Resolver) ID() string { return r.memory.id }

// saved is the resolver as the owner of a saver.
type saved struct{ *Resolver }

// persists reports whether what is known is saved.
func (c *Config) persists() bool { return c.Persist > 0 }

// remember takes over what the predecessor knows, and begins to load what was saved. It
// does so once, at the start or when the first reader would have to wait.
func (r *Resolver) remember() {
	r.memory.begin.Do(func() {
		var before *snapshot.Saver // that of what is known already
		if r.config.Predecessor != nil {
			if old := r.config.Predecessor(r); old != nil {
				r.inherit(old)
				if old.hasLoaded() && old.identity() == r.identity() {
					before = old.memory.saver
				}
			}
			r.config.Predecessor = nil // it may hold a whole configuration
		}
		if r.config.persists() {
			r.memory.saver.Begin(before)
		} else {
			r.memory.saver.Close()
		}
	})
}

// IsLoading reports whether what was saved is still to be read, as it is before Start.
func (r *Resolver) IsLoading() bool {
	select {
	case <-r.memory.saver.Loaded():
		return false
	default:
		return true
	}
}

// hasLoaded reports whether it is known what was saved.
func (r *Resolver) hasLoaded() bool { return r.config.persists() && !r.IsLoading() }

// restoring is dnscache.Config.Restoring.
func (r *Resolver) restoring() <-chan struct{} {
	r.remember()
	loaded := r.memory.saver.Loaded()
	select {
	case <-loaded:
		return nil
	default:
		return loaded
	}
}

// UseStore sets where it is saved what the resolver knows. It has no effect on one that
// does not persist.
func (r *Resolver) UseStore(store snapshot.Store) { r.memory.saver.Use(store) }

// UsePart adds a section to what is saved, in place of one that was added before; nil:
// none. It has to be added before the first lookup, and Start, to be loaded, too.
func (r *Resolver) UsePart(p Part) {
	if p == nil {
		r.memory.part.Store(nil)
		return
	}
	r.memory.part.Store(&p)
}

// save saves what the resolver knows, at the end of the process. It waits until ctx ends
// at most.
func (r *Resolver) save(ctx context.Context) {
	if !r.config.persists() {
		return
	}
	r.memory.ending.Store(true)
	defer r.memory.ending.Store(false)
	if err := r.memory.saver.Save(ctx); err != nil {
		r.logger().Warn("what is known of names was not saved at the end", zap.Error(err))
	}
}

// Persistence is how it is with what is saved of a resolver.
type Persistence struct {
	Interval time.Duration // how often it is saved; 0: never

	// Saved is the file that was saved last, Loaded the one of the start, each with the
	// number of its names; zero: there was none. Err is why the last try failed; nil: it
	// did not.
	snapshot.Status
}

// Persistence returns how it is with what is saved. It does not wait for the storage.
func (r *Resolver) Persistence() Persistence {
	return Persistence{max(r.config.Persist, 0), r.memory.saver.Status()}
}

// Changes implements snapshot.Owner.
func (s saved) Changes() (n uint64) {
	for z := range s.all {
		n += z.cache.Changes()
	}
	if part := s.memory.part.Load(); part != nil {
		n += (*part).Changes()
	}
	return n + s.memory.purges.count()
}

// Deleted implements snapshot.Owner.
func (s saved) Deleted(n int) {
	s.logger().Info("files of names were deleted that nothing has saved for 30 days", zap.Int("files", n))
}

// Failed implements snapshot.Owner.
func (s saved) Failed(what string, err error) {
	switch what {
	case snapshot.Loading:
		s.logger().Warn("what was saved of names cannot be read", zap.Error(err))
	case snapshot.Ignoring:
		s.logger().Warn("what was saved of names is ignored", zap.Error(err))
	default:
		level := zap.WarnLevel
		if s.config.PersistByDefault && isReadOnly(err) {
			level = zap.InfoLevel
		}
		s.logger().Log(level, "what is known of names cannot be saved", zap.Error(err))
	}
}

// Snapshot implements snapshot.Owner.
func (s saved) Snapshot(others *snapshot.File) (data []byte, n int) {
	now := time.Now()
	from := s.others(others, now)
	w := snapshot.NewWriter(now, s.memory.size)
	for suffix, z := range s.named() {
		n += s.appendZone(w, suffix, z, &from)
	}
	if list := s.search.Load(); list != nil {
		list.writeTo(w, now, from.names)
	}
	if part := s.memory.part.Load(); part != nil {
		(*part).Write(w)
	}
	data = w.Finish()
	s.memory.size = len(data) + len(data)/8
	return data, n
}

// read reads the sections of a file.
func (r *Resolver) read(f *snapshot.File) (zones []savedZone, names []savedName, err error) {
	for i := range f.Sections {
		switch section := &f.Sections[i]; section.Name {
		case zoneSection:
			z, err := readZone(section)
			if err != nil {
				return nil, nil, err
			}
			zones = append(zones, z)
		case searchSection:
			if names, err = readSearch(section, f.SavedAt); err != nil {
				return nil, nil, err
			}
		}
	}
	return zones, names, nil
}

// Restore implements snapshot.Owner.
func (s saved) Restore(f *snapshot.File) (n int, err error) {
	zones, names, err := s.read(f)
	if err != nil {
		return 0, err
	}
	age := f.Age(time.Now())
	if err := s.readPart(f, age); err != nil {
		return 0, err
	}
	for _, z := range zones {
		n += s.take(z.servers, z.records(s.maxNames()), age)
	}
	if list := s.search.Load(); list != nil {
		list.add(slices.Values(names))
	}
	if n > 0 {
		s.logger().Info("names were loaded that were saved before", zap.Int("names", n), zap.Duration("age", age))
	}
	return n, nil
}

// readPart has the added section read.
func (s saved) readPart(f *snapshot.File, age time.Duration) error {
	part := s.memory.part.Load()
	if part == nil {
		return nil
	}
	for i := range f.Sections {
		if f.Sections[i].Name == (*part).Section() {
			return (*part).Read(&f.Sections[i], age)
		}
	}
	return nil
}

// take adds records that these nameservers gave, age ago. They are as good as before where
// all of these are asked for the name now; otherwise they serve only while asking fails.
func (r *Resolver) take(servers []serverHash, records iter.Seq[dnscache.Record], age time.Duration) (n int) {
	add := func(z *zone, records iter.Seq[dnscache.Record]) {
		asStale := !isSubset(servers, r.serversOf(z))
		n += z.cache.Import(records, dnscache.Import{Age: age, AsStale: asStale})
	}
	if len(r.bySuffix) == 0 {
		add(&r.zone, records)
		return n
	}
	byZone := make(map[*zone][]dnscache.Record)
	for record := range records {
		z := r.zoneOf(record.Name)
		byZone[z] = append(byZone[z], record)
	}
	for z, records := range byZone {
		add(z, slices.Values(records))
	}
	return n
}

// inherit takes over what another resolver knows and this one does not: names, and how
// the nameservers are that both ask.
func (r *Resolver) inherit(old *Resolver) {
	for suffix, z := range r.named() {
		same := func(server dnsclient.Nameserver) bool { return r.hashOf(server) == old.hashOf(server) }
		// that of the same zone comes first
		for other, from := range old.named() {
			if other == suffix {
				z.client.Inherit(from.client, same)
			}
		}
		for from := range old.all {
			z.client.Inherit(from.client, same)
		}
	}
	n := 0
	for from := range old.all {
		n += r.take(old.serversOf(from), from.cache.Records(), 0)
	}
	if list, from := r.search.Load(), old.search.Load(); list != nil && from != nil {
		list.add(from.all())
	}
	r.memory.purges.inherit(&old.memory.purges)
	if n > 0 {
		r.logger().Debug("names were taken over from the resolver before", zap.Int("names", n))
	}
}

// all yields what names were found to be short for.
func (s *searchList) all() iter.Seq[savedName] {
	s.mu.RLock()
	defer s.mu.RUnlock()
	names := make([]savedName, 0, len(s.found))
	for name, f := range s.found {
		names = append(names, savedName{name, f})
	}
	return slices.Values(names)
}

// likeness returns how many settings two resolvers have in common.
func (r *Resolver) likeness(other *Resolver) (n int) {
	a, b := r.config.settings(), other.config.settings()
	for key, value := range a {
		if string(b[key]) == string(value) {
			n++
		}
	}
	return n
}

// shortestPersist is the shortest Config.Persist.
const shortestPersist = time.Second

// CheckPersist returns an error unless d can be [Config.Persist].
func CheckPersist(d time.Duration) error {
	if d > 0 && d < shortestPersist {
		return optionErrorf([]string{"persist"}, "persist %s is shorter than %s", d, shortestPersist)
	}
	return nil
}

// isReadOnly reports whether a storage cannot be written at all.
func isReadOnly(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS)
}
