// Package metrics has the metrics of a process, caddy_target_…, for Prometheus.
//
// [Metrics] has all of them. Some are counted while things happen: [Requests], [Dials] and
// the ejections. The others are collected when Prometheus asks for them: [DNS] from the
// resolvers that are added to it, those of connections from pools, those of targets from a
// topk.Sketch. Series whose labels are known are there from the start, at 0: so the first
// event of a kind is an increase.
//
// Where to find what:
//
//   - requests.go: Requests. dns.go: DNS. targets.go: the series of targets.
//   - connections.go: Dials, which pools tell what they open (pool.Observer), and what is
//     collected from pools.
//   - metrics.go: Metrics; Register, which lists each of them.
package metrics

import (
	"errors"
	"iter"

	"github.com/prometheus/client_golang/prometheus"

	"caddytarget/internal/failure"
	"caddytarget/internal/pool"
)

// Metrics are the metrics of a process.
type Metrics struct {
	Requests  *Requests
	Dials     *Dials
	DNS       *DNS
	Ejections *prometheus.CounterVec // by phase and error

	connections *connections
}

// New returns metrics that are all 0. Those of connections and addresses are what pools
// yields, for each pool, and what addresses knows whenever they are collected.
func New(pools iter.Seq[pool.Counts], addresses Addresses) *Metrics {
	m := &Metrics{
		Requests: newRequests(),
		Dials:    newDials(),
		DNS:      newDNS(),
		Ejections: newCounterVec("ejections_total",
			"Addresses that were ejected, by phase and error of the last failure.", "phase", "error"),
		connections: &connections{pools, addresses},
	}
	startAtZero(m.Ejections, failure.AddressFailures())
	return m
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

// startAtZero makes the series of failures, by phase and error.
func startAtZero(c *prometheus.CounterVec, failures []failure.Failure) {
	for _, f := range failures {
		c.WithLabelValues(string(f.Phase), string(f.Token))
	}
}

// Register adds the metrics to a registry, if it does not have them, but for those of
// targets.
func (m *Metrics) Register(registry *prometheus.Registry) error {
	r, d := m.Requests, m.Dials
	for _, c := range []prometheus.Collector{
		r.Refused, r.LeftOut, r.Failures, r.answered, d.dial, d.handshake, d.resumed, m.Ejections, m.connections, m.DNS,
	} {
		if err := registry.Register(c); err != nil {
			if _, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); !ok {
				return err
			}
		}
	}
	return nil
}

// RegisterTargets adds the metrics of targets to a registry.
func (m *Metrics) RegisterTargets(registry *prometheus.Registry) error {
	return registry.Register(targets{m.Requests.Top})
}
