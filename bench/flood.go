package main

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"caddytarget/internal/testlab"
)

const (
	floodKnown = 200  // names of the normal load
	floodLoad  = 1500 // requests to them a second
	floodRate  = 2000 // requests of the flood a second
	floodOther = 200  // requests a second to new names of domains without dead ones
	floodConns = 4096 // requests to names that are never answered wait for long
)

// flood compares an open-loop load with and without a flood of new names beside
// it, and with as many more requests to known ones. Names of the flood are of
// one domain, and then each of its own.
func flood(l *lab) {
	l.options = *floodOptions
	f := &flooding{lab: l, backends: l.startBackends(8, testlab.BackendConfig{}), port: freePort(), admin: freePort()}
	f.known = oneOf("http", floodKnown, f.backends.port)
	for _, shape := range []struct{ about, format string }{
		{"all names of the flood below one domain", "%s.flood.example"},
		{"each below a domain of its own", "www.%s.com"},
	} {
		fmt.Printf("%s, %s:\n", shape.about, cmp.Or(l.options, "default options"))
		f.unknown = f.newNames(string([]byte{existing, missing, existing, silent}), func() string { return shape.format })
		f.compare()
		f.sustain()
	}
}

// flooding is what the runs of a flood have in common.
type flooding struct {
	*lab
	backends       *backends
	port, admin    int
	known, unknown func() string
}

// newNames returns targets that differ each time, of these kinds in turn.
func (f *flooding) newNames(kinds string, format func() string) func() string {
	var n atomic.Uint64
	return func() string {
		label := fmt.Sprintf("%c%x", kinds[n.Add(1)%uint64(len(kinds))], rand.Uint64())
		return fmt.Sprintf("http://%s:%d", fmt.Sprintf(format(), label), f.backends.port)
	}
}

func (f *flooding) start() {
	f.startCaddy(f.gateway(f.port, f.admin, ""), address(f.port))
}

func (f *flooding) newConns() *conns { return &conns{address: address(f.port), limit: floodConns} }

// normal is the load of known names.
func (f *flooding) normal(duration time.Duration) *result {
	file := f.valuesFile(targets("http", floodKnown, f.backends.port), nil)
	return loadSpec{Address: address(f.port), Rate: floodLoad, Duration: duration, Values: file}.run()
}

// send starts an open loop over connections of its own.
func (f *flooding) send(rate int, duration time.Duration, target func() string) <-chan *result {
	done := make(chan *result, 1)
	go func() {
		c := f.newConns()
		defer c.close()
		done <- openLoopBy(c.get, rate, duration, target, never)
	}()
	return done
}

// compare measures the known names. Each round has a caddy of its own, since
// names of the flood are refreshed when it is over.
func (f *flooding) compare() {
	sides := [3]struct {
		about    string
		more     func() string // targets of the other requests
		p50, p99 []float64
		late     []float64 // p99
		cpu      []float64 // of caddy, in CPUs
	}{{about: "alone"}, {about: "more known names", more: f.known}, {about: "flood", more: f.unknown}}
	duration := time.Duration(*seconds) * time.Second
	failed, sent := 0, 0
	var queries int64
	outcomes := make(map[string]int)
	for range *rounds {
		f.start()
		f.normal(2 * time.Second)
		for i := range sides {
			s := &sides[i]
			cpu, asked := f.cpu(), f.names.queries.Load()
			var others <-chan *result
			if s.more != nil {
				others = f.send(floodRate, duration, s.more)
			}
			r := f.normal(duration)
			s.cpu = append(s.cpu, (f.cpu()-cpu).Seconds()/duration.Seconds())
			s.p50 = append(s.p50, r.quantile(.5).Seconds()*1e3)
			s.p99 = append(s.p99, r.quantile(.99).Seconds()*1e3)
			s.late = append(s.late, quantile(r.Late, .99).Seconds()*1e3)
			asked = f.names.queries.Load() - asked
			if others == nil {
				continue
			}
			if o := <-others; i == len(sides)-1 {
				failed, sent, queries = failed+r.Failed, sent+r.Sent, queries+asked
				addOutcomes(outcomes, o)
			}
		}
		f.stopCaddy()
	}
	for _, s := range sides {
		fmt.Printf("  %-17s p50 %.2f ms (ratio %.2f)  p99 %.2f ms (ratio %.2f), %.2f ms of it before it was sent  %.2f CPUs\n", s.about,
			median(s.p50), median(ratios(s.p50, sides[0].p50)), median(s.p99), median(ratios(s.p99, sides[0].p99)), median(s.late), median(s.cpu))
	}
	fmt.Printf("  %d of %d requests to known names failed during the flood; of its own %s; %.0f queries a second\n",
		failed, sent, outcomesOf(outcomes), float64(queries)/duration.Seconds()/float64(*rounds))
}

// sustain lets the flood go on until more names have come than a cache has room
// for, and prints what that takes. Beside it there are new names of domains that
// have no dead ones.
func (f *flooding) sustain() {
	const parts, rest = 5, 5 * time.Second
	part := time.Duration(*seconds) * time.Second * 15 / parts
	healthy := f.newNames(string(existing), func() string { return fmt.Sprintf("%%s.shop%d.example", rand.N(50)) })
	f.start()
	defer f.stopCaddy()
	f.normal(2 * time.Second)
	<-f.send(floodOther, 2*time.Second, healthy)
	rss, heap := f.memory(f.admin)
	goroutines, descriptors := f.held(f.admin)

	start := time.Now()
	known := make(chan *result, 1)
	go func() { known <- f.normal(parts * part) }()
	others := f.send(floodOther, parts*part, healthy)
	own := f.send(floodRate, parts*part, f.unknown)
	var queries []string
	for i := range parts {
		asked := f.names.queries.Load()
		if *profile != "" && i == parts-1 {
			f.writeProfile(f.admin)
		}
		time.Sleep(time.Until(start.Add(time.Duration(i+1) * part)))
		queries = append(queries, fmt.Sprintf("%.0f", float64(f.names.queries.Load()-asked)/part.Seconds()))
	}
	peak := f.status("VmHWM:")
	goroutinesIn, descriptorsIn := f.held(f.admin)
	k, o, outcomes := <-known, <-others, make(map[string]int)
	addOutcomes(outcomes, <-own)

	time.Sleep(rest)
	asked, cpu := f.names.queries.Load(), f.cpu()
	after := f.normal(rest)
	asked, cpu = f.names.queries.Load()-asked, f.cpu()-cpu
	rssAfter, heapAfter := f.memory(f.admin)
	goroutinesAfter, descriptorsAfter := f.held(f.admin)
	fmt.Printf("  %.0f s of it: %d of %d requests to known names failed %v, p99 %.2f ms; %d of %d to new names of 50 other domains %v, p99 %.2f ms; of its own %s\n",
		(parts * part).Seconds(), k.Failed, k.Sent, k.Errors, k.quantile(.99).Seconds()*1e3, o.Failed, o.Sent, o.Errors, o.quantile(.99).Seconds()*1e3, outcomesOf(outcomes))
	fmt.Printf("  queries a second: %s, each a fifth of it; 5 s after its end %.0f, %d of %d requests to known names failed, p99 %.2f ms, %.2f CPUs\n",
		strings.Join(queries, ", "), float64(asked)/rest.Seconds(), after.Failed, after.Sent, after.quantile(.99).Seconds()*1e3, cpu.Seconds()/rest.Seconds())
	fmt.Printf("  before, in and after it: %.0f, at most %.0f, %.0f MB resident; %.1f and %.1f MB on the heap; %d, %d, %d goroutines; %d, %d, %d descriptors\n",
		float64(rss)/1e6, float64(peak)/1e6, float64(rssAfter)/1e6, float64(heap)/1e6, float64(heapAfter)/1e6,
		goroutines, goroutinesIn, goroutinesAfter, descriptors, descriptorsIn, descriptorsAfter)
}

func addOutcomes(sum map[string]int, r *result) {
	sum["200"] += len(r.Latencies)
	for what, n := range r.Errors {
		sum[what] += n
	}
}

// outcomesOf returns which outcome had which part.
func outcomesOf(counts map[string]int) string {
	all := 0
	for _, n := range counts {
		all += n
	}
	var parts []string
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%.1f %% %s", 100*float64(counts[what])/float64(all), what))
	}
	return strings.Join(parts, ", ")
}
