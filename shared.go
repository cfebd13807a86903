package caddytarget

import (
	"iter"
	"math/rand/v2"
	"time"

	"github.com/caddyserver/caddy/v2"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/ejection"
	"caddytarget/internal/health"
	"caddytarget/internal/localnet"
	"caddytarget/internal/metrics"
	"caddytarget/internal/pool"
	"caddytarget/internal/resolver"
	"caddytarget/internal/trace"
	"caddytarget/internal/warm"
)

// shared is what all configurations of the process have in common.
type shared struct {
	id        uint64 // random
	began     time.Time
	health    *health.Tracker
	ejections *ejection.Log
	metrics   *metrics.Metrics
	pools     pool.Set
	limits    *pool.Limits
	sockets   *localnet.Sockets // nil: Caddy's account of its listeners is asked
	sites     localnet.Sites
	trace     *trace.Hub
	lineage   resolver.Lineage
	warm      *warm.List
}

// Destruct implements caddy.Destructor.
func (s *shared) Destruct() error {
	s.trace.Close()
	return nil
}

// shareds holds the one shared of the process while a configuration uses it.
var shareds = caddy.NewUsagePool()

const sharedKey = "shared"

func newShared() *shared {
	s := &shared{
		id:      rand.Uint64(),
		began:   time.Now(),
		health:  health.New(),
		limits:  pool.NewLimits(pool.DescriptorLimit()/4*3, dnscache.DomainOf),
		sockets: newSockets(),
		trace:   new(trace.Hub),
		warm:    warm.New(),
	}
	s.metrics = metrics.New(s.countPools, s.health)
	s.ejections = ejection.New(s.metrics.Ejections)
	s.health.Observe(s.ejections)
	return s
}

// newSockets returns what finds the sockets of this process. It is a variable for
// tests, whose backends are in this process.
var newSockets = func() *localnet.Sockets { return new(localnet.Sockets) }

func acquireShared() *shared {
	value, _, _ := shareds.LoadOrNew(sharedKey, func() (caddy.Destructor, error) { return newShared(), nil })
	return value.(*shared)
}

// usedShared yields the one shared of the process, if a configuration uses it.
func usedShared() iter.Seq[*shared] {
	return func(yield func(*shared) bool) {
		shareds.Range(func(_, value any) bool { return yield(value.(*shared)) })
	}
}

func releaseShared() { _, _ = shareds.Delete(sharedKey) }

// countPools yields how many connections each of the pools has.
func (s *shared) countPools(yield func(pool.Counts) bool) {
	for _, p := range s.pools.All() {
		if !yield(p.Counts()) {
			return
		}
	}
}

// Interface guards
var _ caddy.Destructor = (*shared)(nil)
