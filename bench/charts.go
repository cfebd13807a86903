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
	X            []float64 `json:",omitempty"`
	Y, Low, High []float64
}

// plot draws all charts.
func (m *measurements) plot(dir string) {
	dir, err := filepath.Abs(dir)
	must(err)
	old, err := filepath.Glob(filepath.Join(dir, "*.svg"))
	must(err)
	for _, path := range old {
		must(os.Remove(path))
	}
	charts, err := json.Marshal(m.charts())
	must(err)
	cmd := exec.Command("go", "-C", filepath.Join("bench", "plot"), "run", ".", dir)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(charts), os.Stderr
	must(cmd.Run())
}

// charts returns those that there are data for.
func (m *measurements) charts() (list []chart) {
	for _, scheme := range []string{"http", "https"} {
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
		if each.Scheme != scheme || each.Case != kind {
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
	if len(of) == 0 {
		return list
	}
	for _, name := range names {
		s := series{Name: name}
		for _, each := range of {
			y, low, high := -1., -1., -1.
			if r := each.rowOf(name); r != nil && len(r.Figures[c.Y]) > 0 {
				values := r.Figures[c.Y]
				y, low, high = median(values), slices.Min(values), slices.Max(values)
			}
			s.Y, s.Low, s.High = append(s.Y, y), append(s.Low, low), append(s.High, high)
		}
		c.Series = append(c.Series, s)
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
