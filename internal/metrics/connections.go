package metrics

import (
	"iter"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"caddytarget/internal/failure"
	"caddytarget/internal/health"
	"caddytarget/internal/pool"
)

// Dials counts connections that are opened. It is the observer of all pools.
type Dials struct {
	dial, handshake prometheus.Histogram
	resumed         prometheus.Counter
}

func newDials() *Dials {
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "caddy", Subsystem: "target", Name: name, Help: help,
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		})
	}
	return &Dials{
		dial:      histogram("dial_seconds", "How long it took to open TCP connections."),
		handshake: histogram("tls_handshake_seconds", "How long TLS handshakes took that succeeded."),
		resumed: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "caddy", Subsystem: "target", Name: "tls_sessions_resumed_total", Help: "TLS handshakes that resumed an earlier session.",
		}),
	}
}

// Connected implements pool.Observer.
func (c *Dials) Connected(took time.Duration) { c.dial.Observe(took.Seconds()) }

// Secured implements pool.Observer.
func (c *Dials) Secured(took time.Duration, resumed bool) {
	c.handshake.Observe(took.Seconds())
	if resumed {
		c.resumed.Inc()
	}
}

// The metrics of connections and addresses that are collected when they are asked for.
var (
	descConnections = prometheus.NewDesc("caddy_target_connections", "Open connections, by state and protocol.", []string{"state", "protocol"}, nil)
	descDials       = prometheus.NewDesc("caddy_target_dials", "Connections that are being opened, by phase.", []string{"phase"}, nil)
	descEjected     = prometheus.NewDesc("caddy_target_ejected_addresses", "Addresses that are ejected, by state.", []string{"state"}, nil)
)

// protocols are the labels of the protocols of pool.Counts, in their order, and of other
// protocols.
var protocols = [...]string{"http/1.1", "http/2", "other"}

// Addresses knows how many addresses are in each state.
type Addresses interface {
	States() [health.Ejected + 1]int
}

// connections collects what pools and addresses are like now.
type connections struct {
	pools     iter.Seq[pool.Counts]
	addresses Addresses
}

// Describe implements prometheus.Collector.
func (c *connections) Describe(descs chan<- *prometheus.Desc) {
	descs <- descConnections
	descs <- descDials
	descs <- descEjected
}

// Collect implements prometheus.Collector.
func (c *connections) Collect(metrics chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, n int, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n), labels...)
	}
	var idle, inUse [len(protocols)]int
	var dials [len(pool.Counts{}.Dialling)]int
	for of := range c.pools {
		for i := range of.Idle {
			idle[i] += of.Idle[i]
			inUse[i] += of.InUse[i]
		}
		inUse[len(protocols)-1] += of.Upgraded
		for phase, n := range of.Dialling {
			dials[phase] += n
		}
	}
	for i, protocol := range protocols {
		gauge(descConnections, inUse[i], "in_use", protocol)
		if i < len(protocols)-1 {
			gauge(descConnections, idle[i], "idle", protocol)
		}
	}
	for phase, n := range dials {
		gauge(descDials, n, string(failure.PhaseOf(pool.Phase(phase))))
	}
	for state, n := range c.addresses.States() {
		if state := health.State(state); state != health.Healthy {
			gauge(descEjected, n, state.String())
		}
	}
}

// Interface guards
var (
	_ pool.Observer        = (*Dials)(nil)
	_ prometheus.Collector = (*connections)(nil)
	_ Addresses            = (*health.Tracker)(nil)
)
