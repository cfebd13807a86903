package caddytarget

import (
	"caddytarget/internal/metrics"
	"caddytarget/internal/pool"
	"caddytarget/internal/topk"
)

// counters are the metrics of requests, by the names that admin_top.go has for them.
type counters struct {
	*metrics.Requests
	top *topk.Sketch
}

func newCounters(r *metrics.Requests) *counters { return &counters{r, r.Top} }

// sharedPool is a pool.Shared with the names that admin_pools.go has for it.
type sharedPool struct {
	*pool.Shared
	settings struct {
		text  string
		index int
	}
	id uint64
}

// usedPools returns the pools in use.
func (s *shared) usedPools() (list []*sharedPool) {
	for _, p := range s.pools.All() {
		u := &sharedPool{Shared: p, id: p.ID}
		u.settings.text = p.Name()
		list = append(list, u)
	}
	return list
}

// dialPhases are the words of admin_pools.go.
var dialPhases = metrics.DialPhases
