package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 2, 100}, 3}} {
		if got := median(test.values); got != test.want {
			t.Errorf("median of %v: %v", test.values, got)
		}
	}
}

func TestSpread(t *testing.T) {
	for want, values := range map[string][]float64{"–": nil, "2.0": {2, 2}, "2.0 (1.0–9.0)": {9, 1, 2}} {
		if got := spread(values, 1); got != want {
			t.Errorf("%v: %q", values, got)
		}
	}
}

// testComparison has, of each contestant, the CPU time and the share that failed.
func testComparison(domains int, figures map[string][2]float64) *comparison {
	c := &comparison{setting: setting{"http", domains, 0, healthy}, Rate: 2000, Rounds: 1, Seconds: 1, Quick: true}
	for _, each := range contestants {
		r := row{Contestant: each.name, Missing: "not there"}
		if f, ok := figures[each.name]; ok {
			r.Missing, r.Figures = "", map[string][]float64{cpuTime: {f[0]}, failed: {f[1]}, fullRate: {1000 - f[0]}}
		}
		c.Rows = append(c.Rows, r)
	}
	return c
}

func TestLosses(t *testing.T) {
	for _, test := range []struct {
		about  string
		others [2]float64
		want   []string
	}{
		{"better by more than the noise", [2]float64{40, 0}, []string{fullRate, cpuTime}},
		{"better by as much as the noise", [2]float64{90, 0}, nil},
		{"worse", [2]float64{200, 0}, nil},
		{"cheap and failing", [2]float64{40, 50}, nil},
		{"cheap and failing hardly more often", [2]float64{40, 1}, []string{fullRate, cpuTime}},
	} {
		c := testComparison(20, map[string][2]float64{ours: {100, 0}, oursAgain: {110, 0}, "HAProxy": test.others})
		var got []string
		for _, loss := range c.losses() {
			what, _, _ := strings.Cut(loss, ": ")
			got = append(got, what)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %v", test.about, got)
		}
	}
	if list := testComparison(20, map[string][2]float64{ours: {100, 0}, "HAProxy": {1, 0}}).losses(); list != nil {
		t.Errorf("without a second instance: %v", list)
	}
}

// A comparison replaces the one in the same setting, and no other.
func TestAdd(t *testing.T) {
	m := new(measurements)
	for _, n := range []int{500, 20, 500} {
		c := testComparison(n, nil)
		c.Case = cases[len(m.Comparisons)%2].name
		m.add(c)
	}
	var got []string
	for _, c := range m.Comparisons {
		got = append(got, c.String())
	}
	if want := []string{"http, 500 domains, " + healthy, "http, 20 domains, " + deadNames}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	c := testComparison(10_000, nil)
	c.Quick = false
	if m.add(c); len(m.Comparisons) != 1 {
		t.Errorf("%d comparisons, of which one is not quick", len(m.Comparisons))
	}
}

func TestReport(t *testing.T) {
	m := &measurements{Soak: &soakReport{
		Minutes: 2, Samples: []sample{{Minute: 1, Resident: 50}, {Minute: 2, Resident: 51}},
		Kinds: map[string]*tally{"GET": {Sent: 3, Failed: 2, Planted: map[string]int{"502 connection_refused": 1}, Errors: map[string]int{"504 why": 1}}},
	}}
	m.add(testComparison(20, map[string][2]float64{ours: {100, 0}, oursAgain: {110, 0}, "HAProxy": {40, 0}}))
	text := m.report()
	for _, want := range []string{
		"not run: not there", "Some of these are from a quick run", "| CPU, µs a request | HAProxy | 0.38 | 1 | 0 |",
		"![Throughput, http](measurements/rate-http.svg)", "1 × `502 connection_refused`", "GET: 1 × 504 why", "resident memory, MB: 50.5 on average",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	for _, c := range m.charts() {
		if !strings.Contains(text, plotDir+"/"+c.File) {
			t.Errorf("the report has no %s", c.File)
		}
	}
}

// What is written down is read again by the next run.
func TestRecord(t *testing.T) {
	defer func(dir string, plotter func([]chart, string)) { *outDir, drawCharts = dir, plotter }(*outDir, drawCharts)
	*outDir = t.TempDir()
	drawn := 0
	drawCharts = func(charts []chart, _ string) { drawn = len(charts) }
	record(func(m *measurements) {
		m.add(testComparison(20, map[string][2]float64{ours: {100, 0}}))
	})
	record(func(m *measurements) { m.add(testComparison(500, nil)) })
	text, err := os.ReadFile(filepath.Join(*outDir, "measurements.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"### http, 20 domains", "### http, 500 domains", "100.0"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q", want)
		}
	}
	if drawn == 0 {
		t.Error("nothing was drawn")
	}
}

func TestSlope(t *testing.T) {
	r := &soakReport{Minutes: 120}
	for i := range 121 {
		s := sample{Minute: float64(i), Resident: 100 + float64(i)/60, Goroutines: 7}
		if i < 20 {
			s.Resident = 10 // is not counted
		}
		r.Samples = append(r.Samples, s)
	}
	hourly, mean := slope(r.settled(), held[0].of)
	if hourly < .999 || hourly > 1.001 || mean < 101 || mean > 102 {
		t.Errorf("%v an hour, %v on average", hourly, mean)
	}
	if hourly, _ := slope(r.settled(), held[2].of); hourly != 0 {
		t.Errorf("%v an hour where nothing changes", hourly)
	}
}

func TestSoakCounts(t *testing.T) {
	s := &soaking{done: make(map[string]*tally)}
	k := kindOfRequest{name: "a port that refuses", planted: []string{"connection_refused"}}
	now := time.Now()
	s.add(k, now, fine, "")
	s.add(k, now, 502, "connection_refused: d1.test at 127.0.0.1:1")
	s.add(k, now, 502, "connection_terminated: d1.test at 127.0.0.1:1")
	s.add(k, now, 0, "EOF")
	s.reloaded = now
	s.add(k, now, 0, "EOF")
	s.add(k, now, 0, "response"+cut+"EOF")
	s.add(k, now.Add(time.Hour), 0, "EOF")
	if sent, failed, unplanted := s.counts(); sent != 7 || failed != 6 || unplanted != 4 {
		t.Errorf("%d sent, %d failed, %d unplanted", sent, failed, unplanted)
	}
	if got := s.done[k.name].Planted[lostToReload]; got != 1 {
		t.Errorf("%d lost to a reload", got)
	}
	if got := s.done[k.name].Planted["502 connection_refused"]; got != 1 {
		t.Errorf("%d planted", got)
	}
}
