package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// chart is what the program in bench/plot draws.
type chart struct {
	File, Title, X, Y string
	Labels            []string // of groups of bars; nil: there are lines
	Log               bool
	Series            []series
}

// series is one color of bars or one line. Of bars, Low and High are the ends of the
// error bars, and a value below 0 is one that there is not.
type series struct {
	Name         string
	Color        int
	X            []float64 `json:",omitempty"`
	Y, Low, High []float64
}

// drawCharts draws charts as files in a directory, and removes those that are there. It
// is a variable for tests.
var drawCharts = func(list []chart, dir string) {
	dir, err := filepath.Abs(dir)
	must(err)
	old, err := filepath.Glob(filepath.Join(dir, "*.svg"))
	must(err)
	for _, path := range old {
		must(os.Remove(path))
	}
	charts, err := json.Marshal(list)
	must(err)
	cmd := exec.Command("go", "-C", filepath.Join("bench", "plot"), "run", ".", dir)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(charts), os.Stderr
	must(cmd.Run())
}

// charts returns those that there are data for.
func (m *measurements) charts() (list []chart) {
	for _, scheme := range []string{"http", "https", "h2"} {
		for _, c := range []chart{
			{File: "cpu-" + scheme, Title: "CPU time, " + scheme, Y: fullCPU},
			{File: "rate-" + scheme, Title: "Throughput, " + scheme, Y: fullRate},
			{File: "p99-" + scheme, Title: "99th percentile, " + scheme, Y: p99, Log: true},
			{File: "connections-" + scheme, Title: "New connections, " + scheme, Y: opens},
			{File: "memory-" + scheme, Title: "Memory, " + scheme, Y: memory},
		} {
			c.X = "domains"
			list = m.bars(list, c, scheme, healthy)
		}
		for _, kind := range cases[1:] {
			for _, c := range []chart{
				{File: "failed-" + kind.flag, Title: "Failed requests: " + kind.name + ", " + scheme, Y: failed},
				{File: "p99-" + kind.flag, Title: "99th percentile of the others: " + kind.name + ", " + scheme, Y: p99, Log: true},
			} {
				c.File += "-" + scheme
				c.X = "domains"
				list = m.bars(list, c, scheme, kind.name)
			}
		}
	}
	if m.Soak != nil {
		list = append(list, m.Soak.charts()...)
	}
	return list
}

// bars adds a chart with a group of bars for each number of domains, if there are any.
func (m *measurements) bars(list []chart, c chart, scheme, kind string) []chart {
	var names []string
	var of []*comparison
	for _, each := range m.Comparisons {
		if each.Scheme != scheme || each.Case != kind || each.Addresses > 0 {
			continue
		}
		of = append(of, each)
		c.Labels = append(c.Labels, thousands(each.Domains))
		for _, r := range each.Rows {
			if !slices.Contains(names, r.Contestant) && each.rowOf(r.Contestant) != nil {
				names = append(names, r.Contestant)
			}
		}
	}
	for _, name := range names {
		color := slices.IndexFunc(contestants, func(c *contestant) bool { return c.name == name })
		s, drawn := series{Name: name, Color: color}, false
		for _, each := range of {
			y, low, high := -1., -1., -1.
			if r := each.rowOf(name); r != nil && len(r.Figures[c.Y]) > 0 {
				values := r.Figures[c.Y]
				y, low, high, drawn = median(values), slices.Min(values), slices.Max(values), true
			}
			s.Y, s.Low, s.High = append(s.Y, y), append(s.Low, low), append(s.High, high)
		}
		if drawn {
			c.Series = append(c.Series, s)
		}
	}
	if c.Series == nil {
		return list
	}
	c.File += ".svg"
	return append(list, c)
}

// thousands writes a number with spaces between its groups of three digits.
func thousands(n int) string {
	text := fmt.Sprint(n)
	var groups []string
	for len(text) > 3 {
		groups = append([]string{text[len(text)-3:]}, groups...)
		text = text[:len(text)-3]
	}
	return strings.Join(append([]string{text}, groups...), " ")
}
