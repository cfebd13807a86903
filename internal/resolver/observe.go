package resolver

import (
	"slices"
	"sync"
	"sync/atomic"

	"caddytarget/internal/dnsclient"
)

// observers are called with what was sent for each lookup.
type observers struct {
	count atomic.Int32
	mu    sync.Mutex
	list  []*lookupObserver
}

type lookupObserver struct{ lookup func(*dnsclient.Trace) }

// Observe calls f after each lookup of nameservers until stop is called, also for the
// lookups of other callers. f must return soon, and may be called from several goroutines
// at a time, and once more shortly after stop.
func (r *Resolver) Observe(f func(*dnsclient.Trace)) (stop func()) {
	o, all := &lookupObserver{f}, &r.observers
	all.mu.Lock()
	defer all.mu.Unlock()
	all.list = append(slices.Clip(all.list), o)
	all.count.Store(int32(len(all.list)))
	return func() {
		all.mu.Lock()
		defer all.mu.Unlock()
		all.list = slices.DeleteFunc(slices.Clone(all.list), func(other *lookupObserver) bool { return other == o })
		all.count.Store(int32(len(all.list)))
	}
}

// any reports whether there are observers.
func (all *observers) any() bool { return all.count.Load() > 0 }

func (all *observers) lookup(t *dnsclient.Trace) {
	if !all.any() {
		return
	}
	all.mu.Lock()
	list := all.list
	all.mu.Unlock()
	for _, o := range list {
		o.lookup(t)
	}
}
