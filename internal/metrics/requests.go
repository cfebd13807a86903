package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"caddytarget/internal/failure"
	"caddytarget/internal/gate"
	"caddytarget/internal/guard"
	"caddytarget/internal/topk"
)

// Requests are the metrics of requests.
type Requests struct {
	Refused, LeftOut *prometheus.CounterVec // by mode and rule
	Failures         *prometheus.CounterVec // by phase and error
	Top              *topk.Sketch           // of targets

	answered         *prometheus.CounterVec // by connection
	overNew, overOld prometheus.Counter     // of answered
}

func newRequests() *Requests {
	r := &Requests{
		Refused: newCounterVec("refused_total",
			"Requests that were refused or, in the mode report, would have been, by rule.", "mode", "rule"),
		LeftOut: newCounterVec("left_out_total",
			"Addresses that were left out of answers of which others remained or, in the mode report, would have been, by rule.", "mode", "rule"),
		Failures: newCounterVec("failures_total",
			"Requests of target handlers that failed, by phase and error.", "phase", "error"),
		Top: topk.New(topk.Config{}),
		answered: newCounterVec("requests_total",
			"Requests that backends have answered, by connection: a new one, or one that had been used before.", "connection"),
	}
	r.overNew, r.overOld = r.answered.WithLabelValues("new"), r.answered.WithLabelValues("reused")
	startAtZero(r.Failures, failure.RequestFailures())
	for _, rule := range guard.RefusalRules() {
		r.Refused.WithLabelValues(gate.ModeEnforce, rule)
		r.Refused.WithLabelValues(gate.ModeReport, rule)
	}
	for _, rule := range []string{failure.RuleNoTarget, failure.RuleLoop, failure.RuleMaxRequests, failure.RuleMaxLookups, failure.RuleNewNames} {
		r.Refused.WithLabelValues(gate.ModeEnforce, rule)
	}
	return r
}

// Answered counts a request that a backend has answered, over a connection that had been
// used before or not.
func (r *Requests) Answered(reused bool) {
	if reused {
		r.overOld.Inc()
	} else {
		r.overNew.Inc()
	}
}
