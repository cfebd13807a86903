package metrics

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"caddytarget/internal/dnsclient"
	"caddytarget/internal/failure"
	"caddytarget/internal/health"
	"caddytarget/internal/pool"
	"caddytarget/internal/resolver"
	"caddytarget/internal/topk"
)

// addresses is how many addresses are in each state.
type addresses [health.Ejected + 1]int

func (a addresses) States() [health.Ejected + 1]int { return a }

// series returns the values of the series of a registry, by name and labels.
func series(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := strings.TrimPrefix(f.GetName(), "caddy_target_")
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			switch {
			case m.GetCounter() != nil:
				all[name] = m.GetCounter().GetValue()
			case m.GetGauge() != nil:
				all[name] = m.GetGauge().GetValue()
			case m.GetHistogram() != nil:
				all[name] = float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return all
}

func notZero(all map[string]float64) map[string]float64 {
	maps.DeleteFunc(all, func(_ string, n float64) bool { return n == 0 })
	return all
}

// TestAtZero: series with labels that are known are there before anything has happened.
func TestAtZero(t *testing.T) {
	registry := prometheus.NewRegistry()
	m := New(func(func(pool.Counts) bool) {}, addresses{})
	for range 2 { // a registry may have them already
		if err := m.Register(registry); err != nil {
			t.Fatal(err)
		}
	}
	got := series(t, registry)
	want := []string{
		"requests_total new", "requests_total reused", "refused_total enforce loop", "refused_total report private",
		"connections http/1.1 idle", "connections other in_use", "dials tls", "ejected_addresses ejected",
		"dial_seconds", "tls_handshake_seconds", "tls_sessions_resumed_total",
	}
	for _, f := range failure.RequestFailures() {
		want = append(want, "failures_total "+string(f.Token)+" "+string(f.Phase))
	}
	for _, f := range failure.AddressFailures() {
		want = append(want, "ejections_total "+string(f.Token)+" "+string(f.Phase))
	}
	for _, name := range want {
		if n, ok := got[name]; !ok || n != 0 {
			t.Errorf("got %g (%t) for %s, want 0", n, ok, name)
		}
	}
}

// TestCollected: pools are added up, and the series of targets are there if they are wanted.
func TestCollected(t *testing.T) {
	pools := []pool.Counts{
		{Idle: [2]int{1, 2}, InUse: [2]int{3, 4}, Upgraded: 5, Dialling: [2]int{pool.Connect: 6, pool.Handshake: 7}},
		{Idle: [2]int{10, 20}},
	}
	m := New(slices.Values(pools), addresses{health.Healthy: 9, health.Ejected: 8})
	m.Requests.Answered(true)
	m.Requests.Top.Observe("a.example", topk.Observation{Failed: true})
	registry := prometheus.NewRegistry()
	if err := m.Register(registry); err != nil {
		t.Fatal(err)
	}
	want := map[string]float64{
		"connections http/1.1 idle": 11, "connections http/2 idle": 22, "connections http/1.1 in_use": 3, "connections http/2 in_use": 4,
		"connections other in_use": 5, "dials connect": 6, "dials tls": 7, "ejected_addresses ejected": 8, "requests_total reused": 1,
	}
	if got := notZero(series(t, registry)); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if err := m.RegisterTargets(registry); err != nil {
		t.Fatal(err)
	}
	if got := series(t, registry); got["top_requests_total a.example"]+got["top_requests_total (other)"] != 1 {
		t.Errorf("got %v, want one request", got)
	}
}

// counts is a resolver that has counted.
type counts struct {
	stats       []resolver.ZoneStats
	nameservers []resolver.ZoneNameservers
}

func (c *counts) Stats() []resolver.ZoneStats             { return c.stats }
func (c *counts) Nameservers() []resolver.ZoneNameservers { return c.nameservers }

func newCounts(zone string, evictions, timeouts uint64) *counts {
	c := &counts{
		stats:       []resolver.ZoneStats{{Zone: zone}},
		nameservers: []resolver.ZoneNameservers{{Zone: zone, Nameservers: []dnsclient.NameserverStats{{Queries: dnsclient.QueryCounts{Timeouts: timeouts}}}}},
	}
	c.stats[0].Evictions = evictions
	c.nameservers[0].Nameservers[0].Queries.Seconds.Count = timeouts
	return c
}

// TestRetired: a counter goes on when a resolver is replaced, and not where none has the
// zone any more.
func TestRetired(t *testing.T) {
	m := New(func(func(pool.Counts) bool) {}, addresses{})
	registry := prometheus.NewRegistry()
	if err := m.Register(registry); err != nil {
		t.Fatal(err)
	}
	a, b, other := newCounts(".", 1, 10), newCounts(".", 2, 20), newCounts("corp.example", 4, 40)
	check := func(when string, evictions, timeouts float64) {
		t.Helper()
		got := series(t, registry)
		ns := a.nameservers[0].Nameservers[0].Nameserver.String()
		if got["evictions_total ."] != evictions || got["dns_queries_total "+ns+" timeout ."] != timeouts || got["dns_reply_seconds "+ns+" ."] != timeouts {
			t.Errorf("%s: got %v, want %g evictions and %g timeouts", when, notZero(got), evictions, timeouts)
		}
	}
	m.DNS.Add(a)
	check("one", 1, 10)
	m.DNS.Add(b)
	m.DNS.Add(other)
	check("two", 3, 30)
	m.DNS.Retire(a)
	m.DNS.Retire(other)
	check("one of two is gone", 3, 30)
	if got := series(t, registry); len(got) == 0 || slices.ContainsFunc(slices.Collect(maps.Keys(got)), func(s string) bool { return strings.Contains(s, "corp.example") }) {
		t.Errorf("got series of a zone that is gone: %v", notZero(got))
	}
	m.DNS.Retire(b)
	m.DNS.Add(newCounts(".", 100, 1000))
	check("none had it meanwhile", 100, 1000)
}
