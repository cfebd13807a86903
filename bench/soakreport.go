package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// soakReport is what the soak found out.
type soakReport struct {
	Machine, Date string
	Minutes       int
	Samples       []sample
	Kinds         map[string]*tally
	Repeated      int64 // requests that met a connection that the gateway had closed
}

// sample is what caddy held at a moment, right after a collection.
type sample struct {
	Minute                  float64
	Resident, Heap          float64 // MB
	Goroutines, Descriptors float64
}

// held are the values of a sample.
var held = []struct {
	name string
	of   func(sample) float64
}{
	{"resident memory, MB", func(s sample) float64 { return s.Resident }},
	{"heap, MB", func(s sample) float64 { return s.Heap }},
	{"goroutines", func(s sample) float64 { return s.Goroutines }},
	{"descriptors", func(s sample) float64 { return s.Descriptors }},
}

// settled returns the samples after the first 20 minutes, or after a third of a soak that
// takes less than an hour.
func (r *soakReport) settled() []sample {
	from := min(20, float64(r.Minutes)/3)
	return slices.DeleteFunc(slices.Clone(r.Samples), func(s sample) bool { return s.Minute < from })
}

// slope returns by how much a value rises an hour, by least squares, and its mean.
func slope(samples []sample, of func(sample) float64) (hourly, mean float64) {
	var n, x, y, xx, xy float64
	for _, s := range samples {
		value := of(s)
		n, x, y, xx, xy = n+1, x+s.Minute, y+value, xx+s.Minute*s.Minute, xy+s.Minute*value
	}
	if n < 2 {
		return 0, y
	}
	return (n*xy - x*y) / (n*xx - x*x) * 60, y / n
}

// slopes writes how each value rises.
func (r *soakReport) slopes() (lines []string) {
	for _, v := range held {
		hourly, mean := slope(r.settled(), v.of)
		lines = append(lines, fmt.Sprintf("%s: %.1f on average, %+.2f an hour (%+.2f %%)", v.name, mean, hourly, 100*hourly/max(mean, 1)))
	}
	return lines
}

// failures returns the failures of all kinds that were not planted.
func (r *soakReport) failures() (lines []string) {
	for _, kind := range slices.Sorted(maps.Keys(r.Kinds)) {
		for text, n := range r.Kinds[kind].Errors {
			lines = append(lines, fmt.Sprintf("%s: %d × %s", kind, n, text))
		}
	}
	slices.Sort(lines)
	return lines
}

func (r *soakReport) print() {
	for _, kind := range slices.Sorted(maps.Keys(r.Kinds)) {
		t := r.Kinds[kind]
		fmt.Printf("%-40s %d sent, %d failed, planted %v, others %v\n", kind, t.Sent, t.Failed, t.Planted, t.Errors)
	}
	fmt.Printf("%d requests met a connection that the gateway had closed, and were sent again\n", r.Repeated)
	for _, line := range r.slopes() {
		fmt.Println(line)
	}
}

const soakHead = `
## Soak

%d minutes (` + "`go run ./bench -minutes %[1]d soak`" + `); %s, %s. All at once: GETs and POSTs over HTTP/1.1 with and without
TLS and HTTP/2, slow and leaving clients, WebSockets, names that move every %s, names never seen before, failing names and
backends, and the configuration is loaded anew every %s. A sample is taken twice a minute, right after a collection.

![Memory](%s/soak-memory.svg)

![Goroutines and descriptors](%[6]s/soak-counts.svg)

After the first %.0f minutes:

`

// write writes the section of the report.
func (r *soakReport) write(b *strings.Builder) {
	fmt.Fprintf(b, soakHead, r.Minutes, r.Machine, r.Date, soakMove, soakReload, plotDir, min(20, float64(r.Minutes)/3))
	for _, line := range r.slopes() {
		fmt.Fprintf(b, "- %s\n", line)
	}
	b.WriteString("\n| requests | sent | failed as planted | otherwise |\n|---|---|---|---|\n")
	for _, kind := range slices.Sorted(maps.Keys(r.Kinds)) {
		t := r.Kinds[kind]
		var planted []string
		others := 0
		for _, what := range slices.Sorted(maps.Keys(t.Planted)) {
			planted = append(planted, fmt.Sprintf("%d × `%s`", t.Planted[what], what))
		}
		for _, n := range t.Errors {
			others += n
		}
		fmt.Fprintf(b, "| %s | %d | %s | %d |\n", kind, t.Sent, strings.Join(planted, ", "), others)
	}
	fmt.Fprintf(b, "\n%d requests met a connection that a reload had closed, and were sent again by the client.\n", r.Repeated)
	if lines := r.failures(); len(lines) > 0 {
		b.WriteString("\nFailures without a planted cause:\n\n")
		for _, line := range lines {
			fmt.Fprintf(b, "- %s\n", strings.Join(strings.Fields(line), " "))
		}
	}
}

// charts returns those of the soak.
func (r *soakReport) charts() []chart {
	memory := chart{File: "soak-memory.svg", Title: "Soak: memory", X: "minutes", Y: "MB"}
	counts := chart{File: "soak-counts.svg", Title: "Soak: goroutines and descriptors", X: "minutes", Y: "number"}
	for i, v := range held {
		s := series{Name: v.name, Color: 3 * (i % 2)}
		for _, sample := range r.Samples {
			s.X, s.Y = append(s.X, sample.Minute), append(s.Y, v.of(sample))
		}
		to := &memory
		if i >= 2 {
			to = &counts
		}
		to.Series = append(to.Series, s)
	}
	return []chart{memory, counts}
}
