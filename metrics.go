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
	requests         *prometheus.CounterVec // by connection
	overNew, overOld prometheus.Counter     // of requests
	dials            *dialCounters
	top              *topk.Sketch // of targets
}

// newCounterVec returns a counter for each value of labels.
func newCounterVec(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy",
		Subsystem: "target",
		Name:      name,
		Help:      help,
	}, labels)
}

func newCounters() *counters {
	c := &counters{
		refused: newCounterVec("refused_total",
			"Requests that were refused or, in the mode report, would have been, by rule.", "mode", "rule"),
		leftOut: newCounterVec("left_out_total",
			"Addresses that were left out of answers of which others remained or, in the mode report, would have been, by rule.", "mode", "rule"),
		failures: newCounterVec("failures_total",
			"Requests of target handlers that failed, by phase and error.", "phase", "error"),
		requests: newCounterVec("requests_total",
			"Requests that backends have answered, by connection: a new one, or one that had been used before.", "connection"),
		dials: newDialCounters(),
	}
	c.overNew, c.overOld = c.requests.WithLabelValues("new"), c.requests.WithLabelValues("reused")
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

// answered counts a request that a backend has answered.
func (c *counters) answered(reused bool) {
	if reused {
		c.overOld.Inc()
	} else {
		c.overNew.Inc()
	}
}

// register adds metrics to a registry, once.
func register(registry *prometheus.Registry, collectors ...prometheus.Collector) error {
	for _, c := range collectors {
		if err := registry.Register(c); err != nil {
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
		Failed: failed, Latency: time.Since(begun), NewConn: st.opened,
	})
}
