package caddytarget

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"caddytarget/internal/guard"
)

// The rules by which a request is refused beside those of the guard.
const (
	ruleNoTarget    = "no_target" // there is none
	ruleMalformed   = guard.RuleMalformed
	ruleLoop        = "loop"         // the request has come through this server before
	ruleMaxRequests = "max_requests" // too many requests to the target are in flight
	ruleMaxLookups  = "max_lookups"  // too many lookups are in flight
	ruleNewNames    = "new_names"    // too many names that are not in the cache
)

// refusals counts what was refused.
type refusals struct {
	requests, addresses *prometheus.CounterVec
}

func newRefusals() *refusals {
	vec := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "caddy",
			Subsystem: "target",
			Name:      name,
			Help:      help,
		}, []string{"mode", "rule"})
	}
	r := &refusals{
		requests: vec("refused_total",
			"Requests that were refused or, in the mode report, would have been, by rule."),
		addresses: vec("left_out_total",
			"Addresses that were left out of answers of which others remained or, in the mode report, would have been, by rule."),
	}
	// all are there from the start, so that the first refusal is an increase
	for _, rule := range guard.RefusalRules() {
		r.requests.WithLabelValues(enforce, rule)
		r.requests.WithLabelValues(report, rule)
	}
	for _, rule := range []string{ruleNoTarget, ruleLoop, ruleMaxRequests, ruleMaxLookups, ruleNewNames} {
		r.requests.WithLabelValues(enforce, rule)
	}
	return r
}

// register adds the counters to a registry of metrics, once.
func (r *refusals) register(registry *prometheus.Registry) error {
	for _, c := range []prometheus.Collector{r.requests, r.addresses} {
		if err := registry.Register(c); err != nil {
			if _, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); !ok {
				return err
			}
		}
	}
	return nil
}
