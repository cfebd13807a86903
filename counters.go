package caddytarget

import (
	"github.com/prometheus/client_golang/prometheus"

	"caddytarget/internal/failure"
	"caddytarget/internal/metrics"
	"caddytarget/internal/record"
	"caddytarget/internal/topk"
)

// counters are the metrics of requests, by the names that guard.go and attempt.go
// have for them.
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
