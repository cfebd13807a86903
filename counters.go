package caddytarget

import (
	"github.com/prometheus/client_golang/prometheus"

	"caddytarget/internal/failure"
	"caddytarget/internal/metrics"
	"caddytarget/internal/pool"
	"caddytarget/internal/record"
	"caddytarget/internal/topk"
)

// counters are the metrics of requests, by the names that guard.go, attempt.go and
// admin_top.go have for them.
type counters struct {
	*metrics.Requests
	refused, leftOut *prometheus.CounterVec
	top              *topk.Sketch
}

func newCounters(r *metrics.Requests) *counters { return &counters{r, r.Refused, r.LeftOut, r.Top} }

func (c *counters) answered(reused bool) { c.Answered(reused) }

// recordedAttempt is a record.Attempt with the name that outgoing.go has for it.
type recordedAttempt struct {
	*record.Attempt
	span *record.Attempt
}

func failedMessage(f failure.Failure) string { return record.FailedMessage(f) }

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
