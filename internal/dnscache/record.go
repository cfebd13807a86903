package dnscache

import (
	"cmp"
	"context"
	"iter"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"time"
)

// Record is what a cache knows of a name that has addresses or is a service, in a form
// that may be kept and handed on. Times are from now on.
type Record struct {
	Name    string
	Service bool

	// Addrs are the addresses by type, A and AAAA, and Services the records of a
	// service. They are shared: not to be written to.
	Addrs    [2][]netip.Addr
	Services []net.SRV

	// TTL is how long they still hold, by type; below zero if they have expired. That of a
	// service is the first one. A type without addresses has the TTL of this answer, or 0.
	TTL [2]time.Duration

	// Used is how long ago the name was last used.
	Used time.Duration
}

// Has reports whether there is a name with addresses or records in the cache.
func (c *Cache) Has(name string, service bool) bool {
	size := uint16(len(name))
	if service {
		size |= serviceBit
	}
	e := c.table.find(c.hash(name), name, size)
	return e != nil && e.count > 0
}

// Records yields what is known of all names that have addresses or records which may
// serve, at least while asking fails; those used last first. It takes no lock, and does
// not count as a use.
func (c *Cache) Records() iter.Seq[Record] {
	return func(yield func(Record) bool) {
		now := c.cfg.Now()
		var all []*entry
		var order []uint64 // how long ago one of all was used, and which one
		for e := range c.scan(0) {
			if e != nil && e.count > 0 && now < max(e.expires, e.staleUntil(&c.cfg)) {
				unused := max(0, now-e.lastUsed(now)) / usedUnit
				order = append(order, uint64(unused)<<32|uint64(len(all)))
				all = append(all, e)
			}
		}
		slices.Sort(order)
		for i, at := range order {
			if i%scanned == scanned-1 {
				runtime.Gosched()
			}
			if !yield(all[uint32(at)].record(now)) {
				return
			}
		}
	}
}

func (e *entry) record(now time.Duration) Record {
	r := Record{Name: e.name(), Service: e.isService(), Services: e.records(), Used: max(0, now-e.lastUsed(now))}
	for f, at := range e.state.expires {
		if at != 0 {
			r.TTL[f] = cmp.Or(at-now, -1)
		}
		if !r.Service && e.state.count[f] > 0 {
			r.Addrs[f] = e.addrsOf(family(f))
		}
	}
	return r
}

// Changes returns a number that grows when names are used, looked up or imported.
func (c *Cache) Changes() uint64 {
	n := c.refreshes.Load() + c.imports.Load()
	for _, lookups := range c.counters.sum() {
		n += lookups
	}
	return n
}

// Import is how records are added to a cache.
type Import struct {
	// Age is how long ago the records were what they say.
	Age time.Duration

	// AsStale makes them serve only while asking fails: as if they had expired over a
	// minute ago.
	AsStale bool
}

// importChunk is for how many records the locks are held at a time.
const importChunk = 64

// Import adds records of names that have no addresses here, as long as there is room:
// no other name is evicted. Those used last come first. What has expired is asked for
// again, in this order and at a bounded rate, if it was in use: see Config.Refresh. It
// returns how many were added.
func (c *Cache) Import(records iter.Seq[Record], how Import) (added int) {
	how.Age = min(how.Age, maxDuration)
	im := &importer{Cache: c, Import: how, now: c.cfg.Now(), order: c.cfg.Family()}
	chunk := make([]Record, 0, importChunk)
	for r := range records {
		if chunk = append(chunk, r); len(chunk) == importChunk {
			added += im.add(chunk)
			chunk = chunk[:0]
			runtime.Gosched()
		}
	}
	added += im.add(chunk)
	c.imports.Add(uint64(added))
	c.sched.dispatch(c.cfg.Now())
	return added
}

// maxUsedAge is how long ago a name may have been used that is imported; see lastUsed.
const maxUsedAge = 180 * 24 * time.Hour

// importer does an import.
type importer struct {
	*Cache
	Import
	now   time.Duration
	order Family
}

// add adds a few records and schedules their next lookups.
func (im *importer) add(records []Record) int {
	entries := make([]*entry, 0, len(records))
	due := make([]*node, 0, len(records))
	im.mu.Lock()
	for i := range records {
		r := &records[i]
		e := im.put(r)
		if e == nil {
			continue
		}
		entries = append(entries, e)
		if im.now >= e.expires && im.wasInUse(r, e.state.node) {
			due = append(due, e.state.node)
		}
	}
	im.mu.Unlock()
	for _, e := range entries {
		if im.now < e.expires {
			im.scheduleNext(e.state.node, e)
		}
	}
	im.sched.parkInOrder(due, im.now)
	return len(entries)
}

// wasInUse reports whether a name was refreshed in the background.
func (im *importer) wasInUse(r *Record, n *node) bool {
	return n.pinned.Load() || im.cfg.Refresh >= 0 && r.Used <= im.cfg.Refresh
}

// put puts a record into the table, unless the name has addresses, has none according to
// an answer, or there is no room; im.mu is held.
func (im *importer) put(r *Record) *entry {
	size := uint16(len(r.Name))
	if r.Service {
		size |= serviceBit
	}
	if len(r.Name) == 0 || len(r.Name) > maxName {
		return nil
	}
	hash := im.hash(r.Name)
	old := im.table.find(hash, r.Name, size)
	switch {
	case old == nil && im.queues.len() >= im.cfg.Size:
		return nil
	case old == nil:
		n := &node{insertedAt: uint32(im.now / usedUnit)}
		e := im.entry(r, size, &state{node: n})
		if e == nil {
			return nil
		}
		e.used.Store(usedAt(im.now - min(r.Used+im.Age, maxUsedAge)))
		n.entry.Store(e)
		im.table.insert(hash, e)
		im.excess.Add(e.excess())
		im.queues.addOldest(n, r.Used+im.Age <= maxUseGap, im.cfg.Size)
		return e
	case old.count > 0, old.state.known && old.state.negative:
		return nil
	}
	// its first lookup is in flight, or has failed
	was, n := old.state, old.state.node
	e := im.entry(r, size, &state{
		node: n, failures: was.failures, retryAfter: was.retryAfter, err: was.err, errAt: was.errAt, slow: was.slow,
	})
	if e == nil {
		return nil
	}
	e.used.Store(old.used.Load())
	n.entry.Store(e)
	im.table.replace(hash, old, e)
	im.excess.Add(e.excess() - old.excess())
	return e
}

// entry returns the entry for a record, with the rest of its state, or nil if it may not
// serve.
func (im *importer) entry(r *Record, size uint16, s *state) *entry {
	s.known, s.restored, s.order = true, true, im.order
	if r.Service {
		s.order = serviceRecords
	}
	e := newEntry(r.Name, size, s)
	var addrs [2][]netip.Addr
	var services []net.SRV
	for _, f := range families(s.order) {
		ttl := min(r.TTL[f], im.cfg.MaxTTL) - im.Age
		if r.TTL[f] == 0 {
			continue // nothing is known
		}
		list, records := sortAddrs(r.Name, r.Addrs[f]), sortRecords(r.Services)
		n := len(list) + len(records)
		switch {
		case n == 0 && (im.AsStale || ttl <= 0):
			continue
		case im.AsStale:
			ttl = min(ttl, -staleGrace-1)
		}
		addrs[f], services = list, records
		s.count[f], s.expires[f] = uint16(n), cmp.Or(im.now+ttl, -1) // 0 is none
		if s.refreshAfter[f] = s.expires[f]; ttl > 0 {
			s.refreshAfter[f] = im.now + ttl*3/4
		}
	}
	if r.Service {
		e.setRecords(services)
	} else {
		e.setAddrs(offer(s.order, addrs))
	}
	if e.expires = s.expiry(im.now); e.count == 0 || im.now >= max(e.expires, e.staleUntil(&im.cfg)) {
		return nil
	}
	im.trim(e, e)
	return e
}

// parkInOrder parks nodes, as preload does, in the order in which they become due.
func (s *scheduler) parkInOrder(nodes []*node, now time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.parked.len == 0 {
		s.credit, s.creditedAt, s.sorted = recoveryRate/4, now, true
	}
	for _, n := range nodes {
		if !n.evicted && n.call.CompareAndSwap(nil, newCall(now)) && !s.isWaiting(n) {
			s.unschedule(n)
			s.parked.push(n)
		}
	}
}

// restoreWait is how long readers whose lookup failed wait for what is being restored,
// counted from its beginning: a storage that does not answer costs each cache so much at
// most, however many lookups fail.
const restoreWait = time.Second

// restoring returns a channel that is closed when all that was kept of the names has been
// imported; nil if there is nothing to wait for.
func (c *Cache) restoring() <-chan struct{} {
	if c.restored.Load() {
		return nil
	}
	done := c.cfg.Restoring()
	if done == nil {
		c.restored.Store(true)
	} else {
		c.beginRestoreWait()
	}
	return done
}

// beginRestoreWait begins the time for which readers wait for what is being restored,
// unless it has begun before.
func (c *Cache) beginRestoreWait() {
	c.restoreUntil.CompareAndSwap(0, int64(max(1, c.cfg.Now()+restoreWait)))
}

// awaitRestored waits for what is being restored, until restoreWait has passed since its
// beginning. It reports false at once if that has ended before.
func (c *Cache) awaitRestored(ctx context.Context) bool {
	if c.restored.Load() {
		return false
	}
	if done := c.restoring(); done != nil {
		c.pause(ctx, time.Duration(c.restoreUntil.Load())-c.cfg.Now(), done)
	}
	return true
}

// serveRestored returns the answer of a node if what is restored may serve, for which it
// may wait: see awaitRestored.
func (c *Cache) serveRestored(ctx context.Context, n *node) (r result, ok bool) {
	if c.awaitRestored(ctx) {
		if e := n.entry.Load(); c.mayServe(e) {
			return c.serve(ctx, e), true
		}
	}
	return result{}, false
}

// mayServe reports whether an entry has addresses or records that may serve, at least
// while asking fails.
func (c *Cache) mayServe(e *entry) bool {
	return e != nil && e.count > 0 && c.cfg.Now() < max(e.expires, e.staleUntil(&c.cfg))
}
