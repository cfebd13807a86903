package caddytarget

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"caddytarget/internal/testlab"
)

// dnsSeries returns the series of the gateway, which has its metrics at /metrics, that
// begin with one of some names, but for caddy_target_.
func (w *world) dnsSeries(names ...string) map[string]float64 {
	w.Helper()
	series := make(map[string]float64)
	for line := range strings.Lines(w.mustGet("/metrics", "").body) {
		at := strings.LastIndexByte(line, ' ')
		name, ok := strings.CutPrefix(line[:max(at, 0)], "caddy_target_")
		if !ok || !slices.ContainsFunc(names, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) {
			continue
		}
		value, err := strconv.ParseFloat(strings.TrimSpace(line[at:]), 64)
		if err != nil {
			w.Fatal(err)
		}
		series[name] = value
	}
	return series
}

// notZero returns the series that are not 0.
func notZero(series map[string]float64) map[string]float64 {
	maps.DeleteFunc(series, func(_ string, n float64) bool { return n == 0 })
	return series
}

// TestDNSMetrics checks the metrics of names and nameservers: what they count, and that
// a reload keeps counters, also one that changes the resolver.
// It is long because its table is.
func TestDNSMetrics(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	corp := testlab.NewNameserver(t)
	w.dns.Set("a.example", testlab.Reply{Addrs: []string{"127.0.0.2"}, TTL: 600})
	w.dns.Set("broken.example", testlab.Reply{Rcode: dns.RcodeServerFailure})
	corp.Set("a.corp.example", testlab.Reply{Addrs: []string{"127.0.0.2"}, TTL: 600})
	w.resolver = "tries 1\nzone corp.example " + corp.Addr
	site := "metrics /metrics\n" + w.proxy()
	w.run(site)

	// all are there from the start
	before := w.dnsSeries("")
	for _, series := range []string{
		`lookups_total{result="stale",zone="."}`, `lookups_total{result="hit",zone="corp.example"}`, `refreshes_total{zone="."}`,
		`evictions_total{zone="."}`, `cache_names{state="fresh",zone="."}`, `dns_mismatches_total{zone="."}`,
		fmt.Sprintf(`dns_queries_total{nameserver=%q,rcode="SERVFAIL",zone="."}`, w.dns.Addr),
		fmt.Sprintf(`dns_queries_total{nameserver=%q,rcode="timeout",zone="corp.example"}`, corp.Addr),
		fmt.Sprintf(`dns_truncated_total{nameserver=%q,zone="."}`, w.dns.Addr),
		fmt.Sprintf(`nameserver_down{nameserver=%q,zone="."}`, w.dns.Addr),
		fmt.Sprintf(`dns_reply_seconds_bucket{nameserver=%q,zone=".",le="+Inf"}`, w.dns.Addr),
	} {
		if n, ok := before[series]; !ok || n != 0 {
			t.Errorf("got %g (%t) for %s at the start, want 0", n, ok, series)
		}
	}

	call := func() {
		w.mustGet("/", "http://a.example:"+b.Port)
		w.mustGet("/", "http://a.example:"+b.Port)
		w.mustGet("/", "http://a.corp.example:"+b.Port)
		w.get("/", "http://none.example")
		w.get("/", "http://broken.example")
	}
	call()
	counters := []string{"lookups_total", "dns_queries_total", "dns_reply_seconds_count"}
	want := func(times float64) map[string]float64 {
		return map[string]float64{
			`lookups_total{result="miss",zone="."}`:                                                        times,
			`lookups_total{result="hit",zone="."}`:                                                         times,
			`lookups_total{result="negative",zone="."}`:                                                    times,
			`lookups_total{result="failed",zone="."}`:                                                      times,
			`lookups_total{result="miss",zone="corp.example"}`:                                             times,
			fmt.Sprintf(`dns_queries_total{nameserver=%q,rcode="NOERROR",zone="."}`, w.dns.Addr):           times,
			fmt.Sprintf(`dns_queries_total{nameserver=%q,rcode="NXDOMAIN",zone="."}`, w.dns.Addr):          times,
			fmt.Sprintf(`dns_queries_total{nameserver=%q,rcode="SERVFAIL",zone="."}`, w.dns.Addr):          times,
			fmt.Sprintf(`dns_queries_total{nameserver=%q,rcode="NOERROR",zone="corp.example"}`, corp.Addr): times,
			fmt.Sprintf(`dns_reply_seconds_count{nameserver=%q,zone="."}`, w.dns.Addr):                     3 * times,
			fmt.Sprintf(`dns_reply_seconds_count{nameserver=%q,zone="corp.example"}`, corp.Addr):           times,
		}
	}
	check := func(when string, want map[string]float64) {
		t.Helper()
		if got := notZero(w.dnsSeries(counters...)); !maps.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", when, got, want)
		}
	}
	check("after requests", want(1))
	if got, want := notZero(w.dnsSeries("cache_names")), map[string]float64{
		`cache_names{state="fresh",zone="."}`: 1, `cache_names{state="negative",zone="."}`: 1, `cache_names{state="failing",zone="."}`: 1,
		`cache_names{state="fresh",zone="corp.example"}`: 1,
	}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}

	w.run(site + "\n# the same resolver")
	check("after a reload", want(1))
	w.resolver = "max_ttl 2h\n" + w.resolver
	forgetNames() // which it would take over
	w.run(site)
	check("after a reload with another resolver", want(1))
	if got := notZero(w.dnsSeries("cache_names")); len(got) > 0 {
		t.Errorf("got the names %v of a new resolver, want none", got)
	}
	call()
	check("with another resolver", want(2))
	w.resolver = "max_ttl 3h\n" + w.resolver[len("max_ttl 2h\n"):]
	w.run("metrics /metrics\n" + w.proxy("resolver "+w.dns.Addr+" {\nhosts off\n}"))
	check("with two resolvers", want(2))

	w.resolver = "tries 1"
	forgetNames() // or that of the zone would be asked for elsewhere
	w.run(site)
	for series := range w.dnsSeries("") {
		if strings.Contains(series, "corp.example") {
			t.Errorf("got the series %s of a zone that is gone, want none", series)
		}
	}
	wantRoot := want(2)
	maps.DeleteFunc(wantRoot, func(series string, _ float64) bool { return strings.Contains(series, "corp.example") })
	check("without the zone", wantRoot)
}

// TestDNSMetricsStaleAndDown checks what is counted while a nameserver is silent.
func TestDNSMetricsStaleAndDown(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	w.dns.Set("a.example", testlab.Reply{Addrs: []string{"127.0.0.2"}, TTL: 0})
	w.resolver = "tries 1\ntimeout 50ms\nmin_ttl 1ms\nstale_wait 10ms"
	w.run("metrics /metrics\n" + w.proxy())
	w.mustGet("/", "http://a.example:"+b.Port)
	w.dns.SetSilent(true)
	for _, series := range []string{
		`lookups_total{result="stale",zone="."}`,
		fmt.Sprintf(`dns_queries_total{nameserver=%q,rcode="timeout",zone="."}`, w.dns.Addr),
		fmt.Sprintf(`nameserver_down{nameserver=%q,zone="."}`, w.dns.Addr),
	} {
		testlab.Eventually(t, series, func() bool {
			w.mustGet("/", "http://a.example:"+b.Port)
			return w.dnsSeries("")[series] > 0
		})
	}
}
