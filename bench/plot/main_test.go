package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDraw(t *testing.T) {
	for _, c := range []chart{
		{File: "bars.svg", Title: "bars", Labels: []string{"20", "500"}, Series: []series{
			{Name: "one", Y: []float64{3, 4}, Low: []float64{2, 4}, High: []float64{5, 4}},
			{Name: "other", Y: []float64{-1, 0}, Low: []float64{-1, 0}, High: []float64{-1, 0}},
		}},
		{File: "log.svg", Title: "log", Log: true, Labels: []string{"20"}, Series: []series{
			{Name: "one", Y: []float64{3}, Low: []float64{.02}, High: []float64{500}},
			{Name: "none", Y: []float64{0}, Low: []float64{0}, High: []float64{0}},
		}},
		{File: "nothing.svg", Title: "nothing", Log: true, Labels: []string{"20"}, Series: []series{
			{Name: "one", Y: []float64{0}, Low: []float64{0}, High: []float64{0}},
		}},
		{File: "lines.svg", Title: "lines", Series: []series{{Name: "one", X: []float64{0, 1}, Y: []float64{3, 4}}}},
	} {
		path := filepath.Join(t.TempDir(), c.File)
		if err := c.draw(path); err != nil {
			t.Fatalf("%s: %v", c.File, err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"</svg>", c.Title, "one"} {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s has no %q", c.File, want)
			}
		}
	}
}

func TestDrawRefuses(t *testing.T) {
	for name, c := range map[string]chart{
		"bars without ends": {Labels: []string{"20"}, Series: []series{{Name: "one", Y: []float64{3}}}},
		"a line without X":  {Series: []series{{Name: "one", Y: []float64{3}}}},
	} {
		if c.draw(filepath.Join(t.TempDir(), "chart.svg")) == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
