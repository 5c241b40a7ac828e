package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// The plot has a line per cell and a mark per column, along a logarithmic axis of
// speed with the bare directory at 1.
const (
	labels   = 190 // width of the names
	field    = 620 // width of the axis
	line     = 16
	top      = 64
	mostFast = 4.0 // the ends of the axis
	mostSlow = 1.0 / 64
)

// colours are readable on white and on black; the marks differ in shape too.
var colours = map[string]string{
	"floor": "#555f6a", "loopback": "#c07a00", "loopback-pt": "#b8a000", "bindfs": "#8a63d2", "bindfs-mt": "#c060a8",
	"mendfs": "#1f8f5f", "verify": "#3a8fd0", "rw": "#d0504a", "known": "#7a8590",
}

// plot is the table as an SVG.
func (t *table) plot() string {
	var s strings.Builder
	height := top + line*len(t.Rows) + 24
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">
<title>%s: speed, the bare directory's being 1</title>
<style>
text { fill: #222 } .grid { stroke: #ccc } .one { stroke: #555 } .paper { fill: #fff }
@media (prefers-color-scheme: dark) { text { fill: #ddd } .grid { stroke: #444 } .one { stroke: #aaa } .paper { fill: #111 } }
</style>
<rect class="paper" width="100%%" height="100%%"/>
<text x="8" y="16" font-size="13">%s: speed, the bare directory's being 1 (right is faster)</text>
`, labels+field+20, height, html.EscapeString(t.Backing), html.EscapeString(t.Backing))
	t.legend(&s)
	grid(&s, height)
	for i, r := range t.Rows {
		y := top + line*i + line/2
		fmt.Fprintf(&s, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", labels-8, y+4, html.EscapeString(r.Cell))
		for k, res := range r.Results {
			if res.Column != bare && !math.IsNaN(float64(res.Ratio)) {
				s.WriteString(mark(k, axis(float64(res.Ratio)), y, res.Column))
			}
		}
	}
	s.WriteString("</svg>\n")
	return s.String()
}

func (t *table) legend(s *strings.Builder) {
	x := 12
	for k, c := range t.Columns {
		if c.Name == bare || c.Refused != "" {
			continue
		}
		fmt.Fprintf(s, `%s<text x="%d" y="37">%s</text>`+"\n", strings.TrimSpace(mark(k, float64(x), 33, c.Name)), x+8, html.EscapeString(c.Name))
		x += 26 + 7*len(c.Name)
	}
}

func grid(s *strings.Builder, height int) {
	for v := mostSlow; v <= mostFast; v *= 2 {
		class := "grid"
		if v == 1 {
			class = "one"
		}
		name := fmt.Sprintf("%g", v)
		if v < 1 {
			name = fmt.Sprintf("1/%g", 1/v)
		}
		x := axis(v)
		fmt.Fprintf(s, `<line class="%s" x1="%.1f" x2="%.1f" y1="%d" y2="%d"/><text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n",
			class, x, x, top-4, height-20, x, height-6, name)
	}
}

// axis is the place of a ratio; what lies beyond an end is shown at it.
func axis(ratio float64) float64 {
	at := math.Log(min(max(ratio, mostSlow), mostFast)/mostSlow) / math.Log(mostFast/mostSlow)
	return labels + at*field
}

// mark is a dot of the k-th column: a disc for mendfs, rings and squares for others.
func mark(k int, x float64, y int, column string) string {
	colour := colours[column]
	switch {
	case column == "mendfs":
		return fmt.Sprintf(`<circle cx="%.1f" cy="%d" r="5" fill="%s"/>`+"\n", x, y, colour)
	case k%2 == 0:
		return fmt.Sprintf(`<rect x="%.1f" y="%d" width="7" height="7" fill="none" stroke="%s" stroke-width="1.8"/>`+"\n", x-3.5, y-3, colour)
	}
	return fmt.Sprintf(`<circle cx="%.1f" cy="%d" r="4" fill="none" stroke="%s" stroke-width="1.8"/>`+"\n", x, y, colour)
}
