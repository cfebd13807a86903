package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// The figures of a contestant.
const (
	fullRate = "requests/s at full load"
	fullCPU  = "CPU at full load, µs a request"
	cpuTime  = "CPU, µs a request"
	p50      = "p50, ms"
	p99      = "p99, ms"
	failed   = "failed, %"
	opens    = "new connections per 1 000 requests"
	queries  = "DNS queries a request"
	memory   = "memory, MB"
	late     = "begun late, ms"
)

// figures, in the order of the report.
var figures = []struct {
	name   string
	digits int
	more   bool // is better
}{{fullRate, 0, true}, {fullCPU, 1, false}, {cpuTime, 1, false}, {p50, 2, false}, {p99, 2, false}, {failed, 2, false}, {opens, 1, false}, {queries, 3, false}, {memory, 0, false}, {late, 1, false}}

// measurements is what the file measurements.json in -out holds, from which the report
// is made.
type measurements struct {
	Comparisons []*comparison
	Soak        *soakReport
}

// add adds a comparison, in place of an older one in the same setting, and of all quick
// ones unless it is quick itself.
func (m *measurements) add(c *comparison) {
	m.Comparisons = slices.DeleteFunc(m.Comparisons, func(old *comparison) bool {
		return old.setting == c.setting || old.Quick && !c.Quick
	})
	m.Comparisons = append(m.Comparisons, c)
	order := func(c *comparison) int {
		return slices.IndexFunc(cases, func(k struct{ name, flag, about string }) bool { return k.name == c.Case })
	}
	slices.SortFunc(m.Comparisons, func(a, b *comparison) int {
		return cmp.Or(cmp.Compare(order(a), order(b)), cmp.Compare(a.Scheme, b.Scheme), cmp.Compare(a.Addresses, b.Addresses), cmp.Compare(a.Domains, b.Domains))
	})
}

// record changes the measurements in -out and writes the report anew.
func record(change func(*measurements)) {
	dir := *outDir
	if dir == "" {
		return
	}
	must(os.MkdirAll(filepath.Join(dir, plotDir), 0o755))
	path := filepath.Join(dir, plotDir, "measurements.json")
	m := new(measurements)
	data, err := os.ReadFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		must(err)
		must(json.Unmarshal(data, m))
	}
	change(m)
	data, err = json.Marshal(m)
	must(err)
	must(os.WriteFile(path, data, 0o644))
	must(os.WriteFile(filepath.Join(dir, "measurements.md"), []byte(m.report()), 0o644))
	drawCharts(m.charts(), filepath.Join(dir, plotDir))
}

// plotDir is where the plots are, below -out.
const plotDir = "measurements"

func machine() string {
	return fmt.Sprintf("%s, %s/%s, %d CPUs", runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
}

// spread writes the median of some values, and the smallest and the greatest.
func spread(values []float64, digits int) string {
	if len(values) == 0 {
		return "–"
	}
	low, high := slices.Min(values), slices.Max(values)
	if low == high {
		return fmt.Sprintf("%.*f", digits, low)
	}
	return fmt.Sprintf("%.*f (%.*f–%.*f)", digits, median(values), digits, low, digits, high)
}

// print prints a comparison to standard output.
func (c *comparison) print() {
	for _, r := range c.Rows {
		fmt.Printf("  %-18s", r.Contestant)
		if r.Missing != "" {
			fmt.Printf(" not run: %s\n", r.Missing)
			continue
		}
		for _, f := range figures {
			if values := r.Figures[f.name]; values != nil {
				fmt.Printf("  %s %s", f.name, spread(values, f.digits))
			}
		}
		fmt.Println()
		for _, text := range r.failures() {
			fmt.Printf("      %s\n", text)
		}
	}
	for _, loss := range c.losses() {
		fmt.Printf("  loses: %s\n", loss)
	}
}

// failures returns what failed, the most frequent first.
func (r *row) failures() (list []string) {
	for _, text := range slices.SortedFunc(maps.Keys(r.Errors), func(a, b string) int {
		return cmp.Or(cmp.Compare(r.Errors[b], r.Errors[a]), cmp.Compare(a, b))
	}) {
		list = append(list, fmt.Sprintf("%d × %s", r.Errors[text], text))
	}
	return list
}

// rowOf returns what was found out about a contestant, or nil.
func (c *comparison) rowOf(contestant string) *row {
	for i, r := range c.Rows {
		if r.Contestant == contestant && r.Missing == "" {
			return &c.Rows[i]
		}
	}
	return nil
}

// against compares a contestant with caddytarget: -1 if it is better in a figure by more
// than caddytarget differs from itself, 1 if it is worse by more than that, and else 0.
// The ratio is its median over that of both instances of caddytarget. It is not ok if
// there is nothing to compare, or if the contestant fails more often by more than 1 %:
// it is easy to be cheap with less work.
func (c *comparison) against(r *row, figure string, more bool) (result int, ratio float64, ok bool) {
	a, b := c.rowOf(ours), c.rowOf(oursAgain)
	if a == nil || b == nil || slices.Contains([]string{ours, oursAgain, sharing}, r.Contestant) || figure == late || r.Contestant == static && figure == queries {
		return 0, 0, false
	}
	if len(r.Figures[figure]) == 0 || len(a.Figures[figure]) == 0 || len(b.Figures[figure]) == 0 {
		return 0, 0, false
	}
	if figure != failed && median(r.Figures[failed]) > max(median(a.Figures[failed]), median(b.Figures[failed]))+1 {
		return 0, 0, false
	}
	x, y, other := median(a.Figures[figure]), median(b.Figures[figure]), median(r.Figures[figure])
	low, high, noise := min(x, y), max(x, y), max(x, y)-min(x, y)
	switch {
	case other < low-noise:
		result = -1
	case other > high+noise:
		result = 1
	}
	if more {
		result = -result
	}
	return result, other / ((x + y) / 2), true
}

// losses returns in what other contestants are better than caddytarget.
func (c *comparison) losses() (list []string) {
	for _, f := range figures {
		for _, r := range c.Rows {
			if result, _, ok := c.against(&r, f.name, f.more); ok && result < 0 {
				list = append(list, fmt.Sprintf("%s: %s has %s, caddytarget %s and %s", f.name, r.Contestant, spread(r.Figures[f.name], f.digits),
					spread(c.rowOf(ours).Figures[f.name], f.digits), spread(c.rowOf(oursAgain).Figures[f.name], f.digits)))
			}
		}
	}
	return list
}

const reportHead = `<!-- Written by go run ./bench: do not edit. -->
# Measurements

The same load over caddytarget and what else can do its work: who wins, who loses, and by how much.

    apt-get install haproxy nginx libnginx-mod-http-lua lua-resty-core lua-nginx-dns lua-nginx-string wrk
    go run ./build && go run ./bench compare        # all of it
    go run ./bench -quick compare                   # two minutes: does it work? Figures mean little
    go run ./bench soak

` + "`go run ./bench -h`" + ` has the flags that choose settings. Each run adds its settings to this page, so the whole, of almost
three hours, may be run in parts. The first of these takes a quarter of an hour; the second is about domains that share addresses:

    go run ./bench -rounds 3 -seconds 3 -schemes http -domains 500,10000 -cases healthy,outage compare
    go run ./bench -addresses 8 -domains 500 -schemes http,https,h2 -cases healthy compare

This page and its plots are written by these commands; the figures are in [measurements.json](measurements/measurements.json), with each round.

## The contestants

All of them run on this one machine, which also has the load, the nameserver and the backends, all on loopback. The
configurations are in [bench/contestants.go](../bench/contestants.go).
`

const reportHow = `
- **Same means**: as many threads or workers as CPUs, no access log, %d idle connections to backends at most in all, a second to
  connect, one more try, A records only. A process may have %d descriptors.
- **Domains** have an address each, unless it is said otherwise, and a TTL of %s. Each domain was called once before, %d of
  them at most and for %s at most. Requests choose their domain at random.
- **Rounds**: each contestant is measured in each round, in random order, while the others have nothing to do. What
  stands here is the median of the rounds, and in parentheses the smallest and the greatest value.
- **caddytarget again** is a second instance with the same configuration: what the two differ by is noise.
- **CPU** is user and system time of all processes of a contestant. **Memory** is its resident memory at the end (PSS).
  **Failed** are other statuses than 200 and requests without a response within %s; p50 and p99 are those of
  the others. Requests at a constant rate are measured from the moment they were due. **Begun late** is the 99th percentile
  of how long after that the load began them, for want of CPU: where it is high, the machine was busy, and p50 and p99 say
  nothing.
`

// report is the page docs/measurements.md.
func (m *measurements) report() string {
	var b strings.Builder
	b.WriteString(reportHead)
	b.WriteString("\n")
	for _, c := range contestants {
		fmt.Fprintf(&b, "- **%s**: %s.\n", c.name, c.about)
	}
	fmt.Fprintf(&b, reportHow, idleConns, maxOpen, compareTTL, warmUp, warmTime, compareTimeout)
	if slices.ContainsFunc(m.Comparisons, func(c *comparison) bool { return c.Quick }) {
		b.WriteString("\n**Some of these are from a quick run, and say only that the programs work.** They are marked.\n")
	}
	m.writeSummary(&b)
	b.WriteString("\n## Plots\n")
	for _, c := range m.charts() {
		fmt.Fprintf(&b, "\n![%s](%s/%s)\n", c.Title, plotDir, c.File)
	}
	for _, kind := range cases {
		first := true
		for _, c := range m.Comparisons {
			if c.Case != kind.name {
				continue
			}
			if first {
				fmt.Fprintf(&b, "\n## %s\n\n%s\n", strings.ToUpper(kind.name[:1])+kind.name[1:], kind.about)
				first = false
			}
			c.write(&b)
		}
	}
	if m.Soak != nil {
		m.Soak.write(&b)
	}
	return b.String()
}

// writeSummary writes how often each contestant is better or worse than caddytarget.
func (m *measurements) writeSummary(b *strings.Builder) {
	b.WriteString(summaryHead)
	for _, f := range figures {
		for _, contestant := range contestants {
			var ratios []float64
			better, worse := 0, 0
			for _, c := range m.Comparisons {
				r := c.rowOf(contestant.name)
				if r == nil {
					continue
				}
				result, ratio, ok := c.against(r, f.name, f.more)
				if !ok {
					continue
				}
				if !math.IsNaN(ratio) && !math.IsInf(ratio, 0) { // 0 in 0 connections
					ratios = append(ratios, ratio)
				}
				switch result {
				case -1:
					better++
				case 1:
					worse++
				}
			}
			if better+worse > 0 {
				fmt.Fprintf(b, "| %s | %s | %s | %d | %d |\n", f.name, contestant.name, spread(ratios, 2), better, worse)
			}
		}
	}
}

const summaryHead = `
## What caddytarget loses, and what it wins

In how many settings another contestant is better or worse than caddytarget by more than caddytarget differs from itself,
and its figure over that of caddytarget: the median of the settings, the smallest and the greatest. Where a contestant
fails more often by more than 1 %, only that is counted.

| | contestant | over caddytarget | settings where caddytarget loses | where it wins |
|---|---|---|---|---|
`

// write writes the table of a comparison.
func (c *comparison) write(b *strings.Builder) {
	mark := ""
	if c.Quick {
		mark = "quick run, "
	}
	fmt.Fprintf(b, "\n### %s\n\n%s%d requests/s; rounds: %d of %d s", c.domains(), mark, c.Rate, c.Rounds, c.Seconds)
	if c.Case == healthy {
		fmt.Fprintf(b, " each for full load, with %d connections of wrk, and for the rate", c.Conn)
	}
	fmt.Fprintf(b, "; %s, %s\n\n|", c.Machine, c.Date)
	var shown []int
	for i, f := range figures {
		if slices.ContainsFunc(c.Rows, func(r row) bool { return r.Figures[f.name] != nil }) {
			shown = append(shown, i)
			fmt.Fprintf(b, " | %s", f.name)
		}
	}
	fmt.Fprintf(b, " |\n|---%s|\n", strings.Repeat("|---", len(shown)))
	for _, r := range c.Rows {
		fmt.Fprintf(b, "| %s", r.Contestant)
		for i, n := range shown {
			switch {
			case r.Missing == "":
				fmt.Fprintf(b, " | %s", spread(r.Figures[figures[n].name], figures[n].digits))
			case i == 0:
				fmt.Fprintf(b, " | not run: %s", r.Missing)
			default:
				b.WriteString(" |")
			}
		}
		b.WriteString(" |\n")
	}
	for _, r := range c.Rows {
		if list := r.failures(); len(list) > 0 {
			fmt.Fprintf(b, "\nFailed with %s: %s.\n", r.Contestant, strings.Join(list[:min(3, len(list))], "; "))
		}
	}
}
