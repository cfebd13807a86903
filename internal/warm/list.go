package warm

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"caddytarget/internal/pool"
)

// Target is what connections are kept open to: a host as the requests of a site call it.
type Target struct {
	Site   string // its name
	Scheme string
	Host   string
	Port   uint16
}

func (t Target) compare(other Target) int {
	return cmp.Or(strings.Compare(t.Site, other.Site), strings.Compare(t.Host, other.Host), cmp.Compare(t.Port, other.Port), strings.Compare(t.Scheme, other.Scheme))
}

// Site is a part of a configuration that calls targets.
type Site struct {
	Name        string        // stays the same from one process to the next
	Connections int           // how many are kept open to each target
	Targets     int           // to how many of them
	Unused      time.Duration // for how long connections to a target that is not called are kept open
	Group       any           // comparable: the sites of one group have one Part
	Pool        *pool.Pool

	// Find returns where connections to a target may be opened; nil: nowhere. It may look up
	// the name, and ends with ctx.
	Find func(ctx context.Context, t Target) *Found

	list *List
}

// Found is where the requests to a target go.
type Found struct {
	Keys   []pool.Key    // of all of its addresses
	Orders []*pool.Order // for those addresses to which a request would be sent now
}

const (
	// halfLife is the time after which scores are halved, so that they are about the
	// requests of late.
	halfLife = 5 * time.Minute

	// spareEntries is how many entries a site has beside two for each of Site.Targets.
	// Once a second those with the lowest scores make room for new ones.
	spareEntries = 512
)

// List counts the requests of targets. It is safe for concurrent use.
type List struct {
	now   func() time.Time
	sleep func(ctx context.Context, d time.Duration)
	pace  pace

	control sync.Mutex // held by Use and Release
	owner   any        // of sites
	halt    func()     // ends run; nil: it does not run

	mu      sync.RWMutex
	sites   map[string]*Site // in use
	entries map[Target]*entry
	counts  map[string]int // of entries, by site
	halved  time.Time      // when scores were last halved
	changes uint64         // of which targets there are
}

// entry is what is known of a target.
type entry struct {
	target Target
	score  atomic.Uint64 // requests of late: see halfLife
	used   atomic.Int64  // when it was last called, in Unix nanoseconds

	// debt is how many connections were opened in vain: the dial failed, or the connection
	// was closed soon and no request had used it. Each connection that a request opens, or
	// is the first to use, reduces it by one. Site.Connections of them are too many.
	debt atomic.Int64

	cold     atomic.Bool // it was saved, and since the start neither called nor looked at
	restored any         // Site.Group of the site by which it was saved; nil: it was called since

	busy atomic.Bool // a worker has what follows
	next time.Time   // when it is looked at again
	keys []pool.Key  // of Found
	open []pool.Key  // of Found.Orders
	at   time.Time   // when these were found
}

// New returns an empty list.
func New() *List {
	l := &List{now: time.Now, sleep: sleep, entries: make(map[Target]*entry), counts: make(map[string]int)}
	l.pace.list = l
	return l
}

// sleep waits for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// Use makes these the sites whose targets are counted and kept warm, for an owner. What is
// known of their targets remains.
func (l *List) Use(owner any, sites []*Site) {
	l.control.Lock()
	defer l.control.Unlock()
	l.stop()
	bySite := make(map[string]*Site, len(sites))
	for _, s := range sites {
		s.list = l
		bySite[s.Name] = s
	}
	l.owner = owner
	l.mu.Lock()
	l.sites = bySite
	if l.halved.IsZero() {
		l.halved = l.now()
	}
	for t, e := range l.entries {
		if s := bySite[t.Site]; s == nil || e.restored != nil && e.restored != s.Group {
			l.remove(t)
			continue
		}
		e.restored, e.next, e.keys = nil, time.Time{}, nil
	}
	l.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.run(ctx)
	}()
	l.halt = func() {
		cancel()
		<-done
	}
}

// Release ends what Use has begun and forgets all targets, unless another owner has used the
// list since. Nothing is dialled afterwards.
func (l *List) Release(owner any) {
	l.control.Lock()
	defer l.control.Unlock()
	if l.owner != owner {
		return
	}
	l.stop()
	l.owner = nil
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sites = nil
	clear(l.entries)
	clear(l.counts)
}

// Cold returns how many of the targets that were saved, and are to be kept warm, had neither
// a dial nor a request since the start.
func (l *List) Cold() (n int) {
	for _, list := range l.kept(l.now()) {
		for _, e := range list {
			if e.cold.Load() {
				n++
			}
		}
	}
	return n
}

// stop ends run; l.control is held.
func (l *List) stop() {
	if l.halt != nil {
		l.halt()
		l.halt = nil
	}
}

// Used counts a request that was answered. opened reports whether a connection was opened
// for it.
func (s *Site) Used(scheme, host string, port uint16, opened bool) {
	l, t := s.list, Target{s.Name, scheme, host, port}
	l.mu.RLock()
	e := l.entries[t]
	l.mu.RUnlock()
	if e == nil {
		t.Scheme, t.Host = strings.Clone(scheme), strings.Clone(host) // they may be a part of something large
		if e = l.add(t, s); e == nil {
			return
		}
	}
	e.used.Store(l.now().UnixNano())
	e.score.Add(1)
	if e.cold.Load() {
		e.cold.Store(false)
	}
	if opened {
		e.repay()
	}
}

// add returns the entry of a target of a site, a new one if there is none; nil: there is no
// room.
func (l *List) add(t Target, s *Site) *entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entries[t]
	if e == nil && l.counts[t.Site] < 2*s.Targets+spareEntries {
		e = &entry{target: t}
		l.entries[t] = e
		l.counts[t.Site]++
		l.changes++
	}
	return e
}

// remove removes an entry; l.mu is held.
func (l *List) remove(t Target) {
	delete(l.entries, t)
	if l.counts[t.Site]--; l.counts[t.Site] == 0 {
		delete(l.counts, t.Site)
	}
	l.changes++
}

// repay reduces the debt.
func (e *entry) repay() {
	for {
		n := e.debt.Load()
		if n <= 0 || e.debt.CompareAndSwap(n, n-1) {
			return
		}
	}
}

// tidy halves scores, when it is time, and makes room for new targets.
func (l *List) tidy() {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	halve := now.Sub(l.halved) >= halfLife
	if halve {
		l.halved = now
	}
	bySite := make(map[string][]*entry)
	for t, e := range l.entries {
		if halve {
			e.score.Store(e.score.Load() / 2)
		}
		s := l.sites[t.Site]
		if s == nil || e.score.Load() == 0 && e.unused(now) > s.Unused {
			l.remove(t)
			continue
		}
		bySite[t.Site] = append(bySite[t.Site], e)
	}
	for name, list := range bySite {
		most := 2 * l.sites[name].Targets
		if len(list) <= most {
			continue
		}
		for _, e := range busiest(list, len(list))[most:] {
			l.remove(e.target)
		}
	}
}

// unused returns how long ago the target was called.
func (e *entry) unused(now time.Time) time.Duration { return now.Sub(time.Unix(0, e.used.Load())) }

// busiest returns n of some entries, or all if there are fewer: those with the highest
// scores, the highest first. It sorts the list.
func busiest(list []*entry, n int) []*entry {
	scores := make(map[*entry]uint64, len(list)) // which change meanwhile
	for _, e := range list {
		scores[e] = e.score.Load()
	}
	slices.SortFunc(list, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(scores[b], scores[a]), a.target.compare(b.target))
	})
	return list[:min(n, len(list))]
}
