// Command plot draws the charts of bench as SVG. It reads their description, in JSON,
// from its standard input, and writes files into the directory of its argument. It is a
// module of its own, so that the product does not depend on a library for plots.
package main

import (
	"encoding/json"
	"fmt"
	"image/color"
	"log"
	"math"
	"os"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// chart has either groups of bars, one for each label, or lines.
type chart struct {
	File, Title, X, Y string
	Labels            []string
	Log               bool
	Series            []series
}

// series is one color of bars or one line. Bars below 0 are not drawn.
type series struct {
	Name         string
	Color        int
	X            []float64
	Y, Low, High []float64
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: plot DIRECTORY < charts.json")
	}
	var charts []chart
	if err := json.NewDecoder(os.Stdin).Decode(&charts); err != nil {
		log.Fatal(err)
	}
	for _, c := range charts {
		if err := c.draw(filepath.Join(os.Args[1], filepath.Base(c.File))); err != nil {
			log.Fatalf("%s: %v", c.File, err)
		}
	}
}

// colors can be told apart by people who do not see red and green alike (Okabe and Ito).
// caddytarget and its second instance have the first two.
var colors = []color.Color{
	color.RGBA{0, 114, 178, 255}, color.RGBA{86, 180, 233, 255}, color.RGBA{153, 153, 153, 255},
	color.RGBA{230, 159, 0, 255}, color.RGBA{0, 158, 115, 255}, color.RGBA{204, 121, 167, 255}, color.RGBA{213, 94, 0, 255},
}

func (c chart) draw(path string) error {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"} // which looks like Arial and Helvetica
	p := plot.New()
	p.BackgroundColor = color.White
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = c.Title, c.X, c.Y
	p.Title.Padding = vg.Points(6)
	p.Legend.Top, p.Legend.Left = true, true
	grid := plotter.NewGrid()
	grid.Vertical.Color = nil
	grid.Horizontal.Color = color.Gray{220}
	p.Add(grid)
	draw := c.bars
	if c.Labels == nil {
		draw = c.lines
	}
	if err := draw(p); err != nil {
		return err
	}
	return p.Save(20*vg.Centimeter, 10*vg.Centimeter, path)
}

func (c chart) lines(p *plot.Plot) error {
	for _, s := range c.Series {
		if len(s.X) != len(s.Y) {
			return fmt.Errorf("%q has %d X and %d Y", s.Name, len(s.X), len(s.Y))
		}
		points := make(plotter.XYs, len(s.X))
		for k := range points {
			points[k].X, points[k].Y = s.X[k], s.Y[k]
		}
		line, err := plotter.NewLine(points)
		if err != nil {
			return err
		}
		line.Color, line.Width = colors[s.Color%len(colors)], vg.Points(1.5)
		p.Add(line)
		p.Legend.Add(s.Name, line)
	}
	p.Y.Min, p.Y.Max = 0, p.Y.Max*1.25 // below the legend
	return nil
}

// bars draws the groups side by side, each a unit wide.
func (c chart) bars(p *plot.Plot) error {
	least := math.Inf(1) // the bottom of bars on a scale of logarithms
	for _, s := range c.Series {
		if len(s.Y) != len(c.Labels) || len(s.Low) != len(c.Labels) || len(s.High) != len(c.Labels) {
			return fmt.Errorf("%q has %d bars, %d and %d ends, for %d labels", s.Name, len(s.Y), len(s.Low), len(s.High), len(c.Labels))
		}
		for i := range s.Y {
			if s.Y[i] > 0 && s.Low[i] > 0 {
				least = math.Min(least, s.Low[i])
			}
		}
	}
	logarithmic := c.Log && !math.IsInf(least, 1)
	bottom := 0.
	if logarithmic {
		bottom = math.Pow(10, math.Floor(math.Log10(least)))
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	}
	top := 0.
	width := .8 / float64(len(c.Series))
	for i, s := range c.Series {
		var bars []plotter.XYer
		ends := &ends{}
		for k := range c.Labels {
			if s.Y[k] < 0 {
				continue
			}
			left := float64(k) - .4 + width*float64(i)
			right, y := left+width, math.Max(s.Y[k], bottom)
			bars = append(bars, plotter.XYs{{X: left, Y: bottom}, {X: left, Y: y}, {X: right, Y: y}, {X: right, Y: bottom}})
			ends.XYs = append(ends.XYs, plotter.XY{X: left + width/2, Y: y})
			ends.YErrors = append(ends.YErrors, struct{ Low, High float64 }{y - math.Max(s.Low[k], bottom), math.Max(s.High[k], y) - y})
			top = math.Max(top, s.High[k])
		}
		if bars == nil {
			continue
		}
		for k, bar := range bars {
			polygon, err := plotter.NewPolygon(bar)
			if err != nil {
				return err
			}
			polygon.Color, polygon.LineStyle.Width = colors[s.Color%len(colors)], 0
			p.Add(polygon)
			if k == 0 {
				p.Legend.Add(s.Name, polygon)
			}
		}
		errorBars, err := plotter.NewYErrorBars(ends)
		if err != nil {
			return err
		}
		errorBars.CapWidth = vg.Points(3)
		p.Add(errorBars)
	}
	p.NominalX(c.Labels...)
	// the legend is to the right of the bars
	p.Legend.XOffs = 12.8 * vg.Centimeter
	p.Legend.TextStyle.Font.Size = vg.Points(10)
	p.X.Min, p.X.Max = -.5, float64(len(c.Labels))/.67-.5
	p.Y.Min, p.Y.Max = bottom, math.Max(top*1.05, bottom+1)
	if logarithmic {
		p.Y.Max = math.Pow(10, math.Ceil(math.Log10(math.Max(top, bottom*10))))
	}
	return nil
}

// ends are points with error bars.
type ends struct {
	plotter.XYs
	plotter.YErrors
}
