package main

import (
	"fmt"
	"html"
	"strings"
)

// drawing is a picture in SVG. Its background is white, so it can be seen on dark pages.
type drawing struct{ strings.Builder }

type point struct{ x, y float64 }

// fill is the colour of a box.
type fill string

const (
	plain fill = "#ffffff" // what is there without caddytarget
	ours  fill = "#dbeafe" // caddytarget's
)

const lineHeight = 16

func newDrawing(width, height float64, title string) *drawing {
	d := new(drawing)
	fmt.Fprintf(&d.Builder, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %[1]g %[2]g" width="%[1]g" height="%[2]g" role="img" font-family="Helvetica, Arial, sans-serif" font-size="12">
<title>%[3]s</title>
<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto-start-reverse"><path d="M0 1 L10 5 L0 9 z" fill="#334155"/></marker></defs>
<rect x="0.5" y="0.5" width="%[4]g" height="%[5]g" rx="8" fill="#ffffff" stroke="#cbd5e1"/>
`, width, height, html.EscapeString(title), width-1, height-1)
	return d
}

// String ends the picture.
func (d *drawing) String() string { return d.Builder.String() + "</svg>\n" }

// text writes a line; x is its middle.
func (d *drawing) text(x, y float64, style, text string) {
	fmt.Fprintf(&d.Builder, `<text x="%g" y="%g" text-anchor="middle" %s>%s</text>`+"\n", x, y, style, html.EscapeString(text))
}

// label writes what an arrow stands for.
func (d *drawing) label(x, y float64, text string) {
	d.text(x, y, `fill="#475569" font-size="11"`, text)
}

// frame draws a frame around boxes, with a title in its upper left corner.
func (d *drawing) frame(x, y, w, h float64, title string) {
	fmt.Fprintf(&d.Builder, `<rect x="%g" y="%g" width="%g" height="%g" rx="8" fill="none" stroke="#94a3b8" stroke-dasharray="5 4"/>`+"\n", x, y, w, h)
	fmt.Fprintf(&d.Builder, `<text x="%g" y="%g" fill="#475569" font-weight="bold">%s</text>`+"\n", x+12, y+18, html.EscapeString(title))
}

// box draws a box with a title and lines below it.
func (d *drawing) box(x, y, w, h float64, f fill, title string, lines ...string) {
	fmt.Fprintf(&d.Builder, `<rect x="%g" y="%g" width="%g" height="%g" rx="6" fill="%s" stroke="#334155"/>`+"\n", x, y, w, h, f)
	top := y + h/2 - lineHeight*float64(len(lines))/2 + 4
	d.text(x+w/2, top, `fill="#0f172a" font-weight="bold" font-size="13"`, title)
	for i, line := range lines {
		d.text(x+w/2, top+lineHeight*float64(i+1)+1, `fill="#334155"`, line)
	}
}

// arrow draws an arrow along points.
func (d *drawing) arrow(style string, points ...point) {
	d.WriteString(`<polyline points="`)
	for i, p := range points {
		if i > 0 {
			d.WriteByte(' ')
		}
		fmt.Fprintf(&d.Builder, "%g,%g", p.x, p.y)
	}
	fmt.Fprintf(&d.Builder, `" fill="none" stroke="#334155" stroke-width="1.3" marker-end="url(#head)"%s/>`+"\n", style)
}

// both draws an arrow with two heads.
func (d *drawing) both(points ...point) { d.arrow(` marker-start="url(#head)"`, points...) }
