package metrics

import (
	"maps"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/dnsclient"
	"caddytarget/internal/resolver"
)

// dnsMetric describes one metric of the resolvers.
type dnsMetric struct {
	desc   *prometheus.Desc
	kind   prometheus.ValueType
	labels int
}

func newDNSMetric(name, help string, kind prometheus.ValueType, labels ...string) *dnsMetric {
	return &dnsMetric{prometheus.NewDesc("caddy_target_"+name, help, labels, nil), kind, len(labels)}
}

// The metrics of the resolvers. Each value is the sum of those of all resolvers that
// have the zone and the nameserver.
var (
	metricLookups = newDNSMetric("lookups_total",
		"Lookups of names, by zone and result.", prometheus.CounterValue, "zone", "result")
	metricRefreshes = newDNSMetric("refreshes_total",
		"Lookups in the background, by zone.", prometheus.CounterValue, "zone")
	metricEvictions = newDNSMetric("evictions_total",
		"Names that had to make room for others in the cache, by zone.", prometheus.CounterValue, "zone")
	metricNames = newDNSMetric("cache_names",
		"Names in the cache, by zone and state.", prometheus.GaugeValue, "zone", "state")
	metricMismatches = newDNSMetric("dns_mismatches_total",
		"Messages that were no reply to a query, by zone; many are a sign of forgery.", prometheus.CounterValue, "zone")
	metricQueries = newDNSMetric("dns_queries_total",
		"Queries by zone, nameserver and rcode, or how they failed.", prometheus.CounterValue, "zone", "nameserver", "rcode")
	metricTruncated = newDNSMetric("dns_truncated_total",
		"Replies that were truncated, by zone and nameserver.", prometheus.CounterValue, "zone", "nameserver")
	metricDown = newDNSMetric("nameserver_down",
		"How many resolvers find the nameserver down, by zone and nameserver.", prometheus.GaugeValue, "zone", "nameserver")
	metricSeconds = newDNSMetric("dns_reply_seconds",
		"How long replies took, by zone and nameserver.", prometheus.UntypedValue, "zone", "nameserver")

	dnsMetrics = []*dnsMetric{
		metricLookups, metricRefreshes, metricEvictions, metricNames, metricMismatches, metricQueries, metricTruncated, metricDown, metricSeconds,
	}
)

// queryRcodes are the keys of dnsclient.QueryCounts.Rcodes. All of them are there from
// the start, so that the first one of its kind is an increase.
var queryRcodes = [...]string{"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "other"}

// dnsSeries is one series of a metric.
type dnsSeries struct {
	*dnsMetric
	values [3]string // of the labels
}

// dnsCounts are the values of all series.
type dnsCounts struct {
	values  map[dnsSeries]float64
	seconds map[dnsSeries]dnsclient.Histogram
}

func newDNSCounts() *dnsCounts {
	return &dnsCounts{make(map[dnsSeries]float64), make(map[dnsSeries]dnsclient.Histogram)}
}

// count adds to a series.
func (c *dnsCounts) count(m *dnsMetric, n uint64, labels ...string) {
	c.values[newDNSSeries(m, labels...)] += float64(n)
}

func newDNSSeries(m *dnsMetric, labels ...string) dnsSeries {
	s := dnsSeries{dnsMetric: m}
	copy(s.values[:], labels)
	return s
}

// add adds what a resolver has counted.
func (c *dnsCounts) add(r Resolver) {
	for _, z := range r.Stats() {
		for result, n := range z.Lookups {
			c.count(metricLookups, n, z.Zone, dnscache.Result(result).String())
		}
		for state, n := range z.Names {
			c.count(metricNames, uint64(n), z.Zone, dnscache.NameState(state).String())
		}
		c.count(metricRefreshes, z.Refreshes, z.Zone)
		c.count(metricEvictions, z.Evictions, z.Zone)
	}
	for _, z := range r.Nameservers() {
		c.count(metricMismatches, z.Mismatches, z.Zone)
		for i := range z.Nameservers {
			c.addNameserver(z.Zone, &z.Nameservers[i])
		}
	}
}

func (c *dnsCounts) addNameserver(zone string, s *dnsclient.NameserverStats) {
	name, q := s.Nameserver.String(), &s.Queries
	for _, rcode := range queryRcodes {
		c.count(metricQueries, q.Rcodes[rcode], zone, name, rcode)
	}
	c.count(metricQueries, q.Timeouts, zone, name, "timeout")
	c.count(metricQueries, q.Refused, zone, name, "connection_refused")
	c.count(metricQueries, q.Network, zone, name, "network_error")
	c.count(metricQueries, q.Malformed, zone, name, "malformed")
	c.count(metricTruncated, q.Truncated, zone, name)
	down := uint64(0)
	if s.Down {
		down = 1
	}
	c.count(metricDown, down, zone, name)
	c.addSeconds(newDNSSeries(metricSeconds, zone, name), q.Seconds)
}

func (c *dnsCounts) addSeconds(s dnsSeries, h dnsclient.Histogram) {
	sum := c.seconds[s]
	if sum.Buckets == nil {
		sum.Buckets = make(map[float64]uint64, len(h.Buckets))
	}
	sum.Count += h.Count
	sum.Sum += h.Sum
	for bound, n := range h.Buckets {
		sum.Buckets[bound] += n
	}
	c.seconds[s] = sum
}

// complete adds what resolvers had counted that are gone, to the series that c has: one
// of a nameserver that no resolver has now is left out, and does not fall.
func (c *dnsCounts) complete(retired *dnsCounts) {
	for s, n := range retired.values {
		if _, ok := c.values[s]; ok {
			c.values[s] += n
		}
	}
	for s, h := range retired.seconds {
		if _, ok := c.seconds[s]; ok {
			c.addSeconds(s, h)
		}
	}
}

// Resolver is a resolver that counts.
type Resolver interface {
	Stats() []resolver.ZoneStats
	Nameservers() []resolver.ZoneNameservers
}

// DNS collects the metrics of the resolvers when it is asked for them.
type DNS struct {
	mu   sync.Mutex
	live map[Resolver]struct{}

	// retired is what resolvers had counted that are gone by now, of the zones and
	// nameservers that one which is live has too. So a counter goes on where a reload
	// changes a resolver.
	retired *dnsCounts
}

func newDNS() *DNS {
	return &DNS{live: make(map[Resolver]struct{}), retired: newDNSCounts()}
}

// Add adds a resolver.
func (c *DNS) Add(r Resolver) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.live[r] = struct{}{}
}

// Retire removes a resolver that is closed, and keeps what it has counted.
func (c *DNS) Retire(r Resolver) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.live, r)
	retired := newDNSCounts()
	retired.add(r)
	for s, n := range c.retired.values {
		retired.values[s] += n
	}
	for s, h := range c.retired.seconds {
		retired.addSeconds(s, h)
	}
	live := c.ofLive()
	maps.DeleteFunc(retired.values, func(s dnsSeries, _ float64) bool {
		_, ok := live.values[s]
		return !ok || s.kind != prometheus.CounterValue
	})
	maps.DeleteFunc(retired.seconds, func(s dnsSeries, _ dnsclient.Histogram) bool {
		_, ok := live.seconds[s]
		return !ok
	})
	c.retired = retired
}

// ofLive returns the sum of the resolvers in use; c.mu is held.
func (c *DNS) ofLive() *dnsCounts {
	sum := newDNSCounts()
	for r := range c.live {
		sum.add(r)
	}
	return sum
}

// Describe implements prometheus.Collector.
func (c *DNS) Describe(descs chan<- *prometheus.Desc) {
	for _, m := range dnsMetrics {
		descs <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (c *DNS) Collect(metrics chan<- prometheus.Metric) {
	c.mu.Lock()
	current := c.ofLive()
	current.complete(c.retired)
	c.mu.Unlock()
	for s, n := range current.values {
		metrics <- prometheus.MustNewConstMetric(s.desc, s.kind, n, s.values[:s.labels]...)
	}
	for s, h := range current.seconds {
		metrics <- prometheus.MustNewConstHistogram(s.desc, h.Count, h.Sum, h.Buckets, s.values[:s.labels]...)
	}
}

// Interface guards
var _ prometheus.Collector = (*DNS)(nil)
