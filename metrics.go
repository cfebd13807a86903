package caddytarget

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"caddytarget/internal/failure"
	"caddytarget/internal/guard"
	"caddytarget/internal/topk"
)

// counters are the metrics of requests. They outlive a reload.
type counters struct {
	refused, leftOut *prometheus.CounterVec // by mode and rule
	failures         *prometheus.CounterVec // by phase and token
	top              *topk.Sketch           // of targets
}

func newCounters() *counters {
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "caddy",
			Subsystem: "target",
			Name:      name,
			Help:      help,
		}, labels)
	}
	c := &counters{
		refused: vec("refused_total",
			"Requests that were refused or, in the mode report, would have been, by rule.", "mode", "rule"),
		leftOut: vec("left_out_total",
			"Addresses that were left out of answers of which others remained or, in the mode report, would have been, by rule.", "mode", "rule"),
		failures: vec("failures_total",
			"Requests of target handlers that failed, by phase and error.", "phase", "error"),
	}
	c.top = topk.New(topk.Config{})
	// all are there from the start, so that the first refusal is an increase
	for _, rule := range guard.RefusalRules() {
		c.refused.WithLabelValues(enforce, rule)
		c.refused.WithLabelValues(report, rule)
	}
	for _, rule := range []string{failure.RuleNoTarget, failure.RuleLoop, failure.RuleMaxRequests, failure.RuleMaxLookups, failure.RuleNewNames} {
		c.refused.WithLabelValues(enforce, rule)
	}
	return c
}

// register adds the counters to a registry of metrics, once.
func (c *counters) register(registry *prometheus.Registry) error {
	for _, vec := range []prometheus.Collector{c.refused, c.leftOut, c.failures} {
		if err := registry.Register(vec); err != nil {
			if _, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); !ok {
				return err
			}
		}
	}
	return nil
}

// observe counts a request that began at a time for its target.
func (c *counters) observe(target string, st *requestState, err error, begun time.Time) {
	failed := err != nil || st.err != nil
	c.top.Observe(target, topk.Observation{
		Failed: failed, Latency: time.Since(begun), NewConn: !failed && st.attempts > 0 && !st.reused,
	})
}
