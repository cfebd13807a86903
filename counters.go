package caddytarget

import (
	"caddytarget/internal/metrics"
	"caddytarget/internal/topk"
)

// counters are the metrics of requests, by the names that admin_top.go has for them.
type counters struct {
	*metrics.Requests
	top *topk.Sketch
}

func newCounters(r *metrics.Requests) *counters { return &counters{r, r.Top} }

// dialPhases are the words of admin_pools.go.
var dialPhases = metrics.DialPhases
